"""95 % intervals of rates and means. Every number that is shown has one."""

import math

import numpy as np


def wilson(k: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """95 % Wilson score interval of a success rate k/n; honest at 0/n and n/n, (0, 1) where nothing was tried."""
    if not 0 <= k <= n:
        raise ValueError(f"k successes of n trials needs 0 <= k <= n, got k={k}, n={n}")
    if n == 0:
        return 0.0, 1.0
    p, d = k / n, 1 + z * z / n
    middle = (p + z * z / (2 * n)) / d
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / d
    return (0.0 if k == 0 else middle - half), (1.0 if k == n else middle + half)


def bootstrap(values, bounds: tuple[float, float] | None = None, seed: int = 0, draws: int = 4000) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean of `values` (n,); the same seed gives the same interval.

    Where all n values are equal a bootstrap has width 0 and would claim certainty. If each value is known to lie within `bounds`, the
    interval is then what is still possible: a share of up to `wilson(0, n)[1]` of the population may differ, by as far as the bounds.
    """
    values = np.asarray(values, np.float64)
    n = len(values)
    if n == 0:
        raise ValueError("no values: a mean of nothing has no interval")
    mean = values.mean()
    if bounds is not None and np.ptp(values) == 0:
        share = wilson(0, n)[1]
        return float(mean - share * (mean - bounds[0])), float(mean + share * (bounds[1] - mean))
    means = values[np.random.default_rng(seed).integers(0, n, (draws, n))].mean(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def t95(freedom: int) -> float:
    """The 97.5 % point of Student's t: what 1.96 must be where a spread is estimated from `freedom` + 1 values."""
    points = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
    if freedom < 1:
        raise ValueError(f"no spread can be estimated from {freedom + 1} values")
    return points[freedom - 1] if freedom <= len(points) else 1.96 + 2.6 / freedom


def over_seeds(metrics: list[dict], most: float = 1.0) -> dict:
    """One metric of several seeds on the same pairs (or frames): the mean; its 95 % interval adds the spread of the seeds (Student's) and,
    of a seed, that of the pairs (or episodes), as independent errors, and is cut at 0 and at the `most` that the metric can be."""
    values = np.array([metric["value"] for metric in metrics])
    between = t95(len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else 0.0
    below, above = (float(np.mean([abs(metric["value"] - metric[side]) for metric in metrics])) for side in ("low", "high"))
    mean = float(values.mean())
    return {"value": mean, "n": metrics[0]["n"], "seeds": len(values), "low": max(0.0, mean - float(np.hypot(between, below))),
            "high": min(most, mean + float(np.hypot(between, above)))}
