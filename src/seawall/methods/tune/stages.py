"""The stages of a fine-tuning run: the anchor, one training per method and seed, one evaluation of each."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from seawall.artifacts.anchor import Anchor
from seawall.artifacts.evaluation import EvalResult, Rate, Sample
from seawall.artifacts.groups import ATTACK as FAMILIES
from seawall.artifacts.groups import PLAIN
from seawall.artifacts.tuning import ATTACK, HARMFUL, TASK, TuningRow
from seawall.config.model import ModelConfig
from seawall.config.tune import TuneMethod
from seawall.evaluation.pooled import with_pooled
from seawall.evaluation.rates import group_rates
from seawall.evaluation.run import SAMPLES, evaluate
from seawall.evaluation.samples import load_samples
from seawall.evaluation.task import score_task
from seawall.methods.tune.anchor import describe
from seawall.methods.tune.context import TuneContext, settings
from seawall.methods.tune.methods import BUILD, Training
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
from seawall.models.files.fingerprint import model_fingerprint
from seawall.models.lora.merge import WEIGHTS, merge_adapter
from seawall.runs.files import file_hash, read_json, write_json, write_text
from seawall.runs.stage import is_current, is_done, remove_from_stage, run_stage, stage_hash
from seawall.shell.model import open_checkpoint
from seawall.version import __version__

_SCORE, _REPLIES = "task.json", "task.jsonl"
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
"""Settings that every adapter depends on, beside its rows."""


def anchor_stage(context: TuneContext) -> Anchor | None:
    """The anchor; None where no base is known, and no method asks for one."""
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
    folder = run_stage(context.run, ANCHOR, inputs, lambda scratch: context.make_anchor().save(scratch))
    found = Anchor.load(folder)
    context.reporter.say(describe(found))
    return found


def _file_hashes(config: ModelConfig) -> dict[str, str]:
    """Of a checkpoint's weights; a file that is missing is met where they are read."""
    return {path.name: file_hash(path) for path in weight_files(open_checkpoint(config).folder) if path.is_file()}


def measure_before(context: TuneContext) -> TuningRow:
    """The model as it was."""
    return evaluated_row(context, TuningRow(None, 0, {}), None)


def trained_stage(context: TuneContext, method: TuneMethod, seed: int, anchor: Anchor | None) -> tuple[TuningRow, Path]:
    """A training's row without rates, and the folder of its adapter."""
    name = stage_name(method, seed)
    training = Training(context, method, seed, anchor)

    def work(scratch: Path) -> None:
        context.reporter.stage(f"Train {method}, seed {seed}")
        row = BUILD[method](training, scratch)
        row.save(scratch)
        if row.contaminated:
            write_label(scratch / ADAPTER, row, context.recipe.model.id)

    folder = run_stage(context.run, name, training_inputs(training), work)
    return replace(TuningRow.load(folder), adapter=f"{name}/{ADAPTER}"), folder / ADAPTER


def evaluated_row(context: TuneContext, row: TuningRow, adapter: Path | None) -> TuningRow:
    """The row with its rates: refusals by the evaluation, the task by its score."""
    if not context.config.evaluate:
        return row
    inputs = evaluation_inputs(context, row.method, row.seed)
    name = evaluation_name(row.method, row.seed)
    folder = run_stage(context.run, name, inputs, lambda scratch: _evaluate(context, row, adapter, scratch))
    return replace(row, rates=_rates(context, folder))


def require_kept(context: TuneContext) -> None:
    """Refuse, before any work, what would need weights that were removed after their evaluation.

    Trainings depend on the anchor, so that it must be there.

    Raises:
        ArtifactError: a new evaluation, or a projection, of such an adapter.
    """
    run, config = context.run, context.config
    for method, seed in product(config.methods, config.seeds):
        name, made_from = (stage_name(one, seed) for one in (method, "sft"))
        if method == "safelora" and not is_current(
            run, made_from, training_inputs(Training(context, "sft", seed, None))
        ):
            continue
        if not is_current(run, name, training_inputs(Training(context, method, seed, None))):
            needed = [made_from] if method == "safelora" else []
        elif config.evaluate:
            evaluated = is_current(run, evaluation_name(method, seed), evaluation_inputs(context, method, seed))
            needed = [] if evaluated else [name]
        else:
            needed = []
        for one in needed:
            require_weights(run.stage(one) / ADAPTER)


