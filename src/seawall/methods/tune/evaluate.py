"""The evaluation of a model before and after fine-tuning: refusals on held-out prompts, and the task's score."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from seawall.artifacts.evaluation import EvalResult, Rate, Sample
from seawall.artifacts.groups import ATTACK as FAMILIES
from seawall.artifacts.groups import PLAIN
from seawall.artifacts.tuning import ATTACK, HARMFUL, TASK, TuningRow
from seawall.evaluation.pooled import with_pooled
from seawall.evaluation.rates import group_rates, not_refused
from seawall.evaluation.run import SAMPLES, evaluate
from seawall.evaluation.samples import load_samples
from seawall.evaluation.task import score_task
from seawall.methods.tune.context import TuneContext
from seawall.models.files.fingerprint import model_fingerprint
from seawall.runs.files import read_json, write_json, write_text

_SCORE, _REPLIES = "task.json", "task.jsonl"


def evaluate_model(context: TuneContext, row: TuningRow, adapter: Path | None, scratch: Path) -> None:
    """Writes the evaluation of the model, with the adapter merged if there is one, into a stage's scratch folder."""
    reporter, config = context.reporter, context.recipe.eval.model_copy(update={"gold": False, "capability": None})
    what = "Evaluate before" if row.method is None else f"Evaluate {row.method}, seed {row.seed}"
    reporter.stage(f"{what}, on held-out prompts")
    suite = context.data.suite
    assert suite is not None
    model, tokenizer = context.load_model() if adapter is None else context.load_merged(adapter)
    # The task is scored before the prompts are asked, so that an answer that cannot be scored is an early error.
    if context.data.task.test and not (scratch / _SCORE).is_file():
        _score(context, model, tokenizer, scratch)
    result = evaluate(
        model,
        tokenizer,
        suite,
        config,
        judge=context.judge,
        folder=scratch,
        fingerprint=model_fingerprint(model),
        progress=lambda count, total: reporter.step("asking", count, total),
    )
    result.save(scratch)


def rates_of(context: TuneContext, folder: Path) -> dict[str, Rate]:
    """The rates of a finished evaluation: harmful, attack and task first, then the evaluation's groups."""
    samples: list[Sample] = load_samples(folder / SAMPLES)
    groups = dict(EvalResult.load(folder).groups)
    plain = [sample for sample in samples if sample.group == PLAIN]
    rates = {HARMFUL: not_refused(plain)}
    if any(group.startswith(FAMILIES) for group in groups):
        pooled = group_rates(with_pooled(samples))
        rates[ATTACK] = pooled[ATTACK]
    if (folder / _SCORE).is_file():
        score = read_json(folder / _SCORE)
        rates[TASK] = Rate(**{name: score[name] for name in ("rate", "low", "high", "n", "unscored")})
    return {**rates, **groups}


def _score(context: TuneContext, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, scratch: Path) -> None:
    """Writes the model's answers to the task's test rows, and their score."""
    rows, config = context.data.task.test, context.config.task
    scored = score_task(
        model,
        tokenizer,
        rows,
        answer=config.answer,
        max_new_tokens=config.max_new_tokens,
        batch_size=context.recipe.eval.batch_size,
        progress=lambda count, total: context.reporter.step("scoring", count, total),
    )
    lines = [
        {"prompt": row.goal, "wanted": row.response, "reply": reply, "right": right}
        for row, reply, right in zip(rows, scored.replies, scored.right, strict=True)
    ]
    write_text(scratch / _REPLIES, "".join(json.dumps(line) + "\n" for line in lines))
    write_json(scratch / _SCORE, {**asdict(scored.rate), "cut": scored.cut})
