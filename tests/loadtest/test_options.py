"""Settings that contradict each other, or the world, are refused by the names of their flags."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dragoman_loadtest.options import Judgement, Misbehaviour, Mode, Phases, Target, Traffic

NAN, INFINITY = float("nan"), float("inf")
FILE = Path("file")


@pytest.mark.parametrize(
    ("flag", "make", "given"),
    [
        ("--token-file", Target, {"token_file": FILE}),
        ("--tls-ca", Target, {"tls_ca": FILE}),
        ("--rate", Traffic, {"rate": 0.0}),
        ("--rate", Traffic, {"rate": 100_001.0}),
        ("--rate", Traffic, {"rate": NAN}),
        ("--burst", Traffic, {"burst": 0}),
        ("--max-requests", Traffic, {"max_requests": 0}),
        ("--concurrency", Traffic, {"concurrency": 0}),
        ("--concurrency", Traffic, {"concurrency": 10_001}),
        ("--trace", Traffic, {"concurrency": 1, "trace": FILE}),
        ("--processes", Traffic, {"processes": -1}),
        ("--processes", Traffic, {"processes": 65}),
        ("--timeout", Traffic, {"timeout_seconds": 0.0}),
        ("--cancel-rate", Misbehaviour, {"cancel_share": 0.6, "slow_share": 0.6}),
        ("--kill-clients", Misbehaviour, {"killed_clients": -1}),
        ("--kill-clients", Misbehaviour, {"killed_clients": 33}),
        ("--deadlines", Misbehaviour, {"deadlines": "soon"}),
        ("--deadlines", Misbehaviour, {"deadlines": "1s:many"}),
        ("--deadlines", Misbehaviour, {"deadlines": "0s:1"}),
        ("--deadlines", Misbehaviour, {"deadlines": "1s:0"}),
        ("--deadlines", Misbehaviour, {"deadlines": "1s:nan"}),
        ("--deadlines", Misbehaviour, {"deadlines": "1s:inf"}),
        ("--duration", Phases, {"duration_seconds": 0.0}),
        ("--duration", Phases, {"duration_seconds": 3601.0}),
        ("--warm-up", Phases, {"warm_up_seconds": -1.0}),
        ("--drain", Phases, {"drain_seconds": 601.0}),
        ("--confidence", Judgement, {"confidence": 1.0}),
        ("--confidence", Judgement, {"confidence": 0.4}),
        ("--find-peak", Mode, {"find_peak": True, "sweep": True}),
        ("--ab", Mode, {"sweep": True, "ab": "127.0.0.1:1"}),
        ("--peak", Mode, {"peak": 10.0}),
        ("--peak", Mode, {"sweep": True, "peak": 0.0}),
        ("--rounds", Mode, {"rounds": 0}),
        ("--engine loadgen", Mode, {"engine": "loadgen", "sweep": True}),
        ("--engine loadgen", Mode, {"engine": "loadgen", "ab": "127.0.0.1:1"}),
    ],
)
def test_a_refusal_names_the_flag(flag: str, make: Callable[..., Any], given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=flag):
        make(**given)


@pytest.mark.parametrize("make", [Target, Traffic, Misbehaviour, Phases, Judgement, Mode])
def test_the_defaults_are_valid_and_frozen(make: Callable[..., Any]) -> None:
    options = make()
    assert options == make()
    name = next(iter(make.__dataclass_fields__))  # type: ignore[attr-defined]
    with pytest.raises(AttributeError):
        setattr(options, name, None)


@pytest.mark.parametrize(
    "endpoint",
    [
        "translate.example.org:443",
        "10.0.0.1:50051",
        "[::2]:50051",
        "localhost.example.org:50051",
        "127.example.org:50051",
        "127.0.0.1.example.org:50051",
    ],
)
def test_another_machine_is_loaded_only_by_its_owner(endpoint: str) -> None:
    for given in ({"endpoint": endpoint}, {"metrics": endpoint}):
        with pytest.raises(ValueError, match="--i-own-this-host") as caught:
            Target(**given)
        assert endpoint in str(caught.value)
        Target(**given, i_own_this_host=True)


@pytest.mark.parametrize("endpoint", ["127.0.0.1:1", "127.1.2.3:1", "localhost:1", "[::1]:1", "unix:/run/s"])
def test_this_machine_may_be_loaded(endpoint: str) -> None:
    assert Target(endpoint=endpoint).endpoint == endpoint


def test_deadlines_are_seconds_and_weights() -> None:
    assert Misbehaviour(deadlines="500ms:1,2s:3,1m").deadline_shares == ((0.5, 1.0), (2.0, 3.0), (60.0, 1.0))
    assert Misbehaviour().deadline_shares == ()
