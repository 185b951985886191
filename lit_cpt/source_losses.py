"""The training loss of each source: losses of samples, dealt out by where the samples come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

KEPT = "sources"  # begins the name under which sums are kept; the sources' names follow, a line each


def source_sums(losses: torch.Tensor, sources: Sequence[int], names: Sequence[str]) -> dict[str, torch.Tensor]:
    """Loss and number of the samples of each source, without a transfer to the device or from it.

    Args:
        losses: Of each sample, shape (B,), fp32.
        sources: Of each sample, an index into ``names``.
        names: Of all sources, S of them.

    Returns:
        Under one name, which tells the sources, summed losses and counts, shape (2, S).
    """
    own = torch.zeros(len(losses), len(names), device=losses.device)
    for sample, source in enumerate(sources):
        own[sample, source] = 1.0
    return {"\n".join([KEPT, *names]): torch.stack([(own * losses[:, None]).sum(0), own.sum(0)])}


def source_metrics(totals: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """``train/<source>/loss`` of each source that has samples in sums of `source_sums`."""
    found = [(kept.split("\n"), sums) for kept, sums in totals.items()]
    return {f"train/{name}/loss": loss / count for (kept, *names), sums in found if kept == KEPT
            for name, loss, count in zip(names, *sums, strict=True) if count}
