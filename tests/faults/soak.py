"""A soak: one server, very many requests of all kinds and faults among them, and what that leaves behind.

python tests/faults/soak.py --requests 200000 --out .build/soak.json
python tests/faults/soak.py --judge .build/soak.json

The requests are the same for the same seed and count. They come in legs; after each the server is left alone
until it has nothing in progress, and is looked at: resident memory, descriptors, threads, tasks on the event
loop. What has to hold is in `judge`, which reads a record, of this run or of an earlier one; what does not is
told, a line each, and the exit code is 1. `--leak BYTES` has the server lose so much with every sentence, and
the run must fail.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from attacks import CALL, DATA, END_HEADERS, END_STREAM, HEADERS, Connection, frame
from scipy.stats import theilslopes

from conftest import USUAL_TEXT, Server, served, tokens_of
from dragoman.v1.translation_pb2 import DecodingOptions, TranslateRequest, TranslateStreamRequest
from dragoman.v1.translation_pb2_grpc import TranslationServiceStub
from dragoman_server.memory import REST_SECONDS

MAX_MB_PER_100_000 = 1.0
CALLERS = 16
LEGS, FEWEST_LEGS, LEG_REQUESTS = 80, 10, 1000
"""Legs: at most, at least, and the requests of one between these bounds."""
WINDOWS = 8
"""Of the second half, in each of which the least memory counts."""
WAIT_SECONDS = 60.0
WRITE_SECONDS = 3
TRANSLATE = "/dragoman.v1.TranslationService/Translate"
NARROW = (("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0))
"""Has a client take no more than it reads."""

SHORT = [
    "The cat sleeps.",
    "Where is my book?",
    "He sings in the garden because he is happy.",
    "I would like to drink some water.",
    "They have never been to London.",
]
LONG = "The man who reads a book sees the woman who sings, and the dog that sleeps sees the cat. " * 4
ENDLESS = ("The man who reads a book sees the woman who sings, and the dog sees the cat. " * 400)[:30_000]
RAISES_IN_STEP, RAISES_IN_ENCODE, IS_NAN = "Bananas", "Octopus", "Xylophone"
"""Their first tokens are in no other text here: the server's fault points strike where they stand."""
FAULTS = {RAISES_IN_STEP: "step:raise", RAISES_IN_ENCODE: "encode:raise", IS_NAN: "step:nan"}


