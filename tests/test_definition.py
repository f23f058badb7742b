"""Workflow files: what they become, and everything that is refused, with its line."""

from __future__ import annotations

import hashlib
import json
import random
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orqo.definition import CallbackDefinition, Definition, Retry, StageDefinition, TriggerDefinition, parse
from orqo.errors import Fault, Invalid

# A busy machine is no finding.
CALM = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
TOKEN = "AbCdEfGhIjKlMnOpQrStUvWxYz0123456789_-AbCdE"
TOKEN_HASH = hashlib.sha256(TOKEN.encode()).hexdigest()
FULL = f"""\
id: 42
name: review-pull-request
description: Reviews ${{input}} when it is opened
timeout: 15m
triggers:
  - name: github
    webhook: {{token: {TOKEN}}}   # pinned
    callbacks: [{{url: "http://localhost:8000/x"}}]
  - name: plain
  - {{name: empty, webhook: }}
callbacks:
  - {{url: "https://ci.example.com/done", events: [completed, output], secret: "${{secrets.CI}}"}}
  - {{url: "${{secrets.SLACK_URL}}", json: {{text: "Run ${{run.id}}: ${{run.status}}"}}, headers: {{X-N: 3}}}}
  - url: "${{input.reply_to}}"
    json: null
stages:
  - name: diff
    http:
      url: "https://api.example.com/repos/${{input.repository.name}}/pulls/${{input.number}}"
      query: {{page: 1, label: [a, 2]}}
      headers: {{Authorization: "Bearer ${{secrets.GITHUB_TOKEN}}"}}
      expect: [200, 3xx]
    retry: {{attempts: 3, delay: 250ms}}
    max_output: 1MiB
  - name: size
    command: [install, --version, 3.10, true, "${{stages.diff.response.status}}"]
    timeout: 60s
    workdir: build
    idempotent: true
  - name: count
    script: jq '.stages.diff.output | length' "${{HOME}}" "${{X%y}}"
    output: json
    env: {{TITLE: "${{input.title?}}", N: 042, DEBUG: false, V: 1.50}}
    on_error: pretend
  - name: pretend
    stub: {{output: {{ok: true, echo: "${{input.number}}"}}, outcome: approved, delay: 2s}}
  - name: nothing
    stub:
output: ["${{stages.count.output}}"]
"""
ONE_STAGE = "name: w\nstages:\n  - name: a\n    "


def faults_of(text: str) -> tuple[Fault, ...]:
    with pytest.raises(Invalid) as refused:
        parse(text)
    return refused.value.errors


def test_every_key_becomes_its_field() -> None:
    definition = parse(FULL, folder=Path("/srv/workflows"))

    assert (definition.id, definition.name, definition.timeout_s, definition.folder) == (42, "review-pull-request", 900.0, "/srv/workflows")
    assert (definition.output, definition.has_output) == (["${stages.count.output}"], True)
    assert definition.triggers == (
        TriggerDefinition("github", token_hash=TOKEN_HASH, callbacks=(CallbackDefinition("http://localhost:8000/x"),)),
        TriggerDefinition("plain"),
        TriggerDefinition("empty"),
    )
    assert definition.callbacks == (
        CallbackDefinition("https://ci.example.com/done", ("completed", "output"), secret="CI"),
        CallbackDefinition("${secrets.SLACK_URL}", json={"text": "Run ${run.id}: ${run.status}"}, has_json=True, headers={"X-N": "3"}),
        CallbackDefinition("${input.reply_to}", json=None, has_json=True, guarded=True),
    )
    diff, size, count, pretend, nothing = definition.stages
    assert (diff.kind, diff.retry, diff.max_output_bytes) == ("http", Retry(3, 0.25), 2**20)
    assert diff.spec["query"] == {"page": "1", "label": ["a", "2"]}
    assert diff.spec["expect"] == ["200", "3xx"]
    assert size == StageDefinition(
        "size",
        "command",
        ["install", "--version", "3.10", "true", "${stages.diff.response.status}"],
        timeout_s=60.0,
        workdir="build",
        idempotent=True,
    )
    assert (count.output, count.on_error) == ("json", "pretend")
    assert count.env == {"TITLE": "${input.title?}", "N": "042", "DEBUG": "false", "V": "1.50"}
    assert pretend.spec == {"output": {"ok": True, "echo": "${input.number}"}, "outcome": "approved", "delay": "2s"}
    assert nothing.spec == {}


