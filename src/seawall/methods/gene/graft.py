"""`seawall gene graft` and `revert`: add a gene to a fine-tuned model, as an adapter or merged, and remove it.

Baselines use the same command (`gene.graft.method`).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

from seawall.artifacts.adapter import save_adapter
from seawall.artifacts.gene import NAME as GENE
from seawall.artifacts.gene import Gene
from seawall.artifacts.graft import ADAPTER, ORIGINALS, Graft, GraftCheck, GraftForm
from seawall.artifacts.graft import NAME as GRAFT
from seawall.config.data import DataConfig
from seawall.config.gene import PROJECTING, GeneConfig, GeneGraft, GraftMethod
from seawall.config.model import ModelConfig
from seawall.config.recipe import Recipe
from seawall.errors import ArtifactError, ConfigError
from seawall.methods.gene.calibrate import within_limit
from seawall.methods.gene.dare import task_checkpoint
from seawall.methods.gene.match import require_fit
from seawall.methods.gene.methods import METHODS, GraftUpdate
from seawall.methods.gene.safelora import write_projected
from seawall.methods.gene.safemerge import write_merged
from seawall.methods.gene.shots import Shots, borderline_requests, harmless_requests, refusal_shots, task_shots
from seawall.methods.gene.task_model import (
    base_of,
    check_added,
    check_merged,
    require_ungrafted,
    task_adapter,
    vocabulary_hash,
)
from seawall.models.files.checkpoint import verify_hashes
from seawall.models.files.open import Checkpoint
from seawall.models.files.rewrite import add_to_checkpoint, checkpoint_fingerprint, restore_originals
from seawall.models.files.stream import CheckpointOutline, outline
from seawall.models.lora.merge import require_peft
from seawall.runs.files import file_hash, storage_errors
from seawall.runs.progress import Quiet, Reporter
from seawall.runs.publish import published, require_free
from seawall.shell.model import open_checkpoint
from seawall.shell.planned import placed_model

_DEFAULTS, _PROMPTS, _SILENT = GeneConfig(), DataConfig(), Quiet()


@dataclass(frozen=True)
class GraftRequest:
    """A gene, the model it is grafted onto, and the form of the result.

    Attributes:
        model: the fine-tuned model; a local folder may also hold a PEFT adapter, which needs `form="merged"`.
        gene: the gene's folder; None for Safe LoRA alone.
        output: a new or empty folder.
        shots: number of refusals, and of task examples, to tune coefficients on; 0 skips tuning (every coefficient
            stays 1).
        task: JSONL file with task examples.
        form: `adapter` (of the model) or `merged` (a checkpoint).
    """

    model: ModelConfig
    gene: Path | None
    output: Path
    shots: int = 0
    task: Path | None = None
    form: GraftForm = "adapter"


def graft_gene(
    request: GraftRequest,
    config: GeneConfig = _DEFAULTS,
    data: DataConfig = _PROMPTS,
    *,
    reporter: Reporter = _SILENT,
) -> Graft:
    """Grafts a gene onto a fine-tuned model, or applies a baseline; the output folder is published atomically.

    Args:
        request: gene, model and form.
        config: section `gene` of a recipe; its `graft` and seed are used.
        data: source of refusals, unless `config.graft.refusals` names a file.
        reporter: receives progress.

    Raises:
        SeawallError: PEFT is not installed; gene and model do not match; the model holds a graft; too few shots; the
            output is not empty; options that the method does not support. Nothing is written then.
    """
    require_free(request.output)
    if config.graft.method == "safelora":
        _require_projecting(request, "Safe LoRA", {"--gene": request.gene})
        write_projected(request.model, request.output, config.graft, reporter=reporter)
    elif config.graft.method == "safemerge":
        _require_projecting(request, "SafeMERGE", {})
        gene = _gene(request, config.graft)
        write_merged(request.model, gene, request.output, config.graft, reporter=reporter)
    else:
        _graft(request, config, data, reporter)
    return Graft.load(request.output)


def revert_graft(folder: Path, output: Path, *, reporter: Reporter = _SILENT) -> str:
    """Writes the fine-tuned model as it was before a graft, bit-identical; returns its fingerprint.

    Raises:
        ArtifactError: no graft, a graft without the original tensors, or changed files.
        ConfigError: the graft is an adapter, or Safe LoRA.
    """
    require_free(output)
    graft = Graft.load(folder)
    originals = folder / ORIGINALS
    _require_revertible(folder, graft)
    reporter.stage("Revert")
    with storage_errors(output), published(output) as scratch:
        restore_originals(
            folder,
            originals,
            scratch,
            without={GRAFT},
            progress=lambda count, total: reporter.step("files", count, total),
        )
        fingerprint = checkpoint_fingerprint(outline(scratch))
        if fingerprint != graft.task_model:
            raise ArtifactError(
                f"{folder} was changed after the graft, so the graft cannot be reverted",
                got=f"weights {fingerprint[:23]}...",
                expected=f"{graft.task_model[:23]}...",
                remedy=f"use the model before the graft: {graft.task_id}",
            )
    return fingerprint


def gene_folder(path: Path) -> Path:
    """The gene's folder: `path` itself, or `gene` in a run folder."""
    inside = path / "gene"
    return inside if not (path / GENE).is_file() and (inside / GENE).is_file() else path


