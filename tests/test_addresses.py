"""The address rule on a table of addresses and of URL spellings, each with its verdict and where that comes from."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from collections.abc import Iterator

import pytest

from orqo.addresses import address_allowed
from orqo.outbound import Client, Failure

REFUSED = [
    ("0.0.0.0", "RFC 1122: this host"),
    ("0.0.0.1", "RFC 1122: this network"),
    ("0.255.255.255", "RFC 1122: last of the block"),
    ("10.0.0.0", "RFC 1918: first"),
    ("10.0.0.1", "RFC 1918"),
    ("10.255.255.255", "RFC 1918: last"),
    ("100.64.0.0", "RFC 6598: first"),
    ("100.100.100.200", "RFC 6598; Alibaba Cloud's metadata server"),
    ("100.127.255.255", "RFC 6598: last"),
    ("127.0.0.1", "RFC 1122: loopback"),
    ("127.1.2.3", "RFC 1122: loopback"),
    ("127.255.255.255", "RFC 1122: last"),
    ("168.63.129.16", "Azure's host control server (Microsoft's documentation)"),
    ("169.254.0.0", "RFC 3927: first"),
    ("169.254.169.254", "RFC 3927; metadata server of AWS, Azure and Google Cloud"),
    ("169.254.170.2", "RFC 3927; AWS ECS task credentials"),
    ("169.254.255.255", "RFC 3927: last"),
    ("172.16.0.0", "RFC 1918: first"),
    ("172.17.0.1", "RFC 1918; Docker's bridge"),
    ("172.31.255.255", "RFC 1918: last"),
    ("192.0.0.0", "RFC 6890: first"),
    ("192.0.0.192", "RFC 6890; Oracle Cloud's metadata server"),
    ("192.0.0.255", "RFC 6890: last"),
    ("192.0.2.1", "RFC 5737: TEST-NET-1"),
    ("192.88.99.1", "RFC 7526: 6to4 relay"),
    ("192.168.0.0", "RFC 1918: first"),
    ("192.168.1.1", "RFC 1918"),
    ("192.168.255.255", "RFC 1918: last"),
    ("198.18.0.0", "RFC 2544: first"),
    ("198.19.255.255", "RFC 2544: last"),
    ("198.51.100.1", "RFC 5737: TEST-NET-2"),
    ("203.0.113.1", "RFC 5737: TEST-NET-3"),
    ("224.0.0.1", "RFC 5771: multicast"),
    ("239.255.255.255", "RFC 5771: last"),
    ("240.0.0.0", "RFC 1112: reserved"),
    ("255.255.255.254", "RFC 1112: reserved"),
    ("255.255.255.255", "RFC 8190: broadcast"),
    ("::", "RFC 4291: unspecified"),
    ("::1", "RFC 4291: loopback"),
    ("::127.0.0.1", "RFC 4291: IPv4-compatible"),
    ("::8.8.8.8", "RFC 4291: IPv4-compatible"),
    ("::ffff:0.0.0.0", "RFC 4291: IPv4-mapped"),
    ("::ffff:10.0.0.1", "RFC 4291: IPv4-mapped"),
    ("::ffff:127.0.0.1", "RFC 4291: IPv4-mapped"),
    ("::ffff:7f00:1", "RFC 4291: IPv4-mapped, in hex"),
    ("::ffff:169.254.169.254", "RFC 4291: IPv4-mapped"),
    ("::ffff:0:127.0.0.1", "RFC 2765: IPv4-translated"),
    ("64:ff9b::7f00:1", "RFC 6052: NAT64"),
    ("64:ff9b::a00:1", "RFC 6052: NAT64"),
    ("64:ff9b::808:808", "RFC 6052: NAT64, outside 2000::/3"),
    ("64:ff9b:1::a00:1", "RFC 8215: local NAT64"),
    ("100::1", "RFC 6666: discard"),
    ("100:0:0:1::1", "RFC 9780: dummy prefix"),
    ("1fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "RFC 4291: last before 2000::/3"),
    ("2001::1", "RFC 4380: Teredo"),
    ("2001:0:4136:e378:8000:63bf:3fff:fdd2", "RFC 4380: Teredo with an IPv4 address inside"),
    ("2001:2::1", "RFC 5180: benchmarks"),
    ("2001:10::1", "RFC 4843: ORCHID"),
    ("2001:20::1", "RFC 7343: ORCHIDv2"),
    ("2001:1ff:ffff:ffff:ffff:ffff:ffff:ffff", "RFC 2928: last"),
    ("2001:db8::1", "RFC 3849: documentation"),
    ("2002:7f00:1::1", "RFC 3056: 6to4 of 127.0.0.1"),
    ("2002:a00:1::1", "RFC 3056: 6to4 of 10.0.0.1"),
    ("2002:808:808::1", "RFC 3056: 6to4 of a public address"),
    ("3fff::1", "RFC 9637: documentation"),
    ("3fff:fff:ffff:ffff:ffff:ffff:ffff:ffff", "RFC 9637: last"),
    ("4000::1", "RFC 4291: first after 2000::/3"),
    ("5f00::1", "RFC 9602: SRv6 SIDs"),
    ("fc00::1", "RFC 4193: unique local"),
    ("fd00:ec2::254", "RFC 4193; AWS's metadata server"),
    ("fd20:ce::254", "RFC 4193; Google Cloud's metadata server"),
    ("fe80::1", "RFC 4291: link-local"),
    ("fe80::1%eth0", "RFC 4007: link-local with a zone"),
    ("fec0::1", "RFC 3879: site-local"),
    ("ff02::1", "RFC 4291: multicast"),
    ("ff0e::1", "RFC 4291: multicast, global scope"),
    ("", "no address"),
    ("localhost", "no address"),
    ("127.1", "no address until the system has read it"),
    ("0177.0.0.1", "no address until the system has read it"),
    ("8.8.8.8 ", "no address"),
    ("\uff18.8.8.8", "no address: full-width"),
]
ALLOWED = [
    ("1.1.1.1", "public"),
    ("8.8.8.8", "public"),
    ("9.255.255.255", "the last before 10/8"),
    ("11.0.0.0", "the first after 10/8"),
    ("100.63.255.255", "the last before RFC 6598"),
    ("100.128.0.0", "the first after RFC 6598"),
    ("126.255.255.255", "the last before loopback"),
    ("128.0.0.0", "the first after loopback"),
    ("169.253.255.255", "the last before link-local"),
    ("169.255.0.0", "the first after link-local"),
    ("172.15.255.255", "the last before 172.16/12"),
    ("172.32.0.0", "the first after 172.16/12"),
    ("192.0.1.0", "the first after 192.0.0/24"),
    ("192.0.3.0", "the first after TEST-NET-1"),
    ("192.88.98.255", "the last before 6to4 relays"),
    ("192.167.255.255", "the last before 192.168/16"),
    ("192.169.0.0", "the first after 192.168/16"),
    ("198.17.255.255", "the last before benchmarks"),
    ("198.20.0.0", "the first after benchmarks"),
    ("198.51.101.0", "the first after TEST-NET-2"),
    ("203.0.114.0", "the first after TEST-NET-3"),
    ("223.255.255.255", "the last before multicast"),
    ("::ffff:8.8.8.8", "IPv4-mapped: judged as the IPv4 address"),
    ("2001:200::1", "the first after 2001::/23"),
    ("2001:4860:4860::8888", "public"),
    ("2003::1", "the first after 6to4"),
    ("2606:4700:4700::1111", "public"),
    ("2a00:1450:4001:80b::200e", "public"),
    ("3fff:1000::1", "the first after RFC 9637"),
]
OPENED = [
    ("10.1.2.3", "10.0.0.0/8", True),
    ("::ffff:10.1.2.3", "10.0.0.0/8", True),
    ("11.1.2.3", "10.0.0.0/8", True),
    ("192.168.1.1", "10.0.0.0/8", False),
    ("127.0.0.1", "127.0.0.1/32", True),
    ("127.0.0.2", "127.0.0.1/32", False),
    ("::1", "127.0.0.0/8", False),
    ("::1", "::1/128", True),
    ("fd00::5", "fd00::/8", True),
    ("64:ff9b::808:808", "64:ff9b::/96", True),
    ("169.254.169.254", "0.0.0.0/0", True),
    ("fe80::1", "0.0.0.0/0", False),
]
# {port} is a port that somebody listens on, at 127.0.0.1 and at ::1: a request that got through would be seen.
URLS = [
    ("http://127.0.0.1:{port}/", "address_refused", "plain"),
    ("HTTP://127.0.0.1:{port}/", "address_refused", "scheme in capitals"),
    ("https://127.0.0.1:{port}/", "address_refused", "refused before TLS"),
    ("http://localhost:{port}/", "address_refused", "a name for loopback"),
    ("http://LOCALHOST:{port}/", "address_refused", "names have no case"),
    ("http://localhost.:{port}/", "address_refused", "a name with its root"),
    ("http://0:{port}/", "address_refused", "inet_aton: one number"),
    ("http://0.0.0.0:{port}/", "address_refused", "Linux connects it to itself"),
    ("http://127.1:{port}/", "address_refused", "inet_aton: two numbers"),
    ("http://127.0.1:{port}/", "address_refused", "inet_aton: three numbers"),
    ("http://2130706433:{port}/", "address_refused", "inet_aton: decimal"),
    ("http://0x7f000001:{port}/", "address_refused", "inet_aton: hex"),
    ("http://0x7f.1:{port}/", "address_refused", "inet_aton: hex and decimal"),
    ("http://0X7F.0.0.1:{port}/", "address_refused", "inet_aton: hex in capitals"),
    ("http://017700000001:{port}/", "address_refused", "inet_aton: octal"),
    ("http://0177.0.0.1:{port}/", "address_refused", "inet_aton: octal"),
    ("http://00000177.0x0.0.01:{port}/", "address_refused", "inet_aton: mixed"),
    ("http://[::1]:{port}/", "address_refused", "IPv6 loopback"),
    ("http://[0:0:0:0:0:0:0:1]:{port}/", "address_refused", "IPv6 loopback in full"),
    ("http://[::]:{port}/", "address_refused", "IPv6 unspecified"),
    ("http://[::ffff:127.0.0.1]:{port}/", "address_refused", "IPv4-mapped"),
    ("http://[::ffff:7f00:1]:{port}/", "address_refused", "IPv4-mapped in hex"),
    ("http://[64:ff9b::127.0.0.1]:{port}/", "address_refused", "NAT64"),
    ("http://[2002:7f00:1::]:{port}/", "address_refused", "6to4"),
    ("http://[fe80::1%25lo]:{port}/", "address_refused", "a zone (RFC 6874)"),
    ("http://\uff11\uff12\uff17.0.0.1:{port}/", "bad_url", "full-width digits"),
    ("http://\u2460\u2461\u2466.0.0.1:{port}/", "bad_url", "circled digits"),
    ("http://127\u30020\u30020\u30021:{port}/", "bad_url", "ideographic full stops"),
    ("http://\u24db\u24de\u24d2\u24d0\u24db\u24d7\u24de\u24e2\u24e3:{port}/", "bad_url", "circled letters: localhost"),
    ("http://example.com@127.0.0.1:{port}/", "address_refused", "user info"),
    ("http://example.com:80@127.0.0.1:{port}/", "address_refused", "user info that looks like a host and port"),
    ("http://a@b@127.0.0.1:{port}/", "address_refused", "two @"),
    ("http://127.0.0.1:{port}#@example.com/", "address_refused", "the fragment is no host"),
    ("http://127.0.0.1:{port}?@example.com/", "address_refused", "the query is no host"),
    ("http://127.0.0.1:{port}/@example.com/", "address_refused", "the path is no host"),
    ("http://127.0.0.1%2f@localhost:{port}/", "address_refused", "an encoded slash in the user info"),
    ("http://example.com\\@127.0.0.1:{port}/", "bad_url", "a backslash: browsers and RFC 3986 disagree"),
    ("http:\\\\127.0.0.1:{port}\\", "bad_url", "backslashes"),
    (" http://127.0.0.1:{port}/", "bad_url", "a space before"),
    ("http://127.0.0.1:{port}/ x", "bad_url", "a space within"),
    ("http://127.0.0.1\t:{port}/", "bad_url", "a tab, which some parsers drop"),
    ("ht\ntp://127.0.0.1:{port}/", "bad_url", "a newline, which some parsers drop"),
    ("http://127.0.0.1:{port}/\r\nX: 1", "bad_url", "a header in the URL"),
    ("http://127.0.0.1:{port}\x00.example.com/", "bad_url", "NUL"),
    ("http:127.0.0.1:{port}/", "bad_url", "no //"),
    ("http:/127.0.0.1:{port}/", "bad_url", "one /"),
    ("http:///127.0.0.1:{port}/", "bad_url", "three /"),
    ("//127.0.0.1:{port}/", "bad_url", "no scheme"),
    ("127.0.0.1:{port}", "bad_url", "no scheme"),
    ("", "bad_url", "nothing"),
    ("http://", "bad_url", "no host"),
    ("http://:{port}/", "bad_url", "no host but a port"),
    ("http://user@/", "bad_url", "no host but user info"),
    ("http://.localhost:{port}/", "bad_url", "an empty label"),
    ("http://*.localhost:{port}/", "bad_url", "a wildcard"),
    ("http://127.0.0.1:99999/", "bad_url", "no such port"),
    ("http://127.0.0.1:-1/", "bad_url", "no such port"),
    ("http://127.0.0.1:8o/", "bad_url", "no port"),
    ("http://[127.0.0.1]:{port}/", "bad_url", "brackets are for IPv6"),
    ("http://[::1:{port}/", "bad_url", "a bracket that stays open"),
    ("http://[::g]:{port}/", "bad_url", "no IPv6 address"),
    ("file:///etc/passwd", "bad_url", "another scheme"),
    ("ftp://127.0.0.1:{port}/", "bad_url", "another scheme"),
    ("gopher://127.0.0.1:{port}/", "bad_url", "another scheme"),
    ("unix:///run/x.sock", "bad_url", "another scheme"),
    ("http+unix://%2Frun%2Fx.sock/", "bad_url", "another scheme"),
    ("httpx://127.0.0.1:{port}/", "bad_url", "another scheme"),
    ("javascript:alert(1)", "bad_url", "another scheme"),
    ("data:text/plain,x", "bad_url", "another scheme"),
    ("http://%31%32%37.0.0.1:{port}/", "address_refused", "an encoded host is decoded before it is judged"),
    ("http://127.0.0.1.:{port}/", "dns", "a number with a root is a name that nobody has"),
    ("http://a..b:{port}/", "dns", "an empty label inside"),
    ("http://" + "a" * 64 + ":{port}/", "dns", "a label over 63 octets (RFC 1035)"),
    ("http://4294967296:{port}/", "dns", "a number over 32 bits is a name that nobody has"),
    ("http://0x7f.0.0.0x100:{port}/", "dns", "a part over 8 bits"),
    ("http://08.0.0.1:{port}/", "dns", "8 is no octal digit"),
]


@pytest.mark.parametrize(("address", "source"), REFUSED)
def test_address_is_refused(address: str, source: str) -> None:
    assert not address_allowed(address, ()), source


@pytest.mark.parametrize(("address", "source"), ALLOWED)
def test_public_address_is_allowed(address: str, source: str) -> None:
    assert address_allowed(address, ()), source


@pytest.mark.parametrize(("address", "network", "expected"), OPENED)
def test_allowed_networks_open_what_they_name(address: str, network: str, expected: bool) -> None:
    assert address_allowed(address, [ipaddress.ip_network(network)]) is expected


def test_table_is_as_long_as_promised() -> None:
    assert len(REFUSED) + len(ALLOWED) + len(URLS) >= 180


class Canary:
    """Listens on one port of both loopback addresses, and knows whether anybody came."""

    def __init__(self) -> None:
        self.sockets = [socket.create_server(("127.0.0.1", 0))]
        self.port = int(self.sockets[0].getsockname()[1])
        with contextlib.suppress(OSError):  # A machine without IPv6.
            self.sockets.append(socket.create_server(("::1", self.port), family=socket.AF_INET6))
        for listening in self.sockets:
            listening.setblocking(False)

    def was_hit(self) -> bool:
        """Say whether a connection waits to be accepted."""
        for listening in self.sockets:
            try:
                listening.accept()[0].close()
            except BlockingIOError:
                continue
            return True
        return False


@pytest.fixture(scope="module")
def canary() -> Iterator[Canary]:
    made = Canary()
    yield made
    for listening in made.sockets:
        listening.close()


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    def only_localhost(host: str, port: int, **settings: int) -> list[tuple[int, int, int, str, tuple[str, int]]]:
        """Look names up without a name server, so that the table means the same on every machine."""
        if host.lower().rstrip(".") != "localhost":
            host.encode("idna")
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    made = Client(resolve=only_localhost)
    yield made
    made.close()


@pytest.mark.parametrize(("url", "reason", "why"), URLS, ids=[ascii(url)[:60] for url, _, _ in URLS])
def test_url_spelling_is_refused(client: Client, canary: Canary, url: str, reason: str, why: str) -> None:
    text = url.replace("{port}", str(canary.port))

    answer = client.send(method="POST", url=text, headers={}, body=b"{}", guarded=True, timeout_s=3, max_bytes=100)

    assert isinstance(answer, Failure)
    assert (answer.reason, answer.sent) == (reason, False), (why, answer.detail)
    assert not canary.was_hit()


def test_refusal_names_the_setting_and_the_address(client: Client) -> None:
    answer = client.send(
        method="GET", url="http://user:pw@localhost:1/secret?key=s3cret", headers={}, body=None, guarded=True, timeout_s=3, max_bytes=100
    )

    assert isinstance(answer, Failure)
    assert "ORQO_ALLOWED_NETWORKS" in answer.detail
    assert "localhost is 127.0.0.1" in answer.detail
    assert "secret" not in answer.detail
    assert "pw" not in answer.detail
