"""A 201 means that the run is on disk: the kernel is asked to sync before the answer is written."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import requests

from support import Service, sqlite_only, wait_for

needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed (.ci/run installs it)")


@sqlite_only
@needs_strace
def test_the_log_is_synced_between_the_request_and_the_201(web: Service, tmp_path: Path) -> None:
    hook, trace = web.url + web.box.hook(), tmp_path / "trace"
    assert requests.post(hook, json={"first": "warms up"}, timeout=20).status_code == 201
    calls = "trace=fsync,fdatasync,recvfrom,recv,sendto,send,write,sendmsg"
    watching = subprocess.Popen(
        ["strace", "-f", "-s", "64", "-e", calls, "-o", str(trace), "-p", str(web.processes["app"].pid)], stderr=subprocess.PIPE
    )
    try:
        assert watching.stderr is not None
        if b"attached" not in (said := watching.stderr.readline()):
            pytest.skip(f"strace may not look at another process here: {said.decode().strip()}")

        assert requests.post(hook, json={"n": 1}, timeout=20).status_code == 201
        wait_for(lambda: "HTTP/1.1 201" in trace.read_text(errors="replace"), what="the answer is in the trace")
    finally:
        watching.terminate()
        watching.communicate(timeout=30)

    lines = trace.read_text(errors="replace").splitlines()
    asked = next(place for place, line in enumerate(lines) if "POST /api/v1/hooks" in line)
    answered = next(place for place, line in enumerate(lines) if "HTTP/1.1 201" in line)
    synced = [place for place, line in enumerate(lines) if re.search(r"\bf(data)?sync(\(| resumed).*= 0", line)]
    assert any(asked < place < answered for place in synced), "\n".join(lines[asked : answered + 1])
