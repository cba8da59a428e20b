"""The page in a real browser: each view by pointer and by keyboard."""

from __future__ import annotations

from urllib.parse import quote_plus

import pytest

import tagsds
from tagsds.serve.app import make_app
from tagsds.serve.desk import Desk
from tagsds.serve.guard import hosts_of
from tagsds.serve.limits import Limits
from tests.serve.driving import EVIL, SENTENCE, SHORT, VIEWS, all_of, each, open_view, regions_of, wait, width_of


def test_search_by_a_sentence_and_back(driver, page, encoder, matcher):
    width_of(driver, 1400)
    open_view(driver, page)
    assert len(all_of(driver, ".gallery .card")) == 20 and "1 to 20 of 20 pictures" in all_of(driver, ".pager")[0]
    area = driver.find_element("id", "sentence")
    area.send_keys(SENTENCE)
    driver.find_element("id", "run").click()
    wait(driver, "document.querySelectorAll('#hits li').length == 12")
    among = [hit.number for hit in matcher.search(SENTENCE, 12, by="sentence")]
    expected = [hit.key for hit in encoder.search(SENTENCE, 12, by="sentence", among=among)]
    assert all_of(driver, "#hits .card > a.small") == expected
    status = all_of(driver, "[role=status]")[0]
    assert "12 pictures" in status and "matcher vsrn: 20 pictures in" in status and "encoder tagsdc: 12 pictures in" in status
    assert wait(driver, "[...document.querySelectorAll('#hits img')].every(i => i.complete && i.naturalWidth && i.alt)")
    link = driver.current_url
    assert "sentence=a+red+circle" in link
    driver.find_element("css selector", "#hits .card > a").click()  # a hit is opened with the sentence that found it
    wait(driver, "document.querySelector('#proofread')")
    assert driver.find_element("id", "sentence").get_property("value") == SENTENCE
    driver.back()
    wait(driver, "document.querySelectorAll('#hits li').length == 12")
    open_view(driver, link)  # a link shows the same again
    assert all_of(driver, "#hits .card > a.small") == expected


def test_search_by_a_picture(driver, page, encoder):
    open_view(driver, page)
    driver.find_element("link text", "By a picture").click()
    wait(driver, "document.querySelectorAll('#hits li').length == 12")
    driver.find_element("id", "choose").click()
    wait(driver, "document.querySelectorAll('dialog .thumb').length == 20")
    field = driver.find_element("css selector", "dialog input")
    field.send_keys("00004")
    wait(driver, "document.querySelectorAll('dialog .thumb').length == 1")
    driver.find_element("css selector", "dialog .thumb").click()
    wait(driver, "location.hash.includes('image=test-000004') && document.querySelectorAll('#hits li').length == 12")
    own = all_of(driver, "#hits li.own .text")
    assert set(own) <= set(encoder.captions("test-000004"))
    assert not driver.find_elements("css selector", "dialog")


def test_proofreading_marks_words(driver, page, encoder):
    open_view(driver, f"{page}{VIEWS['proofread']}")
    text = "a red cross is above a large white heart"
    expected = encoder.proofread("test-000003", text)
    heats = each(driver, ".word", "+e.style.getPropertyValue('--heat')")
    assert heats == pytest.approx([word.suspicion for word in expected], abs=1e-5)
    colours = each(driver, ".word", "getComputedStyle(e).backgroundColor")
    order = sorted(range(len(heats)), key=lambda n: heats[n])
    assert colours[order[0]] != colours[order[-1]]
    rows = all_of(driver, "#proofread li")
    assert [row.split("\n")[0] for row in rows] == [w.text for w in sorted(expected, key=lambda w: -w.suspicion)]
    area = driver.find_element("id", "sentence")
    area.clear()
    area.send_keys("one circle\n")  # Enter asks
    wait(driver, "document.querySelectorAll('#proofread li').length == 2")


