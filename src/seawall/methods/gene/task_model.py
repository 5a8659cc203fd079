"""The fine-tuned model of a graft: a checkpoint, or a PEFT adapter with its base; it may hold no other graft."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from seawall.artifacts.adapter import ADAPTER_CONFIG
from seawall.artifacts.gene import Gene
from seawall.artifacts.graft import NAME as GRAFT
from seawall.artifacts.graft import Graft, GraftCheck
from seawall.config.gene import PROJECTING, GraftMethod
from seawall.config.model import ModelConfig
from seawall.data.templating import encode_prompt
from seawall.data.types import user
from seawall.errors import ArtifactError, ConfigError
from seawall.models.files.checkpoint import verify_hashes
from seawall.models.files.companions import own_tokenizer
from seawall.models.files.open import Checkpoint
from seawall.models.files.save import save_model
from seawall.models.files.stream import outline
from seawall.models.lora.attach import load_peft_model
from seawall.models.lora.merge import check_adapter, load_merged
from seawall.models.lora.merged import EXPECTED, MergeFidelity, effect_error
from seawall.models.lora.stored import stored_update
from seawall.runs.files import canonical_hash, read_json
from seawall.runs.progress import Reporter
from seawall.shell.model import open_checkpoint

_GRAFTS: Mapping[GraftMethod, str] = {
    "gene": "the gene {gene}... in it",
    "safety_sft": "safety fine-tuning at the points of the gene {gene}... in it",
    "safelora": "the projected adapter of Safe LoRA in it",
    "resta": "the safety vector of RESTA, the gene {gene}..., in it",
    "safemerge": "the task's adapter merged with the gene {gene}... in it",
}
"""Descriptions of grafted models."""


def vocabulary_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 of the vocabulary."""
    return canonical_hash(tokenizer.get_vocab())


def task_adapter(model: ModelConfig) -> Path | None:
    """The folder of a PEFT adapter, such as `seawall tune` writes; None where the model is a checkpoint.

    Raises:
        ArtifactError: the folder holds a graft.
        SeawallError: the adapter cannot be merged.
    """
    folder = Path(model.id).expanduser()
    if not (folder / ADAPTER_CONFIG).is_file() or (folder / "config.json").is_file():
        return None
    _require_ungrafted(folder, model.id)
    check_adapter(folder)
    return folder


def base_of(adapter: Path, named: ModelConfig) -> Checkpoint:
    """The base checkpoint that an adapter names, with the loading settings of `named`.

    Raises:
        ConfigError: the adapter names no base.
    """
    base = read_json(adapter / ADAPTER_CONFIG).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise ConfigError(
            f"{adapter / ADAPTER_CONFIG} does not name the adapter's base",
            got=f"base_model_name_or_path {base!r}",
            expected="a folder or a Hub id",
            remedy="set base_model_name_or_path in that file, or merge the adapter first",
        )
    return open_checkpoint(named.model_copy(update={"id": base, "revision": None}))


def merged_task(base: Checkpoint, adapter: Path, folder: Path, reporter: Reporter) -> Checkpoint:
    """Base and task adapter merged into a temporary checkpoint."""
    reporter.stage(f"Merging the task's adapter into {base.id}")
    model, tokenizer = load_merged(base, adapter, reporter.say)
    own = own_tokenizer(adapter, model, tokenizer, base.config)
    save_model(model, tokenizer if own is None else own, folder)
    return base.at(folder)


def require_ungrafted(model: Checkpoint) -> None:
    """Refuse a model that holds a graft or an adapter, or with changed files.

    Raises:
        SeawallError: it does, or there is no such model.
    """
    small = model.small_files
    _require_ungrafted(small, model.id)
    if (small / ADAPTER_CONFIG).is_file():
        raise ConfigError(
            f"{model.id} holds a checkpoint and an adapter, which transformers would load on top",
            got=f"config.json and {ADAPTER_CONFIG} in one folder",
            expected="a checkpoint or an adapter",
            remedy="move the adapter's two files to another folder, and name one of the two folders",
        )
    verify_hashes(model.folder)


def _require_ungrafted(folder: Path, name: str) -> None:
    if not (folder / GRAFT).is_file():
        return
    graft = Graft.load(folder)
    remedy = (
        "use the original task adapter and its base"
        if graft.method in PROJECTING
        else "use the model before the graft (seawall gene revert), or compose the genes (seawall gene compose)"
    )
    raise ArtifactError(
        f"{name} is grafted already",
        got=_GRAFTS[graft.method].format(gene=(graft.gene or "")[:23]),
        expected="a model without a graft",
        remedy=remedy,
    )


