"""What each audit does, put together from the stages: who is asked what in which condition, and what is compared."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from seawall.artifacts.audit import AuditChange, AuditCondition, AuditFigure, AuditResult
from seawall.artifacts.delta import Delta
from seawall.artifacts.evaluation import Sample
from seawall.artifacts.profile import ExpertProfile
from seawall.audits import routing_shortcut, silencing
from seawall.config.audit import AuditName
from seawall.data.splits import unit
from seawall.data.types import Verdict
from seawall.errors import NothingToRepairError
from seawall.evaluation.compare import compare
from seawall.evaluation.metrics import lost_share
from seawall.evaluation.run import ask, group_rates
from seawall.evaluation.samples import SampleLog
from seawall.evaluation.suite import ATTACK, PLAIN, Asked
from seawall.models.exchange import exchanged
from seawall.models.steer import steered
from seawall.pipeline.context import Context
from seawall.runs.stage import finished_stage
from seawall.selection.controls import CONTROLS, Control
from seawall.selection.scores import count, frequency_gap, top_positive, traffic

POOLED = "attack"
"""The group of all attack families together."""
Samples = Sequence[Sample]


@dataclass(frozen=True, eq=False)
class Subject:
    """What is audited. The model in `context` is the original one.

    Attributes:
        context: recipe, folder, model.
        profile: routing counts of the original model.
        before, after: what the run's evaluations found; empty where there is no run.
        asked: the prompts, where there is no run.
        repaired: parameters that the repair changed, whole, as it left them; empty where there is none.
        repaired_fingerprint: of the repaired model.
    """

    context: Context
    profile: ExpertProfile
    before: Samples = ()
    after: Samples = ()
    asked: tuple[Asked, ...] = ()
    repaired: Mapping[str, Tensor] = field(default_factory=dict)
    repaired_fingerprint: str | None = None

    def prompts(self, goals: int | None, groups: Callable[[str], bool] = lambda group: True) -> list[Asked]:
        """At most so many goals of each group, the same ones in every family, with the ids of the evaluation."""
        rows = self.asked or [Asked(one.id, one.group, one.goal, one.prompt) for one in self.before]
        kept: list[Asked] = []
        for group in dict.fromkeys(row.group for row in rows):
            if groups(group):
                some = [row for row in rows if row.group == group]
                names = sorted({row.goal for row in some}, key=lambda goal: unit(goal, "take"))[:goals]
                kept += [row for row in some if row.goal in set(names)]
        return kept


@dataclass(frozen=True, eq=False)
class Bench:
    """Asks the same prompts in every condition and keeps the samples in the audit's folder."""

    subject: Subject
    asked: Sequence[Asked]
    folder: Path

    def measure(self, name: str, condition: AbstractContextManager[object], place: tuple[int, int]) -> list[Sample]:
        """Samples under a condition; `place` is its number and that of all, for the progress."""
        context = self.subject.context
        with condition:
            return ask(
                context.opened.model,
                context.opened.tokenizer,
                self.asked,
                context.recipe.eval,
                judge=context.judge,
                path=self._path(name),
                progress=lambda done, total: context.reporter.step(f"{name} ({place[0]} of {place[1]})", done, total),
            )

    def known(self, name: str, samples: Samples) -> list[Sample]:
        """Samples that an evaluation of the run holds already, copied to those of the audit."""
        by_id = {sample.id: sample for sample in samples}
        log = SampleLog(self._path(name), self.asked, batch_size=self.subject.context.recipe.eval.batch_size)
        rows = [by_id[one.id] for one in log.missing]
        judge = self.subject.context.recipe.eval.judge.kind
        verdicts = [Verdict(row.label, row.reason, judge) for row in rows]
        log.append(log.missing, [row.response for row in rows], verdicts)
        return log.samples

    def _path(self, name: str) -> Path:
        path = self.folder / "samples" / f"{name}.jsonl"
        path.parent.mkdir(exist_ok=True)
        return path

    def condition(self, name: str, samples: Samples, *, series: str, amount: int | None = None) -> AuditCondition:
        """The rates of a condition, all attack families pooled too."""
        config = self.subject.context.recipe.eval
        rates = group_rates(_with_pooled(samples), resamples=config.bootstrap, seed=config.seed)
        return AuditCondition(name, series, amount, rates)

    def changes(self, found: Mapping[str, Samples], pairs: Iterable[tuple[str, str]]) -> list[AuditChange]:
        """For each (condition, reference) the paired difference in every group."""
        config = self.subject.context.recipe.eval
        rows = []
        for name, reference in pairs:
            sides = [_with_pooled(found[one]) for one in (reference, name)]
            for group, one in compare(*sides, resamples=config.bootstrap, seed=config.seed).items():
                moved = one.change
                rows.append(AuditChange(name, reference, group, moved.difference, moved.low, moved.high, moved.p))
        return rows

    def result(
        self,
        audit: AuditName,
        conditions: Iterable[AuditCondition],
        changes: Iterable[AuditChange],
        *,
        claim: str,
        figures: Mapping[str, AuditFigure] | None = None,
    ) -> AuditResult:
        """What is saved."""
        original, repaired = self.subject.context.opened.fingerprint, self.subject.repaired_fingerprint
        return AuditResult(audit, original, repaired, tuple(conditions), tuple(changes), figures or {}, claim)


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
    return bench.result(
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
    return bench.result(
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
    controls = {name: _drawn(control, traffic_LE, recipe.audit.seed) for name, control in CONTROLS.items()}
    return silencing.sets(ranked, controls, num_layers=num_layers)


def _drawn(control: Control, traffic_LE: Tensor, seed: int) -> silencing.Control:
    return lambda selected: control(selected, traffic_LE, seed)


def _profiled_families(profile: ExpertProfile) -> set[str]:
    return {pair.attack_name for pair in profile.pairs} | {pair.attack_name for pair in profile.dropped}


AUDIT_WORK: dict[AuditName, Callable[[Subject, Path], AuditResult]] = {
    "routing_shortcut": shortcut_audit,
    "silencing": silencing_audit,
}
"""Every audit by its name in recipes."""


def repaired_tensors(context: Context) -> dict[str, Tensor]:
    """The parameters that a run's repair changed, whole, as it left them; the model is the original again afterwards.

    Raises:
        ArtifactError: the repair was made from another model.
    """
    delta, state = Delta.load(finished_stage(context.run, "repair") / "delta"), context.opened.model.state_dict()
    delta.apply(state)
    found = {name: state[name].clone() for name in delta.slices}
    delta.revert(state)
    return found


def _with_pooled(samples: Samples) -> list[Sample]:
    """The samples, and once more those of all attack families as one group."""
    attacks = [one for one in samples if one.group.startswith(ATTACK)]
    return [*(replace(one, id=f"{POOLED}/{one.id}", group=POOLED) for one in attacks), *samples]
