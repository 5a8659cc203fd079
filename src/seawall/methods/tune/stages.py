"""The stages of a fine-tuning run: the anchor, one training per method and seed, and an evaluation of each.

AsFT (arXiv 2506.08473), section 3: L = L_task + lambda ||(I - C) dW||_F^2 with C from V = W_aligned - W_base. The
anchor stage computes C's directions, `methods.py` adds the penalty, and every baseline trains on the same rows.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from seawall.artifacts.anchor import Anchor
from seawall.artifacts.tuning import TuningResult, TuningRow
from seawall.config.model import ModelConfig
from seawall.config.tune import TuneMethod
from seawall.evaluation.judges import judge_state
from seawall.methods.tune.anchor import describe
from seawall.methods.tune.claim import claim
from seawall.methods.tune.context import TuneContext, settings
from seawall.methods.tune.evaluate import evaluate_model, rates_of
from seawall.methods.tune.methods import METHODS, TrainingRun
from seawall.methods.tune.rows import rows_hash
from seawall.methods.tune.sft import ADAPTER
from seawall.methods.tune.training_record import (
    ANCHOR,
    evaluation_name,
    require_weights,
    stage_name,
    write_label,
)
from seawall.models.files.checkpoint import weight_files
from seawall.models.lora.merge import WEIGHTS
from seawall.runs.files import file_hash
from seawall.runs.stage import is_current, is_done, remove_from_stage, run_stage, stage_hash
from seawall.shell.model import open_checkpoint
from seawall.version import __version__

TRAINING = (
    "lora",
    "lr",
    "lr_scheduler_type",
    "epochs",
    "batch_size",
    "accumulation",
    "max_length",
    "gradient_checkpointing",
)
"""Settings that every adapter depends on, in addition to its rows."""


def tune(context: TuneContext) -> TuningResult:
    """Every method and seed of the recipe, evaluated before and after."""
    config, data = context.config, context.data
    # The directions of alignment: left singular vectors of V = W_aligned - W_base, matrix by matrix (section 3).
    anchor = anchor_stage(context)
    require_training_weights(context)
    context.note({"data": {"task": rows_hash((*data.task.train, *data.task.test))}})
    before = baseline_stage(context)
    rows = []
    # Safe LoRA projects the adapter of `sft`, so it comes last.
    for method in sorted(config.methods, key=lambda method: method == "safelora"):
        for seed in config.seeds:
            row, adapter = training_stage(context, method, seed, anchor)
            rows.append(evaluation_stage(context, row, adapter))
    result = TuningResult(
        model_fingerprint=context.fingerprint,
        base_fingerprint=None if anchor is None else anchor.base,
        task=data.task.name,
        contamination=config.contamination,
        weight=config.weight,
        before=before,
        rows=tuple(remove_contaminated(context, row) for row in rows),
    )
    return replace(result, claim=claim(result))


def anchor_stage(context: TuneContext) -> Anchor | None:
    """The anchor; None without a base, which no method of the recipe then needs."""
    if context.base is None:
        return None
    context.reporter.stage(f"Anchor, from {context.recipe.model.id} and {context.base.id}")
    config = context.anchor_config()
    inputs = {
        "seawall": __version__,
        "weights": context.fingerprint,
        "base": _file_hashes(context.base),
        "anchor": config.model_dump(mode="json"),
    }
    folder = run_stage(
        context.run, ANCHOR, inputs, lambda scratch: context.make_anchor().save(scratch), skipped=context.reporter.say
    )
    anchor = Anchor.load(folder)
    context.reporter.say(describe(anchor))
    return anchor


def baseline_stage(context: TuneContext) -> TuningRow:
    """The evaluation of the model before fine-tuning."""
    return evaluation_stage(context, TuningRow(None, 0, {}), None)


def training_stage(
    context: TuneContext, method: TuneMethod, seed: int, anchor: Anchor | None
) -> tuple[TuningRow, Path]:
    """One training: its row, without rates, and the folder of its adapter."""
    name = stage_name(method, seed)
    training = TrainingRun(context, method, seed, anchor)

    def work(scratch: Path) -> None:
        context.reporter.stage(f"Train {method}, seed {seed}")
        row = METHODS[method](training, scratch)
        row.save(scratch)
        if row.contaminated:
            write_label(scratch / ADAPTER, row, context.recipe.model.id)

    folder = run_stage(context.run, name, training_inputs(training), work, skipped=context.reporter.say)
    return replace(TuningRow.load(folder), adapter=f"{name}/{ADAPTER}"), folder / ADAPTER


def evaluation_stage(context: TuneContext, row: TuningRow, adapter: Path | None) -> TuningRow:
    """The row with its rates: refusals from the evaluation, the task from its score."""
    if not context.config.evaluate:
        return row
    inputs = evaluation_inputs(context, row.method, row.seed)
    name = evaluation_name(row.method, row.seed)
    folder = run_stage(
        context.run,
        name,
        inputs,
        lambda scratch: evaluate_model(context, row, adapter, scratch),
        skipped=context.reporter.say,
    )
    return replace(row, rates=rates_of(context, folder))


def require_training_weights(context: TuneContext) -> None:
    """Refuse, before any work, a stage that needs adapter weights which were removed after their evaluation.

    A training's inputs include the anchor, so the anchor stage must be done.

    Raises:
        ArtifactError: a new evaluation or projection of such an adapter.
    """
    run, config = context.run, context.config
    for method, seed in product(config.methods, config.seeds):
        name, sft = (stage_name(source, seed) for source in (method, "sft"))
        if method == "safelora" and not is_current(run, sft, training_inputs(TrainingRun(context, "sft", seed, None))):
            continue
        if not is_current(run, name, training_inputs(TrainingRun(context, method, seed, None))):
            needed = [sft] if method == "safelora" else []
        elif config.evaluate:
            evaluated = is_current(run, evaluation_name(method, seed), evaluation_inputs(context, method, seed))
            needed = [] if evaluated else [name]
        else:
            needed = []
        for stage in needed:
            require_weights(run.stage(stage) / ADAPTER)


def remove_contaminated(context: TuneContext, row: TuningRow) -> TuningRow:
    """Removes the weights of an adapter trained on harmful rows, unless the recipe keeps them; returns its row.

    Call it after all trainings: Safe LoRA reads the adapter of `sft`.
    """
    assert row.method is not None
    name, weights = stage_name(row.method, row.seed), f"{ADAPTER}/{WEIGHTS}"
    if row.contaminated and not context.config.keep_contaminated:
        remove_from_stage(context.run, name, weights)
    if (context.run.stage(name) / weights).is_file():
        return row
    note = "weights removed after the evaluation"
    return replace(row, adapter="", note=f"{row.note}; {note}" if row.note else note)


def training_inputs(training: TrainingRun) -> dict[str, Any]:
    """The inputs of a training stage."""
    context, config, method = training.context, training.context.config, training.method
    inputs: dict[str, Any] = {
        "seawall": __version__,
        "method": method,
        "seed": training.seed,
        "weights": context.fingerprint,
        "tokenizer": context.checkpoint.wording,
        "rendered": context.checkpoint.rendered,
        "settings": context.checkpoint.settings,
        "rows": rows_hash(training.rows().exchanges),
        "training": settings(config, *TRAINING),
        "processes": context.processes.count,
        "anchor": stage_hash(context.run, ANCHOR) if is_done(context.run, ANCHOR) else None,
    }
    return {**inputs, **training.own_inputs()}


def evaluation_inputs(context: TuneContext, method: TuneMethod | None, seed: int) -> dict[str, Any]:
    """The inputs of an evaluation stage."""
    return {
        "seawall": __version__,
        "weights": context.fingerprint,
        "tokenizer": context.checkpoint.wording,
        "rendered": context.checkpoint.rendered,
        "settings": context.checkpoint.settings,
        "judge_state": judge_state(context.recipe.eval.judge),
        "adapter": None if method is None else stage_hash(context.run, stage_name(method, seed)),
        "prompts": context.data.prompts.fingerprint(),
        "task": rows_hash(context.data.task.test),
        "scoring": context.config.task.model_dump(mode="json", include={"answer", "max_new_tokens"}),
        "attacks": context.config.attacks,
        "eval": context.recipe.eval.model_dump(mode="json", exclude={"gold", "capability"}),
    }


def _file_hashes(config: ModelConfig) -> dict[str, str]:
    """Hashes of a checkpoint's weight files; a missing file is reported by the code that reads it."""
    return {path.name: file_hash(path) for path in weight_files(open_checkpoint(config).folder) if path.is_file()}
