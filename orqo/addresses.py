"""The address rule: which IP addresses a URL that a request can influence may reach.

Owns the table of networks that are not the public Internet. Never looks a name up: names are judged by what they
resolve to, at the moment of connecting.
Source: IANA's special-purpose address registries (RFC 6890) as of 2025; `ipaddress.is_global` knows fewer of them.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

REFUSED_IPV4 = tuple(
    ipaddress.IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # this host: Linux connects 0.0.0.0 to itself (RFC 1122)
        "10.0.0.0/8",  # private (RFC 1918)
        "100.64.0.0/10",  # carrier-grade NAT, a cloud's metadata server among them (RFC 6598)
        "127.0.0.0/8",  # loopback (RFC 1122)
        "168.63.129.16/32",  # looks public; is the host's control server in every Azure machine (Microsoft's documentation)
        "169.254.0.0/16",  # link-local, where most clouds serve credentials (RFC 3927)
        "172.16.0.0/12",  # private (RFC 1918)
        "192.0.0.0/24",  # protocol assignments (RFC 6890)
        "192.0.2.0/24",  # documentation (RFC 5737)
        "192.88.99.0/24",  # 6to4 relays, withdrawn (RFC 7526)
        "192.168.0.0/16",  # private (RFC 1918)
        "198.18.0.0/15",  # benchmarks (RFC 2544)
        "198.51.100.0/24",  # documentation (RFC 5737)
        "203.0.113.0/24",  # documentation (RFC 5737)
        "224.0.0.0/4",  # multicast (RFC 5771)
        "240.0.0.0/4",  # reserved, and broadcast (RFC 1112, RFC 8190)
    )
)
PUBLIC_IPV6 = ipaddress.IPv6Network("2000::/3")  # the only block that is handed out (RFC 4291); NAT64 and local ones lie outside
REFUSED_IPV6 = tuple(
    ipaddress.IPv6Network(network)
    for network in (
        "2001::/23",  # protocol assignments: Teredo, ORCHID (RFC 2928)
        "2001:db8::/32",  # documentation (RFC 3849)
        "2002::/16",  # 6to4 carries any IPv4 address inside (RFC 3056)
        "3fff::/20",  # documentation (RFC 9637)
    )
)


def address_allowed(address: str, allowed_networks: Sequence[Network]) -> bool:
    """Say whether `address` is public or inside one of `allowed_networks`; False for anything that is not an IP address.

    An IPv4 address that is written as IPv6 (`::ffff:10.0.0.1`) is judged as the IPv4 address that it reaches.
    """
    try:
        found = _reached(ipaddress.ip_address(address))
    except ValueError:
        return False
    return _is_public(found) or any(found in network for network in allowed_networks)


def _reached(address: Address) -> Address:
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _is_public(address: Address) -> bool:
    if isinstance(address, ipaddress.IPv4Address):
        return not any(address in network for network in REFUSED_IPV4)
    return address in PUBLIC_IPV6 and not any(address in network for network in REFUSED_IPV6)
