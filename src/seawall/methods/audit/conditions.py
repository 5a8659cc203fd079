"""The same prompts in every condition of an audit: samples, rates and paired changes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from seawall.artifacts.audit import AuditChange, AuditCondition, AuditFigure
from seawall.artifacts.evaluation import Sample
from seawall.artifacts.groups import ATTACK, CountedVerdict
from seawall.data.types import Outcome
from seawall.evaluation.collect import generate_and_judge
from seawall.evaluation.metrics import lost_share
from seawall.evaluation.pooled import Samples, paired_changes, with_pooled
from seawall.evaluation.rates import group_rates
from seawall.evaluation.samples import SampleLog
from seawall.evaluation.suite import EvalPrompt
from seawall.methods.audit.context import REPAIRED_TENSORS, AuditSubject
from seawall.models.everywhere import Change, everywhere
from seawall.models.moe.exchange import exchanged
from seawall.models.moe.find import MoEModel


@dataclass(frozen=True, eq=False)
class ConditionRunner:
    """Asks the same prompts in every condition and writes the samples into the audit's folder."""

    subject: AuditSubject
    prompts: Sequence[EvalPrompt]
    folder: Path

    def measure(self, name: str, change: Change[object], place: tuple[int, int]) -> list[Sample]:
        """Samples under a change, which every process of a launch enters.

        Args:
            name: of the condition.
            change: of the MoE layers; `unchanged` for none.
            place: (number of the condition, number of conditions), for the progress.
        """
        context = self.subject.context
        with everywhere(context.opened.moe, change):
            return generate_and_judge(
                context.opened.model,
                context.opened.tokenizer,
                self.prompts,
                context.recipe.eval,
                judge=context.judge,
                path=self._path(name),
                progress=lambda count, total: context.reporter.step(f"{name} ({place[0]} of {place[1]})", count, total),
            )

    def is_done(self, name: str) -> bool:
        """Whether every sample of a condition is on disk, from an interrupted attempt."""
        path = self._path(name)
        return path.exists() and not SampleLog(path, self.prompts).missing

    def reuse(self, name: str, samples: Samples) -> list[Sample]:
        """Samples of a condition that an evaluation of the run has asked already."""
        by_id = {sample.id: sample for sample in samples}
        log = SampleLog(self._path(name), self.prompts)
        log.append([by_id[prompt.id] for prompt in log.missing])
        return log.samples

    def condition(self, name: str, samples: Samples, *, series: str, amount: int | None = None) -> AuditCondition:
        """The rates of a condition, with all attack families pooled as one more group."""
        return AuditCondition(name, series, amount, group_rates(with_pooled(samples)))

    def changes(self, samples: Mapping[str, Samples], pairs: Iterable[tuple[str, str]]) -> list[AuditChange]:
        """The paired difference in every group, for each (condition, reference)."""
        return paired_changes(samples, pairs, self.subject.context.recipe.eval)

    def lost_share(
        self, sides: tuple[Samples, Samples, Samples], target: CountedVerdict = "complied"
    ) -> AuditFigure | None:
        """The share of the change of attacked replies from a first model to a second that a third model loses.

        None where there is no gain, overall or in some resample of the goals.
        """
        config = self.subject.context.recipe.eval
        first, second, third = map(attacked, sides)
        share = lost_share(
            (_outcomes(first), _outcomes(second), _outcomes(third)),
            [sample.goal for sample in first],
            target=target,
            resamples=config.bootstrap,
            seed=config.seed,
        )
        return None if share is None else AuditFigure(*share)

    def _path(self, name: str) -> Path:
        path = self.folder / "samples" / f"{name}.jsonl"
        path.parent.mkdir(exist_ok=True)
        return path


def unchanged(moe: MoEModel) -> AbstractContextManager[None]:
    """The condition of the model as it is."""
    return nullcontext()


def repaired(moe: MoEModel) -> AbstractContextManager[object]:
    """Inside, the model has the repaired parameters that its process holds."""
    return exchanged(moe.model, REPAIRED_TENSORS.value)


def attacked(samples: Samples) -> list[Sample]:
    """The samples of all attack families."""
    return [sample for sample in samples if sample.group.startswith(ATTACK)]


def _outcomes(samples: Samples) -> list[Outcome]:
    return [sample.outcome for sample in samples]
