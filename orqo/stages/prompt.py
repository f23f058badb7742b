"""The kind `prompt`: one question to a model, its answer is the output and, where outcomes are listed, its choice the outcome.

Speaks `POST /chat/completions` as OpenAI's API and those that imitate it do. Owns the request and what an answer means; how
a label is asked for and read is choice.py's. The answer is data: nothing of it is executed, rendered or followed.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

from orqo import clock, jsontext, lookup
from orqo.outbound import Answer, Failure, retry_after_s
from orqo.stages import choice
from orqo.stages.context import Context, Why, cancelled, timed_out
from orqo.stages.result import CannotRun, Completed, Failed, Result, from_value

ANSWER_MAX_BYTES = 16 * 2**20
TRANSIENT = frozenset({408, 409, 425, 429})
# What servers say that do not know `response_format`, or not this one.
FORMAT_REFUSED = frozenset({400, 404, 415, 422, 501})
PERMANENT_REASONS = frozenset({"address_refused", "bad_url"})
MESSAGE_SHOWN = 300
TOKENS = ("prompt_tokens", "completion_tokens", "total_tokens")
CUT = "the model's answer was cut at its limit of tokens (max_tokens)"


def execute(context: Context) -> Result:
    """Ask the model; a choice that is none is asked for once more."""
    return _Conversation(context).result()


class _Refused(Exception):
    """The server did not give an answer; `failed` is what the stage comes to, `status` what it said, if anything."""

    def __init__(self, failed: Failed, status: int = 0) -> None:
        super().__init__(failed.detail)
        self.failed = failed
        self.status = status


class _Conversation:
    """One execution: its messages and the tokens that they cost."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.spec: dict[str, Any] = context.stage.spec
        self.outcomes = context.stage.outcomes
        self.format = self._format()
        self.usage: Counter[str] = Counter()
        self.messages = self._first_messages()

    def result(self) -> Result:
        """Give what the stage comes to, with all tokens that were used for it."""
        try:
            result = self._chosen() if self.outcomes else self._answered()
        except _Refused as refused:
            result = refused.failed
        used = dict(self.usage) or None
        return _with_usage(result, used)

    def _format(self) -> dict[str, Any] | None:
        if self.outcomes:
            return choice.response_format(self.outcomes)
        return {"type": "json_object"} if self.context.stage.output == "json" else None

    def _first_messages(self) -> list[dict[str, str]]:
        system = lookup.render_text(self.spec.get("system", ""), self.context.roots)
        asked = choice.instruction(self.outcomes) if self.outcomes else "Answer with JSON and nothing else." if self.format else ""
        told = "\n\n".join(part for part in (system, asked) if part)
        user = {"role": "user", "content": lookup.render_text(self.spec["user"], self.context.roots)}
        return [{"role": "system", "content": told}, user] if told else [user]

    def _answered(self) -> Result:
        text, was_cut = self._ask()
        value: Any = text
        if self.context.stage.output == "json":
            try:
                value = choice.whole_json(text)
            except ValueError as fault:
                why = CUT if was_cut else f"the stage says `output: json`, but the model's answer is not JSON: {fault}"
                return Failed("stage_failed", why, **_kept(text, self.context))
        output, kind, truncated = from_value(value, max_bytes=self.context.stage.max_output_bytes)
        return Completed(output, kind, truncated, note=f"{CUT[0].upper()}{CUT[1:]}." if was_cut else None)

    def _chosen(self) -> Result:
        text, was_cut = self._ask()
        chosen = choice.read(text, self.outcomes)
        if chosen is None and not was_cut:
            self.messages += [{"role": "assistant", "content": text}, {"role": "user", "content": choice.reminder(self.outcomes)}]
            text, was_cut = self._ask()
            chosen = choice.read(text, self.outcomes)
        if chosen is None:
            why = CUT if was_cut else f"the model chose none of {', '.join(self.outcomes)}, though it was asked twice"
            return Failed("outcome_unknown", why, **_kept(text, self.context))
        output, kind, truncated = from_value(chosen.answer, max_bytes=self.context.stage.max_output_bytes)
        return Completed(output, kind, truncated, outcome=chosen.outcome)

    # ── one request ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _ask(self) -> tuple[str, bool]:
        """Give the model's text and whether it was cut; a server that refuses the structured output is asked without."""
        try:
            return self._asked()
        except _Refused as refused:
            if self.format is None or refused.status not in FORMAT_REFUSED:
                raise
        self.format = None
        return self._asked()

    def _asked(self) -> tuple[str, bool]:
        context, why = self.context, Why(self.context.cancelled)
        url, headers = self._address()
        body = jsontext.dump(self._body()).encode("utf-8", "replace")
        answer = context.client.send(
            method="POST", url=url, headers=headers, body=body, guarded=False,
            timeout_s=context.left_s, max_bytes=ANSWER_MAX_BYTES, cancelled=why,
        )  # fmt: skip
        if isinstance(answer, Failure):
            raise _Refused(_unsent(context, answer, why))
        if not 200 <= answer.status < 300:
            raise _Refused(_refused(answer), answer.status)
        return self._read(answer)

    def _address(self) -> tuple[str, dict[str, str]]:
        """Give the URL and the headers. The box's own key goes to the box's own server alone."""
        roots, models = self.context.roots, self.context.models
        own = self.spec.get("base_url")
        base = lookup.render_text(own, roots) if own else models.base_url
        if not base:
            raise CannotRun("no server of models is known: set ORQO_LLM_BASE_URL (such as https://api.openai.com/v1), or write base_url")
        key = lookup.render_text(self.spec["api_key"], roots) if "api_key" in self.spec else "" if own else models.api_key
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        return f"{base.rstrip('/')}/chat/completions", headers | ({"Authorization": f"Bearer {key}"} if key else {})

    def _body(self) -> dict[str, Any]:
        chosen = {key: self.spec[key] for key in ("temperature", "max_tokens") if key in self.spec}
        asked = {"response_format": self.format} if self.format else {}
        return {"model": self.spec["model"], "messages": self.messages, **chosen, **self.spec.get("options", {}), **asked}

    def _read(self, answer: Answer) -> tuple[str, bool]:
        try:
            told = jsontext.parse(answer.body)
            first = told["choices"][0]
            message = first["message"]
        except (ValueError, LookupError, TypeError) as fault:
            what = "is longer than is read here" if answer.truncated else "is no chat completion"
            raise _Refused(Failed("stage_failed", f"the answer of the server {what}")) from fault
        usage = told.get("usage")
        self.usage += _counted(usage)
        text = _text(message.get("content")) if isinstance(message, dict) else None
        if text is None:
            refusal = message.get("refusal") if isinstance(message, dict) else None
            detail = f"the model refused: {str(refusal)[:MESSAGE_SHOWN]}" if refusal else "the model gave no text"
            raise _Refused(Failed("stage_failed", detail, retryable=not refusal))
        return text, first.get("finish_reason") == "length"


