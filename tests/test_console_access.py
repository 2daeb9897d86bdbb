"""The console is accessible by keyboard, at any width, and shows text safely."""

import re

import pytest
from chromium import browser as browser
from chromium import console, suggested
from chromium import page as page
from console_server import SUGGESTED, StandIn, wait_for
from console_server import server as server
from console_server import url as url
from playwright.sync_api import Browser, Page, expect

HOSTILE = "<script>document.title = 'owned'</script><img src=x onerror=\"document.title='owned'\"> 😩 مرحبا"


def test_single_keys_can_be_turned_off(page: Page, server: StandIn) -> None:
    suggested(page)
    page.keyboard.press("?")
    page.get_by_label("Keys work without Alt").uncheck()
    page.get_by_role("button", name="Close").click()
    page.keyboard.press("2")
    page.keyboard.press("Alt+1")
    wait_for(page, server, ("picked", 1, "CARD_TRACKING", 1))


def test_markup_in_messages_and_templates_is_shown_as_text(page: Page, server: StandIn) -> None:
    server.suggested = [(HOSTILE, HOSTILE, 0.5), *SUGGESTED[1:]]
    suggested(page, HOSTILE)
    expect(page.locator(".message.customer p")).to_have_text(HOSTILE)
    expect(page.locator(".suggestion .text").first).to_have_text(HOSTILE)
    page.keyboard.press("1")
    expect(page.get_by_label("Reply to the customer")).to_have_value(HOSTILE)
    page.keyboard.press("Enter")
    expect(page.locator(".message.advocate p")).to_have_text(HOSTILE)
    expect(page).to_have_title("Advocate's console")
    assert page.locator("main script, main img").count() == 0


@pytest.mark.parametrize("width", [320, 390, 641, 1280])
def test_every_control_is_within_reach_at_any_width(browser: Browser, server: StandIn, url: str, width: int) -> None:
    server.suggested = [("LONG_" * 30, "w" * 400, 0.5), *SUGGESTED[1:]]
    with console(browser, url, viewport={"width": width, "height": 700}) as page:
        page.get_by_label("Sample case").select_option("0")  # a sample case has a next message
        suggested(page, "m" * 500)
        page.get_by_label("Reply to the customer").fill("one line\n" * 30)
        for control in page.locator("button:visible, input:visible, select:visible, textarea:visible").all():
            control.scroll_into_view_if_needed()
            box = control.bounding_box()
            assert box
            assert (box["x"] >= 0, box["x"] + box["width"] <= width) == (True, True)
            assert box["height"] >= (44 if width <= 640 else 28)
            control.click(trial=True)  # fails if another element covers the control
        page.get_by_label("Search all templates").fill("refund")
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_suggestions_stand_between_conversation_and_reply_on_a_phone(browser: Browser, url: str) -> None:
    with console(browser, url, viewport={"width": 390, "height": 844}) as page:
        suggested(page)
        boxes = [page.locator(part).bounding_box() for part in ("#log", "#suggestions", "#reply")]
        tops = [box["y"] for box in boxes if box]
        assert tops == sorted(tops)
        assert len({box["x"] for box in boxes if box}) <= 2


def test_every_control_is_reached_by_tab_with_a_visible_focus(page: Page) -> None:
    suggested(page)
    page.locator("body").evaluate("document.activeElement.blur()")
    controls = page.locator("button:visible, input:visible, select:visible, textarea:visible, #log").count()
    page.get_by_role("button", name="Keys").focus()
    reached: list[bool] = []
    for _ in range(controls):
        reached.append(
            page.evaluate(
                "(e => { const o = getComputedStyle(e); const n = !e.seen; e.seen = true;"
                "return n && o.outlineStyle !== 'none'; })(document.activeElement)"
            )
        )
        page.keyboard.press("Tab")
    assert reached == [True] * controls


def test_every_interactive_element_has_an_accessible_name(page: Page) -> None:
    suggested(page)
    page.get_by_label("Search all templates").fill("refund")
    parts = [page.locator("body").aria_snapshot()]
    page.get_by_role("button", name="Keys").click()
    parts.append(page.locator("#keys").aria_snapshot())
    lines = [line.strip().replace("- '", "- ") for part in parts for line in part.splitlines()]
    kinds = ("button", "textbox", "combobox", "listbox", "option", "checkbox", "log", "region", "form", "dialog")
    used = [line for line in lines if line.startswith(tuple(f"- {kind}" for kind in kinds))]
    assert {line.split()[1].rstrip(":") for line in used} >= set(kinds)
    assert [line for line in used if not re.match(r'- \w+ "[^"]', line)] == []
    assert any(re.match(r'- button "1 .*CARD_TRACKING 62%"', line) for line in used)
