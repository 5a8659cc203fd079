"""The task's model of a graft: a checkpoint, or an adapter with the base that it names; grafted once at most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from seawall.artifacts.adapter import ADAPTER_CONFIG
from seawall.artifacts.gene import Gene
from seawall.artifacts.graft import NAME as GRAFT
from seawall.artifacts.graft import Graft, GraftCheck
from seawall.config.gene import GraftMethod
from seawall.config.model import ModelConfig
from seawall.data.templating import encode_prompt
from seawall.data.types import user
from seawall.errors import ArtifactError, ConfigError
from seawall.models.files.checkpoint import save_model, verify_hashes
from seawall.models.files.open import Checkpoint
from seawall.models.lora.attach import load_peft_model
from seawall.models.lora.merge import check_adapter, merge_adapter
from seawall.runs.files import canonical_hash, read_json
from seawall.runs.progress import Reporter
from seawall.shell.model import open_checkpoint

_BORNE: Mapping[GraftMethod, str] = {
    "gene": "the gene {gene}... in it",
    "safety_sft": "safety fine-tuning at the points of the gene {gene}... in it",
    "safelora": "the projected adapter of Safe LoRA in it",
}
"""What a grafted model bears."""


def vocabulary_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """What tells two vocabularies apart."""
    return canonical_hash(tokenizer.get_vocab())


def task_adapter(model: ModelConfig) -> Path | None:
    """The folder of the task's model where that is an adapter of PEFT, such as `seawall tune` leaves.

    Raises:
        ArtifactError: it is a graft.
        SeawallError: the adapter cannot be merged.
    """
    folder = Path(model.id).expanduser()
    if not (folder / ADAPTER_CONFIG).is_file() or (folder / "config.json").is_file():
        return None
    _require_ungrafted(folder, model.id)
    check_adapter(folder)
    return folder


def base_of(adapter: Path, named: ModelConfig) -> Checkpoint:
    """The model that an adapter says it is for, with the settings of the one that was named.

    Raises:
        ConfigError: it says nothing.
    """
    base = read_json(adapter / ADAPTER_CONFIG).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise ConfigError(
            f"{adapter / ADAPTER_CONFIG} does not say which model the adapter is for",
            got=f"base_model_name_or_path {base!r}",
            expected="a folder or a Hub id",
            remedy="write it in there, or merge the adapter first",
        )
    return open_checkpoint(named.model_copy(update={"id": base, "revision": None}))


def merged_task(base: Checkpoint, adapter: Path, folder: Path, reporter: Reporter) -> Checkpoint:
    """The task's model as a checkpoint of its own, which is gone when the graft is done."""
    reporter.stage(f"Merging the task's adapter into {base.id}")
    model, tokenizer = base.load()
    save_model(merge_adapter(model, adapter), tokenizer, folder)
    return base.at(folder)


def require_ungrafted(model: Checkpoint) -> None:
    """Refuse a model that bears a graft or another adapter, or whose files are not as they were written.

    Raises:
        SeawallError: it does, or there is no such model.
    """
    small = model.small_files
    _require_ungrafted(small, model.id)
    if (small / ADAPTER_CONFIG).is_file():
        raise ConfigError(
            f"{model.id} holds an adapter beside its weights, and loading puts it on them",
            got=f"config.json and {ADAPTER_CONFIG} in one folder",
            expected="a checkpoint or an adapter",
            remedy="move the adapter's two files to a folder of their own, and name the one that is meant",
        )
    verify_hashes(model.folder)


def _require_ungrafted(folder: Path, name: str) -> None:
    if not (folder / GRAFT).is_file():
        return
    graft = Graft.load(folder)
    remedy = (
        "use the task's adapter and its base, from which this was made"
        if graft.method == "safelora"
        else "use the model without it (of a merged one: seawall gene revert), or compose the genes "
        "(seawall gene compose)"
    )
    raise ArtifactError(
        f"{name} is grafted already",
        got=_BORNE[graft.method].format(gene=(graft.gene or "")[:23]),
        expected="a model without a graft",
        remedy=remedy,
    )


_FULL = "float32"
_PROBES = ("Tell me about the sea.", "How do I pick a lock?", "What is 17 plus 25?", "Write a short poem about rain.")


def check_merged(model: Checkpoint, adapter: Path, merged: Path, *, allowed: float) -> GraftCheck:
    """A merged checkpoint against the model that it was made of, with the adapter on it.

    Args:
        model: without the graft.
        adapter: the graft's folder as an adapter.
        merged: the checkpoint's.
        allowed: the largest difference of logits, as a share of the largest logit.

    Raises:
        ArtifactError: they differ by more.
    """
    theirs = _logits_with(model, adapter)
    other, tokenizer = model.at(merged).load(dtype=_FULL)
    return _compared(theirs, _logits(other, tokenizer), allowed)


def check_added(model: Checkpoint, adapter: Path, gene: Gene, *, allowed: float) -> GraftCheck:
    """The model with the adapter on it against the same with the gene's update added to its weights.

    Raises:
        ArtifactError: they differ by more than `allowed`, a share of the largest logit.
    """
    theirs = _logits_with(model, adapter)
    other, tokenizer = model.load(dtype=_FULL)
    for name in gene.points:
        weight = other.get_parameter(name).data
        weight.copy_(weight.float() + gene.update(name).to(weight.device))
    return _compared(theirs, _logits(other, tokenizer), allowed)


def _logits_with(checkpoint: Checkpoint, adapter: Path) -> list[Tensor]:
    """The logits with an adapter on the model, which is gone from memory then."""
    model, tokenizer = checkpoint.load(dtype=_FULL)
    return _logits(load_peft_model(model, adapter), tokenizer)


@torch.inference_mode()
def _logits(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[Tensor]:
    """After every token of each probe, in float32 on the CPU."""
    found = []
    for text in _PROBES:
        ids = torch.tensor([encode_prompt(tokenizer, user(text))], device=model.device)
        found.append(model(input_ids=ids, use_cache=False).logits.float().cpu())
    return found


def _compared(ours: Sequence[Tensor], theirs: Sequence[Tensor], allowed: float) -> GraftCheck:
    difference = max(float((left - right).abs().max()) for left, right in zip(ours, theirs, strict=True))
    check = GraftCheck(len(_PROBES), difference, max(float(one.abs().max()) for one in theirs))
    if not check.share <= allowed:
        raise ArtifactError(
            "the graft as an adapter and in the weights are two different models",
            got=f"a logit difference of {difference:.3g}, {check.share:.2%} of the largest logit",
            expected=f"at most {allowed:.2%} (gene.graft.max_logit_difference)",
            remedy="where the merged weights are rounded to 16 bits, allow more; else report this as a bug",
        )
    return check
