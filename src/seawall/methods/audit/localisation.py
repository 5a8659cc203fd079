"""Is safety in experts at all? How far apart attacks and refused requests are routed, beside requests that differ in
harm alone.

An attack differs from the same request asked plainly in its wording, its length and the reply that it gets. A harmless
request and its unsafe twin share topic and form, and differ in harm. What the first contrast shows and the second does
not is more likely a matter of wording than of safety.

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
from seawall.methods.audit.bench import Subject
from seawall.methods.rasa.profiling.counting import Counts, count_routing
from seawall.methods.rasa.selection import select
from seawall.methods.rasa.selection.scores import TokenKind
from seawall.models.replies import resumable_replies
from seawall.report.audits import AuditView
from seawall.report.changes import span

Tokens = Literal["generated", "prompt"]
KINDS: tuple[Tokens, ...] = ("generated", "prompt")
"""Tokens of decode and of prefill, counted apart."""
ATTACK, TWIN, NOISE = "attack_anchor", "twins", "noise"
CONTRASTS: dict[str, str] = {
    ATTACK: "attacks against the same requests asked plainly",
    TWIN: "harmless requests against their unsafe twins",
    NOISE: "plain requests against other plain requests (control)",
}


@dataclass(frozen=True, eq=False)
class Usage:
    """Routing counts of prompts: how often each expert was chosen, and the goal that each prompt belongs to."""

    counts_PLE: Float[Tensor, "P L E"]
    goals: tuple[str, ...]

    def shares(self, weight_RP: Float[Tensor, "R P"]) -> Float[Tensor, "R L E"]:
        """Each expert's share of its layer's choices, for weightings of the prompts."""
        total_RLE = torch.einsum("rp,ple->rle", weight_RP, self.counts_PLE.double())
        return total_RLE / total_RLE.sum(-1, keepdim=True).clamp_min(1.0)


def distance(first_RLE: Float[Tensor, "R L E"], second_RLE: Float[Tensor, "R L E"]) -> Float[Tensor, " R"]:
    """Total-variation distance of expert usage, mean over layers: the share of choices that differ, 0 to 1."""
    return (first_RLE - second_RLE).abs().sum(-1).mean(-1) / 2


def contrast(first: Usage, second: Usage, *, resamples: int, seed: int) -> Rate:
    """How far apart two sides are routed, with a 95 % interval over goals; both sides draw the same goals.

    Distances cannot be negative, so resampling raises them; the interval is that of the distance less this bias.
    """
    assert first.goals == second.goals
    weight_RP = torch.cat([torch.ones(1, len(first.goals), dtype=torch.float64), drawn(first.goals, resamples, seed)])
    found_R = distance(first.shares(weight_RP), second.shares(weight_RP))
    middle, resampled_R = float(found_R[0]), found_R[1:]
    low, high = (2 * middle - float(end) for end in torch.quantile(resampled_R, torch.tensor([0.975, 0.025]).double()))
    return Rate(middle, max(0.0, min(low, middle)), min(1.0, max(high, middle)), n=len(first.goals), unscored=0)


def noise(side: Usage, *, resamples: int, seed: int) -> Rate:
    """How far apart two random halves of the goals of one side are routed: what a distance is without any difference.

    Halves are smaller than the whole, so this is on the high side. The interval is that of single halvings.
    """
    names = sorted(set(side.goals))
    generator = random.Random(f"seawall halves {seed}")
    halves = [set(generator.sample(names, len(names) // 2)) for _ in range(resamples)]
    first_RP = torch.tensor([[float(goal in half) for goal in side.goals] for half in halves], dtype=torch.float64)
    found_R = distance(side.shares(first_RP), side.shares(1 - first_RP))
    low, high = (float(end) for end in torch.quantile(found_R, torch.tensor([0.025, 0.975]).double()))
    middle = float(found_R.mean())
    return Rate(middle, min(low, middle), max(high, middle), n=len(side.goals), unscored=0)


def drawn(goals: Sequence[str], resamples: int, seed: int) -> Float[Tensor, "R P"]:
    """How often each prompt counts in each resample of the goals."""
    names = sorted(set(goals))
    generator = random.Random(f"seawall localisation {seed}")
    rows = []
    for _ in range(resamples):
        taken = generator.choices(names, k=len(names))
        times = {name: float(taken.count(name)) for name in names}
        rows.append([times[goal] for goal in goals])
    return torch.tensor(rows, dtype=torch.float64)


def agreement(first: tuple[Usage, Usage], second: tuple[Usage, Usage], *, resamples: int, seed: int) -> AuditFigure:
    """Correlation over experts of two contrasts' gaps (refused side minus the other), with an interval over goals.

    1: the experts that tell the sides of one contrast apart tell those of the other apart as well.
    """
    gaps = []
    for one, other in (first, second):
        whole = torch.ones(1, len(one.goals), dtype=torch.float64)
        weight_RP = torch.cat([whole, drawn(one.goals, resamples, seed)])
        gaps.append((one.shares(weight_RP) - other.shares(weight_RP)).flatten(1))
    centred = [gap - gap.mean(-1, keepdim=True) for gap in gaps]
    found_R = torch.nn.functional.cosine_similarity(centred[0], centred[1], dim=-1)
    low, high = (float(end) for end in torch.quantile(found_R[1:], torch.tensor([0.025, 0.975]).double()))
    middle = float(found_R[0])
    return AuditFigure(middle, min(low, middle), max(high, middle))


def claim(contrasts: Mapping[str, Rate], figures: Mapping[str, AuditFigure]) -> str:
    """What the numbers of generated tokens allow one to say, and what not.

    Args:
        contrasts: distances by their names in `CONTRASTS`; twins only where there are any.
        figures: `agreement:generated` with twins; `jaccard:generated` and `stable:generated`.
    """
    attack, floor = contrasts[ATTACK], contrasts[NOISE]
    said = f"Attacks and plain requests are routed {_percent(attack)} apart, halves of the plain ones {_percent(floor)}"
    jaccard, stable = figures["jaccard:generated"].value, figures["stable:generated"].value
    steady = (
        f" Over resamples of the goals the selected set overlaps with itself by {jaccard:.2f}, and {stable:.0%} of its "
        "experts are chosen in at least nine of ten."
    )
    if not attack.low > floor.high:
        return f"{said}.{steady} That is no more than chance: the numbers do not allow one to place safety in experts."
    if TWIN not in contrasts:
        return (
            f"{said}.{steady} So attacks are routed differently; without unsafe twins nothing says whether for their "
            "harm or for their wording."
        )
    twin, both = contrasts[TWIN], figures["agreement:generated"]
    said = f"{said}; harmless requests and their unsafe twins {_percent(twin)}."
    alike = f"The two gaps correlate over experts by {span(both.value, both.low or 0.0, both.high or 0.0)} hundredths."
    if twin.low > floor.high and both.low is not None and both.low > 0:
        may = "So some experts go with refusal whatever the wording; that they cause it, these numbers do not say."
    else:
        may = (
            "So the selected experts go with attacks; that they go with harm rather than with the attacks' wording and "
            "replies, these numbers do not allow one to say."
        )
    return f"{said} {alike}{steady} {may}"


def _percent(rate: Rate) -> str:
    return f"{span(rate.rate, rate.low, rate.high)} %"


def localisation_audit(subject: Subject, folder: Path) -> AuditResult:
    """How far apart attacks and plain requests are routed, beside harmless requests and their unsafe twins."""
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
"""(contrast, tokens) -> its two sides."""


def _profiled_usage(profile: ExpertProfile) -> Usages:
    goals = tuple(pair.goal for pair in profile.pairs)
    counts = {
        "generated": (profile.attack_counts_PLE, profile.anchor_counts_PLE),
        "prompt": (profile.attack_prompt_counts_PLE, profile.anchor_prompt_counts_PLE),
    }
    return {(ATTACK, kind): (Usage(attack, goals), Usage(anchor, goals)) for kind, (attack, anchor) in counts.items()}


def _twin_usage(subject: Subject, folder: Path, at_most: int) -> Usages:
    """The original model's routing of harmless requests and their unsafe twins, with its own replies; empty without."""
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
        progress=lambda done, total: context.reporter.step("replies to twins", done, total),
    )
    prompt, generated = count_routing(context.opened.moe, replies, batch_size=config.batch_size)
    goals = tuple(row.text for row in twins)

    def sides(found: Counts) -> tuple[Usage, Usage]:
        return Usage(found.counts_PLE[0::2], goals), Usage(found.counts_PLE[1::2], goals)

    return {(TWIN, "generated"): sides(generated), (TWIN, "prompt"): sides(prompt)}