def without_contaminated(context: TuneContext, row: TuningRow) -> TuningRow:
    """The row of an adapter as it is left: its weights go where it was trained on harmful rows and the recipe says so.

    Safe LoRA reads the adapter of `sft`, so that this comes after all trainings.
    """
    assert row.method is not None
    name, weights = stage_name(row.method, row.seed), f"{ADAPTER}/{WEIGHTS}"
    if row.contaminated and not context.config.keep_contaminated:
        remove_from_stage(context.run, name, weights)
    if (context.run.stage(name) / weights).is_file():
        return row
    note = "weights removed after the evaluation"
    return replace(row, adapter="", note=f"{row.note}; {note}" if row.note else note)


def _evaluate(context: TuneContext, row: TuningRow, adapter: Path | None, scratch: Path) -> None:
    reporter, config = context.reporter, context.recipe.eval.model_copy(update={"gold": False, "capability": None})
    what = "Evaluate before" if row.method is None else f"Evaluate {row.method}, seed {row.seed}"
    reporter.stage(f"{what}, on held-out prompts")
    suite = context.data.suite
    assert suite is not None
    model, tokenizer = context.fresh()
    if adapter is not None:
        model = merge_adapter(model, adapter)
    if context.data.task.test and not (scratch / _SCORE).is_file():
        _score(context, model, tokenizer, scratch)
    found = evaluate(
        model,
        tokenizer,
        suite,
        config,
        judge=context.judge,
        folder=scratch,
        fingerprint=model_fingerprint(model),
        progress=lambda done, total: reporter.step("asking", done, total),
    )
    found.save(scratch)


def _score(context: TuneContext, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, scratch: Path) -> None:
    """Answers of the task and their score. It comes first: an answer that cannot be scored is met at once."""
    rows, config = context.data.task.test, context.config.task
    scored = score_task(
        model,
        tokenizer,
        rows,
        answer=config.answer,
        max_new_tokens=config.max_new_tokens,
        batch_size=context.recipe.eval.batch_size,
        progress=lambda done, total: context.reporter.step("scoring", done, total),
    )
    lines = [
        {"prompt": one.goal, "wanted": one.response, "reply": reply, "right": right}
        for one, reply, right in zip(rows, scored.replies, scored.right, strict=True)
    ]
    write_text(scratch / _REPLIES, "".join(json.dumps(line) + "\n" for line in lines))
    write_json(scratch / _SCORE, {**asdict(scored.rate), "cut": scored.cut})


def _rates(context: TuneContext, folder: Path) -> dict[str, Rate]:
    """What is shown first comes first: harmful, attack, task; then the evaluation's groups."""
    samples: list[Sample] = load_samples(folder / SAMPLES)
    groups = dict(EvalResult.load(folder).groups)
    rates = {HARMFUL: _complied(groups[PLAIN])}
    if any(group.startswith(FAMILIES) for group in groups):
        config = context.recipe.eval
        pooled = group_rates(with_pooled(samples), resamples=config.bootstrap, seed=config.seed)
        rates[ATTACK] = pooled[ATTACK]
    if (folder / _SCORE).is_file():
        score = read_json(folder / _SCORE)
        rates[TASK] = Rate(**{name: score[name] for name in ("rate", "low", "high", "n", "unscored")})
    return {**rates, **groups}


def _complied(refused: Rate) -> Rate:
    """Compliance where a rate counts refusals: the other part of the scored replies."""
    return Rate(1 - refused.rate, 1 - refused.high, 1 - refused.low, refused.n, refused.unscored)


def evaluation_inputs(context: TuneContext, method: TuneMethod | None, seed: int) -> dict[str, Any]:
    """What an evaluation depends on."""
    return {
        "seawall": __version__,
        "weights": context.fingerprint,
        "tokenizer": context.checkpoint.wording,
        "adapter": None if method is None else stage_hash(context.run, stage_name(method, seed)),
        "prompts": context.data.prompts.fingerprint(),
        "task": rows_hash(context.data.task.test),
        "scoring": context.config.task.model_dump(mode="json", include={"answer", "max_new_tokens"}),
        "attacks": context.config.attacks,
        "eval": context.recipe.eval.model_dump(mode="json", exclude={"gold", "capability"}),
    }


def training_inputs(training: Training) -> dict[str, Any]:
    """What the adapter depends on."""
    context, config, method = training.context, training.context.config, training.method
    inputs: dict[str, Any] = {
        "seawall": __version__,
        "method": method,
        "seed": training.seed,
        "weights": context.fingerprint,
        "tokenizer": context.checkpoint.wording,
        "rows": rows_hash(training.rows().exchanges),
        "training": settings(config, *TRAINING),
        "processes": context.processes.count,
        "anchor": stage_hash(context.run, ANCHOR) if is_done(context.run, ANCHOR) else None,
    }
    return {**inputs, **training.own_inputs()}
