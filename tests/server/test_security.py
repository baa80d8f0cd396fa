"""TLS, mutual TLS and tokens: who is let in, who is not, and what changes while the server runs."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from types import SimpleNamespace

import grpc
import pytest
import trustme
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

import dragoman
from dragoman import Credentials
from dragoman.cli import main
from dragoman_server.config import ServerConfig
from dragoman_server.service.authentication import Authentication
from dragoman_server.service.callers import caller_of
from dragoman_server.service.certificates import server_credentials
from dragoman_server.service.doors import Doors
from dragoman_server.service.listening import Listener
from dragoman_server.service.tokens import TokenFile, new_token, token_line

LOOK = 1.1
"""Seconds after which a changed file is looked at."""


class Authority:
    """Issues certificates, as files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ca = trustme.CA()
        self.ca = folder / "ca.pem"
        self._ca.cert_pem.write_to_path(self.ca)

    def issue(self, name: str) -> tuple[Path, Path]:
        """A certificate for the loopback, and its key."""
        issued = self._ca.issue_cert("127.0.0.1", "localhost")
        certificate, key = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        issued.private_key_pem.write_to_path(key)
        return certificate, key


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def stranger(tmp_path: Path) -> Authority:
    """Whom nobody trusts."""
    (tmp_path / "stranger").mkdir()
    return Authority(tmp_path / "stranger")


def translate(address: str, credentials: Credentials) -> str:
    with dragoman.Client(address, credentials=credentials, timeout=3.0) as client:
        return client.translate("hello").text


async def translate_async(address: str, credentials: Credentials) -> str:
    async with dragoman.AsyncClient(address, credentials=credentials, timeout=3.0) as client:
        return (await client.translate("hello")).text


def outcomes(address: str, credentials: Credentials) -> set[str]:
    """What both clients get: a translation, or the name of an error."""
    found = set()
    for call in (translate, lambda *arguments: asyncio.run(translate_async(*arguments))):
        try:
            found.add(call(address, credentials))
        except dragoman.DragomanError as error:
            found.add(type(error).__name__)
    return found


@pytest.mark.parametrize("mutual", [False, True])
def test_tls_lets_in_whom_it_should(start_server, model, engine, authority, stranger, mutual) -> None:
    certificate, key = authority.issue("server")
    credentials = server_credentials(certificate, key, authority.ca if mutual else None)
    address = start_server(model(engine), listener=Listener(credentials=credentials)).address
    own = dict(zip(("certificate", "key"), authority.issue("client"), strict=True))
    foreign = dict(zip(("certificate", "key"), stranger.issue("client"), strict=True))
    refused = {"Unavailable", "DeadlineExceeded"}
    assert outcomes(address, Credentials(ca=authority.ca, **own)) == {"HELLO"}
    for wrong in (Credentials(), Credentials(ca=stranger.ca, **own)):
        assert outcomes(address, wrong) <= refused
    for doubtful in (Credentials(ca=authority.ca), Credentials(ca=authority.ca, **foreign)):
        expected = refused if mutual else {"HELLO"}
        assert outcomes(address, doubtful) <= expected


def test_a_new_certificate_is_taken_without_a_restart(
    start_server, model, engine, authority, stranger, caplog
):
    certificate, key = authority.issue("server")
    address = start_server(
        model(engine), listener=Listener(credentials=server_credentials(certificate, key, None))
    ).address
    assert translate(address, Credentials(ca=authority.ca)) == "HELLO"
    other_certificate, other_key = stranger.issue("server")
    certificate.write_bytes(other_certificate.read_bytes())
    time.sleep(LOOK)
    # The key is still the old one's: the old pair goes on to hold.
    assert translate(address, Credentials(ca=authority.ca)) == "HELLO"
    assert "the certificate stays as it was" in caplog.text
    key.write_bytes(other_key.read_bytes())
    time.sleep(LOOK)
    assert translate(address, Credentials(ca=stranger.ca)) == "HELLO"


def test_files_that_are_no_certificate_are_refused(authority, tmp_path) -> None:
    certificate, key = authority.issue("server")
    with pytest.raises(ValueError, match="are no certificate and its key"):
        server_credentials(certificate, authority.issue("other")[1], None)
    with pytest.raises(ValueError, match="holds no certificate"):
        server_credentials(certificate, key, key)
    with pytest.raises(FileNotFoundError):
        server_credentials(certificate, tmp_path / "none", None)


@pytest.fixture
def tokens(tmp_path: Path) -> tuple[TokenFile, Path, str]:
    """A file with one token, where it is, and the token."""
    file, token = tmp_path / "tokens", new_token()
    file.write_text(f"# who may call\n{token_line('anna', token)}\n")
    return TokenFile(file), file, token


def test_a_token_opens_and_a_revoked_one_does_not(start_server, model, engine, tokens) -> None:
    known, file, token = tokens
    address = start_server(model(engine), listener=Listener(authentication=Authentication(known))).address
    assert outcomes(address, Credentials(token=token)) == {"HELLO"}
    for wrong in ("", "x", token[:-1], token + "x"):
        assert outcomes(address, Credentials(token=wrong)) <= {"Unauthenticated", "Unavailable"}
    file.write_text("")
    time.sleep(LOOK)
    assert outcomes(address, Credentials(token=token)) == {"Unauthenticated"}