def test_absent_keys_take_the_documented_defaults() -> None:
    definition = parse(ONE_STAGE + "script: echo\n")

    assert definition == Definition(None, "w", (StageDefinition("a", "script", "echo"),), source=ONE_STAGE + "script: echo\n")
    assert definition.timeout_s == 3600 and definition.has_output is False
    stage = definition.stages[0]
    assert (stage.timeout_s, stage.retry, stage.max_output_bytes, stage.output) == (None, Retry(1, 5.0), 262144, "text")
    assert (stage.on_error, stage.idempotent, stage.env, stage.workdir) == ("fail", False, {}, None)


def test_stored_form_gives_the_same_definition_again() -> None:
    definition = parse(FULL, folder=Path("/srv/workflows"))

    assert Definition.from_dict(json.loads(json.dumps(definition.as_dict()))) == definition


def test_stored_form_of_another_release_is_read() -> None:
    stored = {"name": "old", "stages": [{"name": "a", "kind": "gone", "spec": 1, "later": 2}], "callbacks": [{"url": "http://x", "x": 1}]}

    definition = Definition.from_dict(stored)

    assert definition.stages == (StageDefinition("a", "gone", 1),)
    assert definition.callbacks == (CallbackDefinition("http://x"),)
    assert definition.id is None


def test_pinned_token_is_nowhere_in_what_is_stored() -> None:
    definition = parse(FULL.replace("# pinned", f"# http://localhost/api/v1/hooks/{TOKEN}"))

    assert TOKEN not in json.dumps(definition.as_dict())
    assert parse(definition.source) == definition


ONE_SCRIPT = "stages: [{name: a, script: x}]\n"
PINNED = f"name: w\ntriggers:\n  - {{name: t, webhook: {{token: {TOKEN}}}}}\n"


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        (PINNED.replace(TOKEN, f'"\\x41{TOKEN[1:]}"') + ONE_SCRIPT, 3, "without escapes"),
        (f"{PINNED}stages:\n  - name: a\n    script: curl x/{TOKEN}\n", 6, "holds the token"),
        (f"{PINNED}  - {{name: u, webhook: {{token: {TOKEN}}}}}\n{ONE_SCRIPT}", 4, "another trigger"),
        (PINNED.replace(TOKEN, "short") + ONE_SCRIPT, 3, "43 characters"),
        (PINNED.replace(TOKEN, "'sha256:abc'") + ONE_SCRIPT, 3, "64 hex"),
    ],
    ids=["escaped", "twice", "two triggers", "short", "half a digest"],
)
def test_token_that_cannot_be_kept_out_is_refused(text: str, line: int, said: str) -> None:
    faults = faults_of(text)

    assert [fault.line for fault in faults] == [line]
    assert said in faults[0].detail


