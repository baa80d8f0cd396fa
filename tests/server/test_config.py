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
