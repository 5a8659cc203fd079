"""What a model under each change does on held-out prompts: the same ones in every condition, asked once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from seawall.artifacts.audit import AuditChange
from seawall.artifacts.delta import Delta
from seawall.artifacts.evaluation import Sample
from seawall.artifacts.groups import BENIGN
from seawall.artifacts.steering import SteeringCondition
from seawall.artifacts.store import require_model
from seawall.evaluation.collect import generate_and_judge
from seawall.evaluation.pooled import paired_changes, with_pooled
from seawall.evaluation.rates import group_rates
from seawall.evaluation.suite import EvalPrompt
from seawall.methods.steer.conditions import Condition, harmless_kl
from seawall.methods.steer.context import SteerContext
from seawall.methods.steer.stages import SEARCH
from seawall.methods.steer.target import SteeringTarget, encoded
from seawall.runs.files import read_json, write_json
from seawall.runs.stage import finished_stage, is_done

ORIGINAL, SYSTEM, REPAIRED = "original", "system", "repaired"
UNDER_SYSTEM = f"{SYSTEM}-"
"""How the name of a condition under the safety system prompt begins."""
_AGAIN = ("layer", "expert", "expert-constrained")
"""Conditions that are asked once more under it."""
Samples = Mapping[str, Sequence[Sample]]


@dataclass(frozen=True, eq=False)
class HeldOutCondition:
    """One condition, the prompts that it is asked, and what it is compared with."""

    name: str
    series: str
    enter: Callable[[], AbstractContextManager[None]]
    asked: Sequence[EvalPrompt]
    reference: str | None


def settings(context: SteerContext, conditions: Sequence[Condition]) -> list[HeldOutCondition]:
    """The model as it is and under every change; again under the system prompt; and repaired, where refusal is induced.

    Args:
        context: names the prompts; its run may hold a repair.
        conditions: the changes.
    """
    asked, text = context.held_out(), context.config.system_prompt
    rows = [HeldOutCondition(ORIGINAL, "reference", nullcontext, asked, None)]
    rows += [HeldOutCondition(one.name, one.series, one.enter, asked, ORIGINAL) for one in conditions]
    if context.config.mode == "induce" and is_done(context.run, "repair"):
        rows.append(HeldOutCondition(REPAIRED, "repair", lambda: _repaired(context), asked, ORIGINAL))
    if text is not None:
        again = context.under_system(asked, text)
        rows.append(HeldOutCondition(SYSTEM, SYSTEM, nullcontext, again, None))
        rows += [
            HeldOutCondition(f"{UNDER_SYSTEM}{one.name}", SYSTEM, one.enter, again, SYSTEM)
            for one in conditions
            if one.name in _AGAIN
        ]
    return rows


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Asks every setting and keeps the samples in the stage's folder."""

    context: SteerContext
    target: SteeringTarget
    folder: Path

    def measure(self, rows: Sequence[HeldOutCondition]) -> tuple[dict[str, list[Sample]], dict[str, float]]:
        """Samples and harmless divergence of every setting, by its name.

        Divergences come first: a change that breaks the model is met before hours of generation.

        Raises:
            ConfigError: a change makes logits that are not finite.
        """
        kls = self._kls([row for row in rows if row.reference is not None and row.name != REPAIRED])
        return {row.name: self._ask(row, (at, len(rows))) for at, row in enumerate(rows, 1)}, kls

    def condition(self, row: HeldOutCondition, samples: Sequence[Sample], kl: float | None) -> SteeringCondition:
        """The rates of a setting, all attack families pooled too."""
        config = self.context.recipe.eval
        rates = group_rates(with_pooled(samples), resamples=config.bootstrap, seed=config.seed)
        return SteeringCondition(row.name, row.series, rates, kl)

    def changes(self, found: Samples, pairs: Iterable[tuple[str, str]]) -> list[AuditChange]:
        """For each (condition, reference) the paired difference in every group."""
        return paired_changes(found, pairs, self.context.recipe.eval)

    def _kls(self, rows: Sequence[HeldOutCondition]) -> dict[str, float]:
        """Harmless divergences by name; those that an earlier attempt left are not measured again."""
        path = self.folder / SEARCH / "harmless_kl.json"
        found: dict[str, float] = read_json(path) if path.is_file() else {}
        for at, row in enumerate(rows, 1):
            if row.name not in found:
                found[row.name] = self._kl(row, (at, len(rows)))
                write_json(path, found)
        return {row.name: found[row.name] for row in rows}

    def _kl(self, row: HeldOutCondition, place: tuple[int, int]) -> float:
        prompts = [one.prompt for one in row.asked if one.group == BENIGN]
        self.context.reporter.step("side effects on harmless prompts", *place)
        shown = encoded(self.context.opened.tokenizer, prompts)
        return harmless_kl(self.target, shown, Condition(row.name, row.series, row.enter))

    def _ask(self, row: HeldOutCondition, place: tuple[int, int]) -> list[Sample]:
        path, opened = self.folder / "samples" / f"{row.name}.jsonl", self.context.opened
        path.parent.mkdir(exist_ok=True)
        with row.enter():
            return generate_and_judge(
                opened.model,
                opened.tokenizer,
                row.asked,
                self.context.recipe.eval,
                judge=self.context.judge,
                path=path,
                progress=lambda done, total: self.context.reporter.step(
                    f"{row.name} ({place[0]} of {place[1]})", done, total
                ),
            )


@contextmanager
def _repaired(context: SteerContext) -> Iterator[None]:
    """Inside, the model is the run's repaired one; it has its own bits again afterwards.

    Raises:
        ArtifactError: the repair was made from another model.
    """
    delta, state = Delta.load(finished_stage(context.run, "repair") / "delta"), context.opened.model.state_dict()
    require_model(delta.base_model, expected=context.opened.fingerprint, artifact="repair")
    delta.apply(state)
    try:
        yield
    finally:
        delta.revert(state)
