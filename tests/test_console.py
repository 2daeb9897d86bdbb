"""The console page in Chromium: suggestions, shortcuts, replies, search and replay, and the events that they send."""

import re

from chromium import browser as browser
from chromium import customer_says, settled, suggested
from chromium import page as page
from console_server import SUGGESTED, StandIn, until, wait_for
from console_server import server as server
from console_server import url as url
from playwright.sync_api import Browser, Page, expect

from jaxtempl.serve.schema import TemplateAnswer

FIRST, SECOND = SUGGESTED[0][1], SUGGESTED[1][1]


def test_the_page_loads_without_console_messages_or_foreign_requests(browser: Browser, url: str) -> None:
    said: list[str] = []
    asked: list[str] = []
    with browser.new_context() as window:
        page = window.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"{url}/console")
        expect(page.locator("#cases option")).to_have_count(2)
        suggested(page)
    assert said == []
    assert {address for address in asked if not address.startswith((f"{url}/", "data:"))} == set()


def test_a_message_shows_five_suggestions(page: Page, server: StandIn) -> None:
    suggested(page)
    row = page.locator(".suggestion").first
    expect(row).to_contain_text(FIRST)
    expect(row).to_contain_text("CARD_TRACKING")
    expect(row).to_contain_text("62%")
    expect(page.locator(".suggestion").last).to_contain_text("<1%")
    expect(page.locator("#latency")).to_have_text(re.compile(r"service 11\.9 ms, round trip \d+ ms"))
    expect(page.locator("#window")).to_have_text("143 tokens read, 2 older messages left out")
    expect(page.locator("#told")).to_have_text("5 suggestions, first: CARD_TRACKING, 62 percent")
    context = server.contexts[0]
    assert [(said.role, said.text) for said in context.messages] == [("customer", "Where is my card?")]
    assert (context.k, context.advocate_id) == (5, "console")


def events(server: StandIn) -> list[tuple[str, int]]:
    return [(event.event, int(event.suggestion_id, 16)) for event in server.events]


def test_the_clock_starts_when_the_reply_box_opens(page: Page, server: StandIn) -> None:
    suggested(page)
    page.keyboard.press("2")
    wait_for(page, server, ("picked", 1, "CARD_RETURNED_MAIL", 2))
    assert events(server) == [("opened", 1), ("shown", 1), ("picked", 1)]
    opened, shown, picked = (event.at for event in server.events)
    assert opened <= shown <= picked


def test_the_holdout_has_the_search_alone_and_starts_the_clock(page: Page, server: StandIn) -> None:
    server.no_suggestion = "holdout"
    customer_says(page)
    until(page, lambda: bool(server.events))
    expect(page.locator("#suggestions:not([aria-busy])")).to_be_empty()
    expect(page.get_by_role("status")).to_be_empty()
    expect(page.get_by_role("button", name="Dismiss")).to_be_hidden()
    expect(page.get_by_role("heading", name="Templates")).to_be_visible()
    assert "holdout" not in page.locator("body").inner_text().lower()
    assert "suggestion" not in page.locator(".panel").inner_text().lower()
    page.keyboard.press("1")
    page.keyboard.press("Escape")
    page.keyboard.press("/")
    page.keyboard.type("not sent")
    page.keyboard.press("Enter")
    expect(page.get_by_label("Reply to the customer")).to_have_value("The merchant has not sent us this refund yet.")
    wait_for(page, server, ("searched", 1, "REFUND_NOT_SENT", None))
    assert events(server) == [("opened", 1), ("searched", 1)]
    server.no_suggestion = None
    suggested(page, "Hello?")
    expect(page.get_by_role("heading", name="Suggestions")).to_be_visible()


def test_a_number_key_picks_a_suggestion(page: Page, server: StandIn) -> None:
    suggested(page)
    page.keyboard.press("2")
    expect(page.get_by_label("Reply to the customer")).to_be_focused()
    expect(page.get_by_label("Reply to the customer")).to_have_value(SECOND)
    expect(page.locator("#source")).to_have_text("From CARD_RETURNED_MAIL")
    wait_for(page, server, ("picked", 1, "CARD_RETURNED_MAIL", 2))


def test_a_number_key_in_a_text_field_picks_only_with_alt(page: Page, server: StandIn) -> None:
    suggested(page)
    reply = page.get_by_label("Reply to the customer")
    reply.press("2")
    expect(reply).to_have_value("2")
    reply.press("Alt+2")
    expect(reply).to_have_value(SECOND)
    reply.press("Control+z")
    expect(reply).to_have_value("2")
    wait_for(page, server, ("picked", 1, "CARD_RETURNED_MAIL", 2))


def test_a_placeholder_is_selected_and_an_edit_is_reported(page: Page, server: StandIn) -> None:
    suggested(page)
    page.keyboard.press("1")
    page.keyboard.insert_text("Nov 14")  # replaces the placeholder, which is selected
    expect(page.locator("#source")).to_have_text("From CARD_TRACKING, edited")
    page.keyboard.press("Enter")
    reply = FIRST.replace("{date}", "Nov 14")
    expect(page.locator(".message.advocate p")).to_have_text(reply)
    wait_for(page, server, ("picked", 1, "CARD_TRACKING", 1), ("edited", 1, "CARD_TRACKING", 1))
    expect(page.get_by_label("Reply to the customer")).to_have_value("")
    assert [(said.role, said.text) for said in server.contexts[1].messages][1:] == [("advocate", reply)]


