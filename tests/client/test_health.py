from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from dragoman.cli import main
from dragoman_server.service.authentication import Authentication
from dragoman_server.service.certificates import server_credentials
from dragoman_server.service.listening import Listener
from dragoman_server.service.tokens import TokenFile, new_token, token_line

Status = health_pb2.HealthCheckResponse
Ask = Callable[..., tuple[int, str, str]]


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str]) -> Ask:
    """Runs `dragoman health`; returns exit code, standard output, standard error."""

    def ask(endpoint: str, *arguments: str) -> tuple[int, str, str]:
        code = main(["health", "--endpoint", endpoint, "--timeout", "2", *arguments])
        output = capsys.readouterr()
        return code, output.out, output.err

    return ask


@pytest.fixture
def servicer() -> Iterator[tuple[health.HealthServicer, str]]:
    """The servicer that gRPC ships, and its address."""
    servicer = health.HealthServicer()
    with ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool)
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield servicer, f"127.0.0.1:{port}"
        server.stop(None).wait()


def test_the_exit_code_says_what_the_server_says(ask: Ask, servicer: Any) -> None:
    states, address = servicer
    assert ask(address) == (0, "SERVING\n", "")
    states.set("", Status.NOT_SERVING)
    assert ask(address) == (1, "NOT_SERVING\n", "")
    states.set("en-de", Status.SERVING)
    assert ask(address, "--service", "en-de") == (0, "SERVING\n", "")
    assert ask(address, "--service", "en-fr") == (1, "SERVICE_UNKNOWN\n", "")


@pytest.mark.parametrize("listens", [False, True])
def test_a_server_that_does_not_answer_is_one_line(ask: Ask, listens: bool) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        if listens:
            silent.listen()
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        code, output, errors = ask(address)
    assert (code, output) == (1, "")
    assert errors.startswith(f"dragoman: no server answers at {address}: ")
    assert errors.count("\n") == 1


def test_a_mistake_is_one_line(ask: Ask, server: Any) -> None:
    assert ask("a:1,b:2") == (
        2,
        "",
        "dragoman: error: --endpoint a:1,b:2 names several servers; ask each of them by itself\n",
    )
    assert ask(server.address, "--token-file", "/nonexistent")[0] == 2


def test_a_server_with_tls_and_tokens(
    ask: Ask, start_server: Any, model: Any, engine: Any, authority: Any, tmp_path: Any, monkeypatch: Any
) -> None:
    file, token = tmp_path / "tokens", new_token()
    file.write_text(token_line("probe", token))
    certificate, key = authority.issue("server")
    address = start_server(
        model(engine),
        listener=Listener(
            credentials=server_credentials(certificate, key, None),
            authentication=Authentication(TokenFile(file), lambda call: None),
        ),
    ).address
    assert ask(address)[0] == 1
    monkeypatch.setenv("DRAGOMAN_CA", str(authority.ca))
    code, _, errors = ask(address)
    assert (code, errors) == (2, "dragoman: error: a token is asked for: authorization: Bearer ...\n")
    (tmp_path / "token").write_text(token)
    assert ask(address, "--token-file", str(tmp_path / "token")) == (0, "SERVING\n", "")
