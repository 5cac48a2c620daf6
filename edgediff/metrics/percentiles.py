"""A list of durations as the few numbers that a latency table shows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgediff.errors import BadInputError


def latency_summary(seconds: Sequence[float]) -> dict[str, float | int]:
    """Summarise durations in seconds, in milliseconds.

    Returns: latency_p50_ms, latency_p90_ms, latency_p99_ms (linear between ranks), latency_mean_ms, latency_min_ms,
    and count. Raises: BadInputError for no durations, or any that is negative or not finite.
    """
    values = np.asarray(seconds, dtype=np.float64) * 1000
    if values.size == 0:
        raise BadInputError("no durations to summarise", "time at least one iteration")
    if not np.isfinite(values).all() or values.min() < 0:
        raise BadInputError("durations must be finite and not negative", "use a monotonic clock")
    p50, p90, p99 = np.percentile(values, [50, 90, 99])
    return {
        "latency_p50_ms": float(p50),
        "latency_p90_ms": float(p90),
        "latency_p99_ms": float(p99),
        "latency_mean_ms": float(values.mean()),
        "latency_min_ms": float(values.min()),
        "count": int(values.size),
    }
