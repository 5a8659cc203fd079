"""The task's model of a graft: a checkpoint, or an adapter with the base that it names; grafted once at most."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from seawall.artifacts.gene import ADAPTER_CONFIG
from seawall.artifacts.graft import NAME as GRAFT
from seawall.artifacts.graft import Graft
from seawall.config.gene import GraftMethod
from seawall.config.model import ModelConfig
from seawall.errors import ArtifactError, ConfigError
from seawall.models.adapter import check_adapter, merge_adapter
from seawall.models.checkpoint import verify_hashes
from seawall.models.hub import locate
from seawall.models.load import load_model, open_tokenizer
from seawall.models.save import save_model
from seawall.models.stream import CheckpointOutline, outline
from seawall.pipeline.model import located
from seawall.pipeline.progress import Reporter
from seawall.runs.files import canonical_hash, read_json

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


def base_of(adapter: Path, named: ModelConfig) -> ModelConfig:
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
    return located(named.model_copy(update={"id": base, "revision": None}))


def merged_task(base: ModelConfig, adapter: Path, folder: Path, reporter: Reporter) -> ModelConfig:
    """The task's model as a checkpoint of its own, which is gone when the graft is done."""
    reporter.stage(f"Merging the task's adapter into {base.id}")
    model, tokenizer = load_model(base)
    save_model(merge_adapter(model, adapter), tokenizer, folder)
    return base.model_copy(update={"id": str(folder)})


def ungrafted(model: ModelConfig) -> CheckpointOutline:
    """The model's outline, when its files are as they were written and it bears no graft and no other adapter.

    Raises:
        SeawallError: it does, or there is no such model.
    """
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
    return found


def vocabulary_of(model: ModelConfig) -> str:
    """The hash of a model's vocabulary."""
    return vocabulary_hash(open_tokenizer(locate(model, weights=False), model))


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
