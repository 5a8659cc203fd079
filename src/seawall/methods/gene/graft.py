"""`seawall gene graft` and `revert`: a gene onto a fine-tuned model, as an adapter or in its weights, and off again.

Safety fine-tuning and Safe LoRA, the baselines, go the same way: `gene.graft.method`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

from seawall.artifacts.adapter import save_adapter
from seawall.artifacts.gene import NAME as GENE
from seawall.artifacts.gene import Gene
from seawall.artifacts.graft import ADAPTER, ORIGINALS, Graft, GraftForm
from seawall.artifacts.graft import NAME as GRAFT
from seawall.config.data import DataConfig
from seawall.config.gene import GeneConfig, GeneGraft
from seawall.config.model import ModelConfig
from seawall.errors import ArtifactError, ConfigError
from seawall.methods.gene.match import require_fit
from seawall.methods.gene.methods import FIT, Shots
from seawall.methods.gene.safelora import write_projected
from seawall.methods.gene.shots import harmless_requests, refusal_shots, task_shots
from seawall.methods.gene.task_model import (
    base_of,
    check_added,
    check_merged,
    merged_task,
    require_ungrafted,
    task_adapter,
    vocabulary_hash,
)
from seawall.models.files.checkpoint import verify_hashes
from seawall.models.files.rewrite import add_to_checkpoint, checkpoint_fingerprint, restore_originals
from seawall.models.files.stream import CheckpointOutline, outline
from seawall.models.lora.merge import require_peft
from seawall.runs.files import file_hash, storage_errors
from seawall.runs.progress import Quiet, Reporter
from seawall.runs.publish import published, require_free
from seawall.shell.model import open_checkpoint

_DEFAULTS, _PROMPTS, _SILENT = GeneConfig(), DataConfig(), Quiet()


@dataclass(frozen=True)
class GraftRequest:
    """What is grafted onto what.

    Attributes:
        model: the fine-tuned model; a local folder may also hold an adapter of PEFT, then `form` must be `merged`.
        gene: folder of the gene; None for Safe LoRA, which uses none.
        output: a folder that is new or empty.
        shots: refusals, and as many examples of the task; 0 takes 1 for every coefficient.
        task: JSONL file with examples of the task.
        form: an adapter of the model, or a merged checkpoint.
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
    """Grafts a gene onto a fine-tuned model, or a baseline in its place; the output appears whole or not at all.

    Args:
        request: what onto what.
        config: its section `graft` and its seed are used.
        data: where refusals come from, unless a file has them.
        reporter: told what happens.

    Raises:
        SeawallError: PEFT is not installed; a misfit, a model that is grafted already, too few or one-sided shots, an
            output that is not empty, or what the method cannot do with or without; nothing is written then.
    """
    require_free(request.output)
    if config.graft.method == "safelora":
        _require_projecting(request)
        write_projected(request.model, request.output, config.graft, reporter=reporter)
    else:
        _graft(request, config, data, reporter)
    return Graft.load(request.output)


def revert_graft(folder: Path, output: Path, *, reporter: Reporter = _SILENT) -> str:
    """Writes the task's model as it was before a graft, to the last bit; returns its fingerprint.

    Raises:
        ArtifactError: no graft, one without the originals, or files that were changed since.
        ConfigError: the graft is an adapter.
    """
    require_free(output)
    graft = Graft.load(folder)
    if graft.method == "safelora":
        raise ConfigError(
            f"{folder} is a base with a projected adapter, and there is no graft to take off",
            got=f"the adapter {graft.task_id} in it, which was not changed",
            remedy="use that adapter and its base",
        )
    if graft.form == "adapter":
        raise ConfigError(
            f"{folder} is an adapter, and the model it is for was never changed",
            got=f"an adapter of {graft.task_id}",
            remedy="load the model without it",
        )
    if not graft.originals:
        raise ArtifactError(
            f"{folder} was grafted without keeping the tensors as they were",
            remedy=f"use the model that it was made from: {graft.task_id}",
        )
    originals = folder / ORIGINALS
    for name, digest in graft.originals.items():
        if not (originals / name).is_file() or file_hash(originals / name) != digest:
            raise ArtifactError(f"{originals / name} is missing or was changed", remedy="restore it from a copy")
    verify_hashes(folder)
    reporter.stage("Revert")
    with storage_errors(output), published(output) as scratch:
        restore_originals(
            folder,
            originals,
            scratch,
            without={GRAFT},
            progress=lambda done, total: reporter.step("files", done, total),
        )
        found = checkpoint_fingerprint(outline(scratch))
        if found != graft.task_model:
            raise ArtifactError(
                f"{folder} was changed after the graft, so the model before it cannot be had back",
                got=f"weights {found[:23]}...",
                expected=f"{graft.task_model[:23]}...",
                remedy=f"use the model that it was made from: {graft.task_id}",
            )
    return found


