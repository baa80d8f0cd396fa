"""How a server is set up: every default stands here once; the flags of `dragoman serve` are the fields."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from dragoman_server.starter import default_models

__all__ = ["CallLimits", "ServerConfig"]

_MAX_PORT = 65535


@dataclass(frozen=True, slots=True, kw_only=True)
class CallLimits:
    """Bounds on one call.

    Raises:
        ValueError: a bound is below 1; the message names the flag.
    """

    max_texts: int = 128
    """Texts per call."""
    max_text_bytes: int = 32768
    """Bytes per text, in UTF-8."""
    max_beam_size: int = 8
    """Largest beam a call may ask for."""
    max_call_tokens: int = 65536
    """Source tokens per call, all its texts together."""
    max_concurrent_calls: int = 2048
    """Calls in progress; more are refused."""
    write_seconds: float = 10.0
    """How long a caller may leave a message of a stream unread, in seconds."""

    def __post_init__(self) -> None:
        for flag in (
            *("max_texts", "max_text_bytes", "max_beam_size"),
            *("max_call_tokens", "max_concurrent_calls"),
        ):
            _require_at_least(1, flag, getattr(self, flag))
        _require_positive("write_seconds", self.write_seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig(CallLimits):
    """Everything that `dragoman serve` can be told.

    Raises:
        ValueError: a value is out of its range; the message names the flag.
    """

    models: Path = field(default_factory=default_models)
    """Directory that holds NAME/VERSION/, or one bundle; the newest sound version of a model is served. By
    default ./models, or, where there is none, the starter: a small English-German model."""
    watch_seconds: float = 0.0
    """How often to look for new versions in that directory; 0 for never."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for every interface."""
    port: int = 50051
    """Port to listen on; 0 for any free one."""
    tls_certificate: Path | None = None
    """Certificate chain, in PEM: connections are encrypted. It may be renewed while the server runs."""
    tls_key: Path | None = None
    """The certificate's private key, in PEM."""
    tls_client_ca: Path | None = None
    """Certificates, in PEM, of who signs those that clients must have (mutual TLS)."""
    tokens: Path | None = None
    """File of those who may translate, as `dragoman token` writes it; without it, everybody may."""
    open_health: bool = False
    """Answer health checks without a token, too."""
    keepalive_seconds: float = 2.0
    """How often a silent client is asked for a sign of life, and how long that may take."""
    max_connection_calls: int = 512
    """Calls in progress on one connection, those just taken back included; its client holds back more."""
    max_connection_age_seconds: float = 0.0
    """Have clients connect anew after so long, which spreads them over servers behind a balancer; 0 for
    never."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where the networks run; cuda: on the first NVIDIA GPU, or not at all."""
    precision: str = "auto"
    """Which of a bundle's precisions to load; auto: fp32, or int8 where there is no fp32; on cuda fp16."""
    workers: int = 0
    """Decode threads per model, each with a batch of its own; 0 for as many as are fastest, by trying; on
    cuda one."""
    threads: int = 0
    """Threads that a decode step may use, its worker's included; 0 for those that the workers leave idle."""
    max_rows: int = 128
    """Slots per worker: hypotheses that are decoded together."""
    cache_memory_mib: int = 0
    """Memory, in MiB per worker, for the keys and values of what is decoded; what does not fit waits. 0 for
    as much as the model's graphs take, and no less than 64, nor than the largest beam of the longest
    sentences needs. On cuda it is taken at once, for every slot at its longest, and must be enough."""
    max_queue: int = 4096
    """Sentences per model that may wait for a slot; more are refused."""
    loop_tokens: int = 24
    """Cut a translation that repeats one phrase over so many tokens, unless its text does the like; 0 for
    never."""
    stall_seconds: float = 30.0
    """How long a decode step may take, in seconds, before what it holds is given up: UNAVAILABLE, and
    NOT_SERVING until the step comes back."""
    failed_batches: int = 5
    """After so many batches in a row that failed in all their rows, ask a model for one of its canary
    translations: where that fails as well, health says NOT_SERVING until one succeeds; 0 for never."""
    admin_port: int | None = None
    """Port of the service that loads and unloads models, 0 for any free one; by default there is none."""
    admin_host: str = "127.0.0.1"
    """Address that it listens on: whoever reaches it decides what is served."""
    admin_tokens: Path | None = None
    """File of those who may administer; without it, everybody who reaches the port may."""
    health_port: int | None = None
    """Port that answers health checks alone, in plaintext and without a token, for probes that have neither,
    such as those of Kubernetes; 0 for any free one; by default there is none."""
    health_host: str = "127.0.0.1"
    """Address that it listens on."""
    metrics_port: int | None = None
    """Port of the Prometheus endpoint, 0 for any free one; without this flag there is none."""
    traces: str | None = None
    """Collector that a span of every call goes to, by OTLP over gRPC: http://HOST:PORT in plaintext,
    https://HOST:PORT by TLS; without this flag there are none."""
    trace_ratio: float = 1.0
    """Share of the calls to trace, 0 to 1; a caller who sends a traceparent has decided for its own."""
    drain_delay_seconds: float = 0.0
    """How long, in seconds, calls are still taken after SIGTERM or SIGINT, while balancers notice."""
    drain_seconds: float = 30.0
    """How long, in seconds, accepted calls may take to finish after that."""
    log_format: Literal["text", "json"] = "text"
    """How the log on standard error is written: for people, or a JSON object a line."""
    log_calls: bool = False
    """Log every call: its method, status, time and caller."""
    log_texts: bool = False
    """Log, with every call, the texts to be translated, which are nobody else's business by default."""
    ready_file: Path | None = None
    """File to write the address to once the server is ready, and to remove when it stops."""

    def __post_init__(self) -> None:
        # Not super(): a slotted dataclass is a new class, which the zero-argument form does not know.
        CallLimits.__post_init__(self)
        for flag in ("max_rows", "max_queue", "max_connection_calls"):
            _require_at_least(1, flag, getattr(self, flag))
        for flag in ("workers", "threads", "loop_tokens", "cache_memory_mib", "failed_batches"):
            _require_at_least(0, flag, getattr(self, flag))
        _require_port("port", self.port)
        for flag in ("admin_port", "health_port", "metrics_port"):
            if getattr(self, flag) is not None:
                _require_port(flag, getattr(self, flag))
        for flag in (
            *("drain_delay_seconds", "drain_seconds"),
            *("watch_seconds", "max_connection_age_seconds"),
        ):
            _require_not_negative(flag, getattr(self, flag))
        for flag in ("stall_seconds", "keepalive_seconds"):
            _require_positive(flag, getattr(self, flag))
        self._require_closed_doors()
        if self.device == "cuda" and self.workers > 1:
            raise ValueError(f"--workers must be 1 on cuda, not {self.workers}: one thread feeds the GPU")
        self._require_traces()
        if self.max_beam_size > self.max_rows:
            raise ValueError(
                f"--max-beam-size ({self.max_beam_size}) must not exceed --max-rows ({self.max_rows})"
            )

    def _require_closed_doors(self) -> None:
        if (self.tls_certificate is None) is not (self.tls_key is None):
            raise ValueError("--tls-certificate and --tls-key belong together; give both or neither")
        if self.tls_client_ca is not None and self.tls_certificate is None:
            raise ValueError("--tls-client-ca needs --tls-certificate and --tls-key: there is no TLS without")
        for flag, tokens, host in (
            ("tokens", self.tokens, self.host),
            ("admin-tokens", self.admin_tokens, self.admin_host),
        ):
            if tokens is not None and self.tls_certificate is None and not _is_loopback(host):
                raise ValueError(
                    f"--{flag} without --tls-certificate would send tokens readable through the network of "
                    f"{host}; give a certificate, or listen on 127.0.0.1"
                )
        closed = self.admin_tokens is not None or self.tls_client_ca is not None
        if self.admin_port is not None and not closed and not _is_loopback(self.admin_host):
            raise ValueError(
                f"--admin-host {self.admin_host} would let everybody decide what is served; give "
                "--admin-tokens or --tls-client-ca, or listen on 127.0.0.1"
            )

    def _require_traces(self) -> None:
        if self.traces is not None and not _is_endpoint(self.traces):
            raise ValueError(
                "--traces must be http://HOST:PORT or https://HOST:PORT, such as http://localhost:4317, "
                f"not {self.traces!r}"
            )
        # Not `<`, which is false of NaN.
        if not 0.0 <= self.trace_ratio <= 1.0:
            raise ValueError(f"--trace-ratio must be between 0 and 1, not {self.trace_ratio}")


def _is_endpoint(url: str) -> bool:
    """Whether it is a scheme, a host and a port, and nothing else."""
    try:
        parts = urlsplit(url)
        known = parts.scheme in {"http", "https"} and bool(parts.hostname) and bool(parts.port)
    except ValueError:
        return False
    return known and "@" not in parts.netloc and parts[2:] in {("", "", ""), ("/", "", "")}


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _require_at_least(least: int, flag: str, value: int) -> None:
    if value < least:
        raise ValueError(f"--{flag.replace('_', '-')} must be at least {least}, not {value}")


def _require_positive(flag: str, value: float) -> None:
    if not value > 0.0:
        raise ValueError(f"--{flag.replace('_', '-')} must be above 0, not {value}")


def _require_not_negative(flag: str, value: float) -> None:
    if not value >= 0.0:
        raise ValueError(f"--{flag.replace('_', '-')} must not be negative, as {value} is")


def _require_port(flag: str, value: int) -> None:
    if not 0 <= value <= _MAX_PORT:
        raise ValueError(f"--{flag.replace('_', '-')} must be between 0 and {_MAX_PORT}, not {value}")
