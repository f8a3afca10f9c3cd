"""A headless Chromium that calls nobody, and the README's picture of the playground taken with it.

python -m tests.support.chromium http://127.0.0.1:8501 docs/images/playground.png
"""

import sys
from pathlib import Path

from playwright.sync_api import Browser, Playwright, sync_playwright

DEBIANS = Path("/usr/bin/chromium")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


class NoChromium(Exception):
    """The message says where it was looked for."""


def launch(playwright: Playwright) -> Browser:
    """Debian's Chromium, else Playwright's own. Raises NoChromium."""
    bundled = Path(playwright.chromium.executable_path)
    found = next((path for path in (DEBIANS, bundled) if path.exists()), None)
    if found is None:
        raise NoChromium(f"there is no {DEBIANS} and no {bundled}; `apt-get install chromium` or `playwright install`")
    return playwright.chromium.launch(executable_path=found, args=list(FLAGS))


def take_picture(
    url: str, path: Path, *, language: str = "Arabic", models: tuple[str, str] = ("seedling", "seedling-z")
) -> None:
    """Two models go on from the same prompt, side by side."""
    with sync_playwright() as playwright:
        page = launch(playwright).new_page(viewport={"width": 1360, "height": 960})
        page.set_default_timeout(60_000)
        page.goto(url)
        for label, wanted in (("Model", models[0]), ("Compare with", models[1]), ("Language", language)):
            box = page.get_by_role("combobox", name=label, exact=True)
            box.click()
            box.fill(wanted)
            page.get_by_role("option").filter(has_text=wanted).first.click()
            page.wait_for_timeout(1500)
        page.get_by_test_id("stMain").get_by_role("button").filter(has_text="Generate").click()
        ended = "cards => cards.length == 2 && cards.every(card => /limit|end/.test(card.textContent))"
        page.wait_for_function(f"({ended})([...document.querySelectorAll('.an-facts')])")
        page.mouse.move(0, 0)
        page.wait_for_timeout(1500)
        page.screenshot(path=path)


if __name__ == "__main__":
    take_picture(sys.argv[1], Path(sys.argv[2]))
