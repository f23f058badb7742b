"""`dev DIR`: a box to test a client against: temporary, on loopback, with the workflows of a folder, failing on demand."""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from orqo.cli.arguments import Refused, declare
from orqo.config import Config

# Known to everybody and good for nothing but a box on loopback that forgets.
TOKEN = "orqo_dev-dev-dev-dev-dev-dev-dev-dev-dev-dev-dev"
DEFAULTS = {
    "ORQO_PORT": "8000",
    "ORQO_WORKERS": "2",
    "ORQO_API_TOKEN": TOKEN,
    "ORQO_CALLBACK_RETRIES": "1s,1s,2s,5s",
    # A client's own tests listen on loopback, and its callback_url may say so.
    "ORQO_ALLOWED_NETWORKS": "127.0.0.0/8,::1/128",
}
# What would make it something else than a temporary box that nobody else reaches.
NOT_TAKEN = ("DATABASE_URL", "REDIS_URL", "ORQO_BASE_URL", "ORQO_DATA", "ORQO_HOST", "ORQO_WORKFLOWS", "ORQO_KEY")


def add(parser: argparse.ArgumentParser, _word: str) -> None:
    """Declare the command."""
    parser.description = (
        "Serve the workflow files of DIR on loopback until Ctrl-C, from a temporary data folder, with ORQO_SIMULATE=1. Files are read "
        "again when they change. ORQO_PORT, ORQO_API_TOKEN, ORQO_STRICT and secrets are taken from the environment."
    )
    declare(parser, _dev)
    parser.add_argument("folder", metavar="DIR", help="a folder of workflow files (*.yaml, *.yml)")


def _dev(arguments: argparse.Namespace) -> int:
    from orqo import serve
    from orqo.cli.service import Start

    folder = Path(arguments.folder)
    if not folder.is_dir():
        raise Refused(f"orqo: {folder} is no folder", status=2)
    with tempfile.TemporaryDirectory(prefix="orqo-dev-") as temporary:
        # The stage user's run folders lie inside.
        Path(temporary).chmod(0o711)
        environ = settings(os.environ, folder.resolve(), Path(temporary) / "data")
        os.environ.clear()
        os.environ.update(environ)
        config = Config.from_environ()
        _say(config)
        start = Start(config)
        return serve.run(config, programs=start.programs, prepare=start.prepare)


def settings(environ: Mapping[str, str], folder: Path, data: Path) -> dict[str, str]:
    """Give the environment of such a box."""
    kept = {name: value for name, value in environ.items() if name.removesuffix("_FILE") not in NOT_TAKEN}
    ours = {"ORQO_DATA": str(data), "ORQO_HOST": "127.0.0.1", "ORQO_WORKFLOWS": str(folder), "ORQO_SIMULATE": "1", "ORQO_EXAMPLE": "0"}
    wanted = {name: value for name, value in DEFAULTS.items() if name not in kept and f"{name}_FILE" not in kept}
    return {**kept, **wanted, **ours}


def _say(config: Config) -> None:
    shown = config.api_token if config.api_token == TOKEN else "$ORQO_API_TOKEN"
    lines = (
        f"workflows: {config.workflows} (read again when they change)",
        f"data: {config.data} (gone when this ends)",
        f"reference: {config.base_url}/docs",
        f"a run: curl -H 'Authorization: Bearer {shown}' -H 'Content-Type: application/json' \\",
        f"         -d '{{\"workflow_id\": 42}}' {config.base_url}/api/v1/trigger",
    )
    for line in lines:
        print(f"orqo: {line}", flush=True)
