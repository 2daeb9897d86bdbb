"""The console on the real server: events reach the store, and overload is reported."""

import re
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import bundles
import pytest
from chromium import browser as browser
from chromium import console, customer_says, settled
from playwright.sync_api import Browser, expect
from serving import Server, served


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundles.write_serving_bundle(tmp_path_factory.mktemp("console") / "bundle", window=64, buckets=[64])


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "events.sqlite"


def kept(store: Path, count: int) -> list[tuple[str, str | None, int | None]]:
    """Return the events once the store has at least `count`."""
    query = "SELECT event, template, position FROM events ORDER BY at, received"
    for _ in range(200):
        connection = sqlite3.connect(store)
        found = connection.execute(query).fetchall()
        connection.close()
        if len(found) >= count:
            return found
        time.sleep(0.05)
    raise AssertionError(found)


def test_a_pick_by_key_is_stored(browser: Browser, folder: Path, store: Path) -> None:
    with served(folder, store) as server, console(browser, server.url) as page:
        customer_says(page)
        settled(page)
        name = page.locator(".suggestion").nth(1).get_by_text(re.compile("^(greet|card|refund|bye|wait|thanks)$"))
        template = name.first.inner_text()
        page.keyboard.press("2")
        expect(page.get_by_label("Reply to the customer")).not_to_have_value("")
        assert kept(store, 3) == [("opened", None, None), ("shown", None, None), ("picked", template, 2)]


@pytest.fixture
def slow(folder: Path, store: Path) -> Iterator[Server]:
    with served(folder, store, "--fake_ms=1000", "--queue=1", "--max_batch_size=1", "--timeout_ms=60000") as server:
        yield server


def test_the_console_reports_overload_and_recovers(browser: Browser, slow: Server) -> None:
    """Two other consoles fill the queue, so the first one's request is shed. It retries automatically."""
    pages = [console(browser, slow.url) for _ in range(3)]
    with pages[0] as one, pages[1] as two, pages[2] as three:
        for page in (two, three):
            customer_says(page)
            page.wait_for_timeout(150)
        customer_says(one)
        expect(one.get_by_role("status")).to_contain_text("The service is busy")
        expect(one.locator(".suggestion")).to_have_count(5, timeout=30_000)
        expect(one.get_by_role("status")).not_to_contain_text("busy")
