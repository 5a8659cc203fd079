"""The conditions on held-out prompts: the same prompts in every condition, each asked once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from transformers import PreTrainedModel

from seawall.artifacts.audit import AuditChange
from seawall.artifacts.delta import Delta
from seawall.artifacts.evaluation import Sample
from seawall.artifacts.groups import BENIGN, PLAIN
from seawall.artifacts.steering import SteeringCondition
from seawall.artifacts.store import require_model
from seawall.evaluation.collect import generate_and_judge
from seawall.evaluation.pooled import paired_changes, with_pooled
from seawall.evaluation.rates import group_rates
from seawall.evaluation.suite import EvalPrompt
from seawall.methods.steer.conditions import Condition, harmless_kl
from seawall.methods.steer.context import SEARCH, SteerContext
from seawall.methods.steer.target import TargetModel, encode_prompts
from seawall.models.everywhere import everywhere
from seawall.runs.files import read_json, write_json
from seawall.runs.stage import finished_stage, is_done

ORIGINAL, SYSTEM, REPAIRED = "original", "system", "repaired"
UNDER_SYSTEM = f"{SYSTEM}-"
"""Prefix of the names of conditions under the safety system prompt."""
_UNDER_SYSTEM = ("layer", "expert", "expert-constrained")
"""Conditions that are also measured under the safety system prompt."""
SamplesByCondition = Mapping[str, Sequence[Sample]]


@dataclass(frozen=True, eq=False)
class Measurement:
    """One condition, its prompts, and the condition that it is compared with.

    Attributes:
        name: of the condition, with the prefix of the safety system prompt.
        series: of the condition.
        enter: a new context manager that makes the change, in every process of a launch.
        prompts: asked under the change.
        reference: name of the condition that it is compared with.
        condition: the change; None for a model without one, and for the repaired model.
    """

    name: str
    series: str
    enter: Callable[[], AbstractContextManager[None]]
    prompts: Sequence[EvalPrompt]
    reference: str | None
    condition: Condition | None = None


def measurements(context: SteerContext, conditions: Sequence[Condition]) -> list[Measurement]:
    """The original model, every condition, both under the system prompt, and the repaired model in mode `induce`.

    Args:
        context: holds the prompts; its run may hold a repair.
        conditions: changes of the model.
    """
    prompts, text = context.held_out(), context.config.system_prompt
    plain = [prompt for prompt in prompts if prompt.group == PLAIN]
    rows = [Measurement(ORIGINAL, "reference", nullcontext, prompts, None)]
    rows += [
        Measurement(
            condition.name,
            condition.series,
            condition.enter,
            plain if condition.plain_only else prompts,
            ORIGINAL,
            condition,
        )
        for condition in conditions
    ]
    if context.config.mode == "induce" and is_done(context.run, "repair"):
        rows.append(Measurement(REPAIRED, "repair", lambda: _repaired(context), prompts, ORIGINAL))
    if text is not None and context.takes_system(text):
        prompts = context.under_system(prompts, text)
        rows.append(Measurement(SYSTEM, SYSTEM, nullcontext, prompts, None))
        rows += [
            Measurement(f"{UNDER_SYSTEM}{condition.name}", SYSTEM, condition.enter, prompts, SYSTEM, condition)
            for condition in conditions
            if condition.name in _UNDER_SYSTEM
        ]
    return rows


@dataclass(frozen=True, eq=False)
class HeldOutEvaluation:
    """Measures conditions and writes the samples into the stage's folder."""

    context: SteerContext
    target: TargetModel
    folder: Path

    def measure(self, rows: Sequence[Measurement]) -> tuple[dict[str, list[Sample]], dict[str, float]]:
        """SamplesByCondition and harmless divergence of every condition, by name.

        Divergences come first, so that a change with NaN logits is an error before hours of generation.

        Raises:
            ConfigError: the logits under a change are not finite.
        """
        divergences = self._divergences([row for row in rows if row.condition is not None])
        samples = {row.name: self._samples(row, (number, len(rows))) for number, row in enumerate(rows, 1)}
        return samples, divergences

    def condition(self, row: Measurement, samples: Sequence[Sample], kl: float | None) -> SteeringCondition:
        """The rates of a condition, with all attack families pooled as one more group."""
        return SteeringCondition(row.name, row.series, group_rates(with_pooled(samples)), kl)

    def changes(self, samples: SamplesByCondition, pairs: Iterable[tuple[str, str]]) -> list[AuditChange]:
        """The paired difference in every group that both were measured on, for each (condition, reference)."""
        rows = []
        for pair in pairs:
            groups = [{sample.group for sample in samples[name]} for name in pair]
            both = {name: [row for row in samples[name] if row.group in groups[0] & groups[1]] for name in pair}
            rows += paired_changes(both, [pair], self.context.recipe.eval)
        return rows

    def _divergences(self, rows: Sequence[Measurement]) -> dict[str, float]:
        """Harmless divergences by name; values of an earlier attempt are reused."""
        path = self.folder / SEARCH / "harmless_kl.json"
        divergences: dict[str, float] = read_json(path) if path.is_file() else {}
        for number, row in enumerate(rows, 1):
            if row.name not in divergences:
                divergences[row.name] = self._divergence(row, (number, len(rows)))
                write_json(path, divergences)
        return {row.name: divergences[row.name] for row in rows}

    def _divergence(self, row: Measurement, place: tuple[int, int]) -> float:
        prompts = [prompt.prompt for prompt in row.prompts if prompt.group == BENIGN]
        prompts = prompts or [prompt.prompt for prompt in self.context.held_out() if prompt.group == BENIGN]
        self.context.reporter.step("side effects on harmless prompts", *place)
        encoded = encode_prompts(self.context.opened.tokenizer, prompts)
        assert row.condition is not None
        return harmless_kl(self.target, encoded, replace(row.condition, name=row.name))

    def _samples(self, row: Measurement, place: tuple[int, int]) -> list[Sample]:
        path, opened = self.folder / "samples" / f"{row.name}.jsonl", self.context.opened
        path.parent.mkdir(exist_ok=True)
        with row.enter():
            return generate_and_judge(
                opened.model,
                opened.tokenizer,
                row.prompts,
                self.context.recipe.eval,
                judge=self.context.judge,
                path=path,
                progress=lambda count, total: self.context.reporter.step(
                    f"{row.name} ({place[0]} of {place[1]})", count, total
                ),
            )


def _repaired(context: SteerContext) -> AbstractContextManager[None]:
    """Inside, the model is the run's repaired one; afterwards it has its original bits again.

    Raises:
        ArtifactError: the repair was made from another model.
    """
    delta = Delta.load(finished_stage(context.run, "repair") / "delta")
    require_model(delta.base_model, expected=context.opened.fingerprint, artifact="repair")
    return everywhere(context.opened.model, partial(_with_delta, delta))


@contextmanager
def _with_delta(delta: Delta, model: PreTrainedModel) -> Iterator[None]:
    delta.apply(model.state_dict())
    try:
        yield
    finally:
        delta.revert(model.state_dict())
