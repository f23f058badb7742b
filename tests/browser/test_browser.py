"""The dashboard in a browser, against the real processes: what people do with it, by mouse, by keyboard and without a script."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import requests
import scene
from screenshots import EMPTY, LOOKS, pages

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)><svg onload=alert(3)>\"'></pre></textarea>"
HANDLERS = "[...document.querySelectorAll('*')].some((e) => e.getAttributeNames().some((n) => n.startsWith('on')))"
WILD = """name: wild
description: DESCRIPTION
callbacks:
  - {url: "http://127.0.0.1:9/<b>x</b>", events: [failed]}
stages:
  - name: burst
    script: cat "$ORQO_INPUT_FILE"; cat "$ORQO_INPUT_FILE" >&2; exit 3
"""
STOPPABLE = "name: stoppable\nstages:\n  - {name: first, stub: {delay: 300ms}}\n  - {name: second, stub: {delay: 10m}}\n"
RELAY = """name: relay
callbacks: [{url: "BASE/api/v1/callback"}]
stages:
  - {name: fetch, stub: {output: {n: 1}, delay: 1s}}
  - {name: greet, command: [echo, "hello ${input.name}"]}
"""


def expect(locator: Any) -> Any:
    from playwright.sync_api import expect as of_playwright

    return of_playwright(locator)


def test_from_a_sign_in_link_to_a_stopped_run(context: Any, lived: Any) -> None:
    made, _ = lived
    made.box.apply(RELAY.replace("BASE", made.url))
    made.box.apply(STOPPABLE)
    page = context.new_page()
    scene.sign_in(page, made.box)

    # An API token is made and used.
    page.get_by_role("link", name="Settings").click()
    page.get_by_label("Name").fill("robot")
    page.get_by_role("button", name="Make token").click()
    token = page.locator("#token").inner_text()
    body = {"workflow": "hello", "input": {"name": "robot"}}
    answer = requests.post(f"{made.url}/api/v1/trigger", json=body, headers={"Authorization": f"Bearer {token}"}, timeout=5)
    assert answer.status_code == 201

    # A webhook trigger is made; its URL is copied from the page and POSTed to.
    page.get_by_role("link", name="Workflows").click()
    page.get_by_role("link", name="relay", exact=True).click()
    page.locator("#new-trigger").get_by_label("Name").fill("outside")
    page.get_by_role("button", name="Create webhook").click()
    url = page.locator("pre", has_text="/api/v1/hooks/").first.inner_text()
    run_id = requests.post(url, json={"name": "Ada"}, timeout=5).json()["workflow_run_id"]

    # The run is seen live going to completed, without a reload.
    page.goto(f"{made.url}/runs/{run_id}")
    page.evaluate("window.sameDocument = true")
    status = page.locator("h1 + .status")
    expect(status).to_have_text("completed")
    assert page.evaluate("window.sameDocument")

    # Its stages are opened, and the callback is seen delivered.
    page.locator("#stage-2 > summary").click()
    expect(page.locator("#output-2")).to_have_text("hello Ada")
    expect(page.locator("#deliveries .status")).to_have_text("delivered")

    # A running one is stopped.
    page.goto(f"{made.url}/workflows/stoppable/runs")
    page.locator("#run-now").get_by_role("button", name="Run now").click()
    expect(page.locator("h1 + .status")).to_have_text("running")
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("h1 + .status")).to_have_text("stopped")


def test_nothing_hostile_is_executed_or_becomes_an_element(context: Any, page: Any, lived: Any) -> None:
    made, _ = lived
    box = made.box
    box.apply(WILD.replace("DESCRIPTION", json.dumps(HOSTILE)))
    hook = box.hook("wild", "wild")
    headers = {"Content-Type": "text/plain", "X-GitHub-Event": HOSTILE, "User-Agent": HOSTILE}
    answer = requests.post(made.url + hook, params={HOSTILE: HOSTILE}, data=HOSTILE, headers=headers, timeout=5)
    run_id = answer.json()["workflow_run_id"]
    box.token("read", workflow_ids=[1])
    page.goto(made.url + "/settings/tokens")
    page.get_by_label("Name").fill(HOSTILE[:100])
    page.get_by_role("button", name="Make token").click()
    scene.wait_for(lambda: box.run(run_id)["finished_at"])
    tabs = ("", "/edit", "/runs", "/callbacks")
    paths = [f"/runs/{run_id}", *(f"/workflows/wild{tab}" for tab in tabs), "/runs", "/", "/deliveries", "/settings/tokens"]

    for path in paths:
        page.goto(made.url + path)
        page.evaluate("for (const each of document.querySelectorAll('details')) each.open = true")
        page.wait_for_timeout(50)
        assert page.locator("main img, main script, main svg[onload], body > script").count() == 0, path
        assert page.evaluate(HANDLERS) is False, path

    page.goto(f"{made.url}/runs/{run_id}")
    assert HOSTILE[:60] in page.locator("#stderr-1").inner_text()


def test_what_is_open_stays_open_while_a_run_goes_on(page: Any, lived: Any) -> None:
    made, _ = lived
    stages = "".join(f"  - {{name: s{n}, stub: {{output: {{n: {n}}}, delay: 900ms}}}}\n" for n in range(4))
    made.box.apply(f"name: steps\nstages:\n{stages}")
    run_id = scene.fire(made, made.box.hook("steps", "x"), {})
    page.goto(f"{made.url}/runs/{run_id}")
    expect(page.locator("#stage-2")).to_be_attached()
    page.locator("#stage-1 > summary").focus()
    page.keyboard.press("Enter")

    expect(page.locator("h1 + .status")).to_have_text("completed")

    assert page.locator("#stage-1").get_attribute("open") is not None
    assert page.evaluate("document.activeElement.parentElement.id") == "stage-1"


def test_a_webhooks_url_is_copied_by_its_button(context: Any, page: Any, lived: Any) -> None:
    made, _ = lived
    context.grant_permissions(["clipboard-read", "clipboard-write"], origin=made.url)
    page.goto(made.url + "/workflows/release/runs")

    page.get_by_role("button", name="Copy URL of github").click()

    expect(page.get_by_role("button", name="Copied URL of github")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == made.url + made.box.hook("release", "github")


def test_a_fault_in_a_file_leads_to_its_line(page: Any, lived: Any) -> None:
    made, _ = lived
    page.goto(made.url + "/workflows/hello/edit")
    editor = page.get_by_label("Workflow file")
    editor.fill("name: hello\nstages:\n  - name: a\n    stubb: {}\n")
    page.get_by_role("button", name="Save").click()

    page.get_by_role("link", name="line 4").click()

    selected = editor.evaluate("(area) => area.value.slice(area.selectionStart, area.selectionEnd)")
    assert selected == "    stubb: {}"


def test_everything_but_live_updates_works_without_a_script(browser: Any, lived: Any) -> None:
    made, _ = lived
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    scene.sign_in(page, made.box)
    page.goto(made.url + "/workflows/hello/runs")
    page.locator("#run-now").get_by_label("Input").fill('{"name": "no script"}')
    page.locator("#run-now").get_by_role("button", name="Run now").click()

    scene.wait_for(lambda: (page.reload(), page.locator("h1 + .status").inner_text() == "completed")[1])

    assert page.get_by_role("button", name="Copy").count() == 0
    context.close()


def test_a_password_signs_in_when_the_link_is_used(browser: Any, lived: Any) -> None:
    made, _ = lived
    context = browser.new_context()
    page = context.new_page()
    page.goto(scene.link(made.box))
    page.get_by_text("Set a name and a password").click()
    page.get_by_label("Name").fill("Grace")
    page.get_by_label("Password").fill("correct horse battery")
    page.get_by_role("button", name="Sign in").click()
    page.get_by_role("button", name="Sign out").click()

    page.goto(made.url + "/runs?status=failed")
    page.get_by_label("Name").fill("Grace")
    page.get_by_label("Password").fill("correct horse battery")
    page.get_by_role("button", name="Sign in").click()

    page.wait_for_url("**/runs?status=failed")
    expect(page.locator(".who")).to_contain_text("Grace")
    context.close()


def test_every_page_suits_all_eyes_and_a_phone(browser: Any, lived: Any, axe: str) -> None:
    made, ids = lived
    with visit(browser, LOOKS["light"]) as page:
        page.goto(made.url + "/sign-in")
        found = {"/sign-in": looked_at(page, axe)}
        page.goto(scene.link(made.box))
        found["/sign-in?link"] = looked_at(page, axe)
        page.get_by_role("button", name="Sign in").click()
        for path in pages(ids).values():
            page.goto(made.url + path)
            found[path] = looked_at(page, axe)

    assert {path: faults for path, faults in found.items() if faults} == {}


def test_every_page_of_an_empty_box_suits_all_eyes_and_a_phone(browser: Any, axe: str) -> None:
    with scene.service(parts=("app",)) as made, visit(browser, LOOKS["light"]) as page:
        scene.sign_in(page, made.box)
        found = {}
        for path in EMPTY.values():
            page.goto(made.url + path)
            found[path] = looked_at(page, axe)

    assert {path: faults for path, faults in found.items() if faults} == {}


@contextmanager
def visit(browser: Any, look: dict[str, Any]) -> Iterator[Any]:
    context = browser.new_context(**look)
    yield context.new_page()
    context.close()


def looked_at(page: Any, axe: str) -> list[str]:
    """Give what is wrong with a page: axe's findings with all its details open, in light and dark, and a width above a phone's."""
    page.set_viewport_size({"width": 390, "height": 844})
    width = page.evaluate("document.documentElement.scrollWidth")
    page.set_viewport_size(LOOKS["light"]["viewport"])
    page.evaluate("for (const each of document.querySelectorAll('details:not(.sure)')) each.open = true")
    page.evaluate(axe)
    found = serious(page)
    page.emulate_media(color_scheme="dark")
    found += serious(page, rules=["color-contrast"])
    page.emulate_media(color_scheme="light")
    return found + ([f"{width} pixels wide"] if width > 390 else [])


def serious(page: Any, *, rules: list[str] | None = None) -> list[str]:
    """Give axe's serious and critical violations on a page, each with the first element."""
    options = {"resultTypes": ["violations"], "preload": False} | ({"runOnly": rules} if rules else {})
    # The reference has a section for each operation, all of one template: a few stand for all.
    result = page.evaluate("(options) => axe.run({exclude: [['.api-group ~ section ~ section ~ section']]}, options)", options)
    return [
        f"{each['id']}: {each['nodes'][0]['html'][:160]} {each['nodes'][0]['failureSummary'][:200]}"
        for each in result["violations"]
        if each["impact"] in ("serious", "critical")
    ]
