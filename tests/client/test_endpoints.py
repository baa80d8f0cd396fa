"""One server or several, by number or by name."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Any

import pytest

import dragoman
from dragoman._endpoints import is_this_machine, listed_endpoints, target_of


@pytest.mark.parametrize(
    ("given", "endpoints"),
    [
        ("a:1", ["a:1"]),
        ("a:1, b:2", ["a:1", "b:2"]),
        (["a:1", "b:2"], ["a:1", "b:2"]),
        (("a:1",), ["a:1"]),
        ("xds:///a,b", ["xds:///a,b"]),
    ],
)
def test_endpoints_are_listed(given: str | Sequence[str], endpoints: list[str]) -> None:
    assert list(listed_endpoints(given)) == endpoints


@pytest.mark.parametrize("given", ["", ",", "a:1,", [], ["a:1", ""]])
def test_endpoints_that_are_none(given: str | list[str]) -> None:
    with pytest.raises(ValueError, match="HOST:PORT"):
        dragoman.Client(given)


@pytest.mark.parametrize(
    ("endpoints", "expected"),
    [
        (["name:1"], "name:1"),
        (["dns:///name:1"], "dns:///name:1"),
        (["127.0.0.1:1", "127.0.0.2:2"], "ipv4:127.0.0.1:1,127.0.0.2:2"),
        (["127.0.0.1:1", "127.0.0.1:1"], "ipv4:127.0.0.1:1"),
        (["[::1]:1", "[::2]:2"], "ipv6:[::1]:1,[::2]:2"),
    ],
)
def test_the_target_of_endpoints(endpoints: list[str], expected: str) -> None:
    assert target_of(endpoints) == expected


def test_names_among_several_are_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"one": ["10.0.0.1", "fd00::1"], "two": ["10.0.0.2", "10.0.0.3"], "six": ["fd00::6"]}

    def look_up(host: str, port: int, **_: Any) -> list[Any]:
        if host not in known:
            raise socket.gaierror(-2, "Name or service not known")
        families = [
            (socket.AF_INET6 if ":" in address else socket.AF_INET, address) for address in known[host]
        ]
        return [(family, socket.SOCK_STREAM, 6, "", (address, port)) for family, address in families]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    assert target_of(["one:1", "two:2"]) == "ipv4:10.0.0.1:1,10.0.0.2:2,10.0.0.3:2"
    assert target_of(["one:1", "six:6"]) == "ipv6:[fd00::1]:1,[fd00::6]:6"
    with pytest.raises(ValueError, match="two:1, six:2 have IPv4"):
        target_of(["two:1", "six:2"])
    with pytest.raises(OSError, match="no address found for three:3: Name or service not known"):
        target_of(["one:1", "three:3"])


@pytest.mark.parametrize("wrong", ["a", ":1", "a:", "a:b", "unix:/tmp/a"])
def test_each_of_several_has_a_port(wrong: str) -> None:
    with pytest.raises(ValueError, match="each must be HOST:PORT"):
        target_of(["127.0.0.1:1", wrong])


def test_a_token_is_sent_in_plaintext_to_this_machine_alone() -> None:
    assert is_this_machine(["127.0.0.1:1", "localhost:2", "[::1]:3", "127.0.0.1", "unix:/run/socket"])
    for elsewhere in (
        "localhost.example.org:1",
        "127.0.0.1.example.org:1",
        "127.example.org:1",
        "10.0.0.1:1",
    ):
        assert not is_this_machine([elsewhere])
    credentials = dragoman.Credentials(token="secret")
    with pytest.raises(ValueError, match=r"127\.0\.0\.1:1, 10\.0\.0\.1:2 for everybody to read"):
        dragoman.Client("127.0.0.1:1,10.0.0.1:2", credentials=credentials)