def test_pointing_at_a_word_draws_its_regions(driver, page, encoder):
    from selenium.webdriver import ActionChains

    open_view(driver, f"{page}{VIEWS['align']}")
    caption = encoder.captions("test-000003")[0]
    aligned = [(word, weights) for word, weights in encoder.align("test-000003", caption) if word.isalnum()]
    words = driver.find_elements("css selector", ".word")
    assert [word.text for word in words] == [word for word, _ in aligned]
    assert not driver.find_elements("css selector", ".frame rect")
    names = regions_of(driver, "r.name")
    for n in (1, 2):
        ActionChains(driver).move_to_element(words[n]).perform()
        weights = aligned[n][1]
        wait(driver, "document.querySelectorAll('.frame rect.over').length == arguments[0]", len(weights))
        strong = each(driver, ".frame rect.over", "+e.getAttribute('opacity')")
        expected = sorted(max(0.12, float(w / weights.max()) ** 1.5) for w in weights)
        assert strong == pytest.approx(expected, abs=1e-4)
        tag = driver.find_element("css selector", ".tag")
        assert tag.text == names[int(weights.argmax())]
        assert f"“{aligned[n][0]}” looks at {tag.text}" in driver.find_element("css selector", ".looks").text
        inside = driver.execute_script(
            "const t = arguments[0].getBoundingClientRect(), w = innerWidth; return t.left >= 0 && t.right <= w", tag
        )
        assert inside
    ActionChains(driver).move_to_element(driver.find_element("css selector", "h1")).perform()
    wait(driver, "document.querySelectorAll('.frame rect').length == 0")


def test_the_boxes_lie_on_the_picture(driver, page):
    """The drawn rectangle is where the box says, in pixels of the picture that is shown."""
    for width in (400, 1400):
        width_of(driver, width)
        open_view(driver, f"{page}{VIEWS['align']}")
        driver.execute_script("document.querySelector('.word').focus()")
        wait(driver, "document.querySelector('.frame rect.over')")
        found = driver.execute_script("""
            const img = document.querySelector('.frame img').getBoundingClientRect();
            const rects = [...document.querySelectorAll('.frame rect.over')];
            return rects.map(e => { const r = e.getBoundingClientRect();
              return [r.x, r.y, r.right, r.bottom].map((at, n) => n % 2 ? (at - img.y) / img.height : (at - img.x) / img.width); });
        """)  # fmt: skip
        boxes = regions_of(driver, "r.box")
        for box in boxes:
            assert any(one == pytest.approx(box, abs=0.02) for one in found), (box, found)


def test_writing_shows_negatives_and_what_was_dropped(driver, page, encoder):
    open_view(driver, f"{page}#/write?image=test-000003&n=4&seed=5")
    caption = encoder.captions("test-000003")[0]
    expected = encoder.write_negatives("test-000003", caption, 4, seed=5)
    assert all_of(driver, "#negatives .text") == [one.text for one in expected]
    marked = each(driver, "#negatives li", "e.querySelectorAll('mark').length")
    assert marked == [len(one.changes) for one in expected]
    summaries = all_of(driver, ".results summary")
    assert len(summaries) == sum(bool(part) for part in expected.dropped.values())
    assert any(f"repeated · {len(expected.dropped['repeated'])}: it was written before" in line for line in summaries)
    driver.find_element("css selector", ".results summary").click()
    assert all_of(driver, ".results details[open] li")
    field = driver.find_element("id", "n")
    field.clear()
    field.send_keys("2")
    driver.find_element("css selector", ".panel .caption").click()  # a caption is taken as the sentence
    wait(driver, "document.querySelectorAll('#negatives li').length == 2 && location.hash.includes('n=2')")


