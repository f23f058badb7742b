"""Fixtures for browser tests: Chromium, the real processes with a past, a page that is signed in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support import Service

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -r requirements-dev.txt")

import scene  # noqa: E402

AXE = Path(__file__).resolve().parents[2] / ".cache" / "axe" / "package" / "axe.min.js"


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """The system's Chromium."""
    if scene.CHROMIUM is None:
        pytest.skip("there is no Chromium on PATH: apt install chromium")
    with playwright.sync_playwright() as driver:
        made = scene.launch(driver)
        yield made
        made.close()


@pytest.fixture(scope="session")
def lived(browser: Any) -> Iterator[tuple[Service, dict[str, int]]]:
    """The real processes on a box with a past, and the ids of runs worth looking at. Shared: leave it usable."""
    with scene.service() as made:
        yield made, scene.live_in(made)


@pytest.fixture
def context(browser: Any, lived: Any) -> Iterator[Any]:
    """A browser of its own for each test. An error of a script or of the content policy fails the test."""
    made = browser.new_context(viewport={"width": 1280, "height": 860})
    made.set_default_timeout(8000)
    faults: list[str] = []
    made.on("weberror", lambda fault: faults.append(str(fault.error)))
    made.on("console", lambda message: faults.append(message.text) if message.type == "error" and is_ours(message) else None)
    made.on("dialog", lambda dialog: (faults.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    yield made
    made.close()
    assert faults == []


def is_ours(message: Any) -> bool:
    """Tell whether a console error is a fault: that a page was answered 4xx is none."""
    return "Failed to load resource" not in message.text


@pytest.fixture
def page(context: Any, lived: Any) -> Any:
    """A page that is signed in."""
    made = context.new_page()
    scene.sign_in(made, lived[0].box)
    return made


@pytest.fixture(scope="session")
def axe() -> str:
    """axe-core's source."""
    if not AXE.exists():
        pytest.skip(f"{AXE.parent.parent.name}-core is not in .cache: make test fetches it where there is npm")
    return AXE.read_text(encoding="utf-8")