def _kept(text: str, context: Context) -> dict[str, Any]:
    output, kind, truncated = from_value(text, max_bytes=context.stage.max_output_bytes)
    return {"output": output, "output_kind": kind, "truncated": truncated}


def _with_usage(result: Result, used: dict[str, int] | None) -> Result:
    return replace(result, usage=used) if isinstance(result, Completed | Failed) else result


def _counted(usage: Any) -> Counter[str]:
    """Give the tokens that a server says were used; many local ones say nothing."""
    told = usage if isinstance(usage, dict) else {}
    return Counter({key: told[key] for key in TOKENS if type(told.get(key)) is int and 0 < told[key] < 2**53})


def _text(content: Any) -> str | None:
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        content = "".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) and content else None


def _unsent(context: Context, failure: Failure, why: Why) -> Failed:
    if failure.reason == "cancelled":
        return cancelled(why.reason)
    if context.left_s <= 0:
        return timed_out(context)
    return Failed("stage_failed", failure.detail, retryable=failure.reason not in PERMANENT_REASONS)


def _refused(answer: Answer) -> Failed:
    """Say what the server said; 401, 404 and the like stay what they are however often they are tried."""
    return Failed(
        "stage_failed",
        f"the server of models answered {answer.status}{_message(answer.body)}",
        retryable=answer.status in TRANSIENT or answer.status >= 500,
        retry_after_s=retry_after_s(answer.headers.get("retry-after"), now=clock.now()),
    )


def _message(body: bytes) -> str:
    """Give the sentence of an error in the usual form `{"error": {"message": …}}`, nothing where it has another."""
    try:
        error = jsontext.parse(body)["error"]
        message = error["message"] if isinstance(error, dict) else error
    except (ValueError, LookupError, TypeError):
        return ""
    return f": {message[:MESSAGE_SHOWN]}" if isinstance(message, str) else ""
