from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from dragoman_server.config import CallLimits, ServerConfig


@pytest.mark.parametrize(
    ("values", "flag"),
    [
        ({"port": -1}, "--port"),
        ({"port": 65536}, "--port"),
        ({"metrics_port": 70000}, "--metrics-port"),
        ({"admin_port": -1}, "--admin-port"),
        ({"watch_seconds": -1.0}, "--watch-seconds"),
        ({"watch_seconds": float("nan")}, "--watch-seconds"),
        ({"max_texts": 0}, "--max-texts"),
        ({"max_text_bytes": 0}, "--max-text-bytes"),
        ({"max_beam_size": 0}, "--max-beam-size"),
        ({"max_rows": 0}, "--max-rows"),
        ({"max_rows": 4, "max_beam_size": 5}, "--max-beam-size"),
        ({"cache_memory_mib": -1}, "--cache-memory-mib"),
        ({"max_queue": 0}, "--max-queue"),
        ({"max_connection_calls": 0}, "--max-connection-calls"),
        ({"workers": -1}, "--workers"),
        ({"threads": -1}, "--threads"),
        ({"drain_seconds": -0.5}, "--drain-seconds"),
        ({"drain_seconds": float("nan")}, "--drain-seconds"),
        ({"trace_ratio": -0.1}, "--trace-ratio"),
        ({"trace_ratio": 1.1}, "--trace-ratio"),
        ({"trace_ratio": float("nan")}, "--trace-ratio"),
        *(
            ({"traces": url}, "--traces")
            for url in (
                *(
                    "",
                    "collector",
                    "collector:4317",
                    "grpc://collector:4317",
                    "http://collector",
                    "http://:1",
                ),
                *("http://collector:0", "http://collector:x", "http://collector:70000", "http://[::1:4317"),
                *("http://me:secret@collector:1", "http://collector:1/v1/traces", "http://collector:1?x=y"),
            )
        ),
    ],
)
def test_a_wrong_value_names_its_flag(values: dict[str, Any], flag: str) -> None:
    with pytest.raises(ValueError, match=f"^{flag} "):
        ServerConfig(**values)


def test_defaults_are_safe_and_frozen() -> None:
    config = ServerConfig()
    assert config.host == "127.0.0.1"
    assert config.metrics_port is None
    assert config.admin_port is None
    assert config.admin_host == "127.0.0.1"
    assert isinstance(config, CallLimits)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.port = 1  # type: ignore[misc]


@pytest.mark.parametrize("url", ["http://collector:4317", "https://collector:4317/", "http://[::1]:4317"])
def test_a_collector_is_a_scheme_a_host_and_a_port(url: str) -> None:
    assert ServerConfig(traces=url, trace_ratio=0.25).traces == url