def test_a_reply_without_edits_sends_no_second_event(page: Page, server: StandIn) -> None:
    suggested(page)
    page.keyboard.press("2")
    page.keyboard.press("Control+Enter")
    expect(page.locator(".message.advocate p")).to_have_text(SECOND)
    settled(page)
    page.keyboard.press("1")  # the number keys work again without a click
    wait_for(page, server, ("picked", 1, "CARD_RETURNED_MAIL", 2), ("picked", 2, "CARD_TRACKING", 1))


def test_a_reply_without_a_template_is_reported_as_freehand(page: Page, server: StandIn) -> None:
    suggested(page)
    page.keyboard.press("1")
    page.get_by_label("Reply to the customer").fill("")  # clearing the text discards the pick
    page.get_by_label("Reply to the customer").fill("A line\nof mine")
    page.get_by_role("button", name="Send Enter").click()
    expect(page.locator(".message.advocate p")).to_have_text("A line\nof mine")
    wait_for(page, server, ("picked", 1, "CARD_TRACKING", 1), ("freehand", 1, None, None))


def test_escape_dismisses_the_suggestions(page: Page, server: StandIn) -> None:
    suggested(page)
    page.get_by_label("Reply to the customer").focus()
    page.keyboard.press("Escape")
    expect(page.locator(".suggestion")).to_have_count(0)
    expect(page.get_by_role("status")).to_have_text("Dismissed; the next message brings new ones.")
    page.keyboard.press("Escape")
    page.keyboard.press("Alt+1")
    wait_for(page, server, ("dismissed", 1, None, None))
    suggested(page, "Hello?")
    page.get_by_role("button", name="Dismiss").click()
    expect(page.locator("#heading")).to_be_focused()
    wait_for(page, server, ("dismissed", 1, None, None), ("dismissed", 2, None, None))


def test_search_finds_active_templates_and_fills_the_reply(page: Page, server: StandIn) -> None:
    suggested(page)
    page.keyboard.press("/")
    search = page.get_by_role("combobox", name="Search all templates")
    expect(search).to_be_focused()
    page.keyboard.type("refund")
    options = page.get_by_role("option", name="REFUND")
    expect(options).to_have_count(2)  # the retired one is not among them
    expect(search).to_have_attribute("aria-activedescendant", options.nth(0).get_attribute("id") or "")
    page.keyboard.press("ArrowDown")
    expect(options.nth(1)).to_have_attribute("aria-selected", "true")
    page.keyboard.press("Enter")
    expect(page.get_by_label("Reply to the customer")).to_have_value("The merchant has not sent us this refund yet.")
    expect(search).to_have_attribute("aria-expanded", "false")
    wait_for(page, server, ("searched", 1, "REFUND_NOT_SENT", None))


def test_another_model_version_reloads_the_templates(page: Page, server: StandIn) -> None:
    suggested(page)
    server.version = "0a1b2c3d4e5f"
    server.templates.append(TemplateAnswer("BRAND_NEW", "Nobody said this before.", True))
    suggested(page, "Hello?")
    expect(page.locator("#model")).to_have_text("model 0a1b2c3d4e5f")
    page.wait_for_load_state("networkidle")
    page.get_by_label("Search all templates").fill("nobody")
    expect(page.get_by_role("option", name="BRAND_NEW")).to_be_visible()


def test_a_search_without_results_shows_a_message_and_escape_closes_only_the_search(
    page: Page, server: StandIn
) -> None:
    suggested(page)
    search = page.get_by_role("combobox", name="Search all templates")
    search.fill("xylophone")
    expect(page.get_by_role("option", name="No template has these words")).to_be_visible()
    page.keyboard.press("Enter")
    page.keyboard.press("Escape")
    expect(page.locator("#found")).to_be_hidden()
    expect(search).to_have_value("")
    expect(page.locator(".suggestion")).to_have_count(5)
    wait_for(page, server)


def test_a_sample_case_is_replayed_and_a_new_reply_replaces_the_recorded_one(page: Page, server: StandIn) -> None:
    page.get_by_label("Sample case").select_option("0")
    expect(page.locator(".message")).to_have_count(1)
    page.keyboard.press("n")
    expect(page.locator(".message.advocate p")).to_have_text("As the advocate of then replied.")
    page.get_by_role("button", name="Start over").click()
    expect(page.locator(".message")).to_have_count(1)
    expect(page.locator(".suggestion")).to_have_count(5)
    page.keyboard.press("2")
    page.keyboard.press("Enter")
    for _ in range(3):
        page.keyboard.press("n")
    expect(page.locator(".message p")).to_have_text(
        ["Where is my card?", SECOND, "My ZIP is 30301.", "lookup_card -> mailed Nov 14"]
    )
    expect(page.get_by_role("button", name="Next message")).to_be_disabled()
    expect(page.locator("#suggestions:not([aria-busy])")).to_be_visible()
    assert len({context.case_id for context in server.contexts}) == 2
