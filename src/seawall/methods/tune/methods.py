"""The methods of a comparison: what each adds to supervised fine-tuning of a LoRA adapter.

To add one: a function here, its entry in `METHODS`, and its name in `seawall.config.tune.TuneMethod`.
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
from seawall.methods.tune.rows import TrainingRows, encode_rows
from seawall.methods.tune.safelora import project
from seawall.methods.tune.sft import ADAPTER, Attach, TrainingResult, train
from seawall.methods.tune.training_record import ANCHOR, stage_name
from seawall.models.lora.merge import attach_saved_adapter
from seawall.models.silence_libraries import silence_libraries
from seawall.runs.files import canonical_hash
from seawall.runs.stage import finished_stage, stage_hash

_DRIFT_GOALS = 64
"""At most this many harmful training goals have their routing recorded."""
PROJECTORS: Mapping[TuneMethod, Projector] = {
    "asft": "subspace",
    "reference": "reference",
    "l2": "l2",
    "random": "random",
}
"""Methods with the penalty, and the projector of each."""


@dataclass(frozen=True, eq=False)
class TrainingRun:
    """One method and seed of a fine-tuning run."""

    context: TuneContext
    method: TuneMethod
    seed: int
    anchor: Anchor | None

    def own_inputs(self) -> dict[str, Any]:
        """Inputs of this method's training stage, in addition to those of every training."""
        config = self.context.config
        if self.method == "asft":
            goals = canonical_hash({"goals": self.drift_goals()}) if config.routing_drift else None
            variant = {} if config.drift_variant is None else settings(config, "drift_variant")
            return {**settings(config, "weight", "routing_drift"), **variant, "drift_goals": goals}
        if self.method in PROJECTORS:
            return settings(config, "weight")
        if self.method == "safelora":
            return {
                **settings(config, "safelora"),
                "difference": "full",
                "sft": stage_hash(self.context.run, stage_name("sft", self.seed)),
            }
        return {}

    @property
    def sft(self) -> Path:
        """The finished stage of `sft` with the same seed."""
        return finished_stage(self.context.run, stage_name("sft", self.seed))

    def rows(self) -> TrainingRows:
        """The training rows."""
        return self.context.data.rows(self.context.config, self.method, self.seed)

    def drift_goals(self) -> list[str]:
        """Harmful training goals for the routing drift of `asft`."""
        return [goal.text for goal in take(self.context.data.prompts.goals.train, _DRIFT_GOALS)]


def train_plain(training: TrainingRun, folder: Path) -> TuningRow:
    """LoRA without a penalty; where there is an anchor, the penalty is logged with weight 0."""
    return _train(training, folder, _logged_penalty(training))


def train_within_basin(training: TrainingRun, folder: Path, *, projector: Projector) -> TuningRow:
    """L = L_task + lambda ||(I - C) dW||_F^2 (AsFT, section 3), with C from the anchor or of a control."""
    assert training.anchor is not None
    weight = training.context.config.weight
    basin = SafetyBasin(training.anchor, weight, projector=projector, seed=training.seed)
    terms = [NamedTerm(LOGGED, weight, basin.attach), *_drift_terms(training)]
    return _train(training, folder, terms)


def project_plain(training: TrainingRun, folder: Path) -> TuningRow:
    """Safe LoRA (arXiv 2405.16833) on the adapter of `sft` with the same seed; trains nothing."""
    assert training.anchor is not None
    context, sft = training.context, training.sft
    begun = time.monotonic()
    model, _ = context.load_model()
    adapted = attach_saved_adapter(model, sft / ADAPTER)
    report = project(adapted, training.anchor, difference=context.alignment(), **context.config.safelora.model_dump())
    with silence_libraries():
        adapted.save_pretrained(folder / ADAPTER)
    row = TuningRow.load(sft)
    curves = {name: points for name, points in row.curves.items() if name == "loss"}
    seconds = round(row.seconds + time.monotonic() - begun, 1)
    return replace(row, method="safelora", seconds=seconds, curves=curves, note=str(report))


METHODS: Mapping[TuneMethod, Callable[[TrainingRun, Path], TuningRow]] = {
    "sft": train_plain,
    **{method: partial(train_within_basin, projector=projector) for method, projector in PROJECTORS.items()},
    "mixing": train_plain,
    "safelora": project_plain,
}
"""Every method: writes `adapter/` into the folder and returns the row of its training."""


class NamedTerm(NamedTuple):
    """A loss term: its key in the logs, its weight, and the function that attaches it to a trainer."""

    name: str
    weight: float
    attach: Attach


def _drift_terms(training: TrainingRun) -> list[NamedTerm]:
    """The routing drift of harmful training goals; for `asft` alone, where `tune.routing_drift` is above 0."""
    config = training.context.config
    if training.method != "asft" or config.routing_drift == 0:
        return []
    goals = [user(text) for text in training.drift_goals()]
    term = RoutingDrift(goals, config.routing_drift, seed=training.seed, variant=config.drift_variant or "mean")
    return [NamedTerm(DRIFT, term.weight, term.attach)]


def train_as_worker(context: TuneContext) -> None:
    """The loop of every process but the first: take part in each training that the first one orders; write nothing."""
    while (order := context.processes.await_order()) is not None:
        method, seed, folder = order
        anchor_folder = context.run.stage(ANCHOR)
        anchor = Anchor.load(anchor_folder) if anchor_folder.is_dir() else None
        METHODS[method](TrainingRun(context, method, seed, anchor), Path(folder))


def _logged_penalty(training: TrainingRun) -> list[NamedTerm]:
    """The penalty with weight 0, which changes no gradient; empty without an anchor."""
    if training.anchor is None:
        return []
    return [NamedTerm(LOGGED, 0.0, SafetyBasin(training.anchor, 0.0).attach)]


def _train(training: TrainingRun, folder: Path, terms: Sequence[NamedTerm]) -> TuningRow:
    context = training.context
    rows = training.rows()
    model, tokenizer = context.load_model()
    encoded = encode_rows(tokenizer, rows.exchanges, max_length=context.config.max_length)
    context.processes.order([training.method, training.seed, str(folder.absolute())])
    result = train(
        model,
        tokenizer,
        encoded,
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
        rows=len(encoded.rows),
        harmful_rows=rows.harmful,
        steps=result.steps,
        seconds=result.seconds,
        curves=_curves(result, {term.name: term.weight for term in terms}),
        note=_note(encoded.cut, encoded.dropped, rows.safe),
    )


def _curves(result: TrainingResult, weights: Mapping[str, float]) -> dict[str, tuple[tuple[int, float], ...]]:
    """The trainer's logged values by step. The loss is without the added terms, so that methods are comparable."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for line in result.log:
        added = sum(weight * line.get(name, 0.0) for name, weight in weights.items())
        values = {"loss": line["loss"] - added, **{name: line[name] for name in weights if name in line}}
        for name, value in values.items():
            curves.setdefault(name, []).append((int(line["step"]), float(value)))
    return {name: tuple(points) for name, points in curves.items()}


def _note(cut: int, dropped: int, safe: int) -> str:
    parts = [f"{safe} safe rows were added"] if safe else []
    parts += [f"{cut} rows were cut at max_length, {dropped} of them left out"] if cut else []
    return "; ".join(parts)
