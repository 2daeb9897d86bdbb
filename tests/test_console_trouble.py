"""The console page when the service is overloaded or unreachable, rejects requests, or requires a token."""

import json
from typing import Any

import pytest
from chromium import browser as browser
from chromium import console, customer_says, suggested
from chromium import page as page
from console_server import StandIn, until
from console_server import server as server
from console_server import url as url
from playwright.sync_api import Browser, Page, Request, expect


def posted(page: Page) -> list[str]:
    """Return a list that collects the bodies of the events as the page sends them."""
    bodies: list[str] = []

    def keep(request: Request) -> None:
        if request.url.endswith("/v1/events"):
            bodies.append(request.post_data or "")

    page.on("request", keep)
    return bodies


def test_a_missing_suggestion_is_explained(page: Page, server: StandIn) -> None:
    server.no_suggestion = "the best one is below the threshold"
    customer_says(page)
    expect(page.get_by_role("status")).to_have_text("No suggestion: the best one is below the threshold")
    until(page, lambda: bool(server.events))
    assert [event.event for event in server.events] == ["opened"]  # nothing was shown


@pytest.mark.parametrize("status", [429, 503, 504])
def test_the_page_reports_an_overloaded_service_and_retries(page: Page, server: StandIn, status: int) -> None:
    suggested(page)
    server.refuse["/v1/suggest"] = [status]
    customer_says(page, "Hello?")
    expect(page.get_by_role("status")).to_have_text("The service is busy; suggestions will come with the next message.")
    expect(page.locator(".suggestion")).to_have_count(5)
    expect(page.get_by_role("status")).to_have_text("")
    assert len(server.contexts[-1].messages) == 2


def test_the_page_reports_an_unreachable_server_and_retries(page: Page) -> None:
    page.route("**/v1/suggest", lambda route: route.abort())
    customer_says(page)
    expect(page.get_by_role("status")).to_have_text("The server cannot be reached; trying again.")
    page.unroute("**/v1/suggest")
    expect(page.locator(".suggestion")).to_have_count(5)


def test_a_permanent_rejection_is_shown(page: Page, server: StandIn) -> None:
    server.refuse["/v1/suggest"] = [413]
    customer_says(page)
    expect(page.get_by_role("status")).to_have_text("The server refused: refused as a test wants it")


def test_a_superseded_request_shows_no_message(page: Page, server: StandIn) -> None:
    suggested(page)
    server.refuse["/v1/suggest"] = [409]
    customer_says(page, "Hello?")
    expect(page.locator("#suggestions:not([aria-busy])")).to_have_count(0)
    expect(page.get_by_role("status")).to_have_text("")
    suggested(page, "Anybody?")


def test_a_newer_message_aborts_the_previous_request(page: Page, server: StandIn) -> None:
    ended: list[str] = []
    page.on("requestfailed", lambda request: ended.append(request.url))
    page.route("**/v1/suggest", lambda _: None, times=1)  # never answered
    customer_says(page, "one")
    suggested(page, "two")
    assert [address.rpartition("/v1/")[2] for address in ended] == ["suggest"]
    assert [said.text for said in server.contexts[0].messages] == ["one", "two"]


def test_the_page_requests_the_token_that_the_server_requires(browser: Browser, server: StandIn, url: str) -> None:
    server.token = "a secret"
    with console(browser, url) as page:
        page.get_by_role("textbox", name="Token").fill("wrong")
        page.get_by_role("button", name="Go on").click()
        expect(page.get_by_text("is not among the server's")).to_be_visible()
        page.get_by_role("textbox", name="Token").fill("a secret")
        page.keyboard.press("Enter")
        expect(page.locator("#model")).to_have_text("model 9f8e7d6c5b4a")
        suggested(page)
        server.token = "another"
        customer_says(page, "Hello?")
        page.get_by_role("textbox", name="Token").fill("another")
        page.keyboard.press("Enter")
        expect(page.locator(".suggestion")).to_have_count(5)


def test_events_are_resent_unchanged_and_contain_no_text(page: Page, server: StandIn) -> None:
    bodies = posted(page)
    server.refuse["/v1/events"] = [503]
    suggested(page)
    page.keyboard.press("2")
    page.keyboard.type(" More.")
    page.keyboard.press("Enter")
    until(page, lambda: len(server.events) == 6 and len(bodies) == 7)
    assert sorted(event.event for event in server.events) == ["edited", "opened", "opened", "picked", "shown", "shown"]
    assert len(set(bodies)) == 6  # one of them was sent twice
    told: list[dict[str, Any]] = [json.loads(body) for body in bodies]
    assert {key for event in told for key in event} == {"suggestion_id", "event", "at", "template", "position"}