STAGES_REFUSED: list[tuple[str, str]] = [
    ("comand: [x]", "stages[0].comand is not known; did you mean command?"),
    ("command: [x]\n    wen: {}", "stages[0].wen is not known; did you mean when?"),
    ("command: [x]\n    when: {}", "write a mapping of paths"),
    ("command: [x]\n    when: {secrets.A: x}", "begins with none of input, stages"),
    ("command: [x]\n    when: {stages.b.output: x}", "of a stage that this file does not have"),
    ("command: [x]\n    when: {stages.a.ouput: x}", "did you mean output?"),
    ("command: [x]\n    when: {run.dir: x}", "known within a stage only"),
    ("command: [x]\n    when: {any: [{input.a: {regex: '(?=x)'}}]}", "not a regular expression"),
    ("command: [x]\n    when: {input.a: '${input.b}'}", "takes no look-ups"),
    ("command: [x]\n    outcomes: [yes, no]\n    routing: {maybe: end}", "none of the stage's outcomes: yes, no"),
    ("command: [x]\n    outcomes: [approved]\n    routing: {Approved: end}", "did you mean approved?"),
    ("command: [x]\n    outcomes: [yes]\n    routing: {yes: b}", "neither end nor a stage of this file"),
    ("command: [x]\n    outcomes: [yes]\n    routing: {yes: {workflow: A}}", "the name of a workflow"),
    ("command: [x]\n    outcomes: [yes]\n    routing: {yes: {workflow: a, stage: b}}", "is not known"),
    ("command: [x]\n    outcomes: [yes, yes]", "different labels"),
    ("command: [x]\n    outcomes: ['a b']", "A-Z, a-z, 0-9"),
    ("command: [x]\n    routing: {yes: end}", "list them"),
    ("http: {url: 'http://x/'}\n    outcomes: [a]", "does not apply here"),
    ("stub: {outcome: c}\n    outcomes: [a, b]", "'c' is none of the stage's outcomes: a, b"),
    ("prompt: {user: x}", "stages[0].prompt lacks model"),
    ("prompt: {user: '${secrets.A}', model: m}", "a model may tell it again"),
    ("prompt: {user: x, model: '${input.m}'}", "takes no look-ups"),
    ("prompt: {user: x, model: m, api_key: abc}", 'wholly "${secrets.NAME}"'),
    ("prompt: {user: x, model: m, base_url: 'https://${input.h}/v1'}", "must not choose who reads the prompt"),
    ("prompt: {user: x, model: m, base_url: 'ftp://x'}", "http:// or https://"),
    ("prompt: {user: x, model: m, temperature: 3}", "from 0 to 2"),
    ("prompt: {user: x, model: m, options: {stream: true}}", "set by this service"),
    ("prompt: {user: x, model: m}\n    output: json\n    outcomes: [a]", "cannot be json"),
    ("prompt: {user: x, model: m}\n    env: {A: b}", "does not apply to prompt"),
    ("timeout: 5s", "needs exactly one of command, script, http, stub"),
    ("command: [x]\n    script: y", "it has command, script"),
    ("command: ls -l", "script:"),
    ("command: []", "write a list of the program"),
    ("command: [x, null]", "command[1] does not fit"),
    ("command: ['']", "must name a program"),
    ("command: [x, '${secrets.A}']", "visible in ps"),
    ("command: [x, '${input.a']", "is not a look-up"),
    ("command: [x, '${inptu.a}']", "did you mean input?"),
    ("command: [x, '${HOME}']", "for a shell's variable write $${HOME}"),
    ("command: [x, '${stages.b.output}']", "a stage that this file does not have"),
    ("command: [x, '${stages.a.ouput}']", "did you mean output?"),
    ("command: [x, '${run.idd}']", "did you mean id?"),
    ("command: [x, '${trigger.body}']", "none of name, headers, query"),
    ("command: [x, '${wait.url}']", "waiting stage"),
    ("command: ['${input.program}']", "must not choose the program"),
    ("script: 'echo ${input.a}'", "takes no look-ups"),
    ("script: 'echo ${input}'", "takes no look-ups"),
    ("script: 'echo ${foo.bar}'", "takes no look-ups"),
    ("script: 'echo ${secrets.A}'", "takes no look-ups"),
    ("script: ''", "/bin/sh script"),
    ("script: x\n    env: {A-B: c}", "not the name of a variable"),
    ("script: x\n    env: {ORQO_RUN_ID: c}", "set by this service"),
    ("script: x\n    env: {A: [c]}", "write text"),
    ("script: x\n    workdir: '${run.dir}/x'", "takes no look-ups"),
    ("script: x\n    timeout: '${input.t}'", "write a number and a unit"),
    ("script: x\n    timeout: 60", "needs quotes"),
    ("script: x\n    timeout: 0s", "more than 0"),
    ("script: x\n    timeout: 99999999999999999999999999999999999999999ms", "at most 366d"),
    (f"script: x\n    timeout: {'9' * 400}ms", "at most 366d"),
    ("script: x\n    retry: {attempts: 0}", "from 1 to 100"),
    ("script: x\n    retry: {attempts: 101}", "from 1 to 100"),
    ("script: x\n    retry: {delay: soon}", "write a number and a unit"),
    ("script: x\n    retry: {times: 3}", "stages[0].retry.times is not known"),
    ("script: x\n    retry: 3", "must be a mapping"),
    ("script: x\n    max_output: 5MiB", "at most 4MiB"),
    ("script: x\n    max_output: 4194305", "at most 4MiB"),
    ("script: x\n    output: jsn", "did you mean json?"),
    ("script: x\n    idempotent: yes", "true or false"),
    ("script: x\n    on_error: nxt", "did you mean next?"),
    ("script: x\n    on_error: a", "the same stage"),
    ("stub: {}\n    env: {A: b}", "does not apply to stub"),
    ("stub: {}\n    output: json", "does not apply to stub"),
    ("http: {url: 'http://x'}\n    workdir: /", "does not apply to http"),
    ("stub: {delay: 2}", "write a number and a unit"),
    ("stub: {outcome: 'A B'}", "a-z"),
    ("stub: {outcome: '${input.x}'}", "write 1 to 64"),
    ("stub: {fail: x, outcome: y}", "no outcome"),
    ("http: {}", "stages[0].http lacks url"),
    ("http: {url: 'ftp://x'}", "http:// or https://"),
    ("http: {url: 'http:///x'}", "and a host"),
    ("http: {url: 'http://x:99999/'}", "usable host or port"),
    ("http: {url: 'http://[::1/'}", "usable host or port"),
    ("http: {url: 'http://x/a b'}", "percent-encoded"),
    ("http: {url: 'http://x\\${input.a}'}", "percent-encoded"),
    ("http: {url: 'http://x', method: post}", "did you mean POST?"),
    ("http: {url: 'http://x', json: 1, body: x}", "takes one of json, form, body"),
    ("http: {url: 'http://x', expect: 99}", "a status such as"),
    ("http: {url: 'http://x', expect: [20x]}", "a status such as"),
    ("http: {url: 'http://x', headers: {Content-Length: 3}}", "set by this service"),
    ("http: {url: 'http://x', headers: {'A b': 3}}", "not the name of a header"),
    ("http: {url: 'http://x', headers: {A: \"b\\nc\"}}", "one line"),
    ("http: {url: 'http://${input.h}/', headers: {A: '${secrets.B}'}}", "written out or in ${secrets"),
    ("http: {url: 'http://x:${input.p}/', json: [{a: '${secrets.B}'}]}", "written out or in ${secrets"),
    ("http: {url: 'http://x${input.p}?k=${secrets.B}'}", "written out or in ${secrets"),
    ("http: {url: '${secrets.BASE}${input.p}'}", "written out or in ${secrets"),
    ("http: {url: 'http://x/${secrets}'}", "write ${secrets.NAME}"),
    ("http: {url: 'http://x/${secrets.A.b}'}", "write ${secrets.NAME}"),
]


