from __future__ import annotations

import subprocess
import sys
import time
import typing
from collections.abc import Iterator
from typing import Any

import pytest

import dragoman
from dragoman import errors
from dragoman.options import TranslateArguments
from dragoman_server.errors import BundleError, CancelledError, EngineError, ShuttingDownError


@pytest.fixture
def client(server: Any) -> Iterator[dragoman.Client]:
    with dragoman.Client(server.address) as client:
        yield client


def test_one_text_gives_one_translation(client: dragoman.Client) -> None:
    translation = client.translate("A dog\nruns.", source="en", target="de", n_best=2)
    assert translation.text == translation.hypotheses[0].text == "A DOG\nRUNS."
    assert [h.text for h in translation.hypotheses] == ["A DOG\nRUNS.", "A DOG!\nRUNS.!"]
    assert translation.hypotheses[0].finish_reason is dragoman.FinishReason.STOP
    assert (translation.model, translation.version) == ("shout", "3")
    assert (translation.segments, translation.truncated) == (2, False)
    assert translation.hypotheses[1].score == pytest.approx(-3.0)
    assert translation.timing.queue_seconds == pytest.approx(0.2)
    with pytest.raises(AttributeError):
        translation.model = "other"  # type: ignore[misc]


def test_several_texts_give_a_list(client: dragoman.Client) -> None:
    assert [t.text for t in client.translate(["one", "two"])] == ["ONE", "TWO"]
    assert [t.text for t in client.translate(("one",))] == ["ONE"]


def test_options_reach_the_server(client: dragoman.Client, engine: Any) -> None:
    client.translate("x", model="shout", beam_size=3, n_best=2, length_penalty=0.0, max_output_tokens=5)
    given = engine.submitted[0].options
    assert (given.beam_size, given.n_best, given.length_penalty, given.max_output_tokens) == (3, 2, 0.0, 5)


def test_keyword_arguments_are_the_options() -> None:
    assert typing.get_type_hints(TranslateArguments) == typing.get_type_hints(dragoman.TranslateOptions)


def test_every_call_has_a_deadline(client: dragoman.Client, server: Any, engine: Any) -> None:
    client.translate("x")
    with dragoman.Client(server.address, timeout=7) as other:
        other.translate("x")
        other.translate("x", timeout=3)
    now = time.monotonic()
    left = [request.deadline - now for request in engine.submitted]
    assert left == [pytest.approx(60, abs=2), pytest.approx(7, abs=2), pytest.approx(3, abs=2)]


def test_a_stream_ends_with_the_whole_result(client: dragoman.Client) -> None:
    with client.stream("One two. Three.") as stream:
        pieces = list(stream)
        assert len(pieces) > 2
        assert "".join(pieces) == stream.result().text == "ONE TWO. THREE."
    assert client.stream("one").result().version == "3"


def test_leaving_a_stream_frees_the_server(client: dragoman.Client, engine: Any) -> None:
    engine.holding = True
    with client.stream("One. Two."):
        engine.wait_until(lambda: len(engine.held) == 2)
    engine.wait_until(lambda: len(engine.cancelled) == 2)


def test_a_closed_stream_says_so(client: dragoman.Client, engine: Any) -> None:
    engine.holding = True
    stream = client.stream("One.")
    stream.close()
    with pytest.raises(dragoman.Cancelled):
        stream.result()


def test_models(client: dragoman.Client) -> None:
    [summary] = client.models()
    assert summary == dragoman.ModelSummary("shout", "3", ("en",), ("de",))
    model = client.model("shout")
    assert model.summary == summary
    assert model.dimensions == {"d_model": 8}
    assert model.limits == dragoman.Limits(4, 1000, 64, 99, 6, 50, 2000, 40)
    assert (model.precision, model.provenance) == ("fp32", "made up")


def test_a_wrong_field_is_named(client: dragoman.Client) -> None:
    with pytest.raises(dragoman.InvalidArgument, match="beam_size") as caught:
        client.translate("x", beam_size=7)
    assert caught.value.field == "options.beam_size"
    with pytest.raises(dragoman.InvalidArgument) as caught:
        client.translate(["x", "y" * 1001])
    assert caught.value.field == "texts[1]"
    with pytest.raises(dragoman.InvalidArgument) as caught:
        client.stream("x", source="xx").result()
    assert caught.value.field == "source_language"


