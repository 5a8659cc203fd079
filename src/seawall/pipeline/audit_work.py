"""What each audit does, put together from the stages: who is asked what in which condition, and what is compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor

from seawall.artifacts.audit import AuditCondition, AuditFigure, AuditResult
from seawall.artifacts.evaluation import Rate
from seawall.artifacts.profile import ExpertProfile
from seawall.audits import localisation, routing_shortcut, silencing
from seawall.config.audit import AuditName
from seawall.data.splits import take
from seawall.data.types import Messages, user
from seawall.errors import NothingToRepairError
from seawall.evaluation.metrics import lost_share
from seawall.evaluation.suite import ATTACK, PLAIN
from seawall.models.exchange import exchanged
from seawall.models.replies import resumable_replies
from seawall.models.steer import steered
from seawall.pipeline.audit_bench import POOLED, Bench, Samples, Subject
from seawall.pipeline.audit_steering import steering_audit
from seawall.pipeline.audit_tamper import tamper_audit
from seawall.profiling.counting import Counts, count_routing
from seawall.selection import select
from seawall.selection.controls import CONTROLS, Control
from seawall.selection.scores import Place, TokenKind, count, frequency_gap, top_positive, traffic


def shortcut_audit(subject: Subject, folder: Path) -> AuditResult:
    """The repaired model with its original routing."""
    names, moe = routing_shortcut.CONDITIONS, subject.context.opened.moe
    original, repaired = routing_shortcut.ORIGINAL, routing_shortcut.REPAIRED
    bench = Bench(subject, subject.prompts(subject.context.recipe.audit.routing_shortcut.goals), folder)
    found = {original: bench.known(original, subject.before), repaired: bench.known(repaired, subject.after)}
    for at, name in enumerate(names, 1):
        if name not in found:
            condition = routing_shortcut.set_up(name, moe, subject.repaired)
            found[name] = bench.measure(name, condition, (at, len(names)))
    pairs = [
        (repaired, original),
        *((name, repaired) for name in routing_shortcut.LOST),
        ("repaired_routers", original),
    ]
    changes = bench.changes(found, pairs)
    attacks = {(one.condition, one.reference): one for one in changes if one.group == POOLED}
    shares = _lost_shares(bench, found)
    lost = {name: attacks[name, repaired] for name in routing_shortcut.LOST}
    return subject.result(
        "routing_shortcut",
        (bench.condition(name, found[name], series=names[name]) for name in names),
        changes,
        claim=routing_shortcut.claim(attacks[repaired, original], lost, shares),
        figures={f"lost:{name}": figure for name, figure in shares.items()},
    )


def _lost_shares(bench: Bench, found: Mapping[str, Samples]) -> dict[str, AuditFigure]:
    config = bench.subject.context.recipe.eval
    attacks = {name: [one for one in samples if one.group.startswith(ATTACK)] for name, samples in found.items()}
    labels = {name: [sample.label for sample in samples] for name, samples in attacks.items()}
    goals = [sample.goal for sample in attacks[routing_shortcut.ORIGINAL]]
    shares = {}
    for name in routing_shortcut.LOST:
        sides = (labels[routing_shortcut.ORIGINAL], labels[routing_shortcut.REPAIRED], labels[name])
        share = lost_share(sides, goals, target="complied", resamples=config.bootstrap, seed=config.seed)
        if share is not None:
            shares[name] = AuditFigure(*share)
    return shares


def silencing_audit(subject: Subject, folder: Path) -> AuditResult:
    """Refusals as experts are masked: of the repaired model in a run, else of the model itself."""
    recipe, moe = subject.context.recipe, subject.context.opened.moe
    wanted = {PLAIN, *(f"{ATTACK}{name}" for name in _profiled_families(subject.profile))}
    bench = Bench(subject, subject.prompts(recipe.audit.silencing.goals, lambda group: group in wanted), folder)
    masks = _masks(subject)
    none = silencing.REFERENCE
    found: dict[str, Samples] = {}
    with exchanged(moe.model, subject.repaired):
        steps = len(masks) + 1
        found[none] = (
            bench.known(none, subject.after) if subject.after else bench.measure(none, nullcontext(), (1, steps))
        )
        for at, mask in enumerate(masks, 2):
            found[mask.name] = bench.measure(mask.name, steered(moe, off=mask.layers), (at, steps))
    largest = max(mask.amount for mask in masks)
    own = f"{silencing.REFUSAL}-{largest}"
    apart = {series: f"{series}-{largest}" for series in CONTROLS}
    pairs = [*((mask.name, none) for mask in masks), *((own, other) for other in apart.values())]
    changes = bench.changes(found, pairs)
    plain = {(one.condition, one.reference): one for one in changes if one.group == PLAIN}
    return subject.result(
        "silencing",
        [
            bench.condition(none, found[none], series=none, amount=0),
            *(bench.condition(one.name, found[one.name], series=one.series, amount=one.amount) for one in masks),
        ],
        changes,
        claim=silencing.claim(
            largest,
            moe.total_experts,
            {series: plain[f"{series}-{largest}", none] for series in silencing.SERIES},
            {series: plain[own, other] for series, other in apart.items()},
        ),
    )


def _masks(subject: Subject) -> list[silencing.Masked]:
    recipe, profile = subject.context.recipe, subject.profile
    num_pairs, num_layers, num_experts = profile.attack_counts_PLE.shape
    gap_LE = frequency_gap(profile, recipe.profile.tokens)(torch.ones(1, num_pairs, dtype=torch.float64))[0]
    ranked = top_positive(-gap_LE, count(recipe.audit.silencing.largest, num_layers * num_experts))
    if not ranked:
        raise NothingToRepairError(
            "no expert is used more by refusals than by the attacks",
            got=f"{num_pairs} pairs with equal routing",
            remedy="use more pairs or other attack families",
        )
    traffic_LE = traffic(profile, recipe.profile.tokens)
    controls = {name: _drawn(control, traffic_LE, ranked, recipe.audit.seed) for name, control in CONTROLS.items()}
    return silencing.sets(ranked, controls, num_layers=num_layers)


def _drawn(control: Control, traffic_LE: Tensor, ranked: Sequence[Place], seed: int) -> silencing.Control:
    """The control, drawn outside the whole ranking: the experts just below the masked ones serve refusals too."""
    return lambda selected: control(selected, traffic_LE, seed, apart=ranked)


def _profiled_families(profile: ExpertProfile) -> set[str]:
    return {pair.attack_name for pair in profile.pairs} | {pair.attack_name for pair in profile.dropped}


def localisation_audit(subject: Subject, folder: Path) -> AuditResult:
    """How far apart attacks and plain requests are routed, beside harmless requests and their unsafe twins."""
    config, seed = subject.context.recipe.audit.localisation, subject.context.recipe.audit.seed
    sides = _profiled_usage(subject.profile) | _twin_usage(subject, folder, config.twins)
    rates: dict[str, dict[str, Rate]] = {name: {} for name in localisation.CONTRASTS}
    figures: dict[str, AuditFigure] = {}
    chosen = {}
    for kind in localisation.KINDS:
        pairs = {name: sides[name, kind] for name in localisation.CONTRASTS if (name, kind) in sides}
        for name, pair in pairs.items():
            rates[name][kind] = localisation.contrast(*pair, resamples=config.bootstrap, seed=seed)
        plain = pairs[localisation.ATTACK][1]
        rates[localisation.NOISE][kind] = localisation.noise(plain, resamples=config.bootstrap, seed=seed)
        if localisation.TWIN in pairs:
            both = (pairs[localisation.ATTACK], pairs[localisation.TWIN])
            figures[f"agreement:{kind}"] = localisation.agreement(*both, resamples=config.bootstrap, seed=seed)
        chosen[kind], stability = _stability(subject, kind)
        figures |= {f"{name}:{kind}": AuditFigure(value) for name, value in stability.items()}
    either = len(chosen["generated"] | chosen["prompt"])
    figures["overlap:prompt_generated"] = AuditFigure(len(chosen["generated"] & chosen["prompt"]) / either)
    decode = {name: by_kind["generated"] for name, by_kind in rates.items() if by_kind}
    return subject.result(
        "localisation",
        [AuditCondition(name, name, None, by_kind) for name, by_kind in rates.items() if by_kind],
        (),
        claim=localisation.claim(decode, figures),
        figures=figures,
    )


Usages = dict[tuple[str, str], tuple[localisation.Usage, localisation.Usage]]
"""(contrast, tokens) -> its two sides."""


def _profiled_usage(profile: ExpertProfile) -> Usages:
    goals = tuple(pair.goal for pair in profile.pairs)
    counts = {
        "generated": (profile.attack_counts_PLE, profile.anchor_counts_PLE),
        "prompt": (profile.attack_prompt_counts_PLE, profile.anchor_prompt_counts_PLE),
    }
    return {
        (localisation.ATTACK, kind): (localisation.Usage(attack, goals), localisation.Usage(anchor, goals))
        for kind, (attack, anchor) in counts.items()
    }


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

    def sides(found: Counts) -> tuple[localisation.Usage, localisation.Usage]:
        return localisation.Usage(found.counts_PLE[0::2], goals), localisation.Usage(found.counts_PLE[1::2], goals)

    return {(localisation.TWIN, "generated"): sides(generated), (localisation.TWIN, "prompt"): sides(prompt)}


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


AUDIT_WORK: dict[AuditName, Callable[[Subject, Path], AuditResult]] = {
    "routing_shortcut": shortcut_audit,
    "silencing": silencing_audit,
    "localisation": localisation_audit,
    "steering": steering_audit,
    "tamper": tamper_audit,
}
"""Every audit by its name in recipes."""
