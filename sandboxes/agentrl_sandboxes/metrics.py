"""What a service counts and measures about its sandboxes."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Collection, Mapping

NUM_TIMES = 512
"""Number of latest starts and waits from which the quantiles are computed."""
COUNTED = ("opened", "from_pool", "failed", "retried", "reaped", "close_failed", "reap_failed")
METRICS = {
    "opened": "sandboxes that episodes got",
    "from_pool": "of these, warm ones",
    "failed": "sandboxes that episodes asked for and did not get",
    "retried": "starts that failed and were tried again",
    "reaped": "sandboxes of dead owners that were removed",
    "close_failed": "failed attempts to close a sandbox; each is tried again",
    "reap_failed": "failed searches for sandboxes of dead owners",
    "quarantined": "times that an image was put in quarantine",
    "open": "sandboxes that are open or being closed now",
    "warm": "sandboxes that are kept warm now",
    "waiting": "episodes that wait for a slot now",
    "start_s": "seconds that a start takes, median of the latest",
    "start_s_p95": "the same, 95th percentile",
    "wait_s": "seconds that an episode waits for a warm sandbox or a slot, median of the latest",
    "wait_s_p95": "the same, 95th percentile",
}


class ServiceMetrics:
    """Counts since the start of a service, and the durations of its latest starts and waits."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.start_times: deque[float] = deque(maxlen=NUM_TIMES)
        self.wait_times: deque[float] = deque(maxlen=NUM_TIMES)

    def report(
        self, *, quarantined: int, num_open: int, num_warm: int, num_waiting: int
    ) -> Mapping[str, float]:
        """Return the values that ``METRICS`` explains, by name."""
        return {
            **{name: float(self.counts[name]) for name in COUNTED},
            "quarantined": float(quarantined),
            "open": float(num_open),
            "warm": float(num_warm),
            "waiting": float(num_waiting),
            "start_s": quantile(self.start_times, 0.5),
            "start_s_p95": quantile(self.start_times, 0.95),
            "wait_s": quantile(self.wait_times, 0.5),
            "wait_s_p95": quantile(self.wait_times, 0.95),
        }


def quantile(times: Collection[float], share: float) -> float:
    """Return the shortest of ``times`` that a ``share`` of them do not exceed; zero if there are none.

    >>> quantile([3.0, 1.0, 2.0], 0.5), quantile([], 0.5)
    (2.0, 0.0)
    """
    return sorted(times)[math.ceil(share * len(times)) - 1] if times else 0.0
