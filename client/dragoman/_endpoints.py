"""What a caller names as servers, as a target that gRPC connects to."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable, Sequence

__all__ = ["is_this_machine", "listed_endpoints", "target_of"]


def listed_endpoints(endpoint: str | Sequence[str]) -> tuple[str, ...]:
    """The endpoints that a caller gave, as a sequence or separated by commas.

    Raises:
        ValueError: there is none, or an empty one.
    """
    if isinstance(endpoint, str):
        endpoints = (endpoint,) if ":///" in endpoint else tuple(map(str.strip, endpoint.split(",")))
    else:
        endpoints = tuple(endpoint)
    if not endpoints or not all(endpoints):
        raise ValueError(f"an endpoint is HOST:PORT, or several with commas between, not {endpoint!r}")
    return endpoints


def target_of(endpoints: Sequence[str]) -> str:
    """What gRPC is to resolve.

    A single name is left to gRPC, which follows it for ever. Names among several are looked up here and now:
    gRPC takes addresses alone side by side, and of one family.

    Raises:
        ValueError: one of several is not HOST:PORT, or there is no family that all have addresses of.
        OSError: a name is not found.
    """
    if len(endpoints) == 1:
        return endpoints[0]
    looked_up = [_addresses(endpoint) for endpoint in endpoints]
    for family, scheme in ((socket.AF_INET, "ipv4"), (socket.AF_INET6, "ipv6")):
        found = [[address for kind, address in addresses if kind == family] for addresses in looked_up]
        if all(found):
            distinct = dict.fromkeys(address for addresses in found for address in addresses)
            return f"{scheme}:{','.join(distinct)}"
    raise ValueError(f"some of {', '.join(endpoints)} have IPv4 addresses alone, others IPv6")


def is_this_machine(endpoints: Iterable[str]) -> bool:
    """Whether all of them are addresses of this machine itself."""
    return all(map(_is_loopback, endpoints))


def _is_loopback(endpoint: str) -> bool:
    if endpoint.startswith("unix:"):
        return True
    before, _, port = endpoint.rpartition(":")
    host = before if port.isdecimal() else endpoint
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        # A name that only begins so, such as localhost.example.org, may be anywhere.
        return host == "localhost"


def _addresses(endpoint: str) -> list[tuple[socket.AddressFamily, str]]:
    host, _, port = endpoint.rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError(f"of several endpoints each must be HOST:PORT, which {endpoint!r} is not")
    try:
        answers = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    except OSError as error:
        raise OSError(f"no address found for {endpoint}: {error.strerror}") from error
    return [
        (family, f"[{address[0]}]:{port}" if family == socket.AF_INET6 else f"{address[0]}:{port}")
        for family, _, _, _, address in answers
    ]
