"""Is safety in experts at all? How differently attacks and refused requests are routed, and requests that differ only
in harm.

An attack differs from the plain request in wording, length and reply. A harmless request and its unsafe twin share
topic and form and differ in harm. A difference in the first contrast without one in the second is more likely a matter
of wording than of safety.

Legend: P prompts, L MoE layers, E experts, R resamples.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from seawall.artifacts.audit import AuditCondition, AuditFigure, AuditResult
from seawall.artifacts.evaluation import Rate
from seawall.artifacts.profile import ExpertProfile
from seawall.data.splits import take
from seawall.data.types import Messages, user
from seawall.methods.audit.context import AuditSubject
from seawall.methods.rasa.profiling.counting import Counts, count_routing
from seawall.methods.rasa.selection import select
from seawall.methods.rasa.selection.scores import TokenKind
from seawall.models.replies import resumable_replies
from seawall.report.audits import AuditView
from seawall.report.changes import span

Tokens = Literal["generated", "prompt"]
KINDS: tuple[Tokens, ...] = ("generated", "prompt")
"""Tokens of decode and of prefill, counted separately."""
ATTACK, TWIN, NOISE = "attack_anchor", "twins", "noise"
CONTRASTS: dict[str, str] = {
    ATTACK: "attacks against the same requests asked plainly",
    TWIN: "harmless requests against their unsafe twins",
    NOISE: "plain requests against other plain requests (control)",
}


@dataclass(frozen=True, eq=False)
class Usage:
    """How often each expert was chosen, by prompt, and the goal of each prompt."""

    counts_PLE: Float[Tensor, "P L E"]
    goals: tuple[str, ...]

    def shares(self, weight_RP: Float[Tensor, "R P"]) -> Float[Tensor, "R L E"]:
        """Each expert's share of its layer's choices, for R weightings of the prompts."""
        total_RLE = torch.einsum("rp,ple->rle", weight_RP, self.counts_PLE.double())
        return total_RLE / total_RLE.sum(-1, keepdim=True).clamp_min(1.0)


def distance(first_RLE: Float[Tensor, "R L E"], second_RLE: Float[Tensor, "R L E"]) -> Float[Tensor, " R"]:
    """Total-variation distance of expert usage, mean over layers: the share of choices that differ, 0 to 1."""
    return (first_RLE - second_RLE).abs().sum(-1).mean(-1) / 2


def contrast(first: Usage, second: Usage, *, resamples: int, seed: int) -> Rate:
    """Distance of two sides, with a 95 % interval over goals; both sides resample the same goals.

    Distances cannot be negative, so resampling biases them upwards; the basic bootstrap interval corrects this.
    """
    assert first.goals == second.goals
    ones_1P = torch.ones(1, len(first.goals), dtype=torch.float64)
    weight_RP = torch.cat([ones_1P, resampled_weights(first.goals, resamples, seed)])
    distance_R = distance(first.shares(weight_RP), second.shares(weight_RP))
    middle, resampled_R = float(distance_R[0]), distance_R[1:]
    low, high = (2 * middle - float(end) for end in torch.quantile(resampled_R, torch.tensor([0.975, 0.025]).double()))
    return Rate(middle, max(0.0, min(low, middle)), min(1.0, max(high, middle)), n=len(first.goals), unscored=0)


def noise(side: Usage, *, resamples: int, seed: int) -> Rate:
    """Distance of two random halves of one side's goals: the noise floor of a distance.

    Halves are smaller than the whole side, so the estimate is high. The interval covers single halvings.
    """
    names = sorted(set(side.goals))
    generator = random.Random(f"seawall halves {seed}")
    halves = [set(generator.sample(names, len(names) // 2)) for _ in range(resamples)]
    first_RP = torch.tensor([[float(goal in half) for goal in side.goals] for half in halves], dtype=torch.float64)
    distance_R = distance(side.shares(first_RP), side.shares(1 - first_RP))
    low, high = (float(end) for end in torch.quantile(distance_R, torch.tensor([0.025, 0.975]).double()))
    middle = float(distance_R.mean())
    return Rate(middle, min(low, middle), max(high, middle), n=len(side.goals), unscored=0)


def resampled_weights(goals: Sequence[str], resamples: int, seed: int) -> Float[Tensor, "R P"]:
    """The weight of each prompt in each resample of the goals."""
    names = sorted(set(goals))
    generator = random.Random(f"seawall localisation {seed}")
    rows = []
    for _ in range(resamples):
        resample = generator.choices(names, k=len(names))
        times = {name: float(resample.count(name)) for name in names}
        rows.append([times[goal] for goal in goals])
    return torch.tensor(rows, dtype=torch.float64)


def agreement(first: tuple[Usage, Usage], second: tuple[Usage, Usage], *, resamples: int, seed: int) -> AuditFigure:
    """Correlation over experts of two contrasts' gaps (first side minus second), with an interval over goals.

    1: the experts that separate the sides of one contrast also separate those of the other.
    """
    gaps = []
    for one_side, other_side in (first, second):
        ones_1P = torch.ones(1, len(one_side.goals), dtype=torch.float64)
        weight_RP = torch.cat([ones_1P, resampled_weights(one_side.goals, resamples, seed)])
        gaps.append((one_side.shares(weight_RP) - other_side.shares(weight_RP)).flatten(1))
    centred = [gap - gap.mean(-1, keepdim=True) for gap in gaps]
    correlation_R = torch.nn.functional.cosine_similarity(centred[0], centred[1], dim=-1)
    low, high = (float(end) for end in torch.quantile(correlation_R[1:], torch.tensor([0.025, 0.975]).double()))
    middle = float(correlation_R[0])
    return AuditFigure(middle, min(low, middle), max(high, middle))


def claim(contrasts: Mapping[str, Rate], figures: Mapping[str, AuditFigure]) -> str:
    """What may be said of generated tokens, and what not.

    Args:
        contrasts: distances by their names in `CONTRASTS`; without twins if there are none.
        figures: `jaccard:generated`, `stable:generated`, and with twins `agreement:generated`.
    """
    attack, floor = contrasts[ATTACK], contrasts[NOISE]
    text = f"Attacks and plain requests are routed {_percent(attack)} apart, halves of the plain ones {_percent(floor)}"
    jaccard, stable = figures["jaccard:generated"].value, figures["stable:generated"].value
    steady = (
        f" Over resamples of the goals the selected set overlaps with itself by {jaccard:.2f}, and {stable:.0%} of its "
        "experts are chosen in at least nine of ten."
    )
    if not attack.low > floor.high:
        return f"{text}.{steady} That is no more than chance: these numbers do not place safety in experts."
    if TWIN not in contrasts:
        return (
            f"{text}.{steady} So attacks are routed differently; without unsafe twins these numbers do not say whether "
            "because of their harm or of their wording."
        )
    twin, both = contrasts[TWIN], figures["agreement:generated"]
    text = f"{text}; harmless requests and their unsafe twins {_percent(twin)}."
    alike = f"The two gaps correlate over experts by {span(both.value, both.low or 0.0, both.high or 0.0)} hundredths."
    if twin.low > floor.high and both.low is not None and both.low > 0:
        verdict = "So some experts correlate with refusal for any wording; these numbers do not say that they cause it."
    else:
        verdict = (
            "So the selected experts correlate with attacks; these numbers do not say whether with harm or with the "
            "attacks' wording and replies."
        )
    return f"{text} {alike}{steady} {verdict}"


def _percent(rate: Rate) -> str:
    assert rate.rate is not None  # a distance
    return f"{span(rate.rate, rate.low, rate.high)} %"


def localisation_audit(subject: AuditSubject, folder: Path) -> AuditResult:
    """Routing distances of attacks and plain requests, and of harmless requests and their unsafe twins."""
    config, seed = subject.context.recipe.audit.localisation, subject.context.recipe.audit.seed
    sides = _profiled_usage(subject.profile) | _twin_usage(subject, folder, config.twins)
    rates: dict[str, dict[str, Rate]] = {name: {} for name in CONTRASTS}
    figures: dict[str, AuditFigure] = {}
    chosen = {}
    for kind in KINDS:
        pairs = {name: sides[name, kind] for name in CONTRASTS if (name, kind) in sides}
        for name, pair in pairs.items():
            rates[name][kind] = contrast(*pair, resamples=config.bootstrap, seed=seed)
        plain = pairs[ATTACK][1]
        rates[NOISE][kind] = noise(plain, resamples=config.bootstrap, seed=seed)
        if TWIN in pairs:
            both = (pairs[ATTACK], pairs[TWIN])
            figures[f"agreement:{kind}"] = agreement(*both, resamples=config.bootstrap, seed=seed)
        chosen[kind], stability = _stability(subject, kind)
        figures |= {f"{name}:{kind}": AuditFigure(value) for name, value in stability.items()}
    either = len(chosen["generated"] | chosen["prompt"])
    figures["overlap:prompt_generated"] = AuditFigure(len(chosen["generated"] & chosen["prompt"]) / either)
    decode = {name: by_kind["generated"] for name, by_kind in rates.items() if by_kind}
    return subject.result(
        "localisation",
        [AuditCondition(name, name, None, by_kind) for name, by_kind in rates.items() if by_kind],
        (),
        claim=claim(decode, figures),
        figures=figures,
    )


Usages = dict[tuple[str, str], tuple[Usage, Usage]]
"""(contrast, tokens) -> both sides."""


def _profiled_usage(profile: ExpertProfile) -> Usages:
    goals = tuple(pair.goal for pair in profile.pairs)
    counts = {
        "generated": (profile.attack_counts_PLE, profile.anchor_counts_PLE),
        "prompt": (profile.attack_prompt_counts_PLE, profile.anchor_prompt_counts_PLE),
    }
    return {(ATTACK, kind): (Usage(attack, goals), Usage(plain, goals)) for kind, (attack, plain) in counts.items()}


def _twin_usage(subject: AuditSubject, folder: Path, at_most: int) -> Usages:
    """Routing of harmless requests and their unsafe twins, with the original model's replies; empty without twins."""
    context, config = subject.context, subject.context.recipe.profile
    twins = [row for row in context.prompts.borderline.all if row.unsafe_twin]
    twins = list(take(twins, at_most))
    if not twins:
        return {}
    prompts: list[Messages] = [user(text) for row in twins for text in (row.text, row.unsafe_twin)]
    replies = resumable_replies(
        context.opened.model,
        context.opened.tokenizer,
        prompts,
        folder / "replies.jsonl",
        max_new_tokens=config.max_new_tokens,
        batch_size=config.batch_size,
        decoder=context.decoder,
        progress=lambda count, total: context.reporter.step("replies to twins", count, total),
    )
    prompt, generated = count_routing(context.opened.moe, replies, batch_size=config.batch_size)
    goals = tuple(row.text for row in twins)

    def sides(counts: Counts) -> tuple[Usage, Usage]:
        return Usage(counts.counts_PLE[0::2], goals), Usage(counts.counts_PLE[1::2], goals)

    return {(TWIN, "generated"): sides(generated), (TWIN, "prompt"): sides(prompt)}


