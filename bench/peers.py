"""Others that start a command by a webhook, where they happen to be installed: `make bench-peers`.

adnanh/webhook (Debian's `webhook`) and Node-RED (npm's `node-red`), each running `true` for a request and answering when it
has ended. Neither keeps anything; ours has the run, its stage and its request on disk.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from bench import boxes

HOOKS = [{"id": "true", "execute-command": "/bin/true", "include-command-output-in-response": True}]
FLOW = [
    {"id": "tab", "type": "tab", "label": "bench"},
    {"id": "in", "type": "http in", "z": "tab", "url": "/true", "method": "post", "wires": [["run"]]},
    {"id": "run", "type": "exec", "z": "tab", "command": "true", "addpay": "", "wires": [["out"], [], []]},
    {"id": "out", "type": "http response", "z": "tab", "statusCode": "200", "wires": []},
]


def main(arguments: list[str]) -> int:
    """Measure and print those that are installed; exit status 1 where none is."""
    parser = argparse.ArgumentParser(prog="python -m bench peers", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args(arguments).rounds
    found = {name: shutil.which(name) for name in PEERS}
    for name, start in PEERS.items():
        if found[name] is None:
            print(f"{name:10} is not installed")
            continue
        with start() as peer:
            per_s = statistics.median(boxes.load(peer, seconds=3, good=200)["per_s"] for _ in range(rounds))
        print(f"{name:10} {per_s:8,.0f}/s  `true` for a request, 16 connections")
    return int(not any(found.values()))


@contextmanager
def _served(argv: Callable[[int, str], list[str]], files: dict[str, object], path: str) -> Iterator[boxes.Running]:
    with tempfile.TemporaryDirectory(prefix="orqo-bench-") as folder:
        port = boxes.free_port()
        for name, content in files.items():
            Path(folder, name).write_text(json.dumps(content), encoding="utf-8")
        call = {"path": path, "headers": {}, "body": boxes.INPUT}
        peer = boxes.Running(port, call, {"PATH": os.environ["PATH"], "HOME": folder}, Path(folder))
        peer.start("peer", argv(port, folder))
        try:
            boxes.wait_until(lambda: boxes.answers(peer, good=200), what="it answers")
            yield peer
        finally:
            peer.stop("peer")


def _webhook() -> AbstractContextManager[boxes.Running]:
    argv = ["webhook", "-ip", "127.0.0.1", "-http-methods", "POST"]
    return _served(lambda port, folder: [*argv, "-port", str(port), "-hooks", f"{folder}/hooks.json"], {"hooks.json": HOOKS}, "/hooks/true")


def _node_red() -> AbstractContextManager[boxes.Running]:
    argv = ["node-red"]
    files = {"flows.json": FLOW}
    return _served(lambda port, folder: [*argv, "--userDir", folder, "--port", str(port), f"{folder}/flows.json"], files, "/true")


PEERS = {"webhook": _webhook, "node-red": _node_red}
