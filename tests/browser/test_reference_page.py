"""The reference's forms in a browser."""

from __future__ import annotations

import json
import re
from typing import Any


def expect(locator: Any) -> Any:
    from playwright.sync_api import expect as of_playwright

    return of_playwright(locator)


def test_an_operation_is_tried_with_a_token(context: Any, lived: Any) -> None:
    made, _ = lived
    page = context.new_page()
    page.goto(f"{made.url}/docs")
    page.locator("#token").fill(made.box.token("read", "trigger"))

    runs = page.locator("#listRuns")
    runs.get_by_text("Try it").click()
    runs.get_by_label("limit").fill("1")
    runs.get_by_role("button", name="Send").click()
    expect(runs.locator("pre[role=status]")).to_contain_text("200 ")

    told = runs.locator("pre[role=status]").inner_text()
    assert len(json.loads(told[told.index("[") :])) == 1


def test_a_body_is_sent_as_it_was_typed(context: Any, lived: Any) -> None:
    made, _ = lived
    page = context.new_page()
    page.goto(f"{made.url}/docs")
    page.locator("#token").fill(made.box.token("trigger"))

    trigger = page.locator("#trigger")
    trigger.get_by_text("Try it").click()
    trigger.locator("textarea").fill('{"workflow": "hello", "input": {"name": "Ada"}}')
    trigger.get_by_role("button", name="Send").click()
    expect(trigger.locator("pre[role=status]")).to_contain_text("201 ")

    run_id = int(re.search(r'"workflow_run_id": (\d+)', trigger.locator("pre[role=status]").inner_text())[1])  # type: ignore[index]
    assert made.box.run(run_id)["input"] == {"name": "Ada"}