def _stability(subject: AuditSubject, tokens: TokenKind) -> tuple[set[tuple[int, int]], dict[str, float]]:
    """The experts selected by these tokens, and the stability of the selection over resampled goals."""
    audit = subject.context.recipe.audit
    changes = {"method": "frequency", "bootstrap": audit.localisation.bootstrap, "seed": audit.seed}
    selection = select(subject.profile, subject.context.recipe.select.model_copy(update=changes), tokens=tokens)
    places = {(layer, expert) for layer, experts in enumerate(selection.layers) for expert in experts}
    assert selection.stability is not None
    assert selection.inclusion_LE is not None
    stable = sum(float(selection.inclusion_LE[place]) >= 0.9 for place in places)
    return places, {"jaccard": selection.stability, "stable": stable / len(places)}


def localisation_view(result: AuditResult) -> AuditView:
    """The audit's section of the page."""
    return AuditView(
        audit=result.audit,
        title="Is safety in experts at all?",
        question="How far apart two kinds of requests are routed: the share of expert choices that differ, mean over "
        "layers, tokens of replies and of prompts apart. Attacks differ from plain requests in wording and reply, a "
        "harmless request from its unsafe twin in harm alone. As a control, random halves of the plain requests show "
        "what the distance is where nothing differs.",
        claim=result.claim,
        groups=list(KINDS),
        conditions=result.conditions,
        labels=CONTRASTS,
    )