class Caller:
    """Sends one request of a kind, and says in a word what became of it; used from many threads."""

    def __init__(self, server: Server, channel: grpc.Channel) -> None:
        self._server = server
        self._stub = TranslationServiceStub(channel)
        self._bytes_stub = channel.unary_unary(TRANSLATE)
        self._expected: dict[tuple[str, int], str] = {}
        self._held = contextlib.ExitStack()
        self._unread: list[grpc.Call] = []

    def learn(self) -> None:
        """Translate what will be asked for, one by one: no translation may ever differ from these."""
        for text, beam_size in itertools.product([*SHORT, LONG], (1, 4)):
            self._expected[text, beam_size] = self._translation(text, beam_size)

    def let_go(self) -> list[str]:
        """Close the connections that stood still; returns how the streams that nobody read have ended."""
        for call in self._unread:
            with contextlib.suppress(grpc.RpcError):
                for _ in call:
                    pass
        endings = [call.code().name for call in self._unread]
        self._held.close()
        self._unread.clear()
        return endings

    def short(self, chance: random.Random) -> str:
        return self._compared(chance.choice(SHORT), 1)

    def long(self, chance: random.Random) -> str:
        return self._compared(LONG, 1)

    def beam(self, chance: random.Random) -> str:
        return self._compared(chance.choice(SHORT), 4)

    def many_texts(self, chance: random.Random) -> str:
        reply = self._stub.Translate(_request(*SHORT, *SHORT), timeout=120)
        same = [_told(one) for one in reply.translations] == [self._expected[text, 1] for text in SHORT] * 2
        return "OK" if same else "CHANGED"

    def stream(self, chance: random.Random) -> str:
        text = chance.choice([*SHORT, LONG])
        parts = list(self._stub.TranslateStream(_stream_request(text), timeout=120))
        return "OK" if _told(parts[-1].final) == self._expected[text, 1] else "CHANGED"

    def blank(self, chance: random.Random) -> str:
        self._stub.Translate(_request(" \n\t"), timeout=120)
        return "OK"

    def new_connection(self, chance: random.Random) -> str:
        with self._server.stub() as stub:
            stub.Translate(_request(chance.choice(SHORT)), timeout=120)
        return "OK"

    def cancel(self, chance: random.Random) -> str:
        call = self._stub.Translate.future(_request(LONG), timeout=120)
        time.sleep(chance.uniform(0.0, 0.05))
        call.cancel()
        return str(call.code().name)

    def cancel_stream(self, chance: random.Random) -> str:
        call = self._stub.TranslateStream(_stream_request(LONG), timeout=120)
        next(call)
        call.cancel()
        return str(call.code().name)

    def deadline(self, chance: random.Random) -> str:
        self._stub.Translate(_request(*[LONG] * 8), timeout=chance.uniform(0.001, 0.05))
        return "OK"

    def bad_field(self, chance: random.Random) -> str:
        bad = (
            _request(),
            _request("Hello!", beam_size=1000),
            _request("Hello!", length_penalty=float("nan")),
            TranslateRequest(texts=["Hello!"], source_language="xx", target_language="yy"),
        )
        self._stub.Translate(chance.choice(bad), timeout=120)
        return "OK"

    def unknown_model(self, chance: random.Random) -> str:
        self._stub.Translate(TranslateRequest(model="nobody's", texts=["Hello!"]), timeout=120)
        return "OK"

    def garbage(self, chance: random.Random) -> str:
        self._bytes_stub(b"\xff" + chance.randbytes(40), timeout=120)
        return "OK"

    def too_long_text(self, chance: random.Random) -> str:
        self._stub.Translate(_request("a " * 20_000), timeout=120)
        return "OK"

    def oversized(self, chance: random.Random) -> str:
        self._bytes_stub(b"\0" * 5_000_000, timeout=120)
        return "OK"

    def raises_in_step(self, chance: random.Random) -> str:
        return self._fails(RAISES_IN_STEP)

    def raises_in_encode(self, chance: random.Random) -> str:
        return self._fails(RAISES_IN_ENCODE)

    def is_nan(self, chance: random.Random) -> str:
        return self._fails(IS_NAN)

    def connection_lost(self, chance: random.Random) -> str:
        connection = self._raw_call()
        time.sleep(chance.uniform(0.0, 0.05))
        connection.close()
        return "LOST"

    def stands_still(self, chance: random.Random) -> str:
        self._held.callback(self._raw_call().close)
        return "LEFT"

    def never_reads(self, chance: random.Random) -> str:
        request = TranslateStreamRequest(text=ENDLESS, options=DecodingOptions(beam_size=4, n_best=4))
        stub = self._held.enter_context(self._server.stub(*NARROW))
        self._unread.append(stub.TranslateStream(request, timeout=600))
        return "LEFT"

    def _translation(self, text: str, beam_size: int) -> str:
        return _told(self._stub.Translate(_request(text, beam_size=beam_size), timeout=120).translations[0])

    def _compared(self, text: str, beam_size: int) -> str:
        same = self._translation(text, beam_size) == self._expected[text, beam_size]
        return "OK" if same else "CHANGED"

    def _fails(self, word: str) -> str:
        self._stub.Translate(_request(word), timeout=120)
        return "OK"

    def _raw_call(self) -> Connection:
        message = _request(LONG).SerializeToString()
        data = b"\x00" + len(message).to_bytes(4, "big") + message
        host, _, port = self._server.address.rpartition(":")
        connection = Connection(host, int(port))
        connection.send(frame(HEADERS, END_HEADERS, 1, CALL) + frame(DATA, END_STREAM, 1, data))
        return connection


def _request(*texts: str, beam_size: int = 1, length_penalty: float = 0.6) -> TranslateRequest:
    options = DecodingOptions(beam_size=beam_size, length_penalty=length_penalty)
    return TranslateRequest(texts=texts, options=options)


def _stream_request(text: str) -> TranslateStreamRequest:
    return TranslateStreamRequest(text=text, options=DecodingOptions(beam_size=1))


def _told(translation: Any) -> str:
    """A translation with its exact score."""
    best = translation.hypotheses[0]
    return f"{best.text} {best.score!r}"


@dataclass(frozen=True)
class Kind:
    """How often a request comes, and what may become of it."""

    per_100_000: int
    outcomes: tuple[str, ...] = ("OK",)