@pytest.mark.parametrize(("stage", "said"), STAGES_REFUSED, ids=[stage for stage, _ in STAGES_REFUSED])
def test_stage_is_refused(stage: str, said: str) -> None:
    faults = faults_of(ONE_STAGE + stage + "\n")

    assert len(faults) == 1
    assert said in faults[0].detail
    assert faults[0].line in (3, 4, 5, 6)


@pytest.mark.parametrize(
    "argv",
    [
        ["sh", "-c", "echo ${input.x}"],
        ["/bin/sh", "-c", "echo", "${input.x}"],
        ["bash", "-lc", "${input.x}"],
        ["bash", "-o", "pipefail", "-ec", "${input.x}"],
        ["dash", "-c", "${input.x}"],
        ["zsh", "-c", "${input.x}"],
        ["env", "sh", "-c", "${input.x}"],
        ["/usr/bin/env", "-i", "A=b", "bash", "-c", "${input.x}"],
        ["env", "-S", "sh -c ${input.x}"],
        ["timeout", "5", "python3.11", "-W", "ignore", "-c", "${input.x}"],
        ["python", "-cprint('${input.x}')"],
        ["pypy3", "-Bc", "${input.x}"],
        ["perl", "-e", "${input.x}"],
        ["perl", "-ne", "${input.x}"],
        ["ruby", "-e", "${input.x}"],
        ["node", "--eval=${input.x}"],
        ["node", "-e", "${input.x}"],
        ["nodejs", "-p", "${input.x}"],
        ["deno", "eval", "${input.x}"],
        ["php", "-r", "${input.x}"],
        ["su", "nobody", "-c", "${input.x}"],
        ["find", ".", "-exec", "sh", "-c", "${input.x}", ";"],
        ["busybox", "sh", "-c", "${input.x}"],
    ],
    ids=" ".join,
)
def test_lookup_after_a_code_option_is_refused(argv: list[str]) -> None:
    faults = faults_of(ONE_STAGE + f"command: {json.dumps(argv)}\n")

    assert "could become code" in faults[0].detail


