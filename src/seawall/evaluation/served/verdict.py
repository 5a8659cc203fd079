"""Whether a served model is the local one: differences of log probabilities and replies, and the rule.

Equal weights give equal numbers up to rounding, and rounding depends on the server's precision:

- float32: every difference is at most `FLOAT32`. A changed weight that a probe uses gives more.
- 16 bits: the mean difference is at most `ROUNDING` times that of the local model computed in bfloat16, and a reply
  leaves the local one only where the local weights hold the served token for nearly as likely: within the largest
  difference by rounding. Where rounding is not measured, because the local computation is in 16 bits itself,
  `MEAN_16_BIT` and `TIE_16_BIT` hold. Smaller changes of weights stay unseen.

A server of unknown precision counts as float32 if a share (`FLOAT32_SHARE`) of its numbers is as close as float32
leaves them (`FLOAT32_CLOSE`): rounding to 16 bits leaves few of them that close.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from seawall.evaluation.served.client import Served
from seawall.models.reference import Reference

Precision = Literal["float32", "16-bit"]
FLOAT32 = 1e-3
"""Largest difference of log probabilities, in nats, between two float32 computations of the same weights."""
MEAN_16_BIT = 0.05
TIE_16_BIT = 0.5
ROUNDING = 1.2
REPAIR = 0.5
"""Least share of a repair that its server shows: nearer to the repaired model than to the original."""
_CLIP = 1.0
"""Nats beyond which one token counts no more in that share."""
FLOAT32_CLOSE, FLOAT32_SHARE = 5e-5, 0.25
_CERTAIN = -0.05
"""Log probabilities above this one are left out of the share: near 0 they agree in every precision."""


@dataclass(frozen=True, slots=True)
class TokenDifference:
    """The first token at which a served reply leaves the local one.

    Attributes:
        probe: number of the probe, from 0.
        position: number of the reply's token, from 0.
        local: text of the local token.
        served: text of the served token; empty where the served reply has ended.
        gap: how much less likely the local weights hold the served token, in nats; infinite for an unlikely one.
    """

    probe: int
    position: int
    local: str
    served: str
    gap: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """All probes of a served model compared with the local weights.

    Attributes:
        precision: the precision that the rule assumes.
        probes: number of probes.
        tokens: number of compared log probabilities.
        largest: largest difference of a log probability, in nats; infinite where the server returns no number, and
            where no token can be compared.
        mean: mean difference.
        largest_probe, largest_token: the probe and the token, counted from 0, with the largest difference.
        equal_replies: number of replies whose tokens are all equal.
        first: the first reply that leaves the local one where the local weights do not hold the tokens for equal.
        prompts_compared: whether the tokens of prompts and local replies are compared, not served replies alone.
        tolerance: the bound that the rule holds: of the largest difference in float32, of the mean in 16 bits.
        tie: a served token may be less likely here than the local one by so much, in nats.
        repair: for the run of a repair, how much of it the server shows: 0 for the original model, 1 for the repaired
            one; None where it is not measured.
        constant: whether every served log probability is the same number, as from an empty output layer.
    """

    precision: Precision
    probes: int
    tokens: int
    largest: float
    mean: float
    largest_probe: int
    largest_token: int
    equal_replies: int
    first: TokenDifference | None
    prompts_compared: bool
    tolerance: float
    tie: float
    constant: float | None = None
    repair: float | None = None

    @property
    def passed(self) -> bool:
        """Whether the served model is the local one, within what the precision shows."""
        decisive = self.largest if self.precision == "float32" else self.mean
        shows_repair = self.repair is None or self.repair >= REPAIR
        return decisive <= self.tolerance and self.first is None and self.constant is None and shows_repair


@dataclass(frozen=True, slots=True)
class _Pair:
    """One log probability of both sides."""

    probe: int
    token: int
    local: float
    served: float

    @property
    def difference(self) -> float:
        """Absolute; infinite where the server returns no finite number."""
        return abs(self.local - self.served) if math.isfinite(self.served) else math.inf


def compare(
    references: Sequence[Reference],
    served: Sequence[Served],
    *,
    precision: Precision | None,
    text_of: Callable[[int], str],
) -> Comparison:
    """Compares a server's numbers and replies with the local ones.

    Args:
        references: of the local weights.
        served: of the server, in the same order.
        precision: of the server's computation and of the local one; None infers the server's.
        text_of: the text of a token.
    """
    sides = [_Sides(*pair, text_of) for pair in zip(references, served, strict=True)]
    pairs = [pair for probe, side in enumerate(sides) for pair in _pairs(probe, side)]
    assumed = precision or ("float32" if _float32_share(pairs) >= FLOAT32_SHARE else "16-bit")
    # Replies that differ from their first token on, of a server that does not echo prompts, leave nothing to compare.
    worst = max(pairs, key=lambda pair: pair.difference, default=_Pair(0, 0, math.inf, math.inf))
    tolerance, tie = (FLOAT32, 2 * FLOAT32) if assumed == "float32" else _limits_16_bit(references)
    splits = [split for probe, side in enumerate(sides) if (split := side.split(probe)) is not None]
    values = {round(pair.served, 4) for pair in pairs}
    return Comparison(
        assumed,
        len(sides),
        len(pairs),
        worst.difference,
        sum(pair.difference for pair in pairs) / len(pairs) if pairs else math.inf,
        worst.probe,
        worst.token,
        len(sides) - len(splits),
        next((split for split in splits if split.gap > tie), None),
        all(side.log_probabilities is not None for side in served),
        tolerance,
        tie,
        values.pop() if len(values) == 1 and len(pairs) > 1 else None,
    )


def repair_share(
    references: Sequence[Reference], originals: Sequence[Sequence[float]], served: Sequence[Served]
) -> float | None:
    """How much of a repair a server shows: the slope of its differences from the original model on the repair's.

    Rounding is the same for and against a repair, so its share is visible where single numbers are not.

    Args:
        references: of the repaired model.
        originals: log probabilities of the same tokens by the original model.
        served: of the server.
    """
    products, squares = 0.0, 0.0
    for reference, original, side in zip(references, originals, served, strict=True):
        for repaired, base, value in zip(
            reference.log_probabilities, original, side.log_probabilities or (), strict=False
        ):
            if math.isfinite(value):
                change = _clipped(repaired - base)
                products += change * _clipped(value - base)
                squares += change * change
    return products / squares if squares else None


def _clipped(difference: float) -> float:
    return max(-_CLIP, min(_CLIP, difference))


@dataclass(frozen=True, slots=True)
class _Sides:
    """One probe on both sides, and the text of a token."""

    local: Reference
    served: Served
    text_of: Callable[[int], str]

    def equal(self, position: int) -> bool:
        """Whether both replies have the same token, by its id, or by its text where the server returns no ids."""
        ids, token = self.served.reply.token_ids, self.local.reply[position]
        return self.served.reply.pieces[position] == self.text_of(token) if ids is None else ids[position] == token

    @property
    def common(self) -> int:
        """Number of equal tokens at the start of both replies."""
        length = min(len(self.local.reply), len(self.served.reply.pieces))
        return next((position for position in range(length) if not self.equal(position)), length)

    def split(self, probe: int) -> TokenDifference | None:
        """Where the served reply leaves the local one; None for equal replies.

        A server may leave out the end token of a reply, and go on behind one that is not its own.
        """
        position, reply, pieces = self.common, self.local.reply, self.served.reply.pieces
        if position == len(reply) or (position == len(pieces) == len(reply) - 1):
            return None
        local = self.text_of(reply[position])
        if position == len(pieces):
            return TokenDifference(probe, position, local, "", math.inf)
        gap = self.local.alternatives[position][reply[position]] - self._likelihood(position)
        return TokenDifference(probe, position, local, pieces[position], gap)

    def _likelihood(self, position: int) -> float:
        """The local log probability of the served token; minus infinity for an unlikely one."""
        likely, ids = self.local.alternatives[position], self.served.reply.token_ids
        if ids is not None:
            return likely.get(ids[position], -math.inf)
        piece = self.served.reply.pieces[position]
        return max((value for token, value in likely.items() if self.text_of(token) == piece), default=-math.inf)


def _limits_16_bit(references: Sequence[Reference]) -> tuple[float, float]:
    """Bounds of the mean difference, and of the gap at which a reply may leave the local one."""
    both = [pair for row in references for pair in zip(row.log_probabilities, row.rounded, strict=False)]
    differences = [abs(exact - rounded) for exact, rounded in both]
    if not differences:
        return MEAN_16_BIT, TIE_16_BIT
    return ROUNDING * sum(differences) / len(differences), max(TIE_16_BIT, max(differences))


def _pairs(probe: int, side: _Sides) -> Iterator[_Pair]:
    """Log probabilities of the same tokens after the same tokens."""
    local, served = side.local.log_probabilities, side.served
    if served.log_probabilities is not None:
        for token, pair in enumerate(zip(local, served.log_probabilities, strict=True), start=1):
            yield _Pair(probe, token, *pair)
    start = len(side.local.prompt)
    replied = list(zip(local[start - 1 :], served.reply.log_probabilities, strict=False))[: side.common]
    for token, pair in enumerate(replied, start=start):
        yield _Pair(probe, token, *pair)


def _float32_share(pairs: Sequence[_Pair]) -> float:
    """The share of uncertain tokens whose log probabilities are as close as float32 leaves them."""
    uncertain = [pair.difference for pair in pairs if pair.local < _CERTAIN]
    return sum(difference <= FLOAT32_CLOSE for difference in uncertain) / max(1, len(uncertain))
