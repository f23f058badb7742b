"""Commands and scripts: what they are given, what their end means."""

from __future__ import annotations

import base64
import json
import os
import pwd
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orqo import flow, lookup, stages
from orqo.stages import handover
from orqo.stages.account import stage_account
from stage_context import make_context, make_roots, make_stage, reachable_folder

AS_ROOT = os.geteuid() == 0
needs_root = pytest.mark.skipif(not AS_ROOT, reason="changing users needs root")
STAGES = {
    "diff": {"output": "a\nb", "outcome": None, "status": "completed", "error": None, "response": {"status": 200, "headers": {}}},
    "long": {"output": lookup.Unreadable("it was cut at max_output"), "outcome": "big", "status": "completed"},
}
ORQO_VARIABLES = {f"ORQO_{name}" for name in ("RUN_ID", "RUN_DIR", "WORKFLOW", "STAGE", "INPUT_FILE", "OUTCOME_FILE")}
ALLOWED = {"PATH", "HOME", "LANG", "TZ"} | ORQO_VARIABLES


@pytest.fixture
def run_dir() -> Iterator[Path]:
    with reachable_folder() as folder:
        (folder / "7").mkdir()
        yield folder / "7"


def run_command(run_dir: Path, *argv: str, stage: dict[str, Any] | None = None, **changes: Any) -> stages.Result:
    return stages.execute(make_context(run_dir, make_stage("command", list(argv), **(stage or {})), **changes))


def run_script(run_dir: Path, script: str, *, stage: dict[str, Any] | None = None, **changes: Any) -> stages.Result:
    return stages.execute(make_context(run_dir, make_stage("script", script, **(stage or {})), **changes))


def completed(result: stages.Result) -> stages.Completed:
    assert isinstance(result, stages.Completed), result
    return result


def failed(result: stages.Result) -> stages.Failed:
    assert isinstance(result, stages.Failed), result
    return result


def leftovers(run_dir: Path) -> list[Path]:
    prefix = handover._prefix(str(run_dir.parent))
    return [path for folder in (Path("/dev/shm"), run_dir.parent) if folder.is_dir() for path in folder.glob(f"{prefix}*")]


@pytest.mark.parametrize(
    ("script", "output", "kind"),
    [
        pytest.param(r"printf 'h\303\251\n\n'", "hé\n".encode(), "text", id="one-newline-less"),
        pytest.param("true", b"", "text", id="nothing"),
        pytest.param(r"printf '\000a'", b"\0a", "text", id="nul"),
        pytest.param(r"printf 'a\377\n'", b"a\xff\n", "bytes", id="invalid-utf-8"),
    ],
)
def test_output_is_text_where_it_is_utf_8(run_dir: Path, script: str, output: bytes, kind: str) -> None:
    result = completed(run_script(run_dir, script))

    assert (result.output, result.output_kind, result.truncated, result.exit_code) == (output, kind, False, 0)


def test_binary_output_is_kept_as_it_is(run_dir: Path) -> None:
    content = bytes(range(256)) * 40

    result = completed(run_script(run_dir, f"base64 -d <<END\n{base64.encodebytes(content).decode()}END\n"))

    assert (result.output, result.output_kind) == (content, "bytes")


@pytest.mark.parametrize(
    ("limit", "output", "truncated"),
    [pytest.param(6, b"\xc3\xa9" * 3, False, id="fits"), pytest.param(5, b"\xc3\xa9" * 2, True, id="cut-within-a-character")],
)
def test_output_is_cut_at_its_limit(run_dir: Path, limit: int, output: bytes, truncated: bool) -> None:
    result = completed(run_script(run_dir, r"printf '\303\251\303\251\303\251'", stage={"max_output_bytes": limit}))

    assert (result.output, result.output_kind, result.truncated) == (output, "text", truncated)