@pytest.mark.parametrize(
    "argv",
    [
        ["sh", "-c", "echo $${HOME}"],
        ["sh", "script.sh", "-c", "${input.x}"],
        ["python3", "tool.py", "-c", "${input.x}"],
        ["python3", "-m", "tool", "-c", "${input.x}"],
        ["git", "diff", "--stat", "--", "${input.x}"],
        ["grep", "-c", "${input.x}"],
        ["curl", "-e", "${input.x}"],
        ["${run.dir}/tool", "${input.x}"],
        ["perl", "-Mfeature=say", "tool.pl", "${input.x}"],
    ],
    ids=" ".join,
)
def test_lookup_that_is_an_argument_is_taken(argv: list[str]) -> None:
    assert parse(ONE_STAGE + f"command: {json.dumps(argv)}\n").stages[0].spec == argv


@pytest.mark.parametrize(
    "stage",
    [
        "http: {url: '${secrets.BASE}/x/${input.a}', headers: {A: '${secrets.B}'}}",
        "http: {url: 'https://${secrets.HOST}:8443/x', json: '${secrets.B}'}",
        "http: {url: 'https://${input.host}/x', json: '${input}'}",
        "http: {method: POST, url: 'https://user:${secrets.P}@h.example.com/', form: {a: '${input.b}'}}",
        "http: {url: 'http://[::1]:8000/${stages.a.outcome?}', expect: 404}",
        "script: 'echo ${HOME} ${X:-y} ${#X} $${Y}'",
        "stub: {fail: 'no ${input.x}'}",
        "stub: {output: '${secrets.A}'}",
        "command: [sleep, 5]",
        "script: x\n    max_output: 65536",
        "script: x\n    on_error: next",
        "script: x\n    env: {A: '${secrets.B}', B: '${workflow.name} ${stage.name} ${trigger.headers.x-a}'}",
    ],
)
def test_stage_is_taken(stage: str) -> None:
    assert parse(ONE_STAGE + stage + "\n").stages[0].name == "a"


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("id: 0", "from 1 up"),
        ("id: true", "from 1 up"),
        ("id: '42'", "from 1 up"),
        ("nme: x", "nme is not known; did you mean name?"),
        ("timeout: 400d", "at most 366d"),
        ("output: '${secrets.A}'", "is shown and sent"),
        ("output: ['${stages.gone.output}']", "does not have"),
        ("triggers: {name: x}", "must be a list"),
        ("triggers: [{webhook: {}}]", "triggers[0] lacks name"),
        ("triggers: [{name: A}]", "a-z, 0-9, _ and -"),
        ("triggers: [{name: a}, {name: a}]", "taken by another of the triggers"),
        ("triggers: [{name: a, schedule: x}]", "write the five fields of cron"),
        ("triggers: [{name: a, webhook: {signature: x}}]", "webhook.signature does not fit: write github, slack"),
        ("triggers: [{name: a, webhook: true}]", "must be empty or a mapping"),
        ("callbacks: [{events: [failed]}]", "callbacks[0] lacks url"),
        ("callbacks: [{url: 'http://x', events: [complete]}]", "did you mean completed?"),
        ("callbacks: [{url: 'http://x', events: []}]", "a list of different events"),
        ("callbacks: [{url: 'http://x', events: [failed, failed]}]", "a list of different events"),
        ("callbacks: [{url: 'http://x', secret: plain}]", "wholly"),
        ("callbacks: [{url: 'http://x', secret: 'x${secrets.A}'}]", "wholly"),
        ("callbacks: [{url: 'http://x', secret: '${secrets.A?}'}]", "wholly"),
        ("callbacks: [{url: 'http://x', secret: '${input.a}'}]", "wholly"),
        ("callbacks: [{url: 'http://x', json: {a: ['${secrets.A}']}}]", "kept as it was sent"),
        ("callbacks: [{url: 'http://x', json: '${stage.name}'}]", "within a stage only"),
        ("callbacks: [{url: 'http://x/${run.dir}'}]", "within a stage only"),
        ("callbacks: [{url: 'http://${input.h}', headers: {A: '${secrets.A}'}}]", "written out or in"),
        ("callbacks: [{url: 'http://${input.h}', secret: '${secrets.A}'}]", "written out or in"),
        ("callbacks: [{url: 'http://x', headers: {webhook-id: x}}]", "set by this service"),
        ("callbacks: [{url: example.com}]", "http:// or https://"),
        ("triggers: [{name: a, callbacks: [{url: 'http://x', json: '${secrets.A}'}]}]", "kept as it was sent"),
        ("triggers: [{name: a, callbacks: [{url: x}]}]", "triggers[0].callbacks[0].url must start"),
    ],
)
def test_workflow_is_refused(lines: str, said: str) -> None:
    faults = faults_of(f"name: w\n{lines}\nstages: [{{name: a, script: x}}]\n")

    assert [fault.line for fault in faults] == [2]
    assert said in faults[0].detail


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[]", "begins with name: and stages:"),
        ("42", "begins with name: and stages:"),
        ("name: w", "the file lacks stages"),
        ("name: w\nstages: []", "1 to 200 stages"),
        ("name: W\nstages: [{name: a, script: x}]", "a-z, 0-9 and -"),
        (f"name: {'w' * 65}\nstages: [{{name: a, script: x}}]", "a-z, 0-9 and -"),
        ("name: '${input.n}'\nstages: [{name: a, script: x}]", "a-z, 0-9 and -"),
        ("name: w\nstages: [{name: next, script: x}]", "other than fail, next and end"),
        ("name: w\nstages: [{name: 12, script: x}]", "needs quotes"),
        ("name: w\nstages: [{name: a, script: x}, {name: a, script: y}]", "taken by another"),
        ("name: w\nstages: [x]", "stages[0] must be a mapping"),
    ],
)
def test_file_without_what_it_needs_is_refused(text: str, said: str) -> None:
    assert said in faults_of(text)[0].detail


