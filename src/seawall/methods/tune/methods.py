"""The methods that are compared: what each adds to plain supervised fine-tuning of an adapter.

A new one is a function here, its name in `BUILD`, and its name in `seawall.config.tune.TuneMethod`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from seawall.artifacts.anchor import Anchor
from seawall.artifacts.tuning import TuningRow
from seawall.config.tune import TuneMethod
from seawall.data.splits import take
from seawall.data.types import user
from seawall.methods.tune.basin import LOGGED, SafetyBasin
from seawall.methods.tune.context import TuneContext, settings
from seawall.methods.tune.drift import LOGGED as DRIFT
from seawall.methods.tune.drift import RoutingDrift
from seawall.methods.tune.penalty import Projector
from seawall.methods.tune.rows import Rows, encoded
from seawall.methods.tune.safelora import project
from seawall.methods.tune.sft import ADAPTER, Attach, Trained, train
from seawall.methods.tune.training_record import ANCHOR, stage_name
from seawall.models.lora.merge import attach_saved_adapter
from seawall.models.silence_libraries import silence_libraries
from seawall.runs.files import canonical_hash
from seawall.runs.stage import finished_stage, stage_hash

_DRIFT_GOALS = 64
"""Harmful training goals whose routing is recorded, at most."""
PROJECTORS: Mapping[TuneMethod, Projector] = {
    "asft": "subspace",
    "reference": "reference",
    "l2": "l2",
    "random": "random",
}
"""Methods that add the penalty, and its projector."""


@dataclass(frozen=True, eq=False)
class Training:
    """One method and seed of a run."""

    context: TuneContext
    method: TuneMethod
    seed: int
    anchor: Anchor | None

    def own_inputs(self) -> dict[str, Any]:
        """Settings that only this method's adapter depends on."""
        config = self.context.config
        if self.method == "asft":
            goals = canonical_hash({"goals": self.drift_goals()}) if config.routing_drift else None
            return {**settings(config, "weight", "routing_drift"), "drift_goals": goals}
        if self.method in PROJECTORS:
            return settings(config, "weight")
        if self.method == "safelora":
            return {**settings(config, "safelora"), "sft": stage_hash(self.context.run, stage_name("sft", self.seed))}
        return {}

    @property
    def sft(self) -> Path:
        """The finished stage of plain fine-tuning with the same seed."""
        return finished_stage(self.context.run, stage_name("sft", self.seed))

    def rows(self) -> Rows:
        """What is trained on."""
        return self.context.data.rows(self.context.config, self.method, self.seed)

    def drift_goals(self) -> list[str]:
        """Harmful training goals whose routing `asft` may hold where it was."""
        return [goal.text for goal in take(self.context.data.prompts.goals.train, _DRIFT_GOALS)]


def plain(training: Training, folder: Path) -> TuningRow:
    """LoRA alone, on whatever rows; the penalty is measured where there is an anchor, and weighs nothing."""
    return _trained(training, folder, _measured(training))


def within_basin(training: Training, folder: Path, *, projector: Projector) -> TuningRow:
    """With the penalty on what leaves the directions of alignment, or a control of it."""
    assert training.anchor is not None
    weight = training.context.config.weight
    basin = SafetyBasin(training.anchor, weight, projector=projector, seed=training.seed)
    terms = [Addition(LOGGED, weight, basin.attach), *_drift(training)]
    return _trained(training, folder, terms)


def projected(training: Training, folder: Path) -> TuningRow:
    """The adapter of plain fine-tuning with the same seed, projected; nothing is trained."""
    assert training.anchor is not None
    context, made_from = training.context, training.sft
    begun = time.monotonic()
    model, _ = context.fresh()
    adapted = attach_saved_adapter(model, made_from / ADAPTER)
    report = project(adapted, training.anchor, **context.config.safelora.model_dump())
    with silence_libraries():
        adapted.save_pretrained(folder / ADAPTER)
    row = TuningRow.load(made_from)
    curves = {name: points for name, points in row.curves.items() if name == "loss"}
    seconds = round(row.seconds + time.monotonic() - begun, 1)
    return replace(row, method="safelora", seconds=seconds, curves=curves, note=str(report))


BUILD: Mapping[TuneMethod, Callable[[Training, Path], TuningRow]] = {
    "sft": plain,
    **{method: partial(within_basin, projector=projector) for method, projector in PROJECTORS.items()},
    "mixing": plain,
    "safelora": projected,
}
"""Every method: leaves `adapter/` in the folder, and says what it did."""


class Addition(NamedTuple):
    """A term of the loss: its name in the logs, its weight, and what puts it on a trainer."""

    name: str
    weight: float
    attach: Attach


def _drift(training: Training) -> list[Addition]:
    """The routing drift of harmful training goals, where the recipe weighs it; of `asft` alone."""
    weight = training.context.config.routing_drift
    if training.method != "asft" or weight == 0:
        return []
    term = RoutingDrift([user(text) for text in training.drift_goals()], weight, seed=training.seed)
    return [Addition(DRIFT, term.weight, term.attach)]


def follow(context: TuneContext) -> None:
    """What every process but the first one does: train with it when it says so, and write nothing."""
    while (order := context.processes.await_order()) is not None:
        method, seed, folder = order
        anchored = context.run.stage(ANCHOR)
        anchor = Anchor.load(anchored) if anchored.is_dir() else None
        BUILD[method](Training(context, method, seed, anchor), Path(folder))


def _measured(training: Training) -> list[Addition]:
    """The penalty with no weight, which leaves training as it is; nothing where there is no anchor."""
    if training.anchor is None:
        return []
    return [Addition(LOGGED, 0.0, SafetyBasin(training.anchor, 0.0).attach)]


def _trained(training: Training, folder: Path, terms: Sequence[Addition]) -> TuningRow:
    context = training.context
    rows = training.rows()
    model, tokenizer = context.fresh()
    lessons = encoded(tokenizer, rows.exchanges, max_length=context.config.max_length)
    context.processes.order([training.method, training.seed, str(folder.absolute())])
    done = train(
        model,
        tokenizer,
        lessons,
        context.config,
        folder=folder,
        seed=training.seed,
        attach=[term.attach for term in terms],
        progress=lambda steps, total: context.reporter.step(f"training {training.method}", steps, total),
    )
    return TuningRow(
        method=training.method,
        seed=training.seed,
        rates={},
        rows=len(lessons.rows),
        harmful_rows=rows.harmful,
        steps=done.steps,
        seconds=done.seconds,
        curves=_curves(done, {term.name: term.weight for term in terms}),
        note=_note(lessons.cut, lessons.dropped, rows.safe),
    )


def _curves(done: Trained, weights: Mapping[str, float]) -> dict[str, tuple[tuple[int, float], ...]]:
    """What the trainer logged; its loss without the terms that were added, so that methods can be compared."""
    found: dict[str, list[tuple[int, float]]] = {}
    for line in done.log:
        added = sum(weight * line.get(name, 0.0) for name, weight in weights.items())
        values = {"loss": line["loss"] - added, **{name: line[name] for name in weights if name in line}}
        for name, value in values.items():
            found.setdefault(name, []).append((int(line["step"]), float(value)))
    return {name: tuple(points) for name, points in found.items()}


def _note(cut: int, dropped: int, safe: int) -> str:
    parts = [f"{safe} safe rows were added"] if safe else []
    parts += [f"{cut} rows were cut at max_length, {dropped} of them left out"] if cut else []
    return "; ".join(parts)
