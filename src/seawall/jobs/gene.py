"""`seawall gene extract`: distil an aligned model's safety into an adapter. Trains on and stores no harmful reply."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

from seawall.artifacts.gene import Gene
from seawall.config.recipe import Recipe
from seawall.data.prompts import BORDERLINE_REQUEST, RequestKind
from seawall.data.splits import SplitName
from seawall.errors import DataError
from seawall.evaluation.judges import judge_state
from seawall.methods.gene.claim import claim
from seawall.methods.gene.context import GENE, REPLIES, GeneContext
from seawall.methods.gene.match import require_siblings
from seawall.methods.gene.stages import collect_replies, distil_gene
from seawall.methods.gene.task_model import vocabulary_hash
from seawall.methods.gene.view import gene_view
from seawall.models.lora.merge import require_peft
from seawall.report import render_gene
from seawall.runs.files import read_json, write_text
from seawall.runs.progress import Reporter
from seawall.runs.stage import run_stage, stage_hash
from seawall.shell.engines import engine_inputs, require_loadable
from seawall.shell.job import new_run, read_inputs
from seawall.version import __version__


def extract_gene(recipe: Recipe, folder: Path, *, text: str, reporter: Reporter) -> Gene:
    """Extracts a gene from a recipe's model into `gene/` of a run folder; continues an interrupted extraction.

    Args:
        recipe: model, prompts and settings.
        folder: the run folder.
        text: the recipe as the user wrote it.
        reporter: receives progress and the claim.

    Raises:
        SeawallError: an error that the user can correct.
    """
    require_loadable(recipe, "a gene cannot be extracted from a model behind an endpoint")
    prompts = read_inputs(recipe)
    run = new_run(recipe, folder, text)
    context = GeneContext(recipe, run, reporter, prompts, verbs=("gene extract",))
    with context.working("gene_prompts"):
        _check(context)
        run_stage(
            run,
            REPLIES,
            _replies_inputs(context),
            lambda scratch: collect_replies(context, scratch),
            skipped=reporter.say,
        )
        stage = run_stage(
            run, GENE, _gene_inputs(context), lambda scratch: distil_gene(context, scratch), skipped=reporter.say
        )
        gene = Gene.load(stage)
        reporter.say(claim(gene))
        page = render_gene(
            gene_view(gene),
            model=recipe.model.id,
            recipe=recipe.model_dump(mode="json"),
            manifest=read_json(run.manifest),
        )
        write_text(run.gene_report, page)
    return gene


def _check(context: GeneContext) -> None:
    """Refuse a degraded model of another architecture, and missing prompts, before the first model is loaded."""
    require_peft()
    points, aligned, degraded = context.points, context.checkpoint, context.degraded
    if degraded is not None:
        vocabularies = (vocabulary_hash(aligned.tokenizer), vocabulary_hash(degraded.tokenizer))
        require_siblings(aligned.outline, degraded.outline, points, vocabularies)
    parts: tuple[SplitName, ...] = ("train", "validation")
    kinds: list[RequestKind] = ["harmful", "benign"]
    if context.config.extract.borderline:
        kinds.append(BORDERLINE_REQUEST)
    for name, part in product(kinds, parts):
        if not context.requests(part, name, limit=1):
            raise DataError(
                f"there are no {name} prompts in the {part} split",
                got=f"an empty {part} split of data.{name}",
                expected=f"{', '.join(kinds)} prompts in both splits",
                remedy="use more prompts, or assign each to a split with `split`; gene.extract.borderline=0 needs no "
                "borderline ones",
            )


def _common_inputs(context: GeneContext) -> dict[str, Any]:
    """Inputs of both stages: two models can give the same replies, so the weights are among them."""
    return {
        "seawall": __version__,
        "weights": context.checkpoint.fingerprint,
        "dtype": context.recipe.model.dtype,
        "tokenizer": context.checkpoint.wording,
        "rendered": context.checkpoint.rendered,
        "settings": context.checkpoint.settings,
        "judge_state": judge_state(context.recipe.eval.judge),
        "prompts": context.prompts.fingerprint(),
        "judge": context.recipe.eval.judge.model_dump(mode="json"),
    }


def _replies_inputs(context: GeneContext) -> dict[str, Any]:
    settings = {"harmful", "benign", BORDERLINE_REQUEST, "held_out", "max_new_tokens"}
    extract = context.config.extract.model_dump(mode="json", include=settings)
    return {**_common_inputs(context), "extract": extract, **engine_inputs(context.recipe.engine)}


def _gene_inputs(context: GeneContext) -> dict[str, Any]:
    inputs = {
        **_common_inputs(context),
        "replies": stage_hash(context.run, REPLIES),
        "gene": context.config.model_dump(mode="json", exclude={"graft"}),
    }
    return inputs if context.degraded is None else {**inputs, "degraded": context.degraded.fingerprint}
