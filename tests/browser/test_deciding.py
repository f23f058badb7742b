"""Waiting, approving, reporting, running again and schedules in a browser, against the real processes."""

from __future__ import annotations

import json
import re
from typing import Any

import requests
import scene
from test_browser import HANDLERS, HOSTILE, expect

ASKS = """name: asks
stages:
  - {name: first, stub: {output: HOSTILE}}
  - {name: verdict, wait: {timeout: 1h}, outcomes: [good, bad]}
  - {name: last, stub: {output: "${stages.verdict.output}"}}
"""
STUCK = """name: stuck
stages:
  - {name: fetch, stub: {output: fetched}}
  - {name: build, stub: {HOW}}
  - {name: tell, stub: {output: "${stages.fetch.output} and ${stages.build.output}"}}
"""


def test_a_stage_that_waits_is_reported_on(page: Any, lived: Any) -> None:
    made, _ = lived
    made.box.apply(ASKS.replace("HOSTILE", json.dumps(HOSTILE)))
    run_id = scene.fire(made, made.box.hook("asks", "x"), {})
    page.goto(f"{made.url}/runs/{run_id}")
    area = page.get_by_label("Output", exact=False).and_(page.locator("textarea"))

    # What is typed outlasts the live updates: here, of a report of progress that somebody else sends meanwhile.
    area.fill('{"n": ')
    report = {"workflow_run_id": run_id, "stage": "verdict", "status": "output", "output": HOSTILE}
    headers = {"Authorization": f"Bearer {made.box.token('callback')}"}
    assert requests.post(f"{made.url}/api/v1/callback", json=report, headers=headers, timeout=5).status_code == 200
    page.locator("#stage-2 > summary").click()
    expect(page.locator("#output-2")).to_contain_text("<script>alert(1)")
    expect(area).to_have_value('{"n": ')

    # What does not fit is told at its field, and stays.
    page.get_by_role("button", name="Completed").click()
    expect(area).to_be_focused()
    expect(area).to_have_accessible_description(re.compile("Expecting"))
    expect(area).to_have_value('{"n": ')
    assert page.locator("main script, main img").count() == 0 and page.evaluate(HANDLERS) is False

    area.fill('{"n": 7}')
    page.get_by_label("Outcome").select_option("good")
    page.get_by_role("button", name="Completed").click()
    expect(page.get_by_text("Answered: the run goes on.")).to_be_visible()
    expect(page.locator("h1 + .status")).to_have_text("completed")
    expect(page.locator("#result-text")).to_contain_text('"n": 7')


def test_a_failed_run_is_run_again_from_the_stage_that_was_mended(page: Any, lived: Any) -> None:
    made, _ = lived
    made.box.apply(STUCK.replace("HOW", "fail: 'no compiler'"))
    run_id = scene.fire(made, made.box.hook("stuck", "x"), {})
    page.goto(f"{made.url}/runs/{run_id}")
    expect(page.locator("h1 + .status")).to_have_text("failed")
    page.get_by_role("link", name="stuck").click()
    page.get_by_role("link", name="Definition").click()
    page.get_by_role("link", name="Edit").click()
    page.get_by_label("Workflow file").fill(STUCK.replace("HOW", "output: built"))
    page.get_by_role("button", name="Save").click()

    page.goto(f"{made.url}/runs/{run_id}")
    page.get_by_role("button", name="Run again from here at build").click()

    expect(page.locator("h1 + .status")).to_have_text("completed")
    expect(page.locator("#result-text")).to_have_text("fetched and built")
    expect(page.locator("#stage-1")).to_contain_text("inherited")
    # Either leads to the other.
    page.locator("dt", has_text="Repeats").locator("xpath=..").get_by_role("link").click()
    expect(page.locator("h1")).to_have_text(f"Run {run_id}")
    page.locator(".lineage").get_by_role("link").click()
    expect(page.locator("h1 + .status")).to_have_text("completed")


def test_a_schedule_is_made_changed_and_paused(page: Any, lived: Any) -> None:
    made, _ = lived
    made.box.apply("name: reports\nstages: [{name: a, stub: {}}]")
    page.goto(made.url + "/workflows/reports/runs")
    form = page.locator("#new-schedule")
    form.get_by_label("Name").fill("nightly")
    form.get_by_label("When").fill("every night")
    form.get_by_label("Time zone").fill("Europe/Paris")
    form.get_by_label("Input").fill(json.dumps(HOSTILE))
    form.get_by_role("button", name="Create schedule").click()
    expect(form.get_by_label("When")).to_be_focused()
    expect(form.get_by_label("When")).to_have_accessible_description(re.compile("five fields of cron"))
    form.get_by_label("When").fill("15 2 * * *")
    form.get_by_role("button", name="Create schedule").click()

    card = page.locator("#trigger-nightly")
    expect(card.locator(".times li")).to_have_count(5)
    expect(card.locator(".times li").first).to_contain_text("02:15")
    card.get_by_text("Change when it fires").click()
    expect(card.get_by_role("textbox", name="Input")).to_have_value(json.dumps(HOSTILE))
    card.get_by_label("When").fill("30 4 * * *")
    card.get_by_role("button", name="Save").click()
    expect(card.locator(".times li").first).to_contain_text("04:30")
    assert page.locator("main script, main img").count() == 0 and page.evaluate(HANDLERS) is False

    card.get_by_role("button", name="Pause").click()
    expect(page.get_by_text("Paused: it does not fire until it is resumed.")).to_be_visible()
    expect(card.locator(".times")).to_have_count(0)
    card.get_by_role("button", name="Resume").click()
    expect(card.locator(".times li")).to_have_count(5)


def test_a_report_that_was_refused_is_found_with_its_reason(page: Any, lived: Any) -> None:
    made, ids = lived
    page.goto(made.url + "/received")

    page.get_by_role("link", name="Reports on runs").click()
    page.get_by_role("link", name="refused", exact=True).click()
    expect(page.locator("main")).to_contain_text("must be one of good, bad")
    page.get_by_role("link", name=f"request {ids['misreport']}", exact=True).click()

    expect(page.locator("#body")).to_contain_text("splendid")
    expect(page.locator("#reason")).to_contain_text("refused with 422")


def test_a_report_and_a_form_of_a_schema_need_no_script(browser: Any, lived: Any) -> None:
    made, _ = lived
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    scene.sign_in(page, made.box)
    page.goto(made.url + "/workflows/book-order/runs")
    page.get_by_label("Customer").fill("Grace")
    page.get_by_role("button", name="Run now").click()
    scene.wait_for(lambda: (page.reload(), page.locator("h1 + .status").inner_text() == "completed")[1])

    run_id = scene.fire(made, made.box.hook("review", "outside"), {})
    scene.wait_for(lambda: made.box.run(run_id)["status"] == "waiting")
    page.goto(f"{made.url}/runs/{run_id}")
    page.get_by_role("button", name="Failed").click()

    scene.wait_for(lambda: made.box.run(run_id)["status"] == "failed")
    context.close()
