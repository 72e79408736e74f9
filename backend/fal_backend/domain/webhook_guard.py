"""Which addresses a webhook may be sent to: a caller names them, so none may lead into the house.

Rules: an address is accepted by what it is, never because it is not on a list of bad ones: ordinary names or exactly
written addresses, one of few ports, and in the end only global unicast addresses. An address that carries another one
inside (mapped, translated, tunnelled) is judged by both. Names are judged by every address that they have, and the
connection goes to one of the addresses that were judged. What operators allow by name or network is accepted, any
port.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from urllib.parse import SplitResult, urlsplit

__all__ = ["Allowed", "HookTarget", "UnsafeAddress", "check_addresses", "parse_hook"]

_LONGEST = 2048
_PORTS = frozenset({80, 443, 8000, 8080, 8443})
_DEFAULT_PORTS = {"http": 80, "https": 443}
_PLAIN = re.compile(r"[!-~]+")
_NAME = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)(\.(?!-)[a-z0-9_-]{1,63}(?<!-))*")
_NUMERIC = re.compile(r"(0x[0-9a-f]*|[0-9]+)")
_OURS = frozenset({"localhost", "localdomain", "local", "internal", "intranet", "lan", "home", "corp"})
"""Names that end so mean this machine or its neighbours, whatever they resolve to."""

_Address = IPv4Address | IPv6Address
_Network = IPv4Network | IPv6Network

_GLOBAL_V6 = IPv6Network("2000::/3")
_MAPPED = IPv6Network("::/96"), IPv6Network("::ffff:0:0/96"), IPv6Network("::ffff:0:0:0/96")
_NAT64 = IPv6Network("64:ff9b::/96")
_SIX_TO_FOUR = IPv6Network("2002::/16")
_TEREDO = IPv6Network("2001::/32")
_REFUSED = (
    # Said here, because what Python knows of them differs from release to release.
    ip_network("192.0.0.0/24"),  # protocol assignments; clouds serve secrets there
    IPv6Network("2001::/23"),  # the same
    ip_network("192.88.99.0/24"),  # anycast of 6to4 relays
    ip_network("168.63.129.16/32"),  # a cloud's own service, at an address that looks public
    ip_network("3fff::/20"),  # documentation
    _TEREDO,
)
_ISATAP = (0x0000_5EFE, 0x0200_5EFE)


class UnsafeAddress(Exception):
    """A webhook may not go there; the text says why."""


@dataclass(frozen=True, slots=True)
class Allowed:
    """What operators let webhooks go to beside the internet."""

    hosts: frozenset[str] = frozenset()
    networks: tuple[_Network, ...] = ()

    @classmethod
    def parse(cls, words: Iterable[str]) -> Allowed:
        """Read host names, addresses and networks. Raises: ValueError."""
        hosts, networks = set(), []
        for word in words:
            text = word.strip().lower()
            try:
                networks.append(ip_network(text.strip("[]")))
            except ValueError:
                if not _NAME.fullmatch(text) or _is_numeric(text):
                    raise ValueError(f"{word!r} is not a host name, an address or a network") from None
                hosts.add(text)
        return cls(frozenset(hosts), tuple(networks))

    def has(self, address: _Address) -> bool:
        """Return whether an address lies in an allowed network."""
        return any(address in network for network in self.networks if network.version == address.version)


_NOTHING = Allowed()


@dataclass(frozen=True, slots=True)
class HookTarget:
    """A webhook's address, taken apart."""

    is_tls: bool
    host: str
    """Lower case, without brackets."""
    port: int
    path: str
    """With its query."""
    address: _Address | None
    """Where the host is written as an address: nothing is left to resolve."""

    @property
    def host_header(self) -> str:
        """Return what the receiver reads as `Host`."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.is_tls else 80) else f"{host}:{self.port}"


def parse_hook(url: str, allowed: Allowed = _NOTHING) -> HookTarget:
    """Take a webhook's address apart. Raises: UnsafeAddress with what is wrong with it."""
    if len(url) > _LONGEST:
        raise UnsafeAddress(f"it is longer than {_LONGEST} characters")
    if not _PLAIN.fullmatch(url) or "\\" in url:
        raise UnsafeAddress("it has characters that must be quoted")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise UnsafeAddress("it cannot be understood") from None
    scheme = parts.scheme.lower()
    if scheme not in _DEFAULT_PORTS:
        raise UnsafeAddress("it must begin with https:// or http://")
    if "@" in parts.netloc:
        raise UnsafeAddress("it must not hold a user or a password")
    host, address = _host(parts)
    port = _DEFAULT_PORTS[scheme] if port is None else port
    is_allowed = host in allowed.hosts or (address is not None and allowed.has(address))
    if not is_allowed:
        _check_port(port)
        _check_host(host, address)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return HookTarget(scheme == "https", host, port, path, address)


