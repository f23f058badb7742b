"""The import rules: modules know only what lies below them, and each library has its owner."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from orqo.config import PROJECT_DIR

# Any lower level may be imported, and what stands earlier in one's own.
LEVELS = [
    level.split()
    for level in (
        "clock config crashpoints errors jsontext logs lookup signing addresses listening argv match inbound webhook call "
        "vendors payload yamlfile inputschema cron shape places description",
        "webhookrules waitrules simulationrules decisionrules rules pinned definition workflowfiles models "
        "turns sharing ringing prepared db metrics leases facts flow artifacts processes valkey supervisor serve",
        "deadline dial outgoing outbound secretstore redisurl hearing queue tokens",
        "machines stages workflows triggers callbacks slots deliveries attempts runs schedules requestlog hooks "
        "replays apply folder instance retention backup copying clockstep received people newest listings "
        "inspection overview catalog trial simulation",
        "masking pauses held renewing settling executor dispatcher site api dashboard",
        "pool web problems assembly forked cli orqo __main__ app worker",
    )
]
PEERS_THAT_NEVER_MEET = {"api", "dashboard", "cli", "executor", "dispatcher"}
FLASK = {"orqo", "app", "api", "dashboard", "site", "problems", "assembly"}
OWNERS = {
    "redis": {"queue", "redisurl", "hearing"},
    "rq": {"queue"},
    "requests": {"outbound", "dial", "deadline", "outgoing"},
    "urllib3": {"outbound", "dial", "deadline", "outgoing"},
    "flask": FLASK,
    "werkzeug": FLASK | {"people", "payload"},
    "flask_sqlalchemy": {"assembly"},
    "waitress": {"web"},
    "prometheus_client": {"metrics"},
}
RANK = {name: rank for rank, name in enumerate(name for level in LEVELS for name in level)}


def files() -> Iterator[tuple[str, Path]]:
    """Give each of our files with its module: `stages` for all of stages/."""
    for path in sorted([*PROJECT_DIR.glob("*.py"), *PROJECT_DIR.glob("orqo/**/*.py")]):
        parts = path.relative_to(PROJECT_DIR).with_suffix("").parts
        yield parts[0] if len(parts) == 1 else "orqo" if parts[1] == "__init__" else parts[1], path


@cache
def imported(path: Path) -> list[str]:
    """Give the dotted names that a file imports, wherever in it; annotations' own imports do not count."""
    return list(_imported(path))


def _imported(path: Path) -> Iterator[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {id(inner) for node in ast.walk(tree) if is_type_checking(node) for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and id(node) not in typing_only:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def edges() -> Iterator[tuple[str, str]]:
    for module, path in files():
        for name in imported(path):
            target = name.split(".")[1] if name.startswith("orqo.") else None
            # What the package itself holds beside create_app(), its version, is a constant.
            if target == "create_app" or target in RANK:
                yield module, "orqo" if target == "create_app" else str(target)


def test_every_module_has_a_level() -> None:
    assert {module for module, _ in files()} - set(RANK) == set()


def test_imports_point_down_only() -> None:
    up = {(module, target) for module, target in edges() if module != target and RANK[target] > RANK[module]}

    assert up == set()


def test_entry_points_never_import_each_other() -> None:
    met = {(a, b) for a, b in edges() if a != b and {a, b} <= PEERS_THAT_NEVER_MEET}

    assert met == set()


def test_callbacks_know_no_runs_and_stages_know_neither_runs_nor_tables() -> None:
    forbidden = {("callbacks", "runs"), ("deliveries", "runs"), ("stages", "runs"), ("stages", "db")}

    assert forbidden & set(edges()) == set()


@pytest.mark.parametrize("library", OWNERS)
def test_only_its_owner_imports_a_library(library: str) -> None:
    users = {module for module, path in files() for name in imported(path) if name.split(".")[0] == library}

    assert users <= OWNERS[library]


def test_only_the_clock_reads_the_wall_clock() -> None:
    readers = {path.name for _, path in files() if "datetime.now(" in path.read_text(encoding="utf-8")}

    assert readers == {"clock.py"}


@pytest.mark.parametrize(
    ("module", "heavy"),
    [("worker", ("flask", "werkzeug", "waitress")), ("orqo.serve", ("flask", "sqlalchemy", "redis", "rq", "requests"))],
)
def test_a_process_loads_nothing_that_it_does_not_need(module: str, heavy: tuple[str, ...]) -> None:
    script = f"import sys, {module}; print(*(name for name in {heavy!r} if name in sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", script], cwd=PROJECT_DIR, check=True, capture_output=True, text=True).stdout.split()

    assert loaded == []
