"""TLS, mutual TLS and tokens: who is let in, who is not, and what changes while the server runs."""

from __future__ import annotations

import asyncio
import ssl
import time
from pathlib import Path
from types import SimpleNamespace

import grpc
import pytest
from cryptography.hazmat.primitives import serialization
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

import dragoman
from dragoman import Credentials
from dragoman.cli import main
from dragoman.v1 import admin_pb2, admin_pb2_grpc
from dragoman_server.config import ServerConfig
from dragoman_server.metrics import DENIED, CallRecord
from dragoman_server.service.admin import AdminServer
from dragoman_server.service.authentication import Authentication
from dragoman_server.service.callers import caller_of
from dragoman_server.service.certificates import server_credentials
from dragoman_server.service.doors import Doors
from dragoman_server.service.listening import Listener
from dragoman_server.service.tokens import TokenFile, new_token, token_line

LOOK = 1.1
"""Seconds after which a changed file is looked at."""


def unobserved(_: CallRecord) -> None:
    """For tests that look at other things."""


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
        server_credentials(certificate, certificate, None)
    with pytest.raises(ValueError, match="are no certificate and its key"):
        server_credentials(certificate, authority.issue("other")[1], None)
    with pytest.raises(ValueError, match="holds no certificate"):
        server_credentials(certificate, key, key)
    none = tmp_path / "none"
    for files in ((none, key, None), (certificate, none, None), (certificate, key, none)):
        with pytest.raises(FileNotFoundError, match=str(none)):
            server_credentials(*files)


def test_a_key_with_a_password_is_refused_without_asking_for_it(authority, tmp_path) -> None:
    certificate, key = authority.issue("server")
    plain = serialization.load_pem_private_key(key.read_bytes(), password=None)
    locked = tmp_path / "locked.key"
    locked.write_bytes(
        plain.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"password"),
        )
    )
    with pytest.raises(ValueError, match=r"are no certificate and its key"):
        server_credentials(certificate, locked, None)


def test_a_pair_that_changes_while_it_is_read_is_not_taken(authority, monkeypatch) -> None:
    certificate, key = authority.issue("server")
    other = authority.issue("other")[0].read_bytes()
    check = ssl.SSLContext.load_cert_chain

    def check_and_renew(context: ssl.SSLContext, *files: Path, **arguments: str) -> None:
        check(context, *files, **arguments)
        certificate.write_bytes(other)

    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", check_and_renew)
    with pytest.raises(ValueError, match="changed while they were read"):
        server_credentials(certificate, key, None)


@pytest.fixture
def tokens(tmp_path: Path) -> tuple[TokenFile, Path, str]:
    """A file with one token, where it is, and the token."""
    file, token = tmp_path / "tokens", new_token()
    file.write_text(f"# who may call\n{token_line('anna', token)}\n")
    return TokenFile(file), file, token


def test_a_token_opens_and_a_revoked_one_does_not(start_server, model, engine, tokens) -> None:
    known, file, token = tokens
    address = start_server(
        model(engine), listener=Listener(authentication=Authentication(known, unobserved))
    ).address
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
    address = start_server(
        model(engine), listener=Listener(authentication=Authentication(known, unobserved))
    ).address
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


def test_denied_calls_are_observed_without_what_they_asked_for(start_server, model, engine, tokens) -> None:
    records: list[CallRecord] = []
    authentication = Authentication(tokens[0], records.append)
    address = start_server(model(engine), listener=Listener(authentication=authentication)).address
    with grpc.insecure_channel(address) as channel, pytest.raises(grpc.RpcError, match="UNAUTHENTICATED"):
        channel.unary_unary("/forged/Method")(b"", timeout=5)
    [record] = records
    assert (record.method, record.code, record.model) == (DENIED, "UNAUTHENTICATED", "")
    assert record.caller.startswith("ipv4:127.0.0.1:")