def methods(address: str, token: str) -> dict[str, bool]:
    """Every method that reflection knows of, and whether its request is a stream."""
    with grpc.insecure_channel(address) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)

        def ask(**question: str) -> reflection_pb2.ServerReflectionResponse:
            requests = iter([reflection_pb2.ServerReflectionRequest(**question)])
            metadata = (("authorization", f"Bearer {token}"),)
            return next(stub.ServerReflectionInfo(requests, metadata=metadata, timeout=5))

        from google.protobuf.descriptor_pb2 import FileDescriptorProto

        found = {}
        for service in ask(list_services="").list_services_response.service:
            for blob in ask(
                file_containing_symbol=service.name
            ).file_descriptor_response.file_descriptor_proto:
                file = FileDescriptorProto.FromString(blob)
                for one in file.service:
                    for method in one.method:
                        found[f"/{file.package}.{one.name}/{method.name}"] = method.client_streaming
    return found


def test_every_method_is_denied_without_a_token(start_server, model, engine, tokens) -> None:
    known, _, token = tokens
    address = start_server(model(engine), listener=Listener(authentication=Authentication(known))).address
    found = methods(address, token)
    assert len(found) >= 7
    with grpc.insecure_channel(address) as channel:
        for method, streaming in {**found, "/no.such.Service/Method": False}.items():
            for metadata in ((), (("authorization", "Bearer x"),), (("authorization", token),)):
                if streaming:
                    replies = channel.stream_stream(method)(iter([b""]), timeout=5, metadata=metadata)
                else:
                    replies = channel.unary_stream(method)(b"", timeout=5, metadata=metadata)
                with pytest.raises(grpc.RpcError) as caught:
                    next(replies)
                assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_health_may_be_open(start_server, model, engine, tokens) -> None:
    known, _, _ = tokens
    listener = Listener(authentication=Authentication(known, open_health=True))
    address = start_server(model(engine), listener=listener).address
    with grpc.insecure_channel(address) as channel:
        assert channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=5) == b"\x08\x01"
        with pytest.raises(grpc.RpcError, match="UNAUTHENTICATED"):
            channel.unary_unary("/dragoman.v1.TranslationService/ListModels")(b"", timeout=5)


def test_a_translators_token_does_not_administer(start_server, model, engine, tokens, tmp_path) -> None:
    known, _, token = tokens
    (tmp_path / "admin").write_text("")
    listener = Listener(authentication=Authentication(TokenFile(tmp_path / "admin"), others=known))
    address = start_server(model(engine), listener=listener).address
    assert outcomes(address, Credentials(token=token)) == {"PermissionDenied"}
    assert outcomes(address, Credentials(token="x")) == {"Unauthenticated"}


def test_a_calls_owner_is_known(tokens) -> None:
    known, _, token = tokens

    class Context:
        def peer(self) -> str:
            return "ipv4:127.0.0.1:9"

    async def call(*bearer: str) -> str:
        metadata = tuple(("authorization", f"bearer {one}") for one in bearer)
        details = SimpleNamespace(method="/x/y", invocation_metadata=metadata)

        async def handler(_: object) -> None:
            return None

        await Authentication(known).intercept_service(handler, details)
        return caller_of(Context())

    assert asyncio.run(call(token)) == "anna"
    assert asyncio.run(call()) == "ipv4:127.0.0.1:9"
    assert asyncio.run(call(token, token)) == "ipv4:127.0.0.1:9"


def test_the_token_command_writes_what_the_server_reads(tmp_path, capsys) -> None:
    file = tmp_path / "tokens"
    for name in ("anna", "build@ci"):
        assert main(["token", name, "--file", str(file)]) == 0
    first, second = capsys.readouterr().out.split()
    assert file.stat().st_mode & 0o777 == 0o600
    assert first not in file.read_text()
    known = TokenFile(file)
    assert (known.name_of(first), known.name_of(second), known.name_of("x")) == ("anna", "build@ci", None)
    assert main(["token", "two words", "--file", str(file)]) == 2
    file.write_text("anna\n")
    with pytest.raises(ValueError, match="tokens:1 is no line NAME SHA256"):
        TokenFile(file)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"tls_certificate": Path("x")}, "belong together"),
        ({"tls_client_ca": Path("x")}, "needs --tls-certificate"),
        ({"tokens": Path("x"), "host": "0.0.0.0"}, "--tokens without --tls-certificate would send"),
        ({"admin_port": 0, "admin_host": "0.0.0.0"}, "would let everybody decide"),
        (
            {"admin_port": 0, "admin_host": "::", "admin_tokens": Path("x")},
            "--admin-tokens without --tls-certificate",
        ),
    ],
)
def test_doors_that_would_stand_open_are_refused(flags, message) -> None:
    with pytest.raises(ValueError, match=message):
        ServerConfig(**flags)


def test_closed_doors_are_as_the_flags_say(authority, tokens) -> None:
    certificate, key = authority.issue("server")
    doors = Doors(
        ServerConfig(
            host="0.0.0.0",
            tls_certificate=certificate,
            tls_key=key,
            tokens=tokens[1],
            admin_port=0,
            admin_tokens=tokens[1],
        )
    )
    assert doors.translation.credentials is not None
    assert doors.translation.authentication is not None
    assert doors.admin is not None
    assert doors.admin.authentication is not None
    assert Doors(ServerConfig()).admin is None


def test_a_token_is_not_sent_in_plaintext_to_another_machine() -> None:
    with pytest.raises(ValueError, match="for everybody to read"):
        dragoman.Client("example.org:50051", credentials=Credentials(token="secret"))


def test_the_environment_has_credentials(monkeypatch, tmp_path) -> None:
    for name, value in {"TOKEN": "t", "CA": str(tmp_path), "TLS": "1"}.items():
        monkeypatch.setenv(f"DRAGOMAN_{name}", value)
    assert Credentials.from_environment() == Credentials(token="t", ca=tmp_path, tls=True)
    assert "secret" not in repr(Credentials(token="secret"))
    with pytest.raises(ValueError, match="belong together"):
        Credentials(certificate=tmp_path)
