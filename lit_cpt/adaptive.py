"""Blends that follow what training shows: rules that propose weights, and the bounds that hold whatever they say."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Weights = dict[str, float]
Memory = dict[str, Any]  # plain values, so that a checkpoint holds it


@dataclass(frozen=True)
class Seen:
    """What a rule is shown; only sources that do not rest.

    Args:
        start: The phase's own blend, which sums to 1.
        weights: The blend at work, which sums to 1.
        losses: Last logged training loss of each source that has one, nats per token.
        metrics: Everything that was logged last, by its name.
    """

    start: Mapping[str, float]
    weights: Mapping[str, float]
    losses: Mapping[str, float]
    metrics: Mapping[str, float] = field(default_factory=dict)


class BlendRule(ABC):
    """Proposes weights. Write your own as a subclass and name it by its import path, as for curves."""

    @abstractmethod
    def propose(self, seen: Seen, memory: Memory) -> tuple[Weights, Memory]:
        """Weights (any scale, above 0), and what is to be remembered until the next turn.

        Args:
            seen: What training shows.
            memory: What the turn before returned; empty at a phase's first.
        """


class Bandit(BlendRule):
    """Online data mixing (Albalak et al., arXiv 2312.02406): an Exp3 bandit that is paid a source's training loss.

    Each turn a source's reward moves towards its loss over its share, and the weights are ``(1 - K e) softmax(e' R) +
    e`` with the exploration ``e = min(1 / K, sqrt(ln K / (K t)))``, and ``e'`` that of the turn before. The paper
    explores uniformly; here the phase's blend stands in for the uniform one: exploring is training by the recipe.

    Args:
        memory: Of a reward for its past, in [0, 1).

    Raises:
        ValueError: ``memory`` out of range.
    """

    def __init__(self, memory: float = 0.9) -> None:
        self.memory = part("memory", memory)

    def propose(self, seen: Seen, memory: Memory) -> tuple[Weights, Memory]:
        """The next turn of the bandit."""
        turn, rewards = memory.get("turn", 0) + 1, dict(memory.get("rewards", {}))
        for name, loss in seen.losses.items():
            rewards[name] = self.memory * rewards.get(name, 0.0) + (1 - self.memory) * loss / seen.weights[name]
        count = len(seen.start)
        before, explored = exploration(count, max(1, turn - 1)), exploration(count, turn) * count
        top = max(rewards.values(), default=0.0)
        chosen = scaled({name: share * math.exp(before * (rewards.get(name, 0.0) - top))
                         for name, share in seen.start.items()})
        return ({name: (1 - explored) * chosen[name] + explored * share for name, share in seen.start.items()},
                {"turn": turn, "rewards": rewards})


class ExcessLoss(BlendRule):
    """Exponentiated gradient on excess losses, as DoReMi weights domains (Xie et al., arXiv 2305.10429).

    A source's weight grows by ``exp(step_size x excess)``, the excess being its training loss less its reference, at
    least 0 (DoReMi: each token's, before their mean); then ``smoothing`` of the phase's blend (DoReMi: of the uniform
    one) is mixed in. There is no proxy model: the weights of the run itself move.

    Args:
        reference: Loss of each source that counts as learnt, nats per token, of a model that was trained well on it.
            What is left out is referred to the first loss that the phase sees: then what is being forgotten comes back.
        step_size: At least 0; DoReMi takes 1.
        smoothing: In [0, 1); DoReMi takes 1e-3.

    Raises:
        ValueError: A number out of range.
    """

    def __init__(self, reference: Mapping[str, float] | None = None, step_size: float = 1.0,
                 smoothing: float = 1e-3) -> None:
        if not step_size >= 0:
            raise ValueError(f"step_size={step_size} must be at least 0.")
        self.reference, self.step_size, self.smoothing = dict(reference or {}), step_size, part("smoothing", smoothing)

    def propose(self, seen: Seen, memory: Memory) -> tuple[Weights, Memory]:
        """A step of the exponentiated gradient."""
        reference = {**seen.losses, **memory, **self.reference}
        grown = scaled({name: weight * math.exp(self.step_size * max(0.0, seen.losses[name] - reference[name]))
                        if name in seen.losses else weight for name, weight in seen.weights.items()})
        weights = {name: (1 - self.smoothing) * weight + self.smoothing * seen.start[name]
                   for name, weight in grown.items()}
        return weights, {name: loss for name, loss in reference.items() if name in seen.start}


class WeakScores(BlendRule):
    """More of the sources that serve scores below their targets.

    A source's weight is the phase's times ``exp(strength x weakness)``, the weakness being the mean over its scores of
    the part of the target that is missing. It is what the paper does by hand from one blend to the next.

    Args:
        sources: Name of a logged score, such as ``eval/mmlu/acc``, to the sources that serve it.
        targets: The same name to the score that is aimed at, above 0.
        strength: At least 0; at 1 a source all of whose scores are zero is weighted 2.7 times.

    Raises:
        ValueError: A score without a target, or a number out of range.
    """

    def __init__(self, sources: Mapping[str, list[str]], targets: Mapping[str, float], strength: float = 1.0) -> None:
        if without := sorted(sources.keys() - targets.keys()):
            raise ValueError(f"targets has nothing for {', '.join(without)}: give the score that is aimed at.")
        for score, target in targets.items():
            if not target > 0:
                raise ValueError(f"targets has {score}: {target}; it must be above 0.")
        if not strength >= 0:
            raise ValueError(f"strength={strength} must be at least 0.")
        self.sources, self.targets, self.strength = dict(sources), dict(targets), strength

    def propose(self, seen: Seen, memory: Memory) -> tuple[Weights, Memory]:
        """The phase's blend, bent by the scores."""
        missing = {score: max(0.0, 1 - seen.metrics[score] / self.targets[score])
                   for score in self.sources if score in seen.metrics}
        proposed = {}
        for name, share in seen.start.items():
            served = [lack for score, lack in missing.items() if name in self.sources[score]]
            proposed[name] = share * math.exp(self.strength * (sum(served) / len(served) if served else 0.0))
        return proposed, memory


def part(name: str, value: float) -> float:
    """``value``, if it is in [0, 1)."""
    if not 0 <= value < 1:
        raise ValueError(f"{name}={value} must be at least 0 and below 1.")
    return value


def exploration(count: int, turn: int) -> float:
    """Exp3's share of exploration for each of ``count`` sources.

    >>> exploration(4, 1), round(exploration(4, 100), 4)
    (0.25, 0.0589)
    """
    return min(1 / count, math.sqrt(math.log(count) / (count * turn)))


def scaled(weights: Mapping[str, float]) -> Weights:
    """``weights`` as shares of 1."""
    total = math.fsum(weights.values())
    return {name: weight / total for name, weight in weights.items()}


def held(weights: Mapping[str, float], low: Mapping[str, float], high: Mapping[str, float]) -> Weights:
    """Shares in proportion to ``weights`` where the bounds allow it, and at their bounds elsewhere.

    Args:
        weights: Above 0 each.
        low: Least share of each; together at most 1.
        high: Largest share of each, at least ``low``. Where all of them together leave a part of the whole to nobody,
            they give way in proportion.

    >>> shares = held({"web": 8, "qa": 2}, {"web": 0.0, "qa": 0.0}, {"web": 0.75, "qa": 1.0})
    >>> {name: round(share, 6) for name, share in shares.items()}
    {'web': 0.75, 'qa': 0.25}
    """
    if (most := math.fsum(high.values())) <= 1:
        return scaled(high if most else weights)
    below, above = 0.0, 1e12

    def shares(factor: float) -> Weights:
        return {name: min(max(factor * weight, low[name]), high[name]) for name, weight in weights.items()}

    for _ in range(200):  # the sum rises with the factor: halve the logarithms' distance
        factor = math.sqrt(max(below, 1e-12) * above)
        below, above = (factor, above) if math.fsum(shares(factor).values()) < 1 else (below, factor)
    return scaled(shares(above))