def test_by_the_keyboard_alone(driver, page):
    from selenium.webdriver import ActionChains, Keys

    width_of(driver, 1400)
    open_view(driver, page)

    def press(*keys):
        for key in keys:
            ActionChains(driver).send_keys(key).perform()

    def focused(field="id"):
        return driver.execute_script(f"return document.activeElement.{field}")

    def tab_to(condition, most=40):
        for _ in range(most):
            press(Keys.TAB)
            if driver.execute_script(f"const e = document.activeElement; return {condition}"):
                style = "getComputedStyle(document.activeElement)"
                seen = driver.execute_script(f"return {style}.outlineStyle != 'none' || {style}.boxShadow != 'none'")
                assert seen, "the focus is seen"
                return
        raise AssertionError(f"the Tab key does not reach {condition}")

    press(Keys.TAB)
    assert focused("className") == "skip"
    press(Keys.ENTER)
    assert focused() == "main"
    tab_to("e.id == 'sentence'")
    press(SENTENCE, Keys.ENTER)
    wait(driver, "document.querySelectorAll('#hits li').length == 12")
    assert focused() == "sentence"  # the focus stays where it was
    tab_to("e.closest('#hits')")
    press(Keys.ENTER)
    wait(driver, "document.querySelector('#proofread') && !document.querySelector('main').ariaBusy")
    tab_to("e.id == 'choose'")
    press(Keys.ENTER)
    wait(driver, "document.querySelectorAll('dialog .thumb').length == 20")
    press(Keys.ESCAPE)
    wait(driver, "!document.querySelector('dialog')")
    assert focused() == "choose"
    press(Keys.ENTER)
    wait(driver, "document.querySelectorAll('dialog .thumb').length == 20")
    tab_to("e.classList.contains('thumb')")
    key = driver.execute_script("return document.activeElement.getAttribute('aria-label').split(':')[0]")
    press(Keys.ENTER)
    wait(driver, "location.hash.includes(arguments[0]) && document.querySelector('#proofread')", f"image={key}")
    tab_to("e.classList.contains('word')")
    wait(driver, "document.querySelector('.frame rect.over')")
    press(Keys.TAB)
    assert driver.execute_script("return document.activeElement.classList.contains('word')")
    tab_to("e.textContent == 'Write'", 60)
    press(Keys.ENTER)
    wait(driver, "document.querySelector('#negatives')")


def test_text_is_never_read_as_markup(driver, live, encoder_run, world):
    encoder = tagsds.load(encoder_run, world, "cpu")
    bank = encoder.gallery.bank
    assert bank is not None
    bank.texts = [EVIL if n < 5 else text for n, text in enumerate(bank.texts)]
    with live(make_app(Desk(encoder, None, "test", None, Limits()), hosts_of("127.0.0.1"))) as address:
        key = encoder.keys[0]
        for view in ("proofread", "write", "align", "find"):
            open_view(driver, f"{address}#/{view}?image={key}&k=100")
            assert "<script>" in driver.find_element("css selector", "main").text, view
        open_view(driver, f"{address}#/proofread?image={key}&sentence={quote_plus(SHORT)}")
        assert SHORT in driver.find_element("css selector", ".sentence").text
        open_view(driver, f"{address}#/find?sentence={quote_plus(EVIL)}")
        open_view(driver, f"{address}#/proofread?image={quote_plus('<script>hit=1')}")
        assert "<script>" in all_of(driver, "[role=alert]")[0]
        assert driver.execute_script("return window.hit") is None


def test_a_problem_is_said_and_can_be_tried_again(driver, page):
    open_view(driver, f"{page}{VIEWS['unknown']}")
    assert driver.find_element("link text", "Start afresh").get_attribute("href") == f"{page}#/proofread"
    assert "Image 'nowhere' is not in split 'test'" in all_of(driver, "[role=alert]")[0]
    open_view(driver, f"{page}#/proofread?image=test-000003&sentence={'red+' * 60}")
    assert "max_position_embeddings" in all_of(driver, ".results [role=alert]")[0]
    assert driver.find_element("id", "sentence").get_property("value").startswith("red red")  # what was typed is still there
    driver.find_element("css selector", "[role=alert] button").click()
    wait(driver, "!document.querySelector('main').hasAttribute('aria-busy') && document.querySelector('[role=alert]')")