def test_health_may_be_open(start_server, model, engine, tokens) -> None:
    known, _, _ = tokens
    listener = Listener(authentication=Authentication(known, unobserved, open_health=True))
    address = start_server(model(engine), listener=listener).address
    with grpc.insecure_channel(address) as channel:
        assert channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=5) == b"\x08\x01"
        with pytest.raises(grpc.RpcError, match="UNAUTHENTICATED"):
            channel.unary_unary("/dragoman.v1.TranslationService/ListModels")(b"", timeout=5)


def test_a_translators_token_does_not_administer(start_server, model, engine, tokens, tmp_path) -> None:
    known, _, token = tokens
    (tmp_path / "admin").write_text("")
    authentication = Authentication(TokenFile(tmp_path / "admin"), unobserved, others=known)
    listener = Listener(authentication=authentication)
    address = start_server(model(engine), listener=listener).address
    assert outcomes(address, Credentials(token=token)) == {"PermissionDenied"}
    assert outcomes(address, Credentials(token="x")) == {"Unauthenticated"}


def test_what_fails_in_the_administration_stays_inside(caplog) -> None:
    class Failing:
        async def load(self, name: str) -> None:
            raise ZeroDivisionError("the secret")

        unload = load

        async def roll_out(self, name: str, version: str) -> None:
            raise ZeroDivisionError("the secret")

    async def answers() -> list[str]:
        server = AdminServer(Listener(), unobserved)
        await server.start(Failing())
        found = []
        async with grpc.aio.insecure_channel(server.address) as channel:
            stub = admin_pb2_grpc.AdminServiceStub(channel)
            for call in (
                stub.LoadModel(admin_pb2.LoadModelRequest(name="x"), timeout=5),
                stub.UnloadModel(admin_pb2.UnloadModelRequest(name="x"), timeout=5),
                stub.Rollout(admin_pb2.RolloutRequest(name="x", version="1"), timeout=5),
            ):
                with pytest.raises(grpc.aio.AioRpcError, match="INTERNAL") as caught:
                    await call
                found.append(str(caught.value.details()))
        await server.stop()
        return found

    for told in asyncio.run(answers()):
        assert "secret" not in told
        assert told.split()[2].rstrip(";") in caplog.text
    assert caplog.text.count("ZeroDivisionError: the secret") == 3


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

        await Authentication(known, unobserved).intercept_service(handler, details)
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
    file.write_text(file.read_text().removesuffix("\n"))  # as some editors leave it
    assert main(["token", "last", "--file", str(file)]) == 0
    known = TokenFile(file)
    assert known.name_of(second) == "build@ci"
    assert known.name_of(capsys.readouterr().out.strip()) == "last"
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
        ),
        unobserved,
    )
    assert doors.translation.credentials is not None
    assert doors.translation.authentication is not None
    assert doors.admin is not None
    assert doors.admin.authentication is not None
    assert Doors(ServerConfig(), unobserved).admin is None


def test_a_token_is_not_sent_in_plaintext_to_another_machine() -> None:
    with pytest.raises(ValueError, match="for everybody to read"):
        dragoman.Client("example.org:50051", credentials=Credentials(token="secret"))


def test_the_environment_has_credentials(monkeypatch, tmp_path) -> None:
    for name, value in {"TOKEN": "t", "CA": str(tmp_path), "TLS": "1"}.items():
        monkeypatch.setenv(f"DRAGOMAN_{name}", value)
    assert Credentials.from_environment() == Credentials(token="t", ca=tmp_path, tls=True)
    file = tmp_path / "token"
    file.write_text("of-the-file\n")
    assert Credentials.from_environment(file) == Credentials(token="of-the-file", ca=tmp_path, tls=True)
    file.write_text("\n")
    with pytest.raises(ValueError, match="token holds no token"):
        Credentials.from_environment(file)
    assert "secret" not in repr(Credentials(token="secret"))
    with pytest.raises(ValueError, match="belong together"):
        Credentials(certificate=tmp_path)


@pytest.mark.parametrize("token", ["secret\n", "two secrets", "secr\u00e9t", "secret\x00"])
def test_a_token_that_is_none_is_refused_without_being_repeated(token) -> None:
    with pytest.raises(ValueError, match="one word of ASCII") as caught:
        Credentials(token=token)
    assert "secr" not in str(caught.value)
