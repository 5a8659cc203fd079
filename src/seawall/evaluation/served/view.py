"""The result of `seawall verify`: its JSON document, its facts, and the lines of its verdict."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from seawall.evaluation.served.verdict import FLOAT32, REPAIR, Comparison, TokenDifference
from seawall.models.reference import Expert

_NAMED = 12
"""Experts that are named in the table; `--json` names all."""


@dataclass(frozen=True, slots=True)
class Verification:
    """The result of `seawall verify`.

    Attributes:
        model: the local model.
        weights: fingerprint of its stored weights.
        endpoint: the address, or `vllm`.
        served: the model's name there.
        dtype: type of the local computation.
        comparison: the numbers and the rule.
        experts: the experts that the probes use; None for a dense model.
        total_experts: number of experts.
        unused: the experts that no probe uses.
    """

    model: str
    weights: str
    endpoint: str
    served: str
    dtype: str
    comparison: Comparison
    experts: int | None
    total_experts: int
    unused: tuple[Expert, ...]

    @property
    def passed(self) -> bool:
        """Whether the served model is the local one."""
        return self.comparison.passed

    def document(self) -> dict[str, Any]:
        """The JSON document; infinite numbers become null."""
        comparison = {name: _finite(value) for name, value in asdict(self.comparison).items() if name != "first"}
        first = self.comparison.first
        difference = None if first is None else {name: _finite(value) for name, value in asdict(first).items()}
        return {
            **{name: getattr(self, name) for name in ("model", "weights", "endpoint", "served", "dtype", "passed")},
            **comparison,
            "first_difference": difference,
            "experts": self.experts,
            "total_experts": self.total_experts,
            "unused_experts": [list(expert) for expert in self.unused],
        }


def verification_rows(result: Verification) -> list[tuple[str, str]]:
    """The facts of a comparison, as names and values."""
    comparison = result.comparison
    where = f"probe {comparison.largest_probe + 1}, token {comparison.largest_token + 1}"
    what = "prompts and replies" if comparison.prompts_compared else "replies alone: the server does not echo prompts"
    return [
        ("local weights", f"{result.model}, {result.dtype}, {result.weights[:23]}..."),
        ("served model", f"{result.served} at {result.endpoint}"),
        ("compared", f"{comparison.probes} probes, {comparison.tokens} log probabilities of {what}"),
        ("largest difference", f"{_nats(comparison.largest)} ({where})"),
        ("mean difference", _nats(comparison.mean)),
        ("rule", _rule(comparison)),
        ("equal greedy replies", f"{comparison.equal_replies} of {comparison.probes}"),
        ("first differing token", _first(comparison.first)),
        ("experts used", _experts(result)),
        *([] if comparison.repair is None else [("share of the repair", f"{comparison.repair:.2f}")]),
    ]


def verdict_lines(result: Verification) -> list[str]:
    """The lines of the verdict: what holds, and what the comparison cannot show."""
    comparison = result.comparison
    if comparison.constant is not None:
        return [
            f"FAILED  every served log probability is {comparison.constant}: the server's output layer is empty, as "
            "where a checkpoint without lm_head.weight meets a class that does not tie embeddings"
        ]
    if comparison.repair is not None and comparison.repair < REPAIR:
        return [
            f"FAILED  the server shows {comparison.repair:.2f} of this run's repair (0: the original model, 1: the "
            "repaired one)"
        ]
    if not result.passed:
        return ["FAILED  the served model is not the local model"]
    lines = ["passed  the served model is the local model, as far as the probes show"]
    if comparison.precision == "16-bit":
        lines.append(
            f"note    in 16 bits rounding hides changes below a mean of {comparison.tolerance:.2g} nats, such as of a "
            "single expert; serve with --dtype float32 and verify with --dtype float32 to find them"
        )
    if result.unused:
        lines.append(f"note    {len(result.unused)} experts were used by no probe: a change there would not show")
    return lines


def _rule(comparison: Comparison) -> str:
    if comparison.precision == "float32":
        return f"float32: the largest difference is at most {FLOAT32:g}"
    return f"16 bits: the mean difference is at most {comparison.tolerance:.2e}, gaps of replies {comparison.tie:.2e}"


def _first(difference: TokenDifference | None) -> str:
    if difference is None:
        return "none"
    served = repr(difference.served) if difference.served else "the end of the reply"
    gap = "unlikely" if math.isinf(difference.gap) else f"{difference.gap:.4f} nats less likely"
    return (
        f"probe {difference.probe + 1}, token {difference.position + 1} of the reply: {difference.local!r} here, "
        f"{served} served ({gap} here)"
    )


def _experts(result: Verification) -> str:
    if result.experts is None:
        return "none: a dense model"
    missed = ", ".join(f"{layer}:{expert}" for layer, expert in result.unused[:_NAMED])
    more = f" and {len(result.unused) - _NAMED} more" if len(result.unused) > _NAMED else ""
    unused = f"; no probe uses (MoE layer:expert) {missed}{more}" if missed else ""
    return f"{result.experts} of {result.total_experts}{unused}"


def _nats(value: float) -> str:
    return "no number" if math.isinf(value) else f"{value:.2e} nats"


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
