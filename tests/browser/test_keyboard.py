"""Each form of each page by keyboard alone: reached by Tab in the order in which it is read, seen where it is, sent by Enter or Space."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import scene
from test_browser import expect

# Where one stands: what it is, whether it is seen to be focused, whether it says what it is, and its place on the page.
HERE = """() => {
  const here = document.activeElement, style = getComputedStyle(here), all = [...document.querySelectorAll("*")];
  const form = here.form ? [...document.forms].indexOf(here.form) : -1;
  const named = here.innerText || here.ariaLabel || here.placeholder || [...(here.labels || [])].map((each) => each.innerText).join();
  return {
    tag: here.tagName, type: here.type || "", form, place: all.indexOf(here), named: Boolean(named && named.trim()),
    seen: here.getClientRects().length > 0 && style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 1,
    closed: here.tagName === "SUMMARY" && !here.parentElement.open, html: here.outerHTML.slice(0, 120),
  };
}"""
# Forms say that they were sent, and stay; empty fields do not hold them.
HOLD = """() => {
  for (const form of document.forms) form.noValidate = true;
  window.sent = [];
  const hold = (event) => { event.preventDefault(); window.sent.push([...document.forms].indexOf(event.target)); };
  document.addEventListener("submit", hold, true);
}"""
# The forms of a page, each with the number of fields and buttons that a person can use.
FORMS = """() => {
  const usable = "button:not(:disabled), select, textarea, input:not([type=hidden], [type=radio]:not(:checked))";
  return [...document.forms].map((form) => form.querySelectorAll(usable).length);
}"""
STOPS_MAX = 400


def paths(ids: dict[str, int]) -> dict[str, str]:
    """Give a page for each kind of form."""
    return {
        "tokens": "/settings/tokens",
        "people": "/settings/people",
        "schema": "/workflows/book-order/runs",
        "triggers": "/workflows/deploy/runs",
        "callbacks": "/workflows/release/callbacks",
        "definition": "/workflows/release",
        "editor": "/workflows/release/edit",
        "request": f"/requests/{ids['refused']}",
        "approval": f"/runs/{ids['asking']}",
        "report": f"/runs/{ids['reporting']}",
        "stages": f"/runs/{ids['detour']}",
        "delivery": "/deliveries/1",
    }


def test_every_form_is_reached_seen_and_sent(page: Any, lived: Any) -> None:
    made, ids = lived
    for name, path in paths(ids).items():
        page.goto(made.url + path)
        walk(page, name)


def test_the_forms_of_signing_in_are_too(browser: Any, lived: Any) -> None:
    made, ids = lived
    context = browser.new_context()
    page = context.new_page()
    with made.box.database.read() as connection:
        token = scene.runs.token_of(made.box.box, scene.runs.wait_of(connection, ids["asking"]))
    for path in ("/sign-in", scene.link(made.box).removeprefix(made.url), f"/answer/{token}"):
        page.goto(made.url + path)
        walk(page, path)
    context.close()


def walk(page: Any, name: str) -> None:
    """Tab from the beginning of a page to its end, opening what is closed; send each form by the button that one stands on."""
    page.evaluate(HOLD)
    page.locator(".skip").focus()
    met: dict[int, int] = {}
    last = -1
    for here in stops(page):
        if here["place"] == last:
            # A date has a stop for each of its parts, which the browser shows.
            continue
        assert here["seen"], f"{name}: not seen to be focused: {here['html']}"
        assert here["named"], f"{name}: has no name: {here['html']}"
        assert here["place"] > last, f"{name}: focus goes back: {here['html']}"
        last = here["place"]
        if here["closed"]:
            page.keyboard.press("Enter")
        if here["form"] >= 0:
            met[here["form"]] = met.get(here["form"], 0) + 1
            if here["type"] == "submit":
                page.keyboard.press("Space" if met[here["form"]] % 2 else "Enter")
    assert met == dict(enumerate(page.evaluate(FORMS))), name
    assert set(page.evaluate("window.sent")) == set(met), name


def stops(page: Any) -> Iterator[dict[str, Any]]:
    for _ in range(STOPS_MAX):
        page.keyboard.press("Tab")
        here = page.evaluate(HERE)
        # After the last stop comes the browser's own, or the page's first.
        if here["tag"] == "BODY" or 'class="skip"' in here["html"]:
            return
        yield here
    raise AssertionError("Tab never comes to the end of the page")


def test_an_api_token_is_made_and_revoked(page: Any, lived: Any) -> None:
    made, _ = lived
    page.goto(made.url + "/settings/tokens")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    tab_to(page, "input[name=name]")
    page.keyboard.type("by keyboard")
    page.keyboard.press("Enter")
    expect(page.locator("#token")).to_have_text(re.compile("orqo_"))
    tab_to(page, "summary.danger")
    page.keyboard.press("Enter")
    tab_to(page, ".pop button")
    page.keyboard.press("Enter")
    expect(page.get_by_text("Revoked.")).to_be_visible()


def test_a_run_is_started_by_a_form_of_its_schema(page: Any, lived: Any) -> None:
    made, _ = lived
    page.goto(made.url + "/workflows/book-order/runs")
    tab_to(page, "#field-0")
    page.keyboard.type("Ada Lovelace")
    tab_to(page, "#field-2")
    page.keyboard.type("me")
    tab_to(page, "#field-4")
    page.keyboard.press("Space")
    tab_to(page, "#field-6")
    page.keyboard.type("{}")
    tab_to(page, "#run-now button.primary")
    page.keyboard.press("Space")

    # The field that is wrong has the focus and says what is wrong.
    expect(page.get_by_label("Address")).to_be_focused()
    expect(page.get_by_label("Address")).to_have_accessible_description(re.compile("city is required"))
    page.keyboard.press("Control+A")
    page.keyboard.type('{"city": "Paris"}')
    tab_to(page, "#run-now button.primary")
    page.keyboard.press("Enter")

    expect(page.locator("h1 + .status")).to_have_text("completed")
    expect(page.locator("#input")).to_have_text(re.compile('"size": "medium".*"express": true.*"city": "Paris"', re.DOTALL))


def tab_to(page: Any, selector: str) -> None:
    """Press Tab until an element that fits is focused."""
    for _ in range(STOPS_MAX):
        page.keyboard.press("Tab")
        if page.evaluate("(selector) => document.activeElement.matches(selector)", selector):
            return
    raise AssertionError(f"Tab never comes to {selector}")