def _stability(subject: Subject, tokens: TokenKind) -> tuple[set[tuple[int, int]], dict[str, float]]:
    """The experts that these tokens select, and how much of them other goals would select."""
    audit = subject.context.recipe.audit
    changes = {"method": "frequency", "bootstrap": audit.localisation.bootstrap, "seed": audit.seed}
    found = select(subject.profile, subject.context.recipe.select.model_copy(update=changes), tokens=tokens)
    places = {(layer, expert) for layer, experts in enumerate(found.layers) for expert in experts}
    assert found.stability is not None
    assert found.inclusion_LE is not None
    often = sum(float(found.inclusion_LE[place]) >= 0.9 for place in places)
    return places, {"jaccard": found.stability, "stable": often / len(places)}


def localisation_view(found: AuditResult) -> AuditView:
    """The audit as the report shows it."""
    return AuditView(
        audit=found.audit,
        title="Is safety in experts at all?",
        question="How far apart two kinds of requests are routed: the share of expert choices that differ, mean over "
        "layers, tokens of replies and of prompts apart. Attacks differ from plain requests in wording and reply, a "
        "harmless request from its unsafe twin in harm alone. As a control, random halves of the plain requests show "
        "what the distance is where nothing differs.",
        claim=found.claim,
        groups=list(KINDS),
        conditions=found.conditions,
        labels=CONTRASTS,
    )