KINDS = {
    "short": Kind(0),  # and whatever the others leave
    "long": Kind(2_000),
    "beam": Kind(2_000),
    "many_texts": Kind(500),
    "stream": Kind(2_000),
    "blank": Kind(500),
    "new_connection": Kind(500),
    "cancel": Kind(1_000, ("CANCELLED", "OK")),
    "cancel_stream": Kind(500, ("CANCELLED", "OK")),
    # A deadline that cannot be met any more is refused at once.
    "deadline": Kind(1_000, ("DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED")),
    "bad_field": Kind(1_000, ("INVALID_ARGUMENT",)),
    "unknown_model": Kind(500, ("NOT_FOUND",)),
    "garbage": Kind(500, ("INVALID_ARGUMENT",)),
    "too_long_text": Kind(200, ("INVALID_ARGUMENT",)),
    "oversized": Kind(100, ("RESOURCE_EXHAUSTED",)),
    "raises_in_step": Kind(250, ("INTERNAL",)),
    "raises_in_encode": Kind(250, ("INTERNAL",)),
    "is_nan": Kind(250, ("INTERNAL",)),
    "connection_lost": Kind(450, ("LOST",)),
    "stands_still": Kind(40, ("LEFT",)),
    "never_reads": Kind(10, ("LEFT",)),
}
NEVER_READS_ENDS = "never_reads, read at last"


