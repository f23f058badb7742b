"""Pictures of every page, light, dark and on a phone, of a box that has been lived in and of an empty one.

`make screenshots` writes them to .cache/screenshots, and the README's two to docs/.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # Run as a program, it finds what pytest finds by itself.
    sys.path[:0] = [str(folder) for folder in Path(__file__).resolve().parents[:3]]

import scene
from playwright.sync_api import Browser, Page, sync_playwright

from support import Service

LOOKS = {
    "light": {"viewport": {"width": 1280, "height": 860}, "color_scheme": "light"},
    "dark": {"viewport": {"width": 1280, "height": 860}, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 390, "height": 844}, "color_scheme": "light", "device_scale_factor": 2},
}
FAULTY = "name: My Workflow\nstages:\n  - name: a\n    comand: [echo, hi]\n  - name: b\n    stub: {outpt: 1}\n"
IN_README = {"home": "dashboard-home.png", "run-detour": "dashboard-run.png"}


def pages(ids: dict[str, int]) -> dict[str, str]:
    """Give the name of each picture and the path that it shows."""
    return {
        "home": "/",
        "workflows": "/workflows",
        "workflow-definition": "/workflows/release",
        "workflow-routing": "/workflows/triage",
        "workflow-edit": "/workflows/release/edit",
        "workflow-runs": "/workflows/release/runs",
        "workflow-triggers": "/workflows/deploy/runs",
        "workflow-form": "/workflows/book-order/runs",
        "request-refused": f"/requests/{ids['refused']}",
        "workflow-callbacks": "/workflows/release/callbacks",
        "workflow-new": "/new-workflow",
        "runs": "/runs",
        "run-completed": f"/runs/{ids['completed']}",
        "run-failed": f"/runs/{ids['failed']}",
        "run-detour": f"/runs/{ids['detour']}",
        "run-asking": f"/runs/{ids['asking']}",
        "run-decided": f"/runs/{ids['decided']}",
        "run-reporting": f"/runs/{ids['reporting']}",
        "run-repetition": f"/runs/{ids['repetition']}",
        "run-running": f"/runs/{ids['running']}",
        "deliveries": "/deliveries",
        "delivery": "/deliveries/1",
        "received": "/received",
        "received-reports": "/received/reports",
        "request-misreport": f"/requests/{ids['misreport']}",
        "received-one": f"/received/{ids['received']}",
        "settings-tokens": "/settings/tokens",
        "settings-people": "/settings/people",
        "reference": "/docs",
        "settings-instance": "/settings/instance",
        "not-found": "/runs/999999",
    }


EMPTY = {
    "empty-home": "/",
    "empty-runs": "/runs",
    "empty-workflow-runs": "/workflows/hello/runs",
    "empty-callbacks": "/workflows/hello/callbacks",
    "empty-deliveries": "/deliveries",
    "empty-received": "/received",
    "empty-reports": "/received/reports",
    "empty-tokens": "/settings/tokens",
}


def main(folder: Path, docs: Path) -> None:
    """Take all pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    docs.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        browser = scene.launch(playwright)
        with scene.service() as made:
            _all(browser, made, EMPTY, folder)
        with scene.service() as made:
            shown = pages(scene.live_in(made))
            _all(browser, made, shown, folder)
            _special(browser, made, folder)
            _for_readme(browser, made, shown, docs)
        browser.close()


def _all(browser: Browser, made: Service, shown: dict[str, str], folder: Path) -> None:
    for look, options in LOOKS.items():
        page = _signed_in(browser, made, options)
        for name, path in shown.items():
            page.goto(made.url + path)
            page.screenshot(path=folder / f"{name}-{look}.png", full_page=True)
        page.context.close()


def _signed_in(browser: Browser, made: Service, options: dict[str, object]) -> Page:
    page = browser.new_context(**options).new_page()  # type: ignore[arg-type]
    scene.sign_in(page, made.box)
    return page


def _special(browser: Browser, made: Service, folder: Path) -> None:
    """Take what a plain visit does not show: sign-in, faults in a file, a token that was just made, a question."""
    page = browser.new_context(**LOOKS["light"]).new_page()  # type: ignore[arg-type]
    page.goto(made.url + "/")
    page.screenshot(path=folder / "sign-in.png")
    page.goto(scene.link(made.box))
    page.get_by_text("Set a name and a password").click()
    page.screenshot(path=folder / "sign-in-link.png")
    page.get_by_role("button", name="Sign in").click()
    page.goto(made.url + "/new-workflow")
    page.get_by_label("Workflow file").fill(FAULTY)
    page.get_by_role("button", name="Create").click()
    page.screenshot(path=folder / "workflow-faults.png", full_page=True)
    page.goto(made.url + "/settings/tokens")
    page.get_by_label("Name").fill("ci")
    page.get_by_role("button", name="Make token").click()
    page.screenshot(path=folder / "token-made.png", full_page=True)
    page.goto(made.url + "/workflows/book-order/runs")
    page.get_by_label("Address").fill("Paris")
    page.locator("#run-now form").evaluate("(form) => form.noValidate = true")
    page.get_by_role("button", name="Run now").click()
    page.screenshot(path=folder / "workflow-form-faults.png", full_page=True)
    page.get_by_text("Change when it fires").click()
    page.locator("[id^=when-]").first.fill("every morning")
    page.get_by_role("button", name="Save when").click()
    page.screenshot(path=folder / "schedule-faults.png", full_page=True)
    page.goto(made.url + "/workflows/hello/runs")
    page.get_by_text("Rotate").first.click()
    page.screenshot(path=folder / "workflow-question.png", full_page=True)
    page.context.close()


def _for_readme(browser: Browser, made: Service, shown: dict[str, str], docs: Path) -> None:
    page = _signed_in(browser, made, {"viewport": {"width": 1180, "height": 760}, "color_scheme": "light"})
    for name, file in IN_README.items():
        page.goto(made.url + shown[name])
        page.screenshot(path=docs / file)
    page.context.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
