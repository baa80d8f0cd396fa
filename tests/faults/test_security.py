"""TLS, mutual TLS and tokens on real servers: who gets in where, and what changes without a restart."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import time

import pytest

import dragoman
from dragoman import Credentials
from dragoman.cli import main

LOOK = 1.1
"""Seconds after which a changed file is looked at."""
TIMEOUT = 3.0
SHUT_OUT = {"Unavailable", "DeadlineExceeded"}


def sync(server, credentials: Credentials) -> None:
    with dragoman.Client(server.address, credentials=credentials, timeout=TIMEOUT) as client:
        client.translate("Good morning!")


def asynchronous(server, credentials: Credentials) -> None:
    async def call() -> None:
        async with dragoman.AsyncClient(server.address, credentials=credentials, timeout=TIMEOUT) as client:
            await client.translate("Good morning!")

    asyncio.run(call())


def admin(server, credentials: Credentials) -> None:
    # Whoever hears that there is no such model was let in.
    with (
        dragoman.AdminClient(server.admin_address, credentials=credentials, timeout=TIMEOUT) as client,
        contextlib.suppress(dragoman.NotFound),
    ):
        client.load("no-such-model")


def outcome(call, server, credentials: Credentials) -> str:
    try:
        call(server, credentials)
    except dragoman.DragomanError as error:
        return type(error).__name__
    return "let in"


def flags_of(certificate, key, *more: object) -> list[object]:
    return ["--tls-certificate", certificate, "--tls-key", key, "--admin-port", 0, *more]


@pytest.mark.parametrize("mutual", [False, True])
def test_who_gets_in(serving, figures, monkeypatch, authority, stranger, mutual) -> None:
    own = dict(zip(("certificate", "key"), authority.issue("client"), strict=True))
    foreign = dict(zip(("certificate", "key"), stranger.issue("client"), strict=True))
    for name, path in {"CA": authority.ca, **{name.upper(): path for name, path in own.items()}}.items():
        monkeypatch.setenv(f"DRAGOMAN_{name}", str(path))
    more = ["--tls-client-ca", authority.ca] if mutual else []
    table = {
        "right": (Credentials(ca=authority.ca, **own), True),
        "plaintext": (Credentials(), False),
        "another authority's server": (Credentials(ca=stranger.ca, **own), False),
        "no certificate": (Credentials(ca=authority.ca), not mutual),
        "another authority's client": (Credentials(ca=authority.ca, **foreign), not mutual),
    }
    with serving(*flags_of(*authority.issue("server"), *more)) as server, server.unharmed():
        for case, (credentials, let_in) in table.items():
            found = {
                call.__name__: outcome(call, server, credentials) for call in (sync, asynchronous, admin)
            }
            figures(f"{'mutual TLS' if mutual else 'TLS'}, {case}", "clients", str(found))
            assert set(found.values()) <= ({"let in"} if let_in else SHUT_OUT)


def serial(server) -> str:
    """The certificate that a new connection is shown."""
    host, _, port = server.address.rpartition(":")
    return ssl.get_server_certificate((host, int(port)))


def test_a_certificate_is_renewed_under_calls(serving, monkeypatch, authority) -> None:
    monkeypatch.setenv("DRAGOMAN_CA", str(authority.ca))
    certificate, key = authority.issue("server")
    new_certificate, new_key = (path.read_bytes() for path in authority.issue("new"))
    environment = {"GRPC_VERBOSITY": "NONE"}
    with (
        serving(*flags_of(certificate, key), "--log-format", "json", environment=environment) as server,
        server.unharmed(),
        dragoman.Client(server.address) as client,
    ):
        client.translate("Good morning!")
        old = serial(server)
        for half in (new_certificate[: len(new_certificate) // 2], new_certificate):
            # Without its key, and half of it: the old pair goes on to hold.
            certificate.write_bytes(half)
            time.sleep(LOOK)
            assert serial(server) == old
        key.write_bytes(new_key)
        time.sleep(LOOK)
        assert serial(server) != old
        client.translate("Good morning!")
        # Bytes that are no handshake leave no line that is none of the log's.
        host, _, port = server.address.rpartition(":")
        with socket.create_connection((host, int(port))) as junk:
            junk.sendall(b'{"level": "CRITICAL"}\n' * 20)
            time.sleep(0.2)
        written = [json.loads(line) for line in server.log.read_text().splitlines()]
        kept = [one for one in written if "the certificate stays as it was" in str(one["message"])]
        assert len(kept) == 2
        assert "CRITICAL" not in {one["level"] for one in written}


def test_tokens_open_their_own_door_until_they_are_revoked(serving, monkeypatch, capsys, tmp_path) -> None:
    translators, administrators = tmp_path / "translators", tmp_path / "administrators"

    def new_token(name, file) -> str:
        assert main(["token", name, "--file", str(file)]) == 0
        return capsys.readouterr().out.strip()

    anna, root = new_token("anna", translators), new_token("root", administrators)
    monkeypatch.setenv("DRAGOMAN_TOKEN", anna)
    flags = ["--tokens", translators, "--admin-port", 0, "--admin-tokens", administrators]
    with serving(*flags, "--log-format", "json", "--log-calls") as server, server.unharmed():
        for call in (sync, asynchronous):
            assert outcome(call, server, Credentials(token=anna)) == "let in"
            assert outcome(call, server, Credentials(token=root)) == "Unauthenticated"
            # A client without a token watches health, and is denied that as well.
            assert outcome(call, server, Credentials()) in {"Unauthenticated", "Unavailable"}
        assert outcome(admin, server, Credentials(token=root)) == "let in"
        assert outcome(admin, server, Credentials(token=anna)) == "PermissionDenied"
        assert outcome(admin, server, Credentials()) == "Unauthenticated"

        ben = new_token("ben", translators)
        time.sleep(LOOK)
        assert outcome(sync, server, Credentials(token=ben)) == "let in"
        lines = translators.read_text().splitlines(keepends=True)
        translators.write_text("".join(line for line in lines if not line.startswith("ben ")))
        time.sleep(LOOK)
        assert outcome(sync, server, Credentials(token=ben)) == "Unauthenticated"

        log = server.log.read_text()
        assert not any(token in log for token in (anna, ben, root))
        calls = [one for one in map(json.loads, log.splitlines()) if "caller" in one]
        assert {one["caller"] for one in calls if one["code"] == "OK"} == {"anna", "ben"}
        assert {one["code"] for one in calls if one["method"] == "denied"} == {
            "UNAUTHENTICATED",
            "PERMISSION_DENIED",
        }
