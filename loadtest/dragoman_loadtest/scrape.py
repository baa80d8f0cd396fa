"""What a server's Prometheus endpoint says, and what grew between two readings of it."""

from __future__ import annotations

import http.client
import math
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

__all__ = ["Growth", "Scrape", "scrape"]

_TIMEOUT = 5.0
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # past any proxy


@dataclass(frozen=True, slots=True)
class Scrape:
    """All samples of one reading."""

    time: float
    """When, on the clock of `time.monotonic`."""
    samples: tuple[Sample, ...] = field(repr=False)

    def select(self, name: str, **labels: str) -> Iterator[Sample]:
        """Samples of that name, `_total`, `_sum` and `_bucket` included, that have these labels."""
        wanted = labels.items()
        return (one for one in self.samples if one.name == name and wanted <= one.labels.items())

    def value(self, name: str, **labels: str) -> float:
        """Their sum; 0 where there is none."""
        return sum((sample.value for sample in self.select(name, **labels)), 0.0)


def scrape(address: str) -> Scrape:
    """Read `http://ADDRESS/metrics`.

    Raises:
        ConnectionError: nobody answers, or not with metrics.
    """
    url = f"http://{address}/metrics"
    try:
        with _OPENER.open(url, timeout=_TIMEOUT) as reply:  # http, as it says
            text = reply.read().decode()
        families = text_string_to_metric_families(text)
        samples = tuple(sample for family in families for sample in family.samples)
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise ConnectionError(f"{url}: {error}") from error
    return Scrape(time.monotonic(), samples)


@dataclass(frozen=True, slots=True)
class Growth:
    """What counters and histograms counted between two readings of one endpoint.

    Of a server that was started anew in between, it is what the new one has counted.
    """

    before: Scrape
    after: Scrape

    @property
    def seconds(self) -> float:
        """Between the readings."""
        return self.after.time - self.before.time

    def by(self, label: str, name: str, **labels: str) -> dict[str, float]:
        """Growth of the samples of a name with these labels, summed by the values of one further label."""
        sums: defaultdict[str, float] = defaultdict(float)
        for sample in self.after.select(name, **labels):
            sums[sample.labels[label]] += sample.value
        if not self._restarted():
            for sample in self.before.select(name, **labels):
                sums[sample.labels[label]] -= sample.value
        return dict(sums)

    def of(self, name: str, **labels: str) -> float:
        """Growth of all of them together."""
        earlier = 0.0 if self._restarted() else self.before.value(name, **labels)
        return self.after.value(name, **labels) - earlier

    def rate(self, name: str, **labels: str) -> float:
        """Growth per second."""
        return self.of(name, **labels) / self.seconds

    def mean(self, histogram: str, **labels: str) -> float | None:
        """Mean of what a histogram observed; None where it observed nothing."""
        count = self.of(f"{histogram}_count", **labels)
        return self.of(f"{histogram}_sum", **labels) / count if count > 0.0 else None

    def quantile(self, share: float, histogram: str, **labels: str) -> float | None:
        """Quantile of what a histogram observed, between bounds by a straight line; None without any.

        Above the last finite bound it is that bound: what Prometheus' `histogram_quantile` says.
        """
        cumulative = self.by("le", f"{histogram}_bucket", **labels)
        buckets = sorted((float(bound), count) for bound, count in cumulative.items())
        if not buckets or buckets[-1][1] <= 0.0:
            return None
        rank = share * buckets[-1][1]
        lower, below = 0.0, 0.0
        for bound, count in buckets:
            if count >= rank and count > below:
                inside = (rank - below) / (count - below)
                return lower if math.isinf(bound) else lower + (bound - lower) * inside
            lower, below = bound, count
        raise AssertionError("the last bucket counts all")

    def _restarted(self) -> bool:
        started = "process_start_time_seconds"
        return self.before.value(started) != self.after.value(started)
