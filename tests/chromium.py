"""The system's Chromium in headless mode, and the console in it."""

import contextlib
import shutil
from collections.abc import Generator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright
from require import missing

expect.set_options(timeout=20_000)  # milliseconds; tests run in parallel on few cores
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)


@pytest.fixture(scope="module")
def browser() -> Generator[Browser]:
    """Start the browser, or skip the test where none is installed; the module's tests cannot run an event loop."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or missing("chromium")
    with sync_playwright() as playwright, playwright.chromium.launch(executable_path=path, args=FLAGS.split()) as found:
        yield found


@contextlib.contextmanager
def console(browser: Browser, url: str, **context: Any) -> Generator[Page]:
    """Open the console of the server at `url` in a new window, and wait for its model or its request for a token."""
    with browser.new_context(**context) as window:
        window.set_default_timeout(20_000)
        page = window.new_page()
        page.goto(f"{url}/console")
        page.locator("#model:not(:empty), #asked[open]").first.wait_for()
        yield page


@pytest.fixture
def page(browser: Browser, url: str) -> Generator[Page]:
    with console(browser, url) as opened:
        yield opened


def customer_says(page: Page, text: str = "Where is my card?") -> None:
    page.get_by_label("Customer says").fill(text)
    page.get_by_label("Customer says").press("Enter")


def suggested(page: Page, text: str = "Where is my card?") -> None:
    """Send a message of the customer and wait for five suggestions."""
    customer_says(page, text)
    settled(page)


def settled(page: Page) -> None:
    """Wait until five suggestions are shown and no request is pending."""
    expect(page.locator("#suggestions:not([aria-busy]) .suggestion")).to_have_count(5)