def test_environment_holds_nothing_of_the_service(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORQO_SECRET_TOKEN", "s3cret")
    monkeypatch.setenv("DATABASE_URL", "sqlite:////x")
    monkeypatch.delenv("TZ", raising=False)
    roots = make_roots(secrets={"TOKEN": "s3cret", "OTHER": "0ther"}, input={"title": "Say `hi` $(id)", "list": [1]})
    env = {"TITLE": "${input.title}", "KEY": "${secrets.OTHER}", "LIST": "${input.list}", "LANG": "de_DE.UTF-8", "ORQO_RUN_ID": "1"}

    result = completed(run_command(run_dir, "env", "-0", stage={"env": env}, roots=roots))

    seen = dict(line.split("=", 1) for line in result.output.decode().rstrip("\0").split("\0"))
    assert set(seen) == ALLOWED | {"TITLE", "KEY", "LIST"}
    assert (seen["TITLE"], seen["KEY"], seen["LIST"], seen["LANG"]) == ("Say `hi` $(id)", "0ther", "[1]", "de_DE.UTF-8")
    assert (seen["ORQO_RUN_ID"], seen["ORQO_RUN_DIR"], seen["TZ"]) == ("7", str(run_dir), "UTC")
    assert (seen["ORQO_WORKFLOW"], seen["ORQO_STAGE"]) == ("deploy", "build")
    assert os.path.isabs(seen["HOME"])
    assert "s3cret" not in result.output.decode()


def test_only_the_three_standard_descriptors_are_open(run_dir: Path) -> None:
    leaked = os.open("/", os.O_RDONLY)
    os.set_inheritable(leaked, True)
    try:
        result = completed(run_script(run_dir, "ls /proc/$$/fd"))
    finally:
        os.close(leaked)

    assert set(result.output.split()) <= {b"0", b"1", b"2"}


def test_input_is_the_same_on_stdin_and_in_the_file(run_dir: Path) -> None:
    trigger = {"name": "github", "headers": {}, "query": {}}
    roots = make_roots(input={"é": [1, None]}, trigger=trigger, secrets={"A": "hidden"}, stages=STAGES)

    result = completed(run_script(run_dir, 'cat; echo; cat "$ORQO_INPUT_FILE"', roots=roots))

    first, second = result.output.decode().split("\n")
    assert first == second
    assert json.loads(first) == {
        "run": {"id": 7},
        "input": {"é": [1, None]},
        "trigger": trigger,
        "stages": {
            "diff": {"output": "a\nb", "outcome": None, "status": "completed"},
            "long": {"output": None, "outcome": "big", "status": "completed", "output_unreadable": "it was cut at max_output"},
        },
    }


@pytest.mark.parametrize("size", [1, 5_000_000], ids=["small", "large"])
def test_input_file_is_private_and_removed(run_dir: Path, size: int) -> None:
    roots = make_roots(input="x" * size)

    result = completed(run_script(run_dir, 'stat -c "%a %u" "$ORQO_INPUT_FILE" "$ORQO_OUTCOME_FILE"; id -u', roots=roots))

    user = result.output.split()[-1].decode()
    assert result.output.decode() == f"600 {user}\n600 {user}\n{user}"
    assert leftovers(run_dir) == []


def test_unread_input_blocks_nobody(run_dir: Path) -> None:
    result = completed(run_script(run_dir, "exec <&-; seq 1 200000", roots=make_roots(input="x" * 5_000_000)))

    assert result.truncated


def test_run_folder_is_empty_at_first(run_dir: Path) -> None:
    assert completed(run_script(run_dir, "pwd; ls -A")).output.decode() == str(run_dir)


def test_leftovers_of_killed_workers_are_removed(run_dir: Path) -> None:
    pid = os.fork()
    if pid == 0:
        handover.Handover(make_context(run_dir, make_stage()), None).__enter__()
        os._exit(0)
    os.waitpid(pid, 0)
    assert len(leftovers(run_dir)) == 2

    handover.remove_leftovers(run_dir.parent)

    assert leftovers(run_dir) == []


@pytest.mark.parametrize(
    ("script", "outcome"),
    [
        pytest.param('echo approved > "$ORQO_OUTCOME_FILE"', "approved", id="label"),
        pytest.param('printf " needs_work" > "$ORQO_OUTCOME_FILE"', "needs_work", id="blanks"),
        pytest.param('echo > "$ORQO_OUTCOME_FILE"', None, id="empty"),
        pytest.param("true", None, id="untouched"),
    ],
)
def test_outcome_is_what_the_file_says(run_dir: Path, script: str, outcome: str | None) -> None:
    assert completed(run_script(run_dir, script)).outcome == outcome


@pytest.mark.parametrize(
    "script",
    [
        pytest.param('rm "$ORQO_OUTCOME_FILE"; ln -s /etc/hostname "$ORQO_OUTCOME_FILE"', id="link"),
        pytest.param('rm "$ORQO_OUTCOME_FILE"; mkfifo "$ORQO_OUTCOME_FILE"', id="pipe"),
        pytest.param('rm "$ORQO_OUTCOME_FILE"; mkdir -p "$ORQO_OUTCOME_FILE/a"', id="folder"),
        pytest.param('printf "a\\nb" > "$ORQO_OUTCOME_FILE"', id="two-lines"),
        pytest.param('head -c 1000000 /dev/zero > "$ORQO_OUTCOME_FILE"', id="large"),
        pytest.param(r'printf "\377" > "$ORQO_OUTCOME_FILE"', id="no-text"),
    ],
)
def test_outcome_that_is_no_label_fails(run_dir: Path, script: str) -> None:
    result = failed(run_script(run_dir, script))

    assert (result.reason, result.retryable) == ("stage_failed", False)
    assert "ORQO_OUTCOME_FILE" in result.detail
    assert leftovers(run_dir) == []


@pytest.mark.parametrize(
    ("script", "exit_code", "detail"),
    [
        pytest.param("exit 3", 3, "the command ended with exit status 3", id="status"),
        pytest.param("echo oh no >&2; exit 1", 1, "the command ended with exit status 1: oh no", id="last-line"),
        pytest.param("kill -9 $$", 137, "the command was ended by SIGKILL", id="signal"),
    ],
)
def test_exit_other_than_0_fails(run_dir: Path, script: str, exit_code: int, detail: str) -> None:
    result = failed(run_script(run_dir, "echo out\n" + script))

    assert (result.reason, result.detail, result.exit_code) == ("stage_failed", detail, exit_code)
    assert (result.output, result.retryable) == (b"out", True)


def test_no_shell_reads_a_command(run_dir: Path) -> None:
    result = completed(run_command(run_dir, "echo", "${input} *; id", roots=make_roots(input="$(id) `id` ; id")))

    assert result.output == b"$(id) `id` ; id *; id"


@pytest.mark.parametrize(
    ("argv", "fails"),
    [
        pytest.param(["echo", "${input}"], True, id="whole"),
        pytest.param(["echo", "${input}.txt"], True, id="beginning"),
        pytest.param(["echo", "${input}", "--"], True, id="dashes-after"),
        pytest.param(["echo", "--", "${input}"], False, id="dashes-before"),
        pytest.param(["echo", "name=${input}"], False, id="within"),
        pytest.param(["echo", "-n"], False, id="literal"),
    ],
)
def test_data_cannot_become_an_option(run_dir: Path, argv: list[str], fails: bool) -> None:
    result = run_command(run_dir, *argv, roots=make_roots(input="--output=pwned"))

    assert isinstance(result, stages.Failed) == fails
    if isinstance(result, stages.Failed):
        assert (result.reason, result.retryable) == ("stage_failed", False)
        assert "literal --" in result.detail


def test_negative_number_cannot_become_an_option(run_dir: Path) -> None:
    assert "literal --" in failed(run_command(run_dir, "kill", "${input}", roots=make_roots(input=-9))).detail


def test_absent_path_fails_with_its_name(run_dir: Path) -> None:
    result = failed(run_command(run_dir, "echo", "${input.nothing}", roots=make_roots(input={})))

    assert (result.reason, result.retryable) == ("lookup_failed", False)
    assert "input.nothing" in result.detail


@pytest.mark.parametrize(
    ("argv", "changes", "said"),
    [
        pytest.param(["no-such-program"], {}, "no program 'no-such-program' on PATH", id="not-on-path"),
        pytest.param(["./missing"], {}, "there is no file", id="no-file"),
        pytest.param(["./plain"], {}, "chmod +x", id="not-executable"),
        pytest.param(["./no-interpreter"], {}, "interpreter", id="no-interpreter"),
        pytest.param(["./no-program"], {}, "#!/bin/sh", id="no-program"),
        pytest.param(["true"], {"workdir": "/no/such"}, "working folder /no/such", id="no-workdir"),
        pytest.param(["true"], {"workdir": "/etc/passwd"}, "/etc/passwd", id="workdir-is-a-file"),
        pytest.param(["true"], {"workdir": "sub"}, "absolute", id="relative-without-a-file"),
        pytest.param(["echo", "a${input}"], {}, "NUL", id="nul-in-argument"),
        pytest.param(["true"], {"env": {"A": "${input}"}}, "NUL", id="nul-in-environment"),
        pytest.param(["echo", "${trigger.huge}"], {}, "argument 1 is too long", id="argument-too-long"),
        pytest.param(["/bin/echo", *["${trigger.large}"] * 30], {}, "together", id="arguments-too-long"),
        pytest.param(["echo", "${trigger.half}"], {}, "surrogate", id="lone-surrogate"),
    ],
)
def test_command_that_cannot_start_says_why(run_dir: Path, argv: list[str], changes: dict[str, Any], said: str) -> None:
    for name, content, mode in [("plain", "", 0o644), ("no-interpreter", "#!/no/such\n", 0o755), ("no-program", "\x01\x02", 0o755)]:
        (run_dir / name).write_text(content)
        (run_dir / name).chmod(mode)
    roots = make_roots(input="\0", trigger={"huge": "x" * 3_000_000, "large": "x" * 100_000, "half": "\ud800"})

    result = failed(run_command(run_dir, *argv, stage=changes, roots=roots))

    assert (result.reason, result.retryable) == ("stage_failed", False)
    assert said in result.detail


def test_script_too_long_for_the_system_says_so(run_dir: Path) -> None:
    assert "too long" in failed(run_script(run_dir, ": " + "x" * 200_000)).detail


def test_workdir_is_relative_to_the_workflow_file(run_dir: Path) -> None:
    folder = run_dir.parent / "workflows" / "sub"
    folder.mkdir(parents=True)

    result = completed(run_command(run_dir, "pwd", stage={"workdir": "sub"}, base_dir=folder.parent))

    assert result.output.decode() == str(folder)


@pytest.mark.parametrize(
    ("script", "kind", "output"),
    [
        pytest.param('echo \'{"a": [1, "é"]}\'', stages.Completed, '{"a":[1,"é"]}', id="json"),
        pytest.param("echo null", stages.Completed, "null", id="null"),
        pytest.param("true", stages.Failed, "", id="nothing"),
        pytest.param("echo '{\"a\": 1'", stages.Failed, '{"a": 1', id="half"),
        pytest.param("echo NaN", stages.Failed, "NaN", id="nan"),
        pytest.param('echo \'{"a":1,"a":2}\'', stages.Failed, '{"a":1,"a":2}', id="key-twice"),
    ],
)
def test_json_output_is_parsed_strictly(run_dir: Path, script: str, kind: type, output: str) -> None:
    result = run_script(run_dir, script, stage={"output": "json"})

    assert isinstance(result, kind)
    assert result.output.decode() == output
    if isinstance(result, stages.Completed):
        assert result.output_kind == "json"
    else:
        assert (result.reason, result.retryable, result.exit_code) == ("stage_failed", False, 0)
        assert "not JSON" in result.detail


def test_json_output_that_was_cut_names_the_limit(run_dir: Path) -> None:
    result = failed(run_script(run_dir, "seq 1 100", stage={"output": "json", "max_output_bytes": 10}))

    assert "max_output (10 bytes)" in result.detail
    assert result.truncated


def test_script_is_plain_sh_without_substitution(run_dir: Path) -> None:
    result = completed(run_script(run_dir, "false\necho \"$0 $1\" '${input.x}'"))

    assert result.output == b"build  ${input.x}"


def test_past_deadline_starts_nothing(run_dir: Path) -> None:
    result = failed(run_script(run_dir, "touch started", within_s=0))

    assert result.reason == "timeout"
    assert not (run_dir / "started").exists()


@needs_root
def test_stage_user_has_no_more_of_root(run_dir: Path) -> None:
    result = completed(run_script(run_dir, "grep -E '^(Uid|Gid|Groups|Cap(Inh|Prm|Eff|Amb))' /proc/self/status"))

    user = pwd.getpwnam("nobody")
    fields = {line.split(":")[0]: line.split(":")[1].split() for line in result.output.decode().splitlines()}
    assert fields["Uid"] == [str(user.pw_uid)] * 4
    assert fields["Gid"] == [str(user.pw_gid)] * 4
    assert set(fields["Groups"]) <= {str(user.pw_gid)}
    assert {int(fields[name][0], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {0}
    assert os.getresuid() == (0, 0, 0)


@needs_root
def test_worker_itself_stays_root_in_every_thread(run_dir: Path) -> None:
    completed(run_command(run_dir, "true"))

    uids = {path.stat().st_uid for path in Path("/proc/self/task").iterdir()}
    status = [(path / "status").read_text().split("Uid:")[1].split()[:4] for path in Path("/proc/self/task").iterdir()]
    assert uids == {0}
    assert status == [["0"] * 4] * len(status)


@needs_root
def test_root_must_be_written_out(run_dir: Path) -> None:
    assert completed(run_command(run_dir, "id", "-u", stage_user="root")).output == b"0"


@needs_root
def test_unknown_stage_user_fails(run_dir: Path) -> None:
    assert "ORQO_STAGE_USER" in failed(run_command(run_dir, "true", stage_user="no-such-user")).detail


@needs_root
def test_run_folder_belongs_to_the_stage_user(run_dir: Path) -> None:
    run_dir.chmod(0o700)

    completed(run_script(run_dir, 'touch a; cd "$HOME"; touch b; echo shown >/dev/stdout; echo shown >/dev/stderr'))

    assert run_dir.stat().st_uid == pwd.getpwnam("nobody").pw_uid
    assert stat.S_IMODE(run_dir.stat().st_mode) == 0o700


@needs_root
def test_folder_closed_to_the_stage_user_says_so(run_dir: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o700)

    result = failed(run_command(run_dir, "true", stage={"workdir": str(tmp_path)}))

    assert "the user nobody may not enter the working folder" in result.detail


@needs_root
def test_program_closed_to_the_stage_user_says_so(run_dir: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    (tmp_path / "tool").write_text("#!/bin/sh\n")
    (tmp_path / "tool").chmod(0o755)

    result = failed(run_command(run_dir, str(tmp_path / "tool")))

    assert "the user nobody may not execute" in result.detail


@needs_root
@pytest.mark.parametrize("processor", ["platform.machine()", "'unknown'"], ids=["this-processor", "any-processor"])
def test_groups_of_the_service_are_given_up(run_dir: Path, processor: str) -> None:
    program = (
        f"import os, platform, sys; found = {processor}; platform.machine = lambda: found; os.setgroups([0, 4])\n"
        "from pathlib import Path\nfrom orqo import stages\nfrom stage_context import make_context, make_stage\n"
        "print(stages.execute(make_context(Path(sys.argv[1]), make_stage('script', 'id -u; id -G'))).output.decode())"
    )
    project = Path(__file__).resolve().parent.parent
    env = os.environ | {"PYTHONPATH": f"{project}:{project / 'tests'}"}

    done = subprocess.run([sys.executable, "-c", program, run_dir], env=env, capture_output=True, text=True, check=True)

    account = stage_account("nobody")
    assert account is not None
    assert done.stdout.split() == [str(account.uid), *map(str, account.groups)]


@pytest.mark.parametrize(
    ("kind", "spec", "idempotent", "expected"),
    [
        ("command", ["true"], False, False),
        ("command", ["true"], True, True),
        ("script", "true", False, False),
        ("stub", {}, False, True),
        ("http", {"url": "http://x/"}, False, True),
        ("http", {"url": "http://x/", "method": "head"}, False, True),
        ("http", {"url": "http://x/", "method": "POST"}, False, False),
        ("http", {"url": "http://x/", "method": "PUT"}, True, True),
    ],
)
def test_what_changes_nothing_is_repeatable(kind: str, spec: Any, idempotent: bool, expected: bool) -> None:
    assert flow.repeatable(make_stage(kind, spec, idempotent=idempotent)) == expected


def test_a_command_writes_files_as_a_login_shell_would(run_dir: Path) -> None:
    before = os.umask(0o077)
    try:
        result = completed(run_script(run_dir, "umask"))
    finally:
        os.umask(before)

    assert result.output == b"0022"
