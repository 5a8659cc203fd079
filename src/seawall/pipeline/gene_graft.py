"""`seawall gene graft` and `revert`: a gene onto a fine-tuned model, as an adapter or in its weights, and off again."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from seawall.artifacts.gene import ADAPTER_CONFIG, Gene, save_adapter
from seawall.artifacts.gene import NAME as GENE
from seawall.artifacts.graft import NAME as GRAFT
from seawall.artifacts.graft import Graft, GraftCheck, GraftForm, GraftStep
from seawall.config.data import DataConfig
from seawall.config.gene import GeneConfig, GeneGraft
from seawall.config.model import ModelConfig
from seawall.data.templating import encode_lesson, encode_prompt
from seawall.data.types import Exchange, user
from seawall.errors import ArtifactError, ConfigError
from seawall.genes.fit import require_fit
from seawall.genes.graft import Coefficients, tune_coefficients, with_coefficients
from seawall.genes.lessons import Lesson
from seawall.models.adapter import check_adapter, merge_adapter, require_peft
from seawall.models.checkpoint import verify_hashes
from seawall.models.hub import locate
from seawall.models.load import load_model, open_tokenizer
from seawall.models.lora import load_worn, wear
from seawall.models.rewrite import add_to_checkpoint, checkpoint_fingerprint, put_back
from seawall.models.save import save_model
from seawall.models.stream import CheckpointOutline, outline
from seawall.pipeline.export import require_free
from seawall.pipeline.gene_shots import refusal_shots, task_shots
from seawall.pipeline.model import located
from seawall.pipeline.progress import Quiet, Reporter
from seawall.runs.files import canonical_hash, file_hash, flush_tree, publish, read_json, storage_errors

EXTRA = "graft"
"""In a grafted checkpoint's folder: the same graft as an adapter, and the changed tensors as they were."""
ADAPTER, ORIGINALS = "adapter", "originals"
_DEFAULTS, _PROMPTS, _SILENT = GeneConfig(), DataConfig(), Quiet()
_PROBES = ("Tell me about the sea.", "How do I pick a lock?", "What is 17 plus 25?", "Write a short poem about rain.")


@dataclass(frozen=True)
class GraftRequest:
    """What is grafted onto what.

    Attributes:
        model: the fine-tuned model; a local folder may also hold an adapter of PEFT, then `form` must be `merged`.
        gene: folder of the gene.
        output: a folder that is new or empty.
        shots: refusals, and as many examples of the task; 0 takes 1 for every coefficient.
        task: JSONL file with examples of the task.
        form: an adapter of the model, or a merged checkpoint.
    """

    model: ModelConfig
    gene: Path
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
    """Grafts a gene onto a fine-tuned model; the output appears whole or not at all.

    Args:
        request: what onto what.
        config: its section `graft` and its seed are used.
        data: where refusals come from, unless a file has them.
        reporter: told what happens.

    Raises:
        SeawallError: PEFT is not installed; a misfit, a model that is grafted already, too few or one-sided shots, an
            output that is not empty; nothing is written then.
    """
    begun = time.monotonic()
    require_free(request.output)
    if request.shots or config.graft.verify:
        require_peft()
    gene = Gene.load(gene_folder(request.gene))
    adapter = _task_adapter(request)
    model = located(request.model if adapter is None else _base_of(adapter, request.model))
    found = _checked(gene, model)
    shots = _shots(request, config, data)
    with storage_errors(request.output), published(request.output) as scratch:
        if adapter is not None:
            model = _merged_task(model, adapter, scratch.with_name("task"), reporter)
            found = outline(Path(model.id))
        coefficients, steps = _coefficients(gene, model, shots, config, reporter)
        fixed = with_coefficients(gene, coefficients, made=f"grafted onto {request.model.id}")
        graft = Graft(
            task_model=checkpoint_fingerprint(found),
            task_id=request.model.id,
            gene=gene.fingerprint,
            gene_made=gene.made,
            form=request.form,
            coefficients=coefficients,
            tuned=config.graft.coefficients if request.shots else "fixed",
            shots=request.shots,
            steps=steps,
        )
        graft = _write(found, fixed, graft, scratch, config.graft, reporter)
        if config.graft.verify:
            reporter.stage("Reload and compare")
            graft = replace(graft, check=_compared(model, scratch, fixed, request.form, config.graft))
        replace(graft, seconds=round(time.monotonic() - begun, 1)).save(scratch)
    return Graft.load(request.output)


