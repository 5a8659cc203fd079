"""`seawall gene extract`: an aligned model's safety, distilled into an adapter. No harmful reply is trained or kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from seawall.artifacts.gene import (
    Gene,
)
from seawall.config.recipe import Recipe
from seawall.data.splits import SplitName
from seawall.errors import DataError
from seawall.methods.gene.context import GENE, REPLIES, GeneContext
from seawall.methods.gene.match import require_siblings
from seawall.methods.gene.stages import _gene, _replies
from seawall.methods.gene.task_model import vocabulary_hash
from seawall.methods.gene.view import claim, gene_view
from seawall.models.lora.merge import require_peft
from seawall.report import render_gene
from seawall.runs.files import read_json, write_text
from seawall.runs.progress import Reporter
from seawall.runs.stage import run_stage, stage_hash
from seawall.shell.job import new_run, read_inputs
from seawall.shell.model import require_loadable
from seawall.version import __version__


def extract_gene(recipe: Recipe, folder: Path, *, text: str, reporter: Reporter) -> Gene:
    """Extracts a gene from a recipe's model into `gene/` of a run folder, or goes on with that.

    Args:
        recipe: model, prompts and settings.
        folder: the run folder.
        text: the recipe as the user wrote it.
        reporter: told what happens.

    Raises:
        SeawallError: something is wrong that the user can put right.
    """
    require_loadable(recipe.eval.engine, "a gene cannot be taken from a model behind an endpoint")
    prompts = read_inputs(recipe)
    run = new_run(recipe, folder, text)
    context = GeneContext(recipe, run, reporter, prompts)
    with context.working("gene_prompts"):
        _check(context)
        run_stage(run, REPLIES, _replies_inputs(context), lambda scratch: _replies(context, scratch))
        known = {**_basis(context), "replies": stage_hash(run, REPLIES)}
        inputs = {**known, "gene": recipe.gene.model_dump(mode="json", exclude={"graft"})}
        if context.degraded is not None:
            inputs["degraded"] = context.degraded.fingerprint
        found = Gene.load(run_stage(run, GENE, inputs, lambda scratch: _gene(context, scratch)))
        reporter.say(claim(found))
        page = render_gene(
            gene_view(found),
            model=recipe.model.id,
            recipe=recipe.model_dump(mode="json"),
            manifest=read_json(run.manifest),
        )
        write_text(run.gene_report, page)
    return found


def _check(context: GeneContext) -> None:
    """Everything that can be wrong before the first model is loaded."""
    require_peft()
    points, aligned, degraded = context.points, context.checkpoint, context.degraded
    if degraded is not None:
        vocabularies = (vocabulary_hash(aligned.tokenizer), vocabulary_hash(degraded.tokenizer))
        require_siblings(aligned.outline, degraded.outline, points, vocabularies)
    parts: tuple[SplitName, ...] = ("train", "validation")
    for harmful, name in ((True, "harmful"), (False, "benign")):
        for part in parts:
            if not context.asked(part, harmful=harmful, most=1):
                raise DataError(
                    f"there are no {name} prompts in the {part} part",
                    got=f"an empty {part} part of data.{name}",
                    expected="prompts on both sides in both parts",
                    remedy="use more prompts, or name the part of each with `split`",
                )


def _basis(context: GeneContext) -> dict[str, Any]:
    """What every stage depends on: replies alone do not tell two models apart."""
    return {
        "seawall": __version__,
        "weights": context.checkpoint.fingerprint,
        "dtype": context.recipe.model.dtype,
        "tokenizer": context.checkpoint.wording,
        "prompts": context.prompts.fingerprint(),
        "judge": context.recipe.eval.judge.model_dump(mode="json"),
    }


def _replies_inputs(context: GeneContext) -> dict[str, Any]:
    config = context.config.extract
    wanted = config.model_dump(mode="json", include={"harmful", "benign", "held_out", "max_new_tokens"})
    return {**_basis(context), "extract": wanted}
