"""Pages in a real browser: a headless chromium of a given width, and text whose contrast is too low."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

LOWEST_CONTRAST = 4.5  # WCAG 2.2, 1.4.3, text of ordinary size

# Every visible element with text of its own: contrast of its colour with what lies behind it. Colours are read back from a canvas,
# which knows every notation. Behind HTML text lie its ancestors' backgrounds, behind SVG text also the shapes drawn before it.
CONTRAST = """
const pen = Object.assign(document.createElement("canvas"), {width: 1, height: 1}).getContext("2d", {willReadFrequently: true});
const known = new Map();
function rgba(text) {
  if (!known.has(text)) {
    pen.clearRect(0, 0, 1, 1); pen.fillStyle = "#000"; pen.fillStyle = text; pen.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = pen.getImageData(0, 0, 1, 1).data;
    known.set(text, [r, g, b, a / 255]);
  }
  return known.get(text);
}
const over = (top, below, alpha) => [0, 1, 2].map(i => top[i] * alpha + below[i] * (1 - alpha));
function luminance(colour) {
  const [r, g, b] = colour.map(v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}
function contrast(a, b) {
  const [low, high] = [luminance(a), luminance(b)].sort((x, y) => x - y);
  return (high + 0.05) / (low + 0.05);
}
function behind(element) {
  const chain = [];
  for (let e = element; e; e = e.parentElement) chain.unshift(e);
  let colour = rgba("Canvas").slice(0, 3);
  for (const e of chain) { const c = rgba(getComputedStyle(e).backgroundColor); colour = over(c, colour, c[3]); }
  return colour;
}
function behindInDrawing(element, svg) {
  let colour = behind(svg);
  const box = element.getBoundingClientRect(), middle = new DOMPoint(box.x + box.width / 2, box.y + box.height / 2);
  for (const shape of svg.querySelectorAll("rect, path, circle, ellipse, polygon")) {
    if (!(shape.compareDocumentPosition(element) & Node.DOCUMENT_POSITION_FOLLOWING) || shape.closest("defs, clipPath")) continue;
    const style = getComputedStyle(shape);
    if (style.fill === "none" || !shape.getScreenCTM()) continue;
    if (!shape.isPointInFill(middle.matrixTransform(shape.getScreenCTM().inverse()))) continue;
    const c = rgba(style.fill);
    colour = over(c, colour, c[3] * style.fillOpacity * style.opacity);
  }
  return colour;
}
const found = [];
for (const element of document.body.querySelectorAll("*")) {
  const text = [...element.childNodes].filter(n => n.nodeType === 3).map(n => n.data).join("").trim();
  const style = getComputedStyle(element), box = element.getBoundingClientRect();
  if (!text || ["SCRIPT", "STYLE", "NOSCRIPT", "TEMPLATE", "title", "desc", "OPTION"].includes(element.tagName)) continue;
  if (!box.width || !box.height || element.disabled) continue;
  if (!element.checkVisibility({checkOpacity: true, checkVisibilityCSS: true})) continue;
  const svg = element.closest("svg");
  const ground = svg ? behindInDrawing(element, svg) : behind(element);
  const ink = rgba(svg ? style.fill : style.color);
  let alpha = ink[3] * (svg ? style.fillOpacity : 1);
  for (let e = element; e; e = e.parentElement) alpha *= getComputedStyle(e).opacity;
  const ratio = contrast(over(ink, ground, alpha), ground);
  if (ratio >= arguments[0]) continue;
  found.push({text: text.slice(0, 80), tag: element.tagName.toLowerCase(), contrast: Math.round(ratio * 100) / 100});
}
return found;
"""


@contextmanager
def browser(width: int, height: int = 900, dark: bool = False) -> Iterator[Any]:
    """A Selenium driver of a headless chromium whose page is `width` CSS pixels wide, in the light or the dark scheme. The test is
    skipped where selenium, chromium or chromedriver is not installed."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    chromedriver = shutil.which("chromedriver")
    if not program or not chromedriver:
        pytest.skip("chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for argument in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "hide-scrollbars"):
        options.add_argument(f"--{argument}")
    options.add_argument(f"--window-size={max(width, 500)},{height}")
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(chromedriver))
    try:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        driver.set_script_timeout(60)
        yield driver
    finally:
        driver.quit()


def contrast_failures(driver: Any, lowest: float = LOWEST_CONTRAST) -> list[dict[str, Any]]:
    """Visible text of the page whose contrast with what lies behind it is below `lowest`, as {text, tag, contrast}."""
    return driver.execute_script(CONTRAST, lowest)


def hidden_width(driver: Any) -> int:
    """CSS pixels by which the page is wider than its window: 0 unless it scrolls sideways."""
    return driver.execute_script("return document.documentElement.scrollWidth - document.documentElement.clientWidth")
