"""What the tests of the page do with a browser."""

from __future__ import annotations

from pathlib import Path

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
