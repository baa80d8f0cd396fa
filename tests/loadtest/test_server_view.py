"""What the server says of itself, and what is made of it."""

from __future__ import annotations

import threading
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from socketserver import BaseRequestHandler, TCPServer
from typing import Any

import pytest

from dragoman.options import TranslateOptions
from dragoman_loadtest import server_view
from dragoman_loadtest.options import Target
from dragoman_loadtest.server_view import MetricsReader, describe_model, occupancy

METRICS = """\
# HELP dragoman_slots Rows of the batch.
# TYPE dragoman_slots gauge
dragoman_slots{model="a"} 32.0
dragoman_slots{model="b"} 16.0
# TYPE dragoman_step_rows_total counter
dragoman_step_rows_total{model="a"} 12.0
# TYPE dragoman_step_seconds histogram
dragoman_step_seconds_bucket{model="a",le="0.1"} 3.0
dragoman_step_seconds_bucket{model="a",le="+Inf"} 4.0
dragoman_step_seconds_count{model="a"} 4.0
dragoman_step_seconds_sum{model="a"} 0.5
"""


@pytest.fixture
def serving() -> Iterator[Callable[..., str]]:
    """Starts servers that answer everything with some bytes; returns their address."""
    servers: list[TCPServer] = []

    def start(reply: bytes, *, http: bool = True, status: int = 200) -> str:
        class Page(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status if self.path == "/metrics" else 404)
                self.send_header("Content-Length", str(len(reply)))
                self.end_headers()
                self.wfile.write(reply)

            def log_message(self, *_: object) -> None:
                pass

        class Bytes(BaseRequestHandler):
            def handle(self) -> None:
                self.request.recv(4096)
                self.request.sendall(reply)

        server = HTTPServer(("127.0.0.1", 0), Page) if http else TCPServer(("127.0.0.1", 0), Bytes)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return f"127.0.0.1:{server.server_address[1]}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_samples_are_summed_over_their_labels(serving: Callable[..., str]) -> None:
    reader = MetricsReader(serving(METRICS.encode()))
    assert reader.read() == {
        "dragoman_slots": 48.0,
        "dragoman_step_rows_total": 12.0,
        "dragoman_step_seconds_count": 4.0,
        "dragoman_step_seconds_sum": 0.5,
    }
    assert reader.error == ""


def test_without_an_address_nothing_is_read() -> None:
    reader = MetricsReader(None)
    assert (reader.read(), reader.error) == ({}, "")


@pytest.mark.parametrize(
    ("reply", "options"),
    [
        (b"gone", {"status": 503}),
        (b"\xff\xff", {}),
        (b'dragoman_slots{model="a" many', {}),
        (b"\x00\x00\x12\x04\x00\x00\x00\x00\x00", {"http": False}),  # HTTP/2: --metrics named the gRPC port
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nshort", {"http": False}),
        (b"", {"http": False}),
    ],
    ids=["status", "encoding", "format", "protocol", "cut", "silence"],
)
def test_what_is_no_page_of_metrics_is_an_error_and_not_an_end(
    serving: Callable[..., str], reply: bytes, options: dict[str, Any]
) -> None:
    reader = MetricsReader(serving(reply, **options))
    assert reader.read() == {}
    assert reader.error.startswith(f"http://{reader.address}/metrics: ")


def test_a_port_where_nobody_listens_is_an_error_and_not_an_end() -> None:
    with TCPServer(("127.0.0.1", 0), BaseRequestHandler) as server:
        reader = MetricsReader(f"127.0.0.1:{server.server_address[1]}")
    assert reader.read() == {}
    assert "refused" in reader.error


def test_metrics_are_read_past_any_proxy(
    serving: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(urllib.request, "_opener", None)  # else that of an earlier test, made without proxy
    monkeypatch.setenv("http_proxy", f"http://{serving(b'# the proxy')}")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert MetricsReader(serving(METRICS.encode())).read()["dragoman_slots"] == 48.0


BEFORE = {
    "dragoman_step_seconds_count": 100.0,
    "dragoman_step_seconds_sum": 2.0,
    "dragoman_step_rows_total": 500.0,
    "dragoman_step_padded_rows_total": 50.0,
    "dragoman_encoder_tokens_total": 1000.0,
    "dragoman_encoder_padding_total": 10.0,
    "dragoman_slots": 32.0,
}
AFTER = {
    "dragoman_step_seconds_count": 300.0,
    "dragoman_step_seconds_sum": 3.0,
    "dragoman_step_rows_total": 2500.0,
    "dragoman_step_padded_rows_total": 550.0,
    "dragoman_encoder_tokens_total": 4000.0,
    "dragoman_encoder_padding_total": 1010.0,
    "dragoman_slots": 32.0,
}


def test_occupancy_is_of_the_steps_between_two_readings() -> None:
    assert occupancy(BEFORE, AFTER) == pytest.approx(
        {
            "steps": 200.0,
            "mean_step_seconds": 0.005,
            "rows_per_step": 10.0,
            "padded_rows_share": 0.25,
            "encoder_padding_share": 0.25,
            "slots": 32.0,
        }
    )


def test_what_first_appears_in_the_second_reading_counts_from_zero() -> None:
    assert occupancy({"dragoman_slots": 32.0}, AFTER)["steps"] == 300.0


@pytest.mark.parametrize(("before", "after"), [({}, {}), (AFTER, AFTER), (BEFORE, {}), (AFTER, BEFORE)])
def test_without_steps_there_is_no_occupancy(before: dict[str, float], after: dict[str, float]) -> None:
    """Nor where the second reading failed, or the server was started anew in between."""
    assert occupancy(before, after) == {}


def summary(name: str, source: str, target: str) -> dict[str, Any]:
    return {"summary": {"name": name, "source_languages": [source], "target_languages": [target]}}


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The models that a server is made to have."""
    models = [summary("north", "en", "de"), summary("south", "en", "it")]

    async def found(target: Target) -> list[dict[str, Any]]:
        return models

    monkeypatch.setattr(server_view, "_models", found)
    return models


@pytest.mark.parametrize("options", [{"model": "south"}, {"target": "it"}, {"source": "en", "target": "it"}])
def test_the_model_that_fits_is_described(listed: list[dict[str, Any]], options: dict[str, str]) -> None:
    assert describe_model(Target(), TranslateOptions(**options)) is listed[1]


def test_a_choice_between_models_is_left_to_the_user(listed: list[dict[str, Any]]) -> None:
    with pytest.raises(ValueError, match="give --model; it serves north, south"):
        describe_model(Target(), TranslateOptions(source="en"))


def test_a_model_that_the_server_lacks_is_refused(listed: list[dict[str, Any]]) -> None:
    with pytest.raises(ValueError, match=r"no model .* it serves north, south"):
        describe_model(Target(), TranslateOptions(target="fr"))
    listed.clear()
    with pytest.raises(ValueError, match="it serves none"):
        describe_model(Target(), TranslateOptions())
