"""The page at 400 and 1,400 pixels, light and dark: nothing overlaps, nothing is cut, and the contrast is enough."""

from __future__ import annotations

import json

import pytest

from tests.browser import browser, contrast_failures, hidden_width
from tests.serve.driving import VIEWS, keep, open_view, wait, width_of

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