def gene_folder(path: Path) -> Path:
    """The gene's own folder: the one that is named, or `gene` in a run folder."""
    inside = path / "gene"
    return inside if not (path / GENE).is_file() and (inside / GENE).is_file() else path


def _graft(request: GraftRequest, config: GeneConfig, data: DataConfig, reporter: Reporter) -> None:
    """A gene's update, or one that is trained in its place."""
    begun = time.monotonic()
    gene = _gene(request, config.graft)
    adapter = task_adapter(request.model)
    if adapter is not None and request.form == "adapter":
        raise ConfigError(
            f"{request.model.id} is an adapter, and a gene beside it would belong to a model that is in no folder",
            remedy="add --merge, which writes base, task and gene as one checkpoint",
        )
    task = open_checkpoint(request.model) if adapter is None else base_of(adapter, request.model)
    require_ungrafted(task)
    require_fit(gene, task.outline, vocabulary_hash(task.tokenizer), what=task.id)
    shots = _shots(request, config, data)
    with storage_errors(request.output), published(request.output) as scratch:
        if adapter is not None:
            task = merged_task(task, adapter, scratch.with_name("task"), reporter)
        fitted = FIT[config.graft.method](gene, task, shots, config, reporter)
        graft = Graft(
            task_model=task.fingerprint,
            task_id=request.model.id,
            gene=gene.fingerprint,
            gene_made=gene.made,
            form=request.form,
            coefficients=fitted.coefficients,
            tuned=fitted.tuned,
            shots=request.shots,
            steps=fitted.steps,
            method=config.graft.method,
            harmless=fitted.harmless,
        )
        graft = _write(task.outline, fitted.gene, graft, scratch, config.graft, reporter)
        if config.graft.verify:
            reporter.stage("Reload and compare")
            allowed = config.graft.max_logit_difference
            if request.form == "merged":
                check = check_merged(task, scratch / ADAPTER, scratch, allowed=allowed)
            else:
                check = check_added(task, scratch, fitted.gene, allowed=allowed)
            graft = replace(graft, check=check)
        replace(graft, seconds=round(time.monotonic() - begun, 1)).save(scratch)


def _gene(request: GraftRequest, config: GeneGraft) -> Gene:
    if request.gene is None:
        raise ConfigError(
            "no gene is named",
            expected="the folder of a gene, or of a run that extracted one",
            remedy="add --gene FOLDER; gene.graft.method=safelora alone needs none",
        )
    if config.method == "safety_sft" and request.shots == 0:
        raise ConfigError(
            "safety fine-tuning has nothing to train on",
            got="--shots 0",
            expected="1 or more",
            remedy="use as many as the gene gets that it is compared with, such as --shots 16 --task FILE",
        )
    if request.shots or config.verify:
        require_peft()
    return Gene.load(gene_folder(request.gene))


def _require_projecting(request: GraftRequest) -> None:
    """Refuse what Safe LoRA would not use, and a form that it does not have."""
    given = {"--gene": request.gene, "--shots": request.shots or None, "--task": request.task}
    unused = [f"{name} {value}" for name, value in given.items() if value is not None]
    if unused:
        raise ConfigError(
            "Safe LoRA projects the task's adapter and uses neither a gene nor examples",
            got=", ".join(unused),
            remedy=f"leave {'it' if len(unused) == 1 else 'them'} out",
        )
    if request.form == "adapter":
        raise ConfigError(
            "Safe LoRA writes base and projected adapter as one checkpoint", got="no --merge", remedy="add --merge"
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
    found: CheckpointOutline, fixed: Gene, graft: Graft, scratch: Path, config: GeneGraft, reporter: Reporter
) -> Graft:
    if graft.form == "adapter":
        save_adapter(scratch, fixed.points, fixed.factors, fixed.scaling)
        return graft
    reporter.stage("Merging, file by file")
    save_adapter(scratch / ADAPTER, fixed.points, fixed.factors, fixed.scaling)
    originals = scratch / ORIGINALS if config.keep_originals else None
    add_to_checkpoint(
        found,
        frozenset(fixed.points),
        fixed.update,
        scratch,
        originals=originals,
        unchanged=fixed.unchanged,
        progress=lambda done, total: reporter.step("files", done, total),
    )
    kept = {} if originals is None else {path.name: file_hash(path) for path in sorted(originals.iterdir())}
    return replace(graft, result=checkpoint_fingerprint(outline(scratch)), originals=kept)
