"""A measurement in figures: what goes into `run.json` and everything that is shown."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from dragoman_loadtest.corpus import Corpus
from dragoman_loadtest.measures import Metric, answered, counted, seconds_of, timed
from dragoman_loadtest.run import Measurement, Plan
from dragoman_loadtest.samples import Code
from dragoman_loadtest.schedule import Fate
from dragoman_loadtest.server_view import occupancy
from dragoman_loadtest.slo import Check, Objective, check, overall

__all__ = ["BUCKETS", "QUANTILES", "bucket_of", "figures", "quantiles"]

QUANTILES = (0.5, 0.9, 0.95, 0.97, 0.99, 0.999)
BUCKETS = (8, 16, 32, 64)
"""Upper bounds of the buckets of source tokens; one more holds what is longer."""
_LAG_SECONDS = 0.002
_LAG_SHARE = 0.01
_LAG_BOUND_SHARE = 0.02
_CPU_SHARE = 0.9
_SLOWEST = 5


def figures(plan: Plan, measurement: Measurement) -> dict[str, Any]:
    """All figures of a run; times in seconds, shares between 0 and 1."""
    records = measurement.samples.records
    checks = [check(objective, records, plan.confidence) for objective in plan.objectives]
    tokens = source_tokens(records, len(plan.corpus.texts))
    return {
        "loop": "closed" if plan.traffic.concurrency else "open",
        "seconds": measurement.seconds,
        "warm_up_seconds": measurement.warm_up_seconds,
        "was_steady": measurement.was_steady,
        "stopped_early": measurement.stopped_early,
        "interrupted": measurement.interrupted,
        "drain_seconds": measurement.drain_seconds,
        "requests": _requests(records, plan),
        "errors": _errors(measurement),
        "rates": _rates(records, measurement.seconds, plan),
        "times": {metric: quantiles(records, metric) for metric in get_args(Metric)},
        "curves": {metric: _curve(records, metric) for metric in ("latency", "service")},
        "token_gap": _distribution(measurement.samples.gaps.astype(np.float64)),
        "server_times": _server_times(records),
        "by_length": _by_length(records, tokens[records["item"]]),
        "slowest": _slowest(records, plan.corpus),
        "corpus_tokens": _distribution(tokens[tokens > 0].astype(np.float64)),
        "occupancy": occupancy(measurement.metrics_before, measurement.metrics_after),
        "metrics_error": measurement.metrics_error,
        "timeline": timeline(measurement),
        "objectives": [_check(c) for c in checks],
        "verdict": overall(checks).value if checks else None,
        "self_check": self_check(measurement, plan.objectives),
    }


def quantiles(records: NDArray[Any], metric: Metric) -> dict[str, float]:
    """Distribution of a metric over the requests that percentiles are taken over."""
    return _distribution(seconds_of(records[timed(records)], metric))


def _curve(records: NDArray[Any], metric: Metric) -> list[tuple[float, float]]:
    """Quantiles ever closer to 1: pairs of a share of the requests and the seconds it stays below."""
    values = seconds_of(records[timed(records)], metric)
    if not len(values):
        return []
    nines = np.linspace(0.0, np.log10(max(len(values), 2)), 60)  # -log10(1 - share), up to a single request
    shares = 1.0 - 10.0**-nines
    return list(zip(shares.tolist(), np.quantile(values, shares).tolist(), strict=True))


def _distribution(values: NDArray[np.float64]) -> dict[str, float]:
    values = values[np.isfinite(values)]
    if not len(values):
        return {}
    named = {f"p{100 * q:g}": float(np.quantile(values, q)) for q in QUANTILES}
    return {"count": float(len(values)), "mean": float(values.mean()), **named, "max": float(values.max())}


def _requests(records: NDArray[Any], plan: Plan) -> dict[str, int]:
    codes = records["code"]
    return {
        "sent": int(np.count_nonzero(codes != Code.DROPPED)),
        "answered": int(np.count_nonzero(answered(records))),
        "failed": int(np.count_nonzero(counted(records) & ~answered(records) & (codes < Code.OPEN))),
        "open_at_the_end": int(np.count_nonzero(codes == Code.OPEN)),
        "cancelled_on_purpose": int(np.count_nonzero(records["fate"] == Fate.CANCEL)),
        "read_slowly": int(np.count_nonzero(records["fate"] == Fate.READ_SLOWLY)),
        "truncated": int(np.count_nonzero(records["truncated"])),
    }


def _errors(measurement: Measurement) -> dict[str, Any]:
    records = measurement.samples.records
    codes, counts = np.unique(records["code"], return_counts=True)
    messages = sorted(measurement.samples.errors.items(), key=lambda entry: -entry[1])[:10]
    return {
        "by_code": {Code(code).name: int(n) for code, n in zip(codes, counts, strict=True) if code},
        "messages": dict(messages),
    }


def _rates(records: NDArray[Any], seconds: float, plan: Plan) -> dict[str, float]:
    """Per second of the measurement; what was answered during the drain does not count."""
    if not seconds:
        return {}
    inside = records[answered(records) & (records["done"] <= seconds)]
    good = np.ones(len(inside), bool)
    for objective in plan.objectives:
        good &= objective.good(inside)
    return {
        "offered": float(np.count_nonzero(records["scheduled"] <= seconds) / seconds),
        "answered": len(inside) / seconds,
        "goodput": float(np.count_nonzero(good & counted(inside)) / seconds),
        "sentences": float(inside["segments"].sum() / seconds),
        "source_tokens": float(inside["source_tokens"].sum() / seconds),
        "output_tokens": float(inside["output_tokens"].sum() / seconds),
    }


def _server_times(records: NDArray[Any]) -> dict[str, dict[str, float]]:
    """Where the server says the time went; what is left of the latency is wire, client and event loops."""
    ok = records[answered(records) & counted(records)]
    parts = {name: ok[name].astype(np.float64) for name in ("queue", "encode", "decode", "server")}
    parts["elsewhere"] = seconds_of(ok, "service") - parts["server"]
    return {name: _distribution(values) for name, values in parts.items()}


def source_tokens(records: NDArray[Any], texts: int) -> NDArray[np.int64]:
    """Tokens of every text, as the server counted them; 0 where it never answered it."""
    tokens = np.zeros(texts, np.int64)
    ok = records[answered(records)]
    tokens[ok["item"]] = ok["source_tokens"]
    return tokens


def bucket_of(tokens: NDArray[np.int64]) -> NDArray[np.int64]:
    """The bucket of each number of source tokens; -1 where it is not known."""
    return np.where(tokens > 0, np.searchsorted(BUCKETS, tokens), -1)


def _by_length(records: NDArray[Any], tokens: NDArray[np.int64]) -> list[dict[str, Any]]:
    buckets = bucket_of(tokens)
    bounds = (1, *(bound + 1 for bound in BUCKETS)), (*BUCKETS, None)
    return [
        {
            "from": first,
            "to": last,
            "requests": int(np.count_nonzero(buckets == i)),
            "latency": quantiles(records[buckets == i], "latency"),
            "ttft": quantiles(records[buckets == i], "ttft"),
            "tpot": quantiles(records[buckets == i], "tpot"),
        }
        for i, (first, last) in enumerate(zip(*bounds, strict=True))
        if (buckets == i).any()
    ]


def _slowest(records: NDArray[Any], corpus: Corpus) -> list[dict[str, Any]]:
    """The requests that took longest, so that an outlier has a name."""
    chosen = records[timed(records)]
    latency = seconds_of(chosen, "latency")
    return [
        {
            "request": int(chosen["request"][i]),
            "line": int(chosen["item"][i]) + 1,
            "text": corpus.texts[chosen["item"][i]][:120],
            "at": float(chosen["scheduled"][i]),
            "latency": float(latency[i]),
            "queue": _known(chosen["queue"][i]),
            "decode": _known(chosen["decode"][i]),
            "code": Code(chosen["code"][i]).name,
        }
        for i in np.argsort(-latency)[:_SLOWEST]
    ]


def _known(value: np.float32) -> float | None:
    return float(value) if np.isfinite(value) else None  # NaN is no JSON


def timeline(measurement: Measurement) -> list[dict[str, float]]:
    """The measurement second by second, by the scheduled time: requests, errors, quantiles of latency."""
    records = measurement.samples.records
    seconds = int(np.ceil(measurement.seconds))
    of_second = np.floor(records["scheduled"]).astype(int)
    gauges = {int(at): metrics for at, metrics in measurement.timeline if at >= 0.0}
    points = []
    for second in range(seconds):
        inside = records[of_second == second]
        latency = seconds_of(inside[timed(inside)], "latency")
        metrics = gauges.get(second, {})
        point = {
            "second": float(second),
            "requests": float(len(inside)),
            "errors": float(np.count_nonzero(counted(inside) & ~answered(inside))),
        }
        if len(latency):
            point |= {f"p{100 * q:g}": float(np.quantile(latency, q)) for q in (0.5, 0.97, 0.99)}
        for name in ("slots_in_use", "queue_depth"):
            if f"dragoman_{name}" in metrics:
                point[name] = metrics[f"dragoman_{name}"]
        points.append(point)
    return points


def _check(found: Check) -> dict[str, Any]:
    return {
        "objective": found.objective.text,
        "verdict": found.verdict.value,
        "requests": found.requests,
        "over": found.over,
        "allowed_share": 1.0 - found.objective.share,
        "over_share": found.over / found.requests if found.requests else None,
    }


def self_check(measurement: Measurement, objectives: tuple[Objective, ...] = ()) -> dict[str, Any]:
    """Whether the client was the bottleneck; if so the run says nothing of the server.

    Requests may leave as late as does not matter: 2 ms, 1 % of the 99th percentile of the latency, or 2 % of
    the tightest bound that is judged.
    """
    records = measurement.samples.records
    sent = records[np.isfinite(records["sent"])]
    lag = _distribution(sent["sent"] - sent["scheduled"])
    dropped = int(np.count_nonzero(records["code"] == Code.DROPPED))
    latency = quantiles(records, "latency").get("p99", 0.0)
    judged = min((o.bound for o in objectives if np.isfinite(o.bound)), default=0.0)
    bound = max(_LAG_SECONDS, _LAG_SHARE * latency, _LAG_BOUND_SHARE * judged)
    reasons = []
    if not len(records):
        reasons.append("no request was sent")
    if lag.get("p99", 0.0) > bound:
        reasons.append(
            f"1 % of requests left {1e3 * lag['p99']:.1f} ms late or later; {1e3 * bound:.1f} ms are allowed"
        )
    if measurement.client_cpu_share > _CPU_SHARE:
        reasons.append(f"a client process used {measurement.client_cpu_share:.0%} of a core")
    if dropped:
        reasons.append(f"{dropped} requests were not sent: too many were in flight")
    return {
        "valid": not reasons,
        "reasons": reasons,
        "send_lag": lag,
        "client_cpu_share": measurement.client_cpu_share,
        "processes": measurement.processes,
        "dropped": dropped,
        "killed_clients": measurement.killed_clients,
    }
