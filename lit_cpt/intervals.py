"""Bootstrap intervals for scores whose items come in clusters that stand or fall together."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
LEVEL = 0.95
DRAWN_AT_ONCE = 1 << 20  # clusters: some 25 MB, whatever the size of a benchmark

Values = Sequence[float]
Clusters = Sequence[Hashable]


@dataclass(frozen=True)
class Interval:
    """A value and the percentile interval of its resamples, all in the unit of the hits.

    Attributes:
        value: The score or difference itself.
        low: Lower end.
        high: Upper end.
    """

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether zero lies outside, so that the sign is not a matter of which items were drawn."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        """In percentage points: ``+12.8 [+9.7, +15.7]``."""
        return f"{100 * self.value:+.1f} [{100 * self.low:+.1f}, {100 * self.high:+.1f}]"


def cluster_interval(
    hits: Values, clusters: Clusters, *, resamples: int = RESAMPLES, level: float = LEVEL, seed: int = 0
) -> Interval:
    """The mean of ``hits`` with its interval under resampling of whole clusters.

    The interval covers the drawing of items only: not another training seed, and not another base model.

    Args:
        hits: One number per item, usually 0 or 1.
        clusters: The cluster of each item.
        resamples: How often the clusters are drawn anew, with replacement.
        level: Share of resamples inside the interval, in (0, 1).
        seed: Seed of the resampling.

    Raises:
        ValueError: Nothing to resample, lengths that differ, a value that is not finite, or a bad setting.
    """
    return average_interval({"all": hits}, {"all": clusters}, resamples=resamples, level=level, seed=seed)


def paired_difference(
    hits_a: Values,
    hits_b: Values,
    clusters: Clusters,
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> Interval:
    """The mean of ``hits_a - hits_b`` over the same items, with its interval.

    Pairing takes out what makes an item hard for both sides. The rest is as in `cluster_interval`.
    """
    paired = differences(hits_a, hits_b)
    return cluster_interval(paired, clusters, resamples=resamples, level=level, seed=seed)


def average_interval(
    hits: Mapping[str, Values],
    clusters: Mapping[str, Clusters],
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> Interval:
    """The mean over families of each family's mean, with its interval.

    Every family counts alike, whatever its size, and is resampled on its own. A family is any key, so one run
    on each of several base models gives the mean over bases: use keys like ``"base0/code"``.

    Args:
        hits: Family to its values.
        clusters: Family to the clusters of its values.
        resamples: As `cluster_interval`.
        level: As `cluster_interval`.
        seed: As `cluster_interval`; the result depends on the order of ``hits`` through it.

    Raises:
        ValueError: As `cluster_interval`, or the families differ.
    """
    if not hits or hits.keys() != clusters.keys():
        raise ValueError(
            f"hits of {list(hits)} but clusters of {list(clusters)}: give both for the same families, at least one."
        )
    if resamples < 1 or not 0 < level < 1:
        raise ValueError(
            f"resamples={resamples}, level={level}: resamples are at least 1 and the level lies in (0, 1), "
            "as in 2000 and 0.95."
        )
    rng = np.random.default_rng(seed)
    families = [resample(hits[family], clusters[family], resamples, rng) for family in hits]
    means = np.mean([drawn for _, drawn in families], axis=0)
    outside = 50 * (1 - level)
    low, high = np.percentile(means, [outside, 100 - outside])
    return Interval(float(np.mean([value for value, _ in families])), float(low), float(high))


def average_difference(
    hits_a: Mapping[str, Values],
    hits_b: Mapping[str, Values],
    clusters: Mapping[str, Clusters],
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> Interval:
    """The mean over families of the paired difference, with its interval; arguments as `average_interval`.

    Raises:
        ValueError: As `average_interval`, or the two sides have other families or lengths.
    """
    if hits_a.keys() != hits_b.keys():
        raise ValueError(f"families {list(hits_a)} against {list(hits_b)}: compare the same families on both sides.")
    paired = {family: differences(hits_a[family], hits_b[family]) for family in hits_a}
    return average_interval(paired, clusters, resamples=resamples, level=level, seed=seed)


def differences(hits_a: Values, hits_b: Values) -> list[float]:
    """``hits_a - hits_b``, item by item.

    Raises:
        ValueError: The lengths differ, so the items are not the same.
    """
    if len(hits_a) != len(hits_b):
        raise ValueError(f"{len(hits_a)} items against {len(hits_b)}: pair the answers to the same items.")
    return [a - b for a, b in zip(hits_a, hits_b, strict=True)]


def resample(
    values: Values, clusters: Clusters, resamples: int, rng: np.random.Generator
) -> tuple[float, NDArray[np.float64]]:
    """The mean of ``values``, and its resampled means, shape (resamples,).

    A resample draws as many clusters as there are, so its number of items varies; each mean is the sum of the
    drawn clusters over their items.
    """
    if len(values) == 0 or len(values) != len(clusters):
        raise ValueError(
            f"{len(values)} values, {len(clusters)} clusters: give one cluster per value, and at least one value."
        )
    numbers = np.asarray(values, dtype=np.float64)
    if not np.isfinite(numbers).all():
        raise ValueError(
            f"values hold {numbers[~np.isfinite(numbers)][0]}: only finite numbers have a mean. "
            "Drop the item on both sides."
        )
    position = {cluster: index for index, cluster in enumerate(dict.fromkeys(clusters))}
    member = [position[cluster] for cluster in clusters]
    sums = np.bincount(member, weights=numbers)
    sizes = np.bincount(member)
    means = np.empty(resamples)
    block = max(1, DRAWN_AT_ONCE // len(sums))
    for first in range(0, resamples, block):
        drawn = rng.integers(0, len(sums), (min(block, resamples - first), len(sums)))
        means[first : first + block] = sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    return float(sums.sum() / sizes.sum()), means
