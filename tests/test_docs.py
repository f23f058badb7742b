"""The README and openapi.yaml say what is so: settings, commands, routes, and every command line that is shown."""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orqo import cli, description, runs
from orqo.config import PROJECT_DIR, SETTINGS
from support import Service, wait_for

README = (PROJECT_DIR / "README.md").read_text(encoding="utf-8")
METHODS = ("get", "put", "post", "delete", "patch")
# What a reader has to put in the place of.
WEBHOOK = "THE-43-CHARACTERS-OF-YOUR-WEBHOOK"


def section(name: str) -> str:
    """Give what stands between `<!-- name -->` and `<!-- /name -->`."""
    found = re.search(rf"<!-- {name} -->\n(.*?)<!-- /{name} -->", README, re.DOTALL)
    assert found, name
    return found[1].strip()


def settings_table() -> str:
    rows = [f"| `{s.name}` | {f'`{s.default}`' if s.default else ''} | {s.meaning} |" for s in SETTINGS.values()]
    return "\n".join(["| setting | default | meaning |", "|---|---|---|", *rows])


def commands_table() -> str:
    rows = [f"| `{word}{' ' + ' · '.join(verbs) if verbs else ''}` | {purpose} |" for word, verbs, purpose in commands()]
    return "\n".join(["| `.venv/bin/python -m orqo …` | |", "|---|---|", *rows])


def commands() -> Iterator[tuple[str, list[str], str]]:
    """Give each word of the command line with its verbs and what it is for."""
    for word, (purpose, _) in cli.WORDS.items():
        inner = next((action for action in parser_of(word)._actions if isinstance(action, argparse._SubParsersAction)), None)
        yield word, list(inner.choices) if inner else [], purpose


def parser_of(word: str) -> argparse.ArgumentParser:
    top = cli._parser([word])
    actions = [action for action in top._actions if isinstance(action, argparse._SubParsersAction)]
    parser = actions[0].choices[word]
    assert isinstance(parser, argparse.ArgumentParser)
    return parser


@pytest.mark.parametrize(("name", "table"), [("settings", settings_table), ("commands", commands_table)])
def test_the_readmes_table_is_the_codes(name: str, table: Any) -> None:
    assert section(name) == table()


def test_every_route_of_the_api_is_described_and_every_description_exists(client: Any) -> None:
    described = {
        (method.upper(), re.sub(r"\{[^}]*\}", "{}", path))
        for path, operations in description.load()["paths"].items()
        for method in operations
        if method in METHODS
    }
    served = {
        (method, re.sub(r"<[^>]*>", "{}", rule.rule))
        for rule in client.application.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
        if rule.rule.startswith(("/api/", "/healthz", "/readyz", "/metrics"))
    }
    # The empty token is one of the wrong tokens, not an operation of its own.
    assert {(method, path) for method, path in served if path != "/api/v1/hooks/"} == described


def shown_lines() -> list[str]:
    """Give every command line of the README's sh blocks but make's, which the other tests are run by."""
    blocks = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.strip()]
    return [line for line in lines if not line.startswith("make ")]


def test_every_command_line_of_the_readme_works_as_pasted(service: Service, tmp_path: Path) -> None:
    base = "http://127.0.0.1:8000"
    env = service.env | {"TOKEN": service.box.token("trigger", "read"), "ADMIN": service.box.token("admin"), "PYTHONPATH": str(PROJECT_DIR)}
    (tmp_path / "examples").mkdir()
    for example in (PROJECT_DIR / "examples").glob("*.yaml"):
        text = example.read_text(encoding="utf-8").replace(base, service.url)
        (tmp_path / "examples" / example.name).write_text(text, encoding="utf-8")
    token = service.box.hook().rpartition("/")[2]
    # The first lines speak of the run that the first curl line starts; run 1 exists from then on.
    for line in shown_lines():
        pasted = line.replace(WEBHOOK, token).replace(base, service.url).replace(".venv/bin/python", shlex.quote(sys.executable))
        pasted = pasted.replace("curl ", "curl -sS --fail-with-body ")
        done = subprocess.run(["bash", "-c", pasted], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)

        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"


# Answered by the proxy that the page sets up.
NOT_OURS = ("curl -i https://orqo.example.com/",)
REFUSED = {"curl -X POST https://orqo.example.com/api/v1/hooks/x": "There is no such webhook"}


def curl_lines() -> Iterator[str]:
    """Give every curl line of the guides: in their blocks, crontabs too, and in their sentences."""
    for page in sorted((PROJECT_DIR / "docs").rglob("*.md")):
        parts = re.split(r"^ *```.*\n", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
        for block in parts[1::2]:
            yield from (line.strip() for line in block.replace("\\\n", " ").splitlines() if "curl " in line)
        for sentence in parts[::2]:
            yield from re.findall(r"`(curl [^`]*)`", sentence)


def test_every_curl_line_of_the_guides_works_as_pasted(service: Service, tmp_path: Path) -> None:
    box = service.box
    box.apply("name: asks\nstages: [{name: ask, wait: {timeout: 1h}}]\n")
    box.apply((PROJECT_DIR / "examples" / "recipes" / "cron.yaml").read_text(encoding="utf-8"))
    asking = box.accept("asks")
    box.bell.wake_workers()
    wait_for(lambda: box.run(asking)["status"] == "waiting")
    with box.database.read() as connection:
        token = runs.token_of(box.box, runs.wait_of(connection, asking))
    env = service.env | {"TOKEN": box.token("trigger", "read"), "ADMIN": box.token("admin")}
    env["WAIT_URL"] = f"{service.url}/api/v1/callback?token={token}"
    cron = service.url + box.hook("backup-done", "cron")

    lines = [line for line in curl_lines() if line not in NOT_OURS]
    for line in lines:
        pasted = re.sub(r"^(?:[\d*]\S* ){5}", "", line).replace("\\%", "%").replace("/usr/local/bin/backup", "true")
        pasted = re.sub(r"https://orqo.example.com|http://127.0.0.1:8000", service.url, re.sub(r"\bURL$", cron, pasted))
        # One that says how it fails is left as it is.
        pasted = pasted if line in REFUSED or " -f" in line else pasted.replace("curl ", "curl -sS --fail-with-body ")
        done = subprocess.run(["bash", "-c", pasted], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)

        assert done.returncode == 0 and REFUSED.get(line, "") in done.stdout, f"{line}\n{done.stdout}{done.stderr}"
    assert len(lines) >= 5 and REFUSED.keys() <= set(lines)


def write() -> None:
    """Bring the README's tables up to date: python tests/test_docs.py."""
    text = README
    for name, table in (("settings", settings_table), ("commands", commands_table)):
        before, rest = text.split(f"<!-- {name} -->\n", 1)
        text = f"{before}<!-- {name} -->\n{table()}\n<!-- /{name} -->{rest.split(f'<!-- /{name} -->', 1)[1]}"
    (PROJECT_DIR / "README.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write()
