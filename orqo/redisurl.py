"""Where Redis is: a client for each form of REDIS_URL, one server's or that of Sentinels, which know the server of the hour.

Owns the forms of the URL. Connects to nothing by itself.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl, unquote

from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.sentinel import Sentinel

SENTINEL = "+sentinel://"
SENTINEL_PORT = 26379
TIMEOUT_S = 0.25


def client(url: str, **options: Any) -> Redis:
    """Make a client; `options` are those of its connections, to Sentinels too.

    `redis://` and, over TLS, `rediss://` as redis-py reads them, and `redis+sentinel://[user:password@]host[:port],…/name[/db]`
    (`rediss+sentinel://` over TLS to all of them). A query gives further options of the connections
    (`?ssl_ca_certs=/etc/ca.pem`); one named `sentinel_…` is for those to the Sentinels alone (`sentinel_password`).
    """
    if SENTINEL not in url:
        return Redis.from_url(url, **options)
    scheme, _, rest = url.partition(SENTINEL)
    rest, _, query = rest.partition("?")
    place, _, path = rest.partition("/")
    user, _, hosts = place.rpartition("@")
    name, _, database = path.partition("/")
    shared = options | ({"ssl": True} if scheme == "rediss" else {})
    asked = dict(parse_qsl(query))
    of_sentinels = {key.removeprefix("sentinel_"): value for key, value in asked.items() if key.startswith("sentinel_")}
    of_both = {key: value for key, value in asked.items() if not key.startswith("sentinel_")}
    sentinel = Sentinel([_address(each) for each in hosts.split(",")], sentinel_kwargs=shared | of_both | of_sentinels)
    master: Redis = sentinel.master_for(unquote(name), **shared, **of_both, **_login(user), db=int(database or 0))
    return master


def quick_client(url: str) -> Redis:
    """Make a client that gives up after 0.25 s: the defaults block for 4 s and more when Redis is gone."""
    return client(url, retry=Retry(NoBackoff(), 0), socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S)


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":") if ":" in text.rpartition("]")[2] else (text, "", "")
    return host.strip("[]"), int(port or SENTINEL_PORT)


def _login(user: str) -> dict[str, str]:
    """Read `user:password`, `:password` or nothing: that of the server, not of the Sentinels."""
    name, _, password = user.partition(":")
    return {key: unquote(value) for key, value in (("username", name), ("password", password)) if value}
