"""The log: one JSON object a line, whatever callers send, and none of their texts unless asked for."""

from __future__ import annotations

import json

import grpc
import pytest

import dragoman
from dragoman.v1.translation_pb2 import TranslateRequest

SECRET = "The queen has hidden the marmalade."
FORGED = '\n{"level": "CRITICAL", "message": "forged"}\n\x1b[2J'


def lines(server) -> list[dict[str, object]]:
    return [json.loads(line) for line in server.log.read_text().splitlines()]


def hostile_calls(server) -> None:
    with server.stub() as stub, server.channel() as channel:
        stub.Translate(TranslateRequest(texts=[SECRET + FORGED]), timeout=30)
        for request in (
            TranslateRequest(model=SECRET + FORGED, texts=["x"]),
            TranslateRequest(source_language=SECRET + FORGED, texts=["x"]),
            TranslateRequest(texts=[]),
        ):
            with pytest.raises(grpc.RpcError, match=r"NOT_FOUND|INVALID_ARGUMENT"):
                stub.Translate(request, timeout=30)
        with pytest.raises(grpc.RpcError, match="INVALID_ARGUMENT"):
            channel.unary_unary("/dragoman.v1.TranslationService/Translate")(SECRET.encode(), timeout=30)


def test_what_callers_send_never_reaches_the_log(serving) -> None:
    with serving("--log-format", "json", "--log-calls") as server, server.unharmed():
        hostile_calls(server)
        written = lines(server)
        assert "marmalade" not in server.log.read_text()
        assert "forged" not in server.log.read_text()
        calls = [one for one in written if "caller" in one]
        assert {one["code"] for one in calls} >= {"OK", "NOT_FOUND", "INVALID_ARGUMENT"}
        assert all(str(one["caller"]).startswith("ipv4:127.0.0.1:") for one in calls)
        with dragoman.Client(server.address) as client:
            [served] = client.models()
        assert {one["model"] for one in calls if one["code"] == "OK"} == {served.name}
        assert {one["model"] for one in calls if one["code"] == "NOT_FOUND"} == {""}


def test_the_cause_of_an_internal_error_stays_inside(serving, token_of) -> None:
    faults = {"DRAGOMAN_FAULTS": f"step:raise@token={token_of('marmalade')}"}
    with serving("--log-format", "json", environment=faults) as server, server.stub() as stub:
        with pytest.raises(grpc.RpcError, match="INTERNAL") as caught:
            stub.Translate(TranslateRequest(texts=["marmalade"]), timeout=30)
        told = caught.value.details()
        assert "on purpose" not in told
        assert "Traceback" not in told
        identifier = told.split()[2].rstrip(";")
        [cause] = [one for one in lines(server) if identifier in str(one["message"])]
        assert "a fault on purpose" in str(cause["error"])
        assert "marmalade" not in server.log.read_text()


def test_texts_are_logged_where_asked_for(serving) -> None:
    with serving("--log-format", "json", "--log-texts") as server:
        hostile_calls(server)
        assert [SECRET + FORGED] in [one.get("texts") for one in lines(server)]
        assert "CRITICAL" not in {one["level"] for one in lines(server)}