def check_addresses(
    target: HookTarget, found: Sequence[str], allowed: Allowed = _NOTHING
) -> tuple[_Address, ...]:
    """Return the addresses that a connection may go to, in the given order.

    found is what the host resolved to, once: nothing may be resolved again. One refused address refuses the host.
    Raises: UnsafeAddress.
    """
    if not found:
        raise UnsafeAddress("its host has no address")
    judged = tuple(dict.fromkeys(_read(text) for text in found))
    if target.host not in allowed.hosts:
        for address in judged:
            if not allowed.has(address):
                _check_address(address)
                _check_port(target.port)
    return judged


def _read(text: str) -> _Address:
    try:
        return ip_address(text)
    except ValueError:
        raise UnsafeAddress(f"its host resolves to {text!r}") from None


def _host(parts: SplitResult) -> tuple[str, _Address | None]:
    host = (parts.hostname or "").lower()
    if parts.netloc.startswith("["):
        try:
            return host, IPv6Address(host) if "%" not in host else _no_zone()
        except ValueError:
            raise UnsafeAddress("its IPv6 address cannot be understood") from None
    if _is_numeric(host):
        try:
            return host, IPv4Address(host)
        except ValueError:
            raise UnsafeAddress("an IPv4 address is written as four decimal numbers") from None
    if len(host) > 253 or not _NAME.fullmatch(host):
        raise UnsafeAddress("its host is not a name as it is written in DNS, without a dot at its end")
    return host, None


def _no_zone() -> IPv6Address:
    raise UnsafeAddress("an IPv6 address with a zone belongs to one machine")


def _is_numeric(host: str) -> bool:
    """Return whether somebody may read it as an IPv4 address: its last part is a number in any notation."""
    return _NUMERIC.fullmatch(host.rstrip(".").rpartition(".")[2]) is not None


def _check_port(port: int) -> None:
    if port not in _PORTS:
        listed = ", ".join(str(one) for one in sorted(_PORTS))
        raise UnsafeAddress(f"its port is {port}; webhooks go to {listed}")


def _check_host(host: str, address: _Address | None) -> None:
    if address is not None:
        _check_address(address)
    elif "." not in host or host.rpartition(".")[2] in _OURS:
        raise UnsafeAddress("its host is a name of this machine or of its neighbours")


def _check_address(address: _Address) -> None:
    for one in (address, *_inside(address)):
        if not _is_global(one):
            raise UnsafeAddress(f"{address} is not an address of the public internet")


def _is_global(address: _Address) -> bool:
    """Return whether it is global unicast, or only the shell of a translated IPv4 address."""
    if any(address in network for network in _REFUSED if network.version == address.version):
        return False
    if isinstance(address, IPv6Address):
        if any(address in network for network in (*_MAPPED, _NAT64)):
            return address not in _MAPPED[0] or int(address) > 1
        return address in _GLOBAL_V6 and address.is_global
    return address.is_global and not (address.is_multicast or address.is_reserved)


def _inside(address: _Address) -> Iterator[_Address]:
    """Yield the addresses that an address leads to."""
    if isinstance(address, IPv4Address):
        return
    number = int(address)
    if any(address in network for network in (*_MAPPED, _NAT64)):
        yield IPv4Address(number & 0xFFFF_FFFF)
    elif address in _SIX_TO_FOUR:
        yield IPv4Address(number >> 80 & 0xFFFF_FFFF)
    elif address in _TEREDO:
        yield IPv4Address(number >> 64 & 0xFFFF_FFFF)
        yield IPv4Address(~number & 0xFFFF_FFFF)
    if number >> 32 & 0xFFFF_FFFF in _ISATAP:
        yield IPv4Address(number & 0xFFFF_FFFF)
