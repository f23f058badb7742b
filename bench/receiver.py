"""A receiver for measurements: `python -m bench.receiver COUNT DELAY_S HANGING` listens on COUNT ports of loopback.

It prints the ports as JSON, answers each POST 204 after the delay, and never answers on the first HANGING ports.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys

LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)


async def _serve(count: int, delay_s: float, hanging: int) -> None:
    servers = [await asyncio.start_server(_handler(delay_s, index < hanging), "127.0.0.1", 0) for index in range(count)]
    print(json.dumps([server.sockets[0].getsockname()[1] for server in servers]), flush=True)
    await asyncio.Event().wait()


def _handler(delay_s: float, hangs: bool):  # type: ignore[no-untyped-def]
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                found = LENGTH.search(head)
                await reader.readexactly(int(found[1]) if found else 0)
                if hangs:
                    await asyncio.sleep(3600)
                if delay_s:
                    await asyncio.sleep(delay_s)
                writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    return handle


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])))