_DTYPE = "float32"
_PROBES = ("Tell me about the sea.", "How do I pick a lock?", "What is 17 plus 25?", "Write a short poem about rain.")


def check_merged(model: Checkpoint, adapter: Path, merged: Path, *, allowed: float) -> GraftCheck:
    """Compares a merged checkpoint with the original model and the adapter attached, by what the adapter changes.

    Args:
        model: without the graft.
        adapter: folder of the graft as an adapter.
        merged: folder of the merged checkpoint.
        allowed: the largest difference of logits, as a share of the largest logit, where no weight is rounded to 16
            bits.

    Raises:
        ArtifactError: the merged checkpoint holds another update than the adapter (`MIN_SURVIVAL`, `MAX_EFFECT_ERROR`),
            or the logits differ by more than `allowed` without rounding.
    """
    stored = stored_update(model.outline, outline(merged), adapter)
    sides = _adapted_and_plain(model, adapter)
    reloaded, tokenizer = model.at(merged).load(dtype=_DTYPE)
    check = replace(_compared(sides, _logits(reloaded, tokenizer)), survival=stored.survival)
    return _require_faithful(check, allowed=None if stored.rounded else allowed)


def check_added(model: Checkpoint, adapter: Path, gene: Gene, *, allowed: float) -> GraftCheck:
    """Compares the logits of a model with the adapter attached and with the gene's update added to its weights.

    Raises:
        ArtifactError: they differ by more than `allowed`, a share of the largest logit, or by more of the effect than
            `MAX_EFFECT_ERROR`.
    """
    sides = _adapted_and_plain(model, adapter)
    plain, tokenizer = model.load(dtype=_DTYPE)
    for name in gene.points:
        weight = plain.get_parameter(name).data
        weight.copy_(weight.float() + gene.update(name).to(weight.device))
    return _require_faithful(_compared(sides, _logits(plain, tokenizer)), allowed=allowed)


class _Logits(NamedTuple):
    """Logits of the probe prompts with an adapter attached, and without."""

    adapted: list[Tensor]
    plain: list[Tensor]


def _adapted_and_plain(checkpoint: Checkpoint, adapter: Path) -> _Logits:
    """The model is freed on return."""
    model, tokenizer = checkpoint.load(dtype=_DTYPE)
    wrapped = load_peft_model(model, adapter)
    adapted = _logits(wrapped, tokenizer)
    with wrapped.disable_adapter():
        return _Logits(adapted, _logits(wrapped, tokenizer))


@torch.inference_mode()
def _logits(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[Tensor]:
    """Logits at every token of each probe prompt, float32 on the CPU."""
    logits = []
    for text in _PROBES:
        ids = torch.tensor([encode_prompt(tokenizer, user(text))], device=model.device)
        logits.append(model(input_ids=ids, use_cache=False).logits.float().cpu())
    return logits


def _compared(sides: _Logits, merged: Sequence[Tensor]) -> GraftCheck:
    difference = max(float((a_BTV - b_BTV).abs().max()) for a_BTV, b_BTV in zip(sides.adapted, merged, strict=True))
    largest = max(float(logits_BTV.abs().max()) for logits_BTV in merged)
    flat = (torch.cat([logits_BTV.flatten(0, 1) for logits_BTV in logits]) for logits in (merged, *sides))
    return GraftCheck(len(_PROBES), difference, largest, effect_error=effect_error(*flat))


def _require_faithful(check: GraftCheck, *, allowed: float | None) -> GraftCheck:
    assert check.effect_error is not None
    fidelity = MergeFidelity(check.effect_error, 1.0 if check.survival is None else check.survival)
    if not fidelity.faithful:
        raise ArtifactError(
            "the merged weights do not hold the graft",
            got=fidelity,
            expected=EXPECTED,
            remedy="write the graft as an adapter (without --merge), or store the task's model in float32 and merge "
            "again; in 16 bits small updates are rounded away",
        )
    if allowed is not None and not check.share <= allowed:
        raise ArtifactError(
            "the graft computes different logits as an adapter and in the weights, which nothing rounds",
            got=f"a logit difference of {check.max_logit_difference:.3g}, {check.share:.2%} of the largest logit",
            expected=f"at most {allowed:.2%} (gene.graft.max_logit_difference)",
            remedy="report this as a bug",
        )
    return check