def plan(requests: int, seed: int) -> list[str]:
    """Kinds in the order in which they come: one of each, so that memory has its size; then a mixture.

    Raises:
        ValueError: `requests` are too few for that.
    """
    if requests < 100:
        raise ValueError(f"--requests must be at least 100, not {requests}")
    left = requests - len(KINDS)
    mixture = [name for name, kind in KINDS.items() for _ in range(left * kind.per_100_000 // 100_000)]
    mixture += ["short"] * (left - len(mixture))
    random.Random(seed).shuffle(mixture)
    return [*KINDS, *mixture]


def soak(server: Server, kinds: list[str], seed: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Send everything, leg by leg; the record of it."""
    outcomes = {name: Counter[str]() for name in [*KINDS, NEVER_READS_ENDS]}
    unexpected: list[str] = []
    samples: list[dict[str, float]] = []
    size = -(-len(kinds) // min(LEGS, max(FEWEST_LEGS, len(kinds) // LEG_REQUESTS)))
    started = time.monotonic()
    with server.channel() as channel, ThreadPoolExecutor(CALLERS) as pool:
        caller = Caller(server, channel)
        caller.learn()
        before = look(server, 0, 0.0)

        def send(number: int) -> tuple[str, str, str]:
            name = kinds[number]
            try:
                return name, getattr(caller, name)(random.Random(f"{seed} {number}")), ""
            except grpc.RpcError as error:
                return name, error.code().name, str(error.details())

        for first in range(0, len(kinds), size):
            leg = range(first, min(first + size, len(kinds)))
            begun = time.monotonic()
            for name, outcome, details in pool.map(send, leg):
                outcomes[name][outcome] += 1
                if outcome not in KINDS[name].outcomes:
                    unexpected.append(f"{name}: {outcome} {details}"[:300])
            seconds = time.monotonic() - begun
            server.wait_until(lambda: not any(server.held().values()), "nothing in progress", WAIT_SECONDS)
            for ending in caller.let_go():
                outcomes[NEVER_READS_ENDS][ending] += 1
                if ending != "CANCELLED":
                    unexpected.append(f"{NEVER_READS_ENDS}: {ending}")
            with contextlib.suppress(AssertionError):  # what stays is judged by the samples
                server.wait_until(lambda: settled(server, before), "settled", 10)
            time.sleep(2 * REST_SECONDS + 0.5)  # until what is free has gone back to the system
            samples.append(look(server, leg.stop, seconds))
            say(json.dumps(samples[-1]))
    same = server.translation() == server.usual
    left = server.held()
    return {
        "seed": seed,
        "seconds": round(time.monotonic() - started, 1),
        "requests": len(kinds),
        "outcomes": {name: dict(counts) for name, counts in outcomes.items()},
        "unexpected": unexpected,
        "before": before,
        "samples": samples,
        "left_behind": left,
        "same_translation": same,
        "exit_code": server.stop(),
    }


def settled(server: Server, before: dict[str, float]) -> bool:
    """Whether the connections that were closed are gone from the server, too."""
    now = look(server, 0, 0.0)
    return now["descriptors"] <= before["descriptors"] and now["tasks"] <= before["tasks"]


def look(server: Server, requests: int, seconds: float) -> dict[str, float]:
    """What the server holds at rest, after so many requests."""
    process = Path(f"/proc/{server.pid}")
    return {
        "requests": requests,
        "leg_seconds": round(seconds, 2),
        "memory_mb": round(server.memory_mib() * 2**20 / 1e6, 3),
        "descriptors": len(list((process / "fd").iterdir())),
        "threads": len(list((process / "task").iterdir())),
        "tasks": server.tasks(),
    }


def slope(samples: list[dict[str, float]]) -> tuple[float, float, float]:
    """MB per 100,000 requests over the second half: Theil and Sen's estimate, and its 95 % interval.

    Of the least in each of a few windows: what a large request needed goes back to the system some legs on,
    so that single samples go up and down by far more than the bound. What is lost for good raises the least.
    """
    half = samples[len(samples) // 2 :]
    size = -(-len(half) // WINDOWS)
    least = [
        min(half[first : first + size], key=lambda one: one["memory_mb"])
        for first in range(0, len(half), size)
    ]
    found = theilslopes([one["memory_mb"] for one in least], [one["requests"] / 1e5 for one in least])
    return float(found.slope), float(found.low_slope), float(found.high_slope)


def judge(record: dict[str, Any], max_mb: float) -> list[str]:
    """What does not hold, a line each."""
    findings = [f"unexpected: {one}" for one in record["unexpected"][:20]]
    samples = record["samples"]
    growth, low, high = slope(samples)
    if growth > max_mb:
        findings.append(
            f"memory grows by {growth:.2f} MB per 100,000 requests (95 %: {low:.2f} to {high:.2f}); "
            f"at most {max_mb:g}"
        )
    for name in ("descriptors", "threads", "tasks"):
        early = max(one[name] for one in samples[: len(samples) // 2])
        # gRPC adds a thread to its pool for a while when it is short of one: that is nothing left behind.
        late = min(one[name] for one in samples[-max(3, len(samples) // 10) :])
        if late > early:
            findings.append(f"{name}: {late} or more all the last tenth, {early} at most in the first half")
    findings += [f"left behind: {count:g} {name}" for name, count in record["left_behind"].items() if count]
    if not record["same_translation"]:
        findings.append("the usual translation is another than before")
    if record["exit_code"]:
        findings.append(f"the server ended with {record['exit_code']}")
    return findings


def run(requests: int, seed: int, leak: int) -> dict[str, Any]:
    """Start a server, soak it, and stop it."""
    kinds = plan(requests, seed)
    usual = {token for text in (*SHORT, LONG, ENDLESS, USUAL_TEXT, "Hello!") for token in tokens_of(text)}
    faults = []
    for word, fault in FAULTS.items():
        token = tokens_of(word)[0]
        assert token not in usual, f"{word} begins as an innocent text does"
        faults.append(f"{fault}@token={token}")
    faults += [f"encode:leak={leak}"] if leak else []
    with (
        tempfile.TemporaryDirectory() as folder,
        served(
            *(Path(folder) / "log", "--write-seconds", WRITE_SECONDS),
            environment={"DRAGOMAN_FAULTS": ",".join(faults)},
        ) as server,
    ):
        return soak(server, kinds, seed, lambda line: print(line, file=sys.stderr, flush=True))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--requests", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(".build/soak.json"), help="where the record goes")
    parser.add_argument("--leak", type=int, default=0, help="bytes that the server loses with every sentence")
    parser.add_argument(
        "--max-mb", type=float, default=MAX_MB_PER_100_000, help="growth per 100,000 requests"
    )
    parser.add_argument("--judge", type=Path, help="judge an earlier record instead")
    asked = parser.parse_args()
    if asked.judge is not None:
        record = json.loads(asked.judge.read_text())
    else:
        try:
            record = run(asked.requests, asked.seed, asked.leak)
        except ValueError as error:
            parser.error(str(error))
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        asked.out.write_text(json.dumps(record, indent=1) + "\n")
    for name, counts in record["outcomes"].items():
        print(f"{name}: {', '.join(f'{count} {outcome}' for outcome, count in sorted(counts.items()))}")
    growth, low, high = slope(record["samples"])
    print(f"memory: {growth:.2f} MB per 100,000 requests, 95 % interval {low:.2f} to {high:.2f}")
    findings = judge(record, asked.max_mb)
    print(
        "\n".join(findings) or f"{record['requests']} requests in {record['seconds']} s: all as it should be"
    )
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
