"""What an audit works with: the subject, and the bench on which the same prompts are asked in every condition."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from seawall.artifacts.audit import AuditChange, AuditCondition, AuditFigure, AuditResult
from seawall.artifacts.delta import Delta
from seawall.artifacts.evaluation import Sample
from seawall.artifacts.profile import ExpertProfile
from seawall.config.audit import AuditName
from seawall.data.splits import hash_fraction
from seawall.evaluation.collect import generate_and_judge
from seawall.evaluation.pooled import Samples, paired_changes, with_pooled
from seawall.evaluation.rates import group_rates
from seawall.evaluation.samples import SampleLog
from seawall.evaluation.suite import EvalPrompt
from seawall.runs.stage import finished_stage
from seawall.shell.context import Context


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
    asked: tuple[EvalPrompt, ...] = ()
    repaired: Mapping[str, Tensor] = field(default_factory=dict)
    repaired_fingerprint: str | None = None

    def prompts(self, goals: int | None, groups: Callable[[str], bool] = lambda group: True) -> list[EvalPrompt]:
        """At most so many goals of each group, the same ones in every family, with the ids of the evaluation."""
        rows = self.asked or [EvalPrompt(one.id, one.group, one.goal, one.prompt) for one in self.before]
        kept: list[EvalPrompt] = []
        for group in dict.fromkeys(row.group for row in rows):
            if groups(group):
                some = [row for row in rows if row.group == group]
                names = sorted({row.goal for row in some}, key=lambda goal: hash_fraction(goal, "take"))[:goals]
                kept += [row for row in some if row.goal in set(names)]
        return kept

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
        original, repaired = self.context.opened.fingerprint, self.repaired_fingerprint
        return AuditResult(audit, original, repaired, tuple(conditions), tuple(changes), figures or {}, claim)


@dataclass(frozen=True, eq=False)
class Bench:
    """Asks the same prompts in every condition and keeps the samples in the audit's folder."""

    subject: Subject
    asked: Sequence[EvalPrompt]
    folder: Path

    def measure(self, name: str, condition: AbstractContextManager[object], place: tuple[int, int]) -> list[Sample]:
        """Samples under a condition; `place` is its number and that of all, for the progress."""
        context = self.subject.context
        with condition:
            return generate_and_judge(
                context.opened.model,
                context.opened.tokenizer,
                self.asked,
                context.recipe.eval,
                judge=context.judge,
                path=self._path(name),
                progress=lambda done, total: context.reporter.step(f"{name} ({place[0]} of {place[1]})", done, total),
            )

    def is_done(self, name: str) -> bool:
        """Whether every sample of a condition is on disk, from an attempt that was interrupted later."""
        path = self._path(name)
        return path.exists() and not SampleLog(path, self.asked).missing

    def known(self, name: str, samples: Samples) -> list[Sample]:
        """Samples that an evaluation of the run holds already, copied to those of the audit."""
        by_id = {sample.id: sample for sample in samples}
        log = SampleLog(self._path(name), self.asked)
        log.append([by_id[one.id] for one in log.missing])
        return log.samples

    def _path(self, name: str) -> Path:
        path = self.folder / "samples" / f"{name}.jsonl"
        path.parent.mkdir(exist_ok=True)
        return path

    def condition(self, name: str, samples: Samples, *, series: str, amount: int | None = None) -> AuditCondition:
        """The rates of a condition, all attack families pooled too."""
        config = self.subject.context.recipe.eval
        rates = group_rates(with_pooled(samples), resamples=config.bootstrap, seed=config.seed)
        return AuditCondition(name, series, amount, rates)

    def changes(self, found: Mapping[str, Samples], pairs: Iterable[tuple[str, str]]) -> list[AuditChange]:
        """For each (condition, reference) the paired difference in every group."""
        return paired_changes(found, pairs, self.subject.context.recipe.eval)


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
