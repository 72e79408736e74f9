"""Which addresses code may fetch from on a stranger's word: those of the internet, no others.

Rules: every address of a name must be good, and the one that was judged is the one that is connected to; forms of
IPv6 that carry an IPv4 address are judged by that one.
"""

from __future__ import annotations

import ipaddress
import socket

from fal_notebook.toolkit.exceptions import DownloadError

__all__ = ["is_global", "resolve"]

_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_SHARED = ipaddress.ip_network("100.64.0.0/10")


def is_global(address: str) -> bool:
    """Return whether an IP address belongs to the internet at large."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address):
        carried = _carried(found)
        if carried:
            return all(is_global(str(one)) for one in carried)
    elif found in _SHARED:
        return False
    return found.is_global and not (found.is_multicast or found.is_reserved or found.is_unspecified)


def _carried(address: ipaddress.IPv6Address) -> list[ipaddress.IPv4Address]:
    """Return the IPv4 addresses inside one of IPv6."""
    if address.ipv4_mapped is not None:
        return [address.ipv4_mapped]
    if address in _NAT64:
        return [ipaddress.IPv4Address(address.packed[-4:])]
    found = [address.sixtofour] if address.sixtofour is not None else []
    return [*found, *(address.teredo or ())]


def resolve(host: str, port: int) -> list[str]:
    """Return the addresses of a name. Raises: DownloadError when it has none, or one that is not of the internet."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise DownloadError(f"The name {host[:100]!r} cannot be resolved.") from error
    addresses = list(dict.fromkeys(str(info[4][0]) for info in found))
    if not addresses or not all(is_global(address) for address in addresses):
        raise DownloadError(f"{host[:100]!r} is not an address of the internet; it is not fetched from here.")
    return addresses
