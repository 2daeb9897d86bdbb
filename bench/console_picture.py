"""Draw the README's picture of the console: `python -m bench.console_picture URL` of a running bin/serve."""

import shutil
import sys

from playwright.sync_api import Page, sync_playwright

from bench.common import ROOT

CASE, MESSAGES = "10", 6  # of the made-up cases, one about a stolen card, up to where the card is locked


def draw(page: Page, url: str) -> None:
    """Replays the case, picks the first suggestion and takes the picture."""
    page.goto(f"{url.rstrip('/')}/console")
    page.locator(f"#cases option[value='{CASE}']").wait_for(state="attached")
    page.get_by_label("Sample case").select_option(CASE)
    for _ in range(MESSAGES - 1):
        page.keyboard.press("n")
    page.wait_for_load_state("networkidle")
    page.keyboard.press("1")
    page.screenshot(path=ROOT / "docs" / "console.png")


def main() -> None:
    """Draws it with the system's Chromium."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        draw(browser.new_page(viewport={"width": 1280, "height": 800}), sys.argv[1])


if __name__ == "__main__":
    main()
