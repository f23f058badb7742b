"""What a stage gives back: a value, never an exception.

Owns the shapes Completed, Failed, Wait and Child, what comes back to a stage that waited, and how output bytes are told
apart (JSON, text or neither). Never knows how a stage was executed or where its result is stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from orqo import jsontext

NOT_TEXT = "bytes"


@dataclass(frozen=True)
class Completed:
    """The stage did its work. `output_kind` is `json` (compact UTF-8 JSON), `text` (UTF-8, one trailing newline less) or `bytes`.

    `truncated` says that more output came than was kept; `response` is `{"status", "headers"}` of an http stage; `usage`
    counts the tokens of a prompt; `note` is a sentence for people who look at the stage.
    """

    output: bytes
    output_kind: str
    truncated: bool = False
    outcome: str | None = None
    exit_code: int | None = None
    stderr: bytes = b""
    response: dict[str, Any] | None = None
    usage: dict[str, int] | None = None
    note: str | None = None


@dataclass(frozen=True)
class Failed:
    """The stage did not do its work: `reason` is one of `stage_failed, timeout, lookup_failed, outcome_unknown, cancelled`.

    `retryable` is False where another attempt cannot help or could do a thing twice; `retry_after_s` is what the
    other side asked for.
    """

    reason: str
    detail: str
    output: bytes = b""
    output_kind: str = "text"
    truncated: bool = False
    exit_code: int | None = None
    stderr: bytes = b""
    response: dict[str, Any] | None = None
    retryable: bool = True
    retry_after_s: float | None = None
    usage: dict[str, int] | None = None


@dataclass(frozen=True)
class Wait:
    """The stage waits without holding a worker, at most `timeout_s`, for `message` to be answered or, with none, for the time.

    `is_answerable` mints a token; `has_request` says that the stage's request goes out once the wait is durable.
    """

    timeout_s: float
    is_answerable: bool = False
    message: str | None = None
    has_request: bool = False


@dataclass(frozen=True)
class Child:
    """The stage starts a run of another workflow and waits for its end at most `timeout_s`; None: it goes on at once."""

    workflow: str
    input: Any
    timeout_s: float | None


@dataclass(frozen=True)
class Resumed:
    """What ended a stage's wait: `completed`, `failed` or `stopped` by an answer or a child's end, or `timed_out`."""

    status: str
    output: Any = None
    truncated: bool = False
    outcome: str | None = None
    error: str | None = None


Result = Completed | Failed | Wait | Child


class CannotRun(Exception):
    """The stage cannot be executed as it is written or with these values; `detail` says what to change."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


def as_text(output: bytes, *, truncated: bool) -> tuple[bytes, str]:
    """Give the output and its kind: UTF-8 without one trailing newline is `text`, anything else `bytes`.

    A character that the cut at the limit split is dropped, so that long text stays text.
    """
    try:
        output.decode("utf-8")
    except UnicodeDecodeError as fault:
        split = truncated and fault.reason == "unexpected end of data" and fault.start > len(output) - 4
        return (output[: fault.start], "text") if split else (output, NOT_TEXT)
    return (output if truncated else output.removesuffix(b"\n")), "text"


def from_value(value: Any, *, max_bytes: int) -> tuple[bytes, str, bool]:
    """Give output, kind and truncated for a value: a string is text, anything else JSON; cut JSON is only text."""
    output = value.encode("utf-8", "replace") if isinstance(value, str) else jsontext.dump(value).encode("utf-8")
    if len(output) <= max_bytes:
        return output, "text" if isinstance(value, str) else "json", False
    return *as_text(output[:max_bytes], truncated=True), True