def test_all_faults_are_told_at_once_in_the_order_of_lines() -> None:
    first = "\nname: w\nname: v\nstages:\n  - name: a\n\n    comand: [x]\n"
    text = first + "  - name: b\n    command: [sh, -c, '${input.x}']\n    retry: {attempts: 0}\n"

    with pytest.raises(Invalid) as refused:
        parse(text)

    assert [(fault.line, fault.pointer) for fault in refused.value.errors] == [
        (3, "/name"),
        (7, "/stages/0/comand"),
        (9, "/stages/1/command/2"),
        (10, "/stages/1/retry/attempts"),
    ]
    assert refused.value.detail == "line 3: name stands twice; the first is in line 2 (and 3 more)"


def test_summary_names_line_and_remedy() -> None:
    with pytest.raises(Invalid) as refused:
        parse(ONE_STAGE + "comand: [x]\n")

    assert refused.value.detail == "line 4: stages[0].comand is not known; did you mean command?"
    assert refused.value.as_dict()["errors"] == [
        {"pointer": "/stages/0/comand", "detail": "stages[0].comand is not known; did you mean command?", "line": 4}
    ]


def test_misspelt_key_is_told_before_what_it_leaves_missing() -> None:
    faults = faults_of("naem: w\nstages: [{name: a, script: x}]\n")

    assert [fault.detail for fault in faults] == ["naem is not known; did you mean name?", "the file lacks name"]


