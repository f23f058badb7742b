"""The stub stage, and what every kind has in common."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from orqo import stages
from stage_context import make_context, make_roots, make_stage


def pretend(tmp_path: Path, spec: Any, *, stage: dict[str, Any] | None = None, **changes: Any) -> stages.Result:
    return stages.execute(make_context(tmp_path, make_stage("stub", spec, **(stage or {})), **changes))


@pytest.mark.parametrize(
    ("output", "expected", "kind"),
    [
        pytest.param({"ok": True, "echo": "${input.n}"}, b'{"ok":true,"echo":4}', "json", id="object"),
        pytest.param("number ${input.n}\n", b"number 4\n", "text", id="text"),
        pytest.param("${input.n}", b"4", "json", id="number"),
        pytest.param(None, b"null", "json", id="nothing"),
    ],
)
def test_output_is_what_it_says(tmp_path: Path, output: Any, expected: bytes, kind: str) -> None:
    result = pretend(tmp_path, {"output": output, "outcome": "approved"}, roots=make_roots(input={"n": 4}))

    assert result == stages.Completed(expected, kind, outcome="approved")


def test_large_output_is_cut(tmp_path: Path) -> None:
    result = pretend(tmp_path, {"output": ["x" * 100]}, stage={"max_output_bytes": 5})

    assert result == stages.Completed(b'["xxx', "text", truncated=True)


def test_fail_makes_it_fail(tmp_path: Path) -> None:
    result = pretend(tmp_path, {"fail": "no ${input}", "output": 1}, roots=make_roots(input="luck"))

    assert result == stages.Failed("stage_failed", "no luck")


def test_delay_is_waited_for(tmp_path: Path) -> None:
    began = time.monotonic()

    result = pretend(tmp_path, {"delay": "250ms"})

    assert isinstance(result, stages.Completed)
    assert 0.25 <= time.monotonic() - began < 1


def test_delay_ends_with_the_time_out(tmp_path: Path) -> None:
    result = pretend(tmp_path, {"delay": "1h"}, within_s=0.1)

    assert isinstance(result, stages.Failed)
    assert (result.reason, result.retryable) == ("timeout", True)


def test_delay_ends_when_cancelled(tmp_path: Path) -> None:
    result = pretend(tmp_path, {"delay": "1h"}, cancelled=lambda: "lease_lost")

    assert isinstance(result, stages.Failed)
    assert (result.reason, result.retryable) == ("cancelled", False)


def test_unknown_kind_fails(tmp_path: Path) -> None:
    result = stages.execute(make_context(tmp_path, make_stage("teleport", {})))

    assert isinstance(result, stages.Failed)
    assert (result.reason, result.retryable) == ("stage_failed", False)
    assert "teleport" in result.detail


def test_time_out_names_the_limit(tmp_path: Path) -> None:
    result = pretend(tmp_path, {}, stage={"timeout_s": 0.5}, within_s=0)

    assert isinstance(result, stages.Failed)
    assert "its timeout of 0.5 s" in result.detail
