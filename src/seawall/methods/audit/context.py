"""What an audit works with: the audited model, its profile, and the evaluations of its run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from seawall.artifacts.audit import AuditChange, AuditCondition, AuditFigure, AuditResult
from seawall.artifacts.delta import Delta
from seawall.artifacts.profile import ExpertProfile
from seawall.config.audit import AuditName
from seawall.data.splits import hash_fraction
from seawall.evaluation.pooled import Samples
from seawall.evaluation.suite import EvalPrompt, prompt_of
from seawall.models.everywhere import Held, slices_everywhere
from seawall.models.slices import Slices
from seawall.runs.stage import finished_stage
from seawall.shell.context import Context

REPAIRED_TENSORS = Held[Mapping[str, Slices]]("repaired tensors")
"""The subject's `repaired`, in every process of a launch."""


@dataclass(frozen=True, eq=False)
class AuditSubject:
    """The audited model. The model in `context` is the original one.

    Attributes:
        context: recipe, run folder, model.
        profile: routing counts of the original model.
        before, after: samples of the run's evaluations; empty without a run.
        suite: the prompts, where there is no run.
        repaired: slices of parameters that the repair changed, with their repaired values; empty without a repair.
        repaired_fingerprint: of the repaired model.
    """

    context: Context
    profile: ExpertProfile
    before: Samples = ()
    after: Samples = ()
    suite: tuple[EvalPrompt, ...] = ()
    repaired: Mapping[str, Slices] = field(default_factory=dict)
    repaired_fingerprint: str | None = None

    def holding_repaired(self) -> AbstractContextManager[None]:
        """Inside, every process of a launch has the repaired parameters, as `REPAIRED_TENSORS`."""
        return slices_everywhere(self.context.opened.model, REPAIRED_TENSORS, self.repaired)

    def prompts(self, goals: int | None, groups: Callable[[str], bool] = lambda group: True) -> list[EvalPrompt]:
        """The evaluation's prompts on at most `goals` goals per group; the same goals in every attack family."""
        rows = self.suite or [prompt_of(sample) for sample in self.before]
        prompts: list[EvalPrompt] = []
        for group in dict.fromkeys(row.group for row in rows):
            if groups(group):
                of_group = [row for row in rows if row.group == group]
                names = sorted({row.goal for row in of_group}, key=lambda goal: hash_fraction(goal, "take"))[:goals]
                prompts += [row for row in of_group if row.goal in set(names)]
        return prompts

    def result(
        self,
        audit: AuditName,
        conditions: Iterable[AuditCondition],
        changes: Iterable[AuditChange],
        *,
        claim: str,
        figures: Mapping[str, AuditFigure] | None = None,
    ) -> AuditResult:
        """The audit's artifact."""
        original, repaired = self.context.opened.fingerprint, self.repaired_fingerprint
        return AuditResult(audit, original, repaired, tuple(conditions), tuple(changes), figures or {}, claim)


def repaired_tensors(context: Context) -> dict[str, Slices]:
    """The slices that a run's repair changed, with their repaired values; the model keeps its original weights.

    Raises:
        ArtifactError: the repair was made from another model.
    """
    delta, state = Delta.load(finished_stage(context.run, "repair") / "delta"), context.opened.model.state_dict()
    delta.apply(state)
    tensors = {name: Slices.copied(state[name], indices) for name, indices in delta.slices.items()}
    delta.revert(state)
    return tensors