def test_many_faults_and_long_commands_are_told_in_bounded_time_and_number() -> None:
    # Of this process's own time: a loaded machine is no fault of the parser's.
    started = time.process_time()

    faults = faults_of(ONE_STAGE + "command: [" + "bash, -x, " * 20_000 + "]\n")
    many = faults_of("a: 1\n" * 10_000)

    assert len(faults) == 1 and len(many) == 100
    assert time.process_time() - started < 10


def assert_parsed_or_invalid(text: str) -> None:
    try:
        definition = parse(text)
    except Invalid as refused:
        assert refused.errors and refused.detail
    else:
        assert Definition.from_dict(json.loads(json.dumps(definition.as_dict(), allow_nan=False))) == definition


@CALM
@given(st.text(), st.text(st.characters()))
def test_any_text_is_a_workflow_or_invalid(text: str, value: str) -> None:
    assert_parsed_or_invalid(text)
    assert_parsed_or_invalid(f"name: w\nstages:\n  - name: a\n    command: [x, {value}]\n")


INSERTED = ["", ":", "\n", "  ", "[", "}", "${", '"', "null", "12", "- ", "&a ", "\t", "é"]


@CALM
@given(st.integers(0, 2**32), st.integers(1, 4))
def test_mutated_file_is_a_workflow_or_invalid(seed: int, times: int) -> None:
    draw = random.Random(seed)
    text = FULL
    for _ in range(times):
        start = draw.randrange(len(text))
        end = start + draw.choice([0, 1, 1, 2, 10])
        text = text[:start] + draw.choice([*INSERTED, text[:30]]) + text[end:]

    assert_parsed_or_invalid(text)


STRINGS = st.sampled_from(["", "a", "${input.x}", "${", "http://x", "-c", "sh", "5s"])
KEYS = st.sampled_from(["name", "stages", "url", "command", "http", "stub", "webhook", "token", "callbacks", "json", "secret", "x"])
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(-1, 1) | STRINGS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=10,
)
WORKFLOW_KEYS = ["id", "name", "description", "timeout", "output", "callbacks", "triggers", "stages"]
KIND_KEYS = ["command", "script", "http", "stub"]
STAGE_KEYS = [*KIND_KEYS, "name", "timeout", "retry", "max_output", "output", "env", "workdir", "on_error", "idempotent"]


@CALM
@given(st.sampled_from(WORKFLOW_KEYS), st.sampled_from(STAGE_KEYS), ANYTHING, ANYTHING)
def test_any_value_under_any_key_is_a_workflow_or_invalid(key: str, stage_key: str, value: Any, stage_value: Any) -> None:
    workflow = {"name": "w", "stages": [{"name": "a", "stub": {}}, {"name": "b", "script": "x", stage_key: stage_value}], key: value}

    assert_parsed_or_invalid(json.dumps(workflow))
