"""Refuse HTTP connections to addresses that a list of unknown origin must not reach.

An address is checked when the connection to it is made: after its name is looked up, and for each redirect.
"""

from __future__ import annotations

import ipaddress
import socket
from functools import partial
from typing import Any

_METADATA = {
    ipaddress.ip_address(address)
    for address in ("100.100.100.200", "168.63.129.16", "fd00:ec2::23", "fd00:ec2::254", "fd20:ce::254")
}
"""Addresses, beside the link-local ones, at which clouds tell their machines secrets: Alibaba, Azure, AWS, Google."""
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class Refused(PermissionError):
    """The host of a URL has an address that may not be read."""


def address_problem(address: str, private: bool) -> str:
    """Return the reason why an IP address may not be read; empty if it may. `private` allows private addresses."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):  # some IPv6 addresses stand for one of IPv4
        ip = ip.ipv4_mapped or ip.sixtofour or (ipaddress.ip_address(int(ip) & 0xFFFFFFFF) if ip in _NAT64 else ip)
    if ip.is_link_local or ip in _METADATA:
        return "its host has a link-local address, as the servers of clouds that tell secrets have; it is never read"
    if not (private or ip.is_global):
        return "its host has a private address, of this machine or network; `private_addresses` allows these"
    return ""


def refusal(error: BaseException | None) -> Refused | None:
    """Return the `Refused` among an exception and its causes, if any."""
    while error:
        if isinstance(error, Refused):
            return error
        error = error.__cause__
    return None


async def public_client(**options: Any) -> Any:
    """Return an HTTP client for fsspec that reads public addresses only."""
    return await any_client(private=False, **options)


async def any_client(private: bool = True, **options: Any) -> Any:
    """Return an HTTP client for fsspec that reads private addresses too, but never link-local ones."""
    import aiohttp

    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(socket_factory=partial(_socket, private)), **options)


def _socket(private: bool, found: Any) -> socket.socket:
    family, kind, protocol, _, (address, *_) = found
    if problem := address_problem(address, private):
        raise Refused(problem)
    return socket.socket(family, kind, protocol)
