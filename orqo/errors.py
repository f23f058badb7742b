"""The problems that a caller can be told about: RFC 9457 problem details as exceptions.

Owns the tree of problem types. Never knows Flask, HTTP servers or where a problem is shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar


@dataclass(frozen=True)
class Fault:
    """One fault in a document: a JSON pointer (RFC 6901) to the place and a sentence that says what to change.

    `line` is set where the document is a file that people edit.
    """

    pointer: str
    detail: str
    line: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """Give `{"pointer", "detail"}`, with `"line"` where it is known."""
        shown: dict[str, Any] = {"pointer": self.pointer, "detail": self.detail}
        if self.line is not None:
            shown["line"] = self.line
        return shown


class Problem(Exception):
    """A fault that is not ours: it has a status, a type and a sentence that says how to put it right.

    Source: RFC 9457. `detail` is shown to whoever asked, so it never holds a secret or a token.
    """

    status: ClassVar[int] = 400
    slug: ClassVar[str] = "bad-request"
    title: ClassVar[str] = "Bad request"

    def __init__(
        self,
        detail: str,
        *,
        errors: Sequence[Fault] = (),
        headers: Mapping[str, str] | None = None,
        for_owner: str | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.errors = tuple(errors)
        self.headers = dict(headers or {})
        # What the request log says in place of `detail`, where the sender must not be told.
        self.for_owner = for_owner

    def as_dict(self) -> dict[str, Any]:
        """Give the body of an `application/problem+json` answer; `error` repeats `detail` for clients that look there."""
        shown: dict[str, Any] = {
            "type": f"urn:orqo:problem:{self.slug}",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "error": self.detail,
        }
        if self.errors:
            shown["errors"] = [fault.as_dict() for fault in self.errors]
        return shown


class Malformed(Problem):
    """The request cannot be read at all."""

    status, slug, title = 400, "malformed", "Malformed request"


class Unauthorized(Problem):
    """No credential, an unknown or a revoked one, or a signature that does not fit."""

    status, slug, title = 401, "unauthorized", "Not authenticated"


class Forbidden(Problem):
    """The credential is known and may not do this."""

    status, slug, title = 403, "forbidden", "Not allowed"


class NotFound(Problem):
    """There is no such thing, or none that this credential may see."""

    status, slug, title = 404, "not-found", "Not found"


class MethodNotAllowed(Problem):
    """The path exists, the method does not."""

    status, slug, title = 405, "method-not-allowed", "Method not allowed"


class Conflict(Problem):
    """The thing is in a state that does not allow this."""

    status, slug, title = 409, "conflict", "Conflict"


class Busy(Conflict):
    """As many runs as may be are under way, and a further one is not to wait."""


class Gone(Problem):
    """The thing existed and has ended."""

    status, slug, title = 410, "gone", "Gone"


class TooLarge(Problem):
    """The body is over the limit."""

    status, slug, title = 413, "too-large", "Body too large"


class UnsupportedMedia(Problem):
    """The body is of a type or an encoding that is not read here."""

    status, slug, title = 415, "unsupported-media-type", "Unsupported media type"


class Elsewhere(Problem):
    """What is asked for lies on another machine. Source: RFC 9110, 15.5.20."""

    status, slug, title = 421, "elsewhere", "On another machine"


class Invalid(Problem):
    """The request can be read but does not fit; `errors` says where."""

    status, slug, title = 422, "invalid", "Invalid request"


class TooManyRequests(Problem):
    """The caller is over its rate."""

    status, slug, title = 429, "too-many-requests", "Too many requests"


class HeadersTooLarge(Problem):
    """The request's headers are over the server's limit."""

    status, slug, title = 431, "headers-too-large", "Headers too large"


class ServerFault(Problem):
    """Our own bug, told with an id that stands in the log beside the traceback and nothing else."""

    status, slug, title = 500, "server-fault", "Internal server error"


class Unavailable(Problem):
    """What was asked cannot be stored or done now; `Retry-After` says when to come back."""

    status, slug, title = 503, "unavailable", "Unavailable"

    def __init__(self, detail: str, *, retry_after_s: int = 5) -> None:
        super().__init__(detail, headers={"Retry-After": str(retry_after_s)})
