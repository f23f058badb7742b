"""What goes wrong is understood and mended in a browser: a refused signature, an approval that somebody must give."""

from __future__ import annotations

import base64
import json
from typing import Any

import scene
from test_browser import expect


def test_a_refused_signed_request_is_understood_mended_and_replayed(page: Any, lived: Any) -> None:
    made, _ = lived
    made.box.apply("name: orders\nstages:\n  - {name: book, stub: {output: 'booked ${input.order}'}}\n")
    hook = made.box.hook("orders", "store")

    # The trigger shall ask for a signature; a fault is told by its line.
    page.goto(made.url + "/workflows/orders/runs")
    page.get_by_text("Ask for a signature, filter, limit").click()
    area = page.get_by_label("What store asks")
    area.fill('webhook:\n  signature: {header: X-Signature, encoding: hexadecimal}\n  secret: "${secrets.SHOP}"\n')
    page.get_by_role("button", name="Save what store asks").click()
    page.get_by_role("link", name="line 2").click()
    assert "hexadecimal" in area.evaluate("(area) => area.value.slice(area.selectionStart, area.selectionEnd)")
    area.fill(area.input_value().replace("hexadecimal", "hex"))
    page.get_by_role("button", name="Save what store asks").click()
    expect(page.get_by_text("Saved: it holds for every request")).to_be_visible()

    # A request signed in another spelling is refused, and seen live.
    body = json.dumps({"order": 7}).encode()
    scene.send(made, hook, body, {"X-Signature": base64.b64encode(scene.digest(body)).decode()}, status=401)
    row = page.locator("#requests tr", has_text="store")
    expect(row.locator(".s-refused")).to_be_visible()

    # Its page says why.
    row.get_by_role("link", name="request").click()
    expect(page.locator("#reason")).to_contain_text("it fits with algorithm: sha256, encoding: base64")

    # The mend, and the replay.
    page.get_by_role("link", name="store", exact=True).click()
    page.get_by_text("Change what it asks of a request").click()
    area.fill(area.input_value().replace("encoding: hex", "encoding: base64"))
    page.get_by_role("button", name="Save what store asks").click()
    page.locator("#trigger-store").get_by_role("link", name="refused").click()
    expect(page.locator("#now")).to_contain_text("its signature fits")
    page.get_by_role("button", name="Replay").click()
    expect(page.locator("h1 + .status")).to_have_text("completed")
    expect(page.locator("#result-text")).to_have_text("booked 7")
    expect(page.locator("main")).to_contain_text("a replay of")


def test_an_approval_is_found_on_home_and_answered(page: Any, lived: Any) -> None:
    made, _ = lived
    run_id = scene.fire(made, made.box.hook("deploy", "ci"), {"version": "3.0"})
    page.goto(made.url + "/")

    # Home tells what waits for somebody, live.
    row = page.locator("tr", has_text=f"#{run_id}").filter(has_text="an answer: Put version 3.0")
    row.get_by_role("link", name=f"#{run_id}").click()
    page.get_by_role("button", name="Approve").click()

    expect(page.get_by_text("Answered: the run goes on.")).to_be_visible()
    expect(page.locator("h1 + .status")).to_have_text("completed")
    page.locator("#stage-2 > summary").click()
    expect(page.locator("#stage-2")).to_contain_text("Answered")
    expect(page.locator("#stage-2 > summary")).to_contain_text("outcome approved")
    page.locator("#stage-4 > summary").click()
    page.locator("#stage-4").get_by_role("link", name="run #").click()
    expect(page.locator("main")).to_contain_text(f"run #{run_id}")