@pytest.mark.parametrize("text", [b"\xff", 3, "\ud800"])
def test_what_cannot_be_sent_is_an_invalid_argument(client: dragoman.Client, text: Any) -> None:
    for call in (lambda: client.translate([text]), lambda: client.stream(text)):
        with pytest.raises(dragoman.InvalidArgument, match="cannot be sent"):
            call()
    with pytest.raises(dragoman.InvalidArgument):
        client.translate("x", beam_size=-1)


def test_errors_are_typed_and_inherit_builtins(client: dragoman.Client, engine: Any) -> None:
    with pytest.raises(LookupError) as caught:
        client.model("nope")
    assert isinstance(caught.value, dragoman.NotFound)
    engine.holding = True
    with pytest.raises(TimeoutError) as late:
        client.translate("x", timeout=0.2)
    assert isinstance(late.value, dragoman.DeadlineExceeded)
    engine.holding = False
    for error, code in ((EngineError("secret"), "INTERNAL"), (BundleError("no"), "FAILED_PRECONDITION")):
        engine.fails_with = error
        with pytest.raises(dragoman.ServerError) as failed:
            client.translate("x")
        assert failed.value.code == code
    for name in errors.__all__:
        assert issubclass(getattr(errors, name), dragoman.DragomanError)


def test_a_server_that_is_not_there_is_unavailable() -> None:
    with dragoman.Client("127.0.0.1:9") as client:
        with pytest.raises(ConnectionError) as caught:
            client.translate("x", timeout=5)
        assert isinstance(caught.value, dragoman.Unavailable)
        with pytest.raises(dragoman.DeadlineExceeded):
            client.wait_ready(0.5)


@pytest.mark.parametrize(
    ("error", "code"),
    [(ShuttingDownError("draining"), "UNAVAILABLE"), (CancelledError("dropped"), "CANCELLED")],
)
def test_what_a_server_did_not_take_is_tried_again(
    client: dragoman.Client, engine: Any, server: Any, error: Exception, code: str
) -> None:
    engine.fails_with = error
    original = engine.finish

    def finish(request: Any) -> None:
        if len(engine.submitted) == 3:
            engine.fails_with = None
        original(request)

    engine.finish = finish
    assert client.translate("x").text == "X"
    assert [code for _, code in server.calls[:2]] == [code, code]


def test_a_full_queue_is_tried_again_when_the_server_says(
    client: dragoman.Client, engine: Any, server: Any
) -> None:
    engine.capacity = 0
    started = time.monotonic()
    with pytest.raises(dragoman.ResourceExhausted) as caught:
        client.translate("x")
    # Four pauses of the server's 0.25 s between five attempts, where back-off alone would begin with 0.1 s.
    assert time.monotonic() - started >= 0.99
    assert caught.value.retry_after == 0.25
    engine.wait_until(lambda: len(server.calls) == 5)


def test_other_errors_are_not_tried_again(client: dragoman.Client, engine: Any, server: Any) -> None:
    engine.fails_with = EngineError("broken")
    with pytest.raises(dragoman.ServerError):
        client.translate("x")
    assert len(engine.submitted) == 1


def test_waiting_ends_when_the_server_is_ready(start_server: Any, model: Any, engine: Any) -> None:
    server = start_server(model(engine))
    with dragoman.Client(server.address) as client:
        client.wait_ready(10)
        assert client.translate("x").text == "X"


def test_importing_the_client_loads_no_more_than_it_needs() -> None:
    script = "import dragoman, sys; print(*{name.partition('.')[0] for name in sys.modules})"
    output = subprocess.run(
        [sys.executable, "-c", script],
        check=True,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": ":".join(sys.path)},
    ).stdout.split()
    loaded = {name for name in output if not name.startswith("_")} - set(sys.stdlib_module_names)
    # `import grpc` looks for its companions by itself, and takes what it finds.
    loaded -= {"grpc_health", "grpc_reflection", "grpc_tools", "grpc_status"}
    assert loaded <= {"dragoman", "grpc", "google", "cython_runtime", "typing_extensions", "sitecustomize"}
