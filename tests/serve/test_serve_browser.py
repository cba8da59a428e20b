"""The page in a real browser: each view by pointer and by keyboard, at 400 and 1,400 pixels, light and dark."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import quote_plus

import pytest

import tagsds
from tagsds.serve.app import make_app
from tagsds.serve.desk import Desk
from tagsds.serve.guard import hosts_of
from tagsds.serve.limits import Limits
from tests.browser import browser, contrast_failures, hidden_width

SENTENCE = "a red circle left of a blue square"
EVIL = "<script>window.hit=1</script><img src=x onerror='window.hit=1'> a \"red\" circle & co"
SHORT = "<b onclick=hit=1>red</b>"
VIEWS = {
    "find": "#/find",
    "found": "#/find?sentence=a+red+circle+left+of+a+blue+square",
    "sentences": "#/find?image=test-000003",
    "proofread": "#/proofread?image=test-000003&sentence=a+red+cross+is+above+a+large+white+heart",
    "write": "#/write?image=test-000003",
    "align": "#/align?image=test-000003",
    "unknown": "#/proofread?image=nowhere",
    "api": "api",
}


@pytest.fixture(scope="module")
def page(encoder, matcher, live):
    desk = Desk(encoder, matcher, "test", None, Limits(shortlist=8))
    desk.warm()
    with live(make_app(desk, hosts_of("127.0.0.1"))) as address:
        yield address


@pytest.fixture(scope="module")
def driver():
    with browser(1400) as driver:
        yield driver


def width_of(driver, width: int, height: int = 900) -> None:
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def wait(driver, condition: str, *given: object, seconds: float = 15) -> object:
    """What the JavaScript expression is once it holds."""
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(driver, seconds, 0.05).until(lambda d: d.execute_script(f"return {condition}", *given), condition)


def open_view(driver, address: str) -> None:
    driver.get("about:blank")
    driver.get(address)
    wait(driver, "document.querySelector('main h1') && !document.querySelector('main').hasAttribute('aria-busy')")


def all_of(driver, selector: str) -> list[str]:
    return each(driver, selector, "e.innerText")


def each(driver, selector: str, value: str) -> list:
    """A JavaScript expression of every element `e` that the selector finds."""
    return driver.execute_script(f"return [...document.querySelectorAll(arguments[0])].map(e => {value})", selector)


def regions_of(driver, value: str) -> list:
    """A JavaScript expression of every region `r` of the image test-000003, from the API."""
    return driver.execute_script(
        f"return fetch('/api/image/test-000003').then(a => a.json()).then(i => i.regions.map(r => {value}))"
    )


def keep(driver, artefacts: Path, name: str, width: int) -> None:
    """A screenshot of the whole page."""
    tall = driver.execute_script("return document.documentElement.scrollHeight")
    width_of(driver, width, min(max(tall, 900), 3000))
    driver.save_screenshot(str(artefacts / f"{name}.png"))
    width_of(driver, width)


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


@pytest.mark.parametrize("dark", [False, True])
def test_the_page_fits_and_can_be_read(page, artefacts, dark):
    """No scrolling sideways, no text that is cut or too faint, no request to another host, no error in the console."""
    with browser(400, dark=dark) as driver:
        driver.execute_cdp_cmd("Network.enable", {})
        for width in (400, 1400):
            width_of(driver, width)
            for name, place in VIEWS.items():
                driver.get("about:blank")
                driver.get(page + place)
                wait(driver, "document.querySelector('h1') && !document.querySelector('main').hasAttribute('aria-busy')")
                if words := driver.find_elements("css selector", ".word"):
                    driver.execute_script("arguments[0].focus()", words[2])
                label = f"{name} at {width}{' dark' if dark else ''}"
                assert hidden_width(driver) <= 0, label
                assert contrast_failures(driver) == [], label
                assert driver.execute_script(CUT) == [], label
                hosts = driver.execute_script(HOSTS)
                assert set(hosts) <= {page.rstrip("/")}, label
                keep(driver, artefacts, f"serve-{name}-{width}{'-dark' if dark else ''}", width)
        said = [entry for entry in driver.get_log("browser") if "404" not in entry["message"]]  # of the unknown image
        assert said == [], json.dumps(said)


def test_the_gallery_fits_and_motion_can_be_left_out(driver, page, artefacts):
    for width in (400, 1400):
        width_of(driver, width)
        open_view(driver, f"{page}{VIEWS['write']}")
        driver.find_element("id", "choose").click()
        wait(driver, "document.querySelectorAll('dialog .thumb img').length == 20")
        assert wait(driver, "[...document.querySelectorAll('dialog img')].slice(0, 4).every(i => i.naturalWidth)")
        inside = "const d = document.querySelector('dialog'), b = d.getBoundingClientRect(); "
        assert driver.execute_script(inside + "return b.left >= 0 && b.right <= innerWidth && d.scrollWidth <= d.clientWidth")
        assert contrast_failures(driver) == []
        driver.save_screenshot(str(artefacts / f"serve-gallery-{width}.png"))
    moves = "return getComputedStyle(document.querySelector('main'), '::before').animationName"
    driver.execute_script("document.querySelector('main').className = 'busy'")
    assert driver.execute_script(moves) == "go"
    still = {"name": "prefers-reduced-motion", "value": "reduce"}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [still]})
    assert driver.execute_script(moves) == "none"
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


HOSTS = "return performance.getEntries().map(e => e.name).filter(n => /^[a-z]+:/.test(n)).map(n => new URL(n).origin)"
CUT = """
const found = [];
for (const e of document.querySelectorAll("a, button, h1, h2, p, label, select, summary, li, dt, dd, span")) {
  const style = getComputedStyle(e);
  if (!e.checkVisibility() || style.overflow === "visible" || e.closest("pre, textarea, .results ul")) continue;
  const cut = e.scrollWidth > e.clientWidth + 1 || e.scrollHeight > e.clientHeight + 1;
  if (cut) found.push(e.className + ": " + e.innerText.slice(0, 40));
}
for (const e of document.querySelectorAll("select")) {
  const pen = document.createElement("canvas").getContext("2d"), style = getComputedStyle(e);
  pen.font = style.font;
  const room = e.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight) - 22;
  if (pen.measureText(e.selectedOptions[0].text).width > room) found.push("select: " + e.selectedOptions[0].text);
}
const all = [...document.querySelectorAll("main button:not(.word), nav a, textarea, select, input")];
const controls = all.filter(e => e.checkVisibility());
const boxes = controls.map(e => [e, e.getBoundingClientRect()]);
const apart = (x, y) => x.left >= y.right - 1 || y.left >= x.right - 1 || x.top >= y.bottom - 1 || y.top >= x.bottom - 1;
for (const [a, x] of boxes) for (const [b, y] of boxes)
  if (a !== b && !a.contains(b) && !b.contains(a) && !apart(x, y))
    found.push("over each other: " + (a.innerText || a.id) + ", " + (b.innerText || b.id));
return found;
"""
