"""Files that a run leaves: listed, downloaded as attachments, and no way to any other file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from orqo import artifacts, executor
from orqo.errors import NotFound
from support import TestBox

WRITES = """
name: report
stages:
  - name: write
    script: |
      mkdir -p artifacts/deep
      printf 'a,b\\n1,2\\n' > artifacts/table.csv
      printf '<script>alert(1)</script>' > artifacts/deep/page.html
      printf 'x' > 'artifacts/deep/no type "é".bin'
      echo secret > outside.txt
"""


@pytest.fixture
def run_id(box: TestBox, worker: executor.Worker) -> int:
    """A run that left files."""
    box.apply(WRITES)
    made = box.accept("report")
    executor.work()
    assert box.run(made)["status"] == "completed", box.run(made)["error"]
    return made


def folder(box: TestBox, run_id: int) -> Path:
    return box.config.data / "runs" / str(run_id) / "artifacts"


def get(client: Any, box: TestBox, path: str, *scopes: str, **options: Any) -> Any:
    headers = {"Authorization": f"Bearer {box.token(*(scopes or ('read',)), **options)}"}
    return client.get(f"/api/v1{path}", headers=headers, buffered=True)


def test_files_are_listed_by_path_with_safe_types(client: Any, box: TestBox, run_id: int) -> None:
    listed = get(client, box, f"/runs/{run_id}/artifacts")

    assert listed.status_code == 200
    assert [(each["path"], each["size"], each["type"]) for each in listed.get_json()] == [
        ('deep/no type "é".bin', 1, "application/octet-stream"),
        ("deep/page.html", 25, "text/plain"),
        ("table.csv", 8, "text/csv"),
    ]


@pytest.mark.parametrize(("path", "body"), [("table.csv", b"a,b\n1,2\n"), ("deep/page.html", b"<script>alert(1)</script>")])
def test_a_file_is_downloaded_as_an_attachment_that_no_browser_runs(client: Any, box: TestBox, run_id: int, path: str, body: bytes) -> None:
    given = get(client, box, f"/runs/{run_id}/artifacts/{path}")

    assert (given.status_code, given.data) == (200, body)
    assert given.headers["Content-Disposition"].startswith("attachment")
    assert path.rpartition("/")[2] in given.headers["Content-Disposition"]
    assert (given.headers["X-Content-Type-Options"], given.headers["Content-Length"]) == ("nosniff", str(len(body)))
    assert "html" not in given.headers["Content-Type"]


def test_a_name_with_quotes_and_letters_beyond_ascii_is_downloaded(client: Any, box: TestBox, run_id: int) -> None:
    given = get(client, box, f"/runs/{run_id}/artifacts/deep/no%20type%20%22%C3%A9%22.bin")

    assert given.status_code == 200
    assert "\n" not in given.headers["Content-Disposition"]


@pytest.mark.parametrize(
    "path",
    [
        "../outside.txt", "..%2foutside.txt", "%2e%2e/outside.txt", "deep/../../outside.txt", "/etc/passwd", "%2fetc%2fpasswd", "", ".",
        "deep", "deep/", "./table.csv", "nothing.txt", "table.csv/", "table.csv/x", "a%00b", "a%0ab", "x" * 300, "a/" * 100 + "b",
    ],
)  # fmt: skip
def test_no_other_path_leads_to_a_file(client: Any, box: TestBox, run_id: int, path: str) -> None:
    assert get(client, box, f"/runs/{run_id}/artifacts/{path}").status_code == 404
    with pytest.raises(NotFound):
        artifacts.opened(box.config.data / "runs", run_id, path)


@pytest.mark.parametrize("what", ["link to a file", "link to a folder", "hard link", "pipe", "the folder is a link"])
def test_links_and_what_is_no_file_are_neither_listed_nor_given(client: Any, box: TestBox, run_id: int, what: str) -> None:
    inside, outside = folder(box, run_id), folder(box, run_id).parent / "outside.txt"
    path = "bad"
    if what == "link to a file":
        (inside / "bad").symlink_to(outside)
    elif what == "link to a folder":
        (inside / "bad").symlink_to(outside.parent, target_is_directory=True)
        path = "bad/outside.txt"
    elif what == "hard link":
        os.link(outside, inside / "bad")
    elif what == "pipe":
        os.mkfifo(inside / "bad")
    else:
        inside.rename(inside.with_name("moved"))
        inside.symlink_to(outside.parent, target_is_directory=True)
        path = "outside.txt"

    listed = [each["path"] for each in get(client, box, f"/runs/{run_id}/artifacts").get_json()]

    assert path not in listed
    assert get(client, box, f"/runs/{run_id}/artifacts/{path}").status_code == 404


def test_who_may_not_see_the_run_sees_no_file(client: Any, box: TestBox, run_id: int) -> None:
    for path in (f"/runs/{run_id}/artifacts", f"/runs/{run_id}/artifacts/table.csv"):
        assert get(client, box, path, "trigger").status_code == 403
        assert get(client, box, path, "read", workflow_ids=[1]).status_code == 404
        assert client.get(f"/api/v1{path}").status_code == 401


def test_a_run_without_files_has_an_empty_list_and_an_unknown_one_none(client: Any, box: TestBox) -> None:
    run_id = box.accept()

    assert get(client, box, f"/runs/{run_id}/artifacts").get_json() == []
    assert get(client, box, "/runs/999/artifacts").status_code == 404


def test_at_most_a_thousand_are_listed(box: TestBox, run_id: int) -> None:
    for number in range(1100):
        (folder(box, run_id) / f"{number:04}.txt").touch()

    assert len(artifacts.list_all(box.config.data / "runs", run_id)) == artifacts.LISTED_MAX


def test_the_dashboard_gives_files_to_who_is_signed_in_only(client: Any, box: TestBox, run_id: int) -> None:
    turned_away = client.get(f"/runs/{run_id}/artifacts/table.csv")

    assert (turned_away.status_code, turned_away.headers["Location"].startswith("/sign-in")) == (303, True)