def _require_revertible(folder: Path, graft: Graft) -> None:
    if graft.method in PROJECTING:
        raise ConfigError(
            f"{folder} holds no graft to revert: it is a base merged with a changed adapter",
            got=f"the adapter {graft.task_id}",
            remedy="use that adapter, which is unchanged, and its base",
        )
    if graft.form == "adapter":
        raise ConfigError(
            f"{folder} is an adapter: there is no changed model to revert",
            got=f"an adapter of {graft.task_id}",
            remedy="load the model without the adapter",
        )
    if not graft.originals:
        raise ArtifactError(
            f"{folder} holds no original tensors (gene.graft.keep_originals=false), so it cannot be reverted",
            remedy=f"use the model before the graft: {graft.task_id}",
        )
    originals = folder / ORIGINALS
    for name, digest in graft.originals.items():
        if not (originals / name).is_file() or file_hash(originals / name) != digest:
            raise ArtifactError(f"{originals / name} is missing or was changed", remedy="restore it from a copy")
    verify_hashes(folder)


def _graft(request: GraftRequest, config: GeneConfig, data: DataConfig, reporter: Reporter) -> None:
    """Adds the update of a method in `METHODS`, and checks the written result."""
    begun = time.monotonic()
    gene = _gene(request, config.graft)
    adapter = task_adapter(request.model)
    if adapter is not None and request.form == "adapter":
        raise ConfigError(
            f"{request.model.id} is an adapter, so a gene in adapter form would have no base checkpoint",
            remedy="add --merge, which writes base, task adapter and gene as one checkpoint",
        )
    if adapter is None and config.graft.drop is not None:
        raise ConfigError(
            f"{request.model.id} is a checkpoint, so the update of its fine-tuning is not known",
            got="gene.graft.drop",
            expected="the adapter of the fine-tuning",
            remedy="name that adapter, or leave gene.graft.drop out",
        )
    task = open_checkpoint(request.model) if adapter is None else base_of(adapter, request.model)
    require_ungrafted(task)
    recipe = Recipe(model=task.config, gene=config, data=data)
    task = Checkpoint(placed_model(recipe, ("gene graft",), say=reporter.say))
    require_fit(gene, task.outline, vocabulary_hash(task.tokenizer), what=task.id)
    shots = _shots(request, config, data)
    borderline = borderline_requests(data, config.graft)
    with storage_errors(request.output), published(request.output) as scratch:
        if adapter is not None:
            task = task_checkpoint(task, adapter, scratch.with_name("task"), config, reporter)
        update = METHODS[config.graft.method](gene, task, shots, config, reporter)
        if borderline:
            update = within_limit(update, task, borderline, config, reporter)
        graft = _record(request, config.graft.method, gene, task, update)
        graft = _write(task.outline, update.gene, graft, scratch, config.graft, reporter)
        if config.graft.verify:
            reporter.stage("Reload and compare")
            check = _checked(task, update.gene, scratch, request.form, allowed=config.graft.max_logit_difference)
            graft = replace(graft, check=check)
        replace(graft, seconds=round(time.monotonic() - begun, 1)).save(scratch)


