"""A stage's result as it is recorded: every secret masked.

Owns the way from what a stage gave back to what runs.py writes. Never decides what follows.
"""

from __future__ import annotations

import json
from typing import Any

from orqo import jsontext, runs, stages
from orqo.secretstore import SecretStore
from orqo.stages.process import STDERR_MAX_BYTES


def stage_end(secrets: SecretStore, result: stages.Completed | stages.Failed) -> runs.StageEnd:
    """Give what is written of a stage that ended."""
    failed = isinstance(result, stages.Failed)
    return runs.StageEnd(
        output=_output(secrets, result),
        output_kind=result.output_kind,
        truncated=result.truncated,
        outcome=None if isinstance(result, stages.Failed) else result.outcome,
        error_reason=result.reason if isinstance(result, stages.Failed) else None,
        error_detail=secrets.mask(result.detail) if isinstance(result, stages.Failed) else None,
        exit_code=result.exit_code,
        stderr=_stderr(secrets, result.stderr) if result.stderr or failed else None,
        response=None if result.response is None else masked(secrets, result.response),
        usage=result.usage,
        note=None if isinstance(result, stages.Failed) else result.note,
    )


def _output(secrets: SecretStore, result: stages.Completed | stages.Failed) -> bytes:
    """Mask an output; JSON value by value, so that it stays JSON."""
    data = secrets.mask_bytes(result.output)
    if result.truncated:
        # Cut output is text or bytes, never JSON.
        return secrets.mask_last(data)
    if data == result.output or result.output_kind != "json":
        return data
    return jsontext.dump(masked(secrets, json.loads(result.output))).encode()


def _stderr(secrets: SecretStore, data: bytes) -> bytes:
    """Mask what a command wrote on stderr, of which only the end was kept."""
    shown = secrets.mask_bytes(data)
    return secrets.mask_first(shown) if len(data) >= STDERR_MAX_BYTES else shown


def masked(secrets: SecretStore, value: Any) -> Any:
    """Mask every string of a JSON value; a number that is or holds a secret becomes a string."""
    if isinstance(value, str):
        return secrets.mask(value)
    if isinstance(value, int | float):
        written = jsontext.dump(value)
        shown = secrets.mask(written)
        return value if shown == written else shown
    if isinstance(value, dict):
        return {secrets.mask(key): masked(secrets, member) for key, member in value.items()}
    return [masked(secrets, item) for item in value] if isinstance(value, list) else value