def revert_graft(folder: Path, output: Path, *, reporter: Reporter = _SILENT) -> str:
    """Writes the task's model as it was before a graft, to the last bit; returns its fingerprint.

    Raises:
        ArtifactError: no graft, one without the originals, or files that were changed since.
        ConfigError: the graft is an adapter.
    """
    require_free(output)
    graft = Graft.load(folder)
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
    originals = folder / EXTRA / ORIGINALS
    for name, digest in graft.originals.items():
        if not (originals / name).is_file() or file_hash(originals / name) != digest:
            raise ArtifactError(f"{originals / name} is missing or was changed", remedy="restore it from a copy")
    verify_hashes(folder)
    reporter.stage("Revert")
    with storage_errors(output), published(output) as scratch:
        put_back(
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


def vocabulary_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """What tells two vocabularies apart."""
    return canonical_hash(tokenizer.get_vocab())


def encode_shots(tokenizer: PreTrainedTokenizerBase, refusals: list[Exchange], task: list[Exchange]) -> list[Lesson]:
    """Both sides as lessons."""
    return [
        *(Lesson(encode_lesson(tokenizer, one), harmful=True) for one in refusals),
        *(Lesson(encode_lesson(tokenizer, one), harmful=False) for one in task),
    ]


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Any token; it is masked."""
    return int(tokenizer.pad_token_id or 0)


def _task_adapter(request: GraftRequest) -> Path | None:
    """The folder of the task's model, where that is an adapter of PEFT, such as `seawall tune` leaves.

    Raises:
        ArtifactError: it is a graft.
        ConfigError: the graft is to be an adapter too.
        SeawallError: the adapter cannot be merged.
    """
    folder = Path(request.model.id).expanduser()
    if not (folder / ADAPTER_CONFIG).is_file() or (folder / "config.json").is_file():
        return None
    _require_ungrafted(folder, request.model.id)
    if request.form == "adapter":
        raise ConfigError(
            f"{request.model.id} is an adapter, and a gene beside it would belong to a model that is in no folder",
            remedy="add --merge, which writes base, task and gene as one checkpoint",
        )
    check_adapter(folder)
    return folder


def _base_of(adapter: Path, named: ModelConfig) -> ModelConfig:
    """The model that an adapter says it is for."""
    base = read_json(adapter / ADAPTER_CONFIG).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise ConfigError(
            f"{adapter / ADAPTER_CONFIG} does not say which model the adapter is for",
            got=f"base_model_name_or_path {base!r}",
            expected="a folder or a Hub id",
            remedy="write it in there, or merge the adapter first",
        )
    return named.model_copy(update={"id": base, "revision": None})


def _merged_task(base: ModelConfig, adapter: Path, folder: Path, reporter: Reporter) -> ModelConfig:
    """The task's model as a checkpoint of its own, which is gone when the graft is done."""
    reporter.stage(f"Merging the task's adapter into {base.id}")
    model, tokenizer = load_model(base)
    save_model(merge_adapter(model, adapter), tokenizer, folder)
    return base.model_copy(update={"id": str(folder)})


def _checked(gene: Gene, model: ModelConfig) -> CheckpointOutline:
    """The model's outline, when it and the gene belong together and it bears no graft yet."""
    small = locate(model, weights=False)
    _require_ungrafted(small, model.id)
    if (small / ADAPTER_CONFIG).is_file():
        raise ConfigError(
            f"{model.id} holds an adapter beside its weights, and loading puts it on them",
            got=f"config.json and {ADAPTER_CONFIG} in one folder",
            expected="a checkpoint or an adapter",
            remedy="move the adapter's two files to a folder of their own, and name the one that is meant",
        )
    found = outline(locate(model))
    verify_hashes(found.folder)
    tokenizer = vocabulary_hash(open_tokenizer(small, model))
    require_fit(gene, found, tokenizer, what=model.id)
    return found


def _require_ungrafted(folder: Path, name: str) -> None:
    if not (folder / GRAFT).is_file():
        return
    graft = Graft.load(folder)
    raise ArtifactError(
        f"{name} is grafted already",
        got=f"the gene {graft.gene[:23]}... in it",
        expected="a model without a graft",
        remedy="use the model without it (of a merged one: seawall gene revert), or compose the genes "
        "(seawall gene compose)",
    )


def _shots(request: GraftRequest, config: GeneConfig, data: DataConfig) -> tuple[list[Exchange], list[Exchange]] | None:
    if request.shots == 0:
        return None
    task = task_shots(request.task, request.shots, seed=config.seed)
    path = None if config.graft.refusals is None else Path(config.graft.refusals)
    return refusal_shots(data, path, request.shots, seed=config.seed), task


def _coefficients(
    gene: Gene,
    config: ModelConfig,
    shots: tuple[list[Exchange], list[Exchange]] | None,
    settings: GeneConfig,
    reporter: Reporter,
) -> tuple[Coefficients, tuple[GraftStep, ...]]:
    if shots is None:
        return dict.fromkeys(gene.held_layers, 1.0), ()
    reporter.stage(f"Tuning {len(gene.held_layers)} coefficients on {len(shots[0])} refusals and as many examples")
    model, tokenizer = load_model(config)
    worn = wear(model, gene.points, rank=gene.rank, scaling=gene.scaling)
    worn.put(gene.factors)
    steps: list[GraftStep] = []

    def log(row: Mapping[str, float]) -> None:
        steps.append(GraftStep(int(row["step"]), row["refusal_loss"], row["task_loss"]))
        reporter.step("updates", len(steps), settings.graft.steps)

    lessons = encode_shots(tokenizer, *shots)
    found = tune_coefficients(worn, lessons, pad_id(tokenizer), settings.graft, seed=settings.seed, log=log)
    return found, tuple(steps)


def _write(
    found: CheckpointOutline, fixed: Gene, graft: Graft, scratch: Path, config: GeneGraft, reporter: Reporter
) -> Graft:
    if graft.form == "adapter":
        save_adapter(scratch, fixed.points, fixed.factors, fixed.scaling)
        return graft
    reporter.stage("Merging, file by file")
    save_adapter(scratch / EXTRA / ADAPTER, fixed.points, fixed.factors, fixed.scaling)
    originals = scratch / EXTRA / ORIGINALS if config.keep_originals else None
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


def _compared(config: ModelConfig, scratch: Path, fixed: Gene, form: GraftForm, settings: GeneGraft) -> GraftCheck:
    """The adapter as PEFT loads it against the merged checkpoint, or against the weights with the update added.

    In float32 whatever the weights' type: what differs then is the rounding of merged weights, not that of activations.
    """
    config = config.model_copy(update={"dtype": "float32"})
    model, tokenizer = load_model(config)
    ids = [torch.tensor([encode_prompt(tokenizer, user(text))]) for text in _PROBES]
    if form == "merged":
        worn = load_worn(model, scratch / EXTRA / ADAPTER)
        ours = [_logits(worn, one) for one in ids]
        del worn, model
        other, _ = load_model(config.model_copy(update={"id": str(scratch), "revision": None}))
    else:
        worn = load_worn(model, scratch)
        ours = [_logits(worn, one) for one in ids]
        del worn, model
        other, _ = load_model(config)
        _add(other, fixed)
    theirs = [_logits(other, one) for one in ids]
    difference = max(float((left - right).abs().max()) for left, right in zip(ours, theirs, strict=True))
    check = GraftCheck(len(ids), difference, max(float(one.abs().max()) for one in theirs))
    if not check.share <= settings.max_logit_difference:
        raise ArtifactError(
            "the graft as an adapter and in the weights are two different models",
            got=f"a logit difference of {difference:.3g}, {check.share:.2%} of the largest logit",
            expected=f"at most {settings.max_logit_difference:.2%} (gene.graft.max_logit_difference)",
            remedy="where the merged weights are rounded to 16 bits, allow more; else report this as a bug",
        )
    return check


def _add(model: PreTrainedModel, gene: Gene) -> None:
    for name in gene.points:
        weight = model.get_parameter(name).data
        weight.copy_(weight.float() + gene.update(name).to(weight.device))


@torch.inference_mode()
def _logits(model: PreTrainedModel, ids: Tensor) -> Tensor:
    output: Tensor = model(input_ids=ids.to(model.device), use_cache=False).logits
    return output.float().cpu()


@contextmanager
def published(output: Path) -> Iterator[Path]:
    """A folder beside the output that takes its place at the end, or is removed."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as temporary:
        scratch = Path(temporary) / "work"
        scratch.mkdir()
        yield scratch
        flush_tree(scratch)
        publish(scratch, output)