def _record(request: GraftRequest, method: GraftMethod, gene: Gene, task: Checkpoint, update: GraftUpdate) -> Graft:
    return Graft(
        task_model=task.fingerprint,
        task_id=request.model.id,
        gene=gene.fingerprint,
        gene_made=gene.made,
        form=request.form,
        coefficients=update.coefficients,
        tuned=update.tuned,
        shots=request.shots,
        steps=update.steps,
        method=method,
        harmless=update.harmless,
        limit=update.limit,
    )


def _checked(task: Checkpoint, update: Gene, scratch: Path, form: GraftForm, *, allowed: float) -> GraftCheck:
    if form == "merged":
        return check_merged(task, scratch / ADAPTER, scratch, allowed=allowed)
    return check_added(task, scratch, update, allowed=allowed)


def _gene(request: GraftRequest, config: GeneGraft) -> Gene:
    if request.gene is None:
        raise ConfigError(
            "no gene is named",
            expected="the folder of a gene, or of a run that extracted one",
            remedy="add --gene FOLDER, or use gene.graft.method=safelora, which needs no gene",
        )
    if config.method == "safety_sft" and request.shots == 0:
        raise ConfigError(
            "safety fine-tuning has nothing to train on",
            got="--shots 0",
            expected="1 or more",
            remedy="use the same number of shots as the gene in comparison, such as --shots 16 --task FILE",
        )
    if request.shots or config.verify:
        require_peft()
    return Gene.load(gene_folder(request.gene))


def _require_projecting(request: GraftRequest, method: str, unwanted: dict[str, object]) -> None:
    """Refuse options that a method of the task's own adapter does not use, and the form `adapter`."""
    options = {**unwanted, "--shots": request.shots or None, "--task": request.task}
    unused = [f"{name} {value}" for name, value in options.items() if value is not None]
    if unused:
        raise ConfigError(
            f"{method} changes the task's adapter by the directions of alignment, without tuning",
            got=", ".join(unused),
            remedy=f"remove {' and '.join(name.split()[0] for name in unused)}",
        )
    if request.form == "adapter":
        raise ConfigError(
            f"{method} writes base and changed adapter as one checkpoint", got="no --merge", remedy="add --merge"
        )


def _shots(request: GraftRequest, config: GeneConfig, data: DataConfig) -> Shots | None:
    if request.shots == 0:
        return None
    task = task_shots(request.task, request.shots, seed=config.seed)
    path = None if config.graft.refusals is None else Path(config.graft.refusals)
    harmless = request.shots if config.graft.harmless is None else config.graft.harmless
    return Shots(
        refusal_shots(data, path, request.shots, seed=config.seed),
        task,
        harmless_requests(data, harmless, seed=config.seed) if harmless else (),
    )


def _write(
    task: CheckpointOutline, update: Gene, graft: Graft, scratch: Path, config: GeneGraft, reporter: Reporter
) -> Graft:
    if graft.form == "adapter":
        save_adapter(scratch, update.points, update.factors, update.scaling)
        return graft
    reporter.stage("Merging, file by file")
    save_adapter(scratch / ADAPTER, update.points, update.factors, update.scaling)
    originals = scratch / ORIGINALS if config.keep_originals else None
    add_to_checkpoint(
        task,
        frozenset(update.points),
        update.update,
        scratch,
        originals=originals,
        unchanged=update.unchanged,
        progress=lambda count, total: reporter.step("files", count, total),
    )
    hashes = {} if originals is None else {path.name: file_hash(path) for path in sorted(originals.iterdir())}
    return replace(graft, result=checkpoint_fingerprint(outline(scratch)), originals=hashes)
