"""The receivers' code of docs/verify.md is taken from the page and run against what is really sent."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time

import pytest

from orqo import signing
from orqo.config import PROJECT_DIR

PAGE = (PROJECT_DIR / "docs" / "verify.md").read_text(encoding="utf-8")
LIBRARY = PROJECT_DIR / ".cache" / "standardwebhooks" / "node_modules"
SECRET = signing.derived_secret(b"k" * 32, "https://ci.example.com/done")
OLD = signing.derived_secret(b"k" * 32, "https://old.example.com/done")
BODY = b'{"type":"run.completed","data":{"output":"\xc3\xa9"}}'


def sent(*secrets: str, age_s: int = 0) -> dict[str, str]:
    keys = [signing.secret_bytes(secret) for secret in secrets]
    headers = signing.callback_headers(keys, message_id="msg_1", timestamp=int(time.time()) - age_s, body=BODY)
    return {name.lower(): value for name, value in headers.items()}


NAMES = ("good", "rotated", "other-secret", "changed-body", "old", "no-signature")


def cases() -> dict[str, tuple[dict[str, str], bytes, bool]]:
    """Give what is sent, signed now: headers, body, and whether it is to be believed."""
    return {
        "good": (sent(SECRET), BODY, True),
        "rotated": (sent(OLD, SECRET), BODY, True),
        "other-secret": (sent(OLD), BODY, False),
        "changed-body": (sent(SECRET), BODY + b" ", False),
        "old": (sent(SECRET, age_s=400), BODY, False),
        "no-signature": (sent(SECRET) | {"webhook-signature": "v2,abc v1,"}, BODY, False),
    }


def code(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    assert found
    return found[1]


@pytest.mark.parametrize("case", NAMES)
def test_the_python_of_the_page_verifies(case: str) -> None:
    headers, body, good = cases()[case]
    names: dict[str, object] = {}
    exec(code("python"), names)
    verify = names["verify"]
    assert callable(verify)

    if good:
        verify(SECRET, headers, body)
    else:
        with pytest.raises(ValueError, match=r"wrong signature|too old"):
            verify(SECRET, headers, body)


@pytest.mark.skipif(not LIBRARY.exists(), reason="npm's standardwebhooks is not there: see the Makefile")
def test_the_library_of_npm_verifies_what_is_sent() -> None:
    given = [[headers, body.decode(), good] for headers, body, good in cases().values()]
    judge = """
    const { Webhook } = require("standardwebhooks");
    const seen = CASES.map(([headers, body]) => {
      try { new Webhook(SECRET).verify(body, headers); return true; } catch (fault) { return false; }
    });
    console.log(JSON.stringify(seen));
    """
    program = f"const CASES = {json.dumps(given)}, SECRET = {json.dumps(SECRET)};\n{judge}"

    done = subprocess.run(["node", "-e", program], cwd=LIBRARY.parent, capture_output=True, text=True, check=True)

    assert json.loads(done.stdout) == [good for _, _, good in cases().values()]


@pytest.mark.skipif(shutil.which("node") is None, reason="Node.js is not installed")
def test_the_javascript_of_the_page_verifies() -> None:
    given = [[headers, body.decode(), good] for headers, body, good in cases().values()]
    judge = """
    const seen = CASES.map(([headers, body]) => {
      try { verify(SECRET, headers, Buffer.from(body)); return true; } catch (fault) { return false; }
    });
    console.log(JSON.stringify(seen));
    """
    program = f"const CASES = {json.dumps(given)}, SECRET = {json.dumps(SECRET)};\n{code('javascript')}\n{judge}"

    done = subprocess.run(["node", "-e", program], capture_output=True, text=True, check=True)

    assert json.loads(done.stdout) == [good for _, _, good in cases().values()]
