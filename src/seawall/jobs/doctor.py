"""What `seawall doctor` finds: a model's facts, its template, a LoRA configuration for it, and what an adapter is.

No weights are loaded, except to merge an adapter and compare logits.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.table import Table
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from seawall.config.model import ModelConfig
from seawall.data.rendering import render
from seawall.data.templating import opened_by_prompt, thought_marks, turn_end
from seawall.data.types import Message, user
from seawall.errors import ConfigError, DataError
from seawall.jobs.facts import facts, size
from seawall.jobs.needs import VerbNeeds, verb_needs
from seawall.models.files.checkpoint import read_json
from seawall.models.files.inspect import ModelSummary, inspect_model, meta_model
from seawall.models.files.load import load_architecture
from seawall.models.files.open import Checkpoint
from seawall.models.lora.checkup import check_files, merge_findings
from seawall.models.lora.findings import AdapterCheck, Finding
from seawall.models.lora.merge import CONFIG
from seawall.models.moe.find import find_moe_if_any
from seawall.models.moe.module_copies import attention_modules
from seawall.report.wording import amount
from seawall.shell.model import open_checkpoint

_SYSTEM = "The sea is calm today."


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Everything that `doctor` says.

    Attributes:
        summary: of the model.
        template: (name, value) of its chat template.
        lora: settings of a `peft.LoraConfig` that reaches attention and every expert; empty for a refused model.
        experts_implementation: how transformers computes the experts by default; empty for a dense model.
        needs: every verb, whether it works on the model, and what it would need; empty for a refused model.
        adapter: of the adapter, if one was named.
    """

    summary: ModelSummary
    template: tuple[tuple[str, str], ...]
    lora: dict[str, Any]
    experts_implementation: str
    needs: dict[str, VerbNeeds]
    adapter: AdapterCheck | None = None

    def document(self) -> dict[str, Any]:
        """For `--json`."""
        summary = self.summary
        document = {**asdict(summary), "supported": summary.supported, "verbs": summary.verbs}
        document |= {"template": dict(self.template), "lora_config": self.lora}
        document["experts_implementation"] = self.experts_implementation
        document["needs"] = {verb: asdict(needs) for verb, needs in self.needs.items()}
        return document | ({} if self.adapter is None else {"adapter": asdict(self.adapter)})

    def table(self) -> Table:
        """For people."""
        rows = [*_model_rows(self.summary), *self.template]
        if self.experts_implementation:
            rows.append(("experts computed by", self.experts_implementation))
        if self.lora:
            settings = ", ".join(f"{name}={value!r}" for name, value in self.lora.items())
            rows.append(("LoRA", f"LoraConfig({settings})"))
        rows += [(verb, needs.text) for verb, needs in self.needs.items()]
        rows.append(("verdict", self.summary.verdict))
        return facts([*rows, *(() if self.adapter is None else _adapter_rows(self.adapter))])


def diagnose(config: ModelConfig, adapter: Path | None = None, *, merge: bool = True) -> Diagnosis:
    """Looks at a model and, if one is named, at an adapter of it.

    Args:
        config: the model.
        adapter: folder of a LoRA adapter.
        merge: load the weights too, merge the adapter and compare logits, where nothing else is wrong with it.

    Raises:
        SeawallError: there is no such model or folder, or PEFT is not installed.
    """
    if adapter is not None and not adapter.is_dir():
        raise ConfigError(f"adapter folder {adapter} does not exist", remedy="check the path (--adapter)")
    checkpoint = open_checkpoint(config)
    summary = replace(inspect_model(checkpoint.config), id=config.id)
    lora: dict[str, Any] = {}
    implementation = ""
    needs: dict[str, VerbNeeds] = {}
    if summary.supported:
        model = _shapes(checkpoint)
        lora = lora_settings(model)
        needs = verb_needs(checkpoint, summary, model)
        if summary.moe is not None:
            implementation = str(getattr(model.config, "_experts_implementation", None) or "eager")
    check = None if adapter is None or not summary.supported else _check(checkpoint, config, adapter, merge=merge)
    template = tuple(_template(checkpoint.tokenizer)) if summary.supported else ()
    return Diagnosis(summary, template, lora, implementation, needs, check)


def lora_settings(model: PreTrainedModel) -> dict[str, Any]:
    """Settings of a `peft.LoraConfig` for the linear layers of attention and all stacks of experts.

    Without dropout, which PEFT refuses for stacks; a dense model gets the linear layers of its decoder layers.

    Args:
        model: may be on the meta device.
    """
    moe = find_moe_if_any(model)
    settings: dict[str, Any] = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "task_type": "CAUSAL_LM"}
    if moe is None:
        names = _linear_names(model)
        return settings | {"target_modules": sorted({name.rpartition(".")[2] for name in names})}
    attention = attention_modules(moe, {layer.decoder_layer for layer in moe.layers})
    inside = {f"{name}.{child}" for name, module in attention.items() for child in _linear_names(module)}
    stacks = {
        f"{_after_layer(layer.experts_name)}.{weight}"
        for layer in moe.layers
        for weight in layer.weights
        if layer.parameter(weight).ndim == 3
    }
    modules = sorted({name.rpartition(".")[2] for name in inside})
    return settings | {"target_modules": modules, "target_parameters": sorted(stacks)}


def _linear_names(module: nn.Module) -> list[str]:
    """Linear layers within decoder layers, or within one module."""
    head = module.get_output_embeddings() if isinstance(module, PreTrainedModel) else None
    children = module.named_modules()
    return [name for name, child in children if isinstance(child, nn.Linear) and child is not head and name]


def _after_layer(name: str) -> str:
    """The path of a module below its decoder layer: `model.layers.3.mlp.experts` -> `mlp.experts`."""
    return re.split(r"\.\d+\.", name, maxsplit=1)[-1]


def _shapes(checkpoint: Checkpoint) -> PreTrainedModel:
    folder = checkpoint.small_files
    return meta_model(load_architecture(folder, checkpoint.config), checkpoint.config)


def _check(checkpoint: Checkpoint, config: ModelConfig, adapter: Path, *, merge: bool) -> AdapterCheck:
    check = check_files(adapter, _shapes(checkpoint))
    if any(finding.subject == "files" for finding in check.findings):  # its configuration cannot be read or used
        return check
    check = replace(check, findings=(*check.findings, *_base_findings(checkpoint, config, adapter)))
    if merge and check.is_sound:
        model, _ = checkpoint.load()
        check = replace(check, findings=(*check.findings, *merge_findings(model, adapter)), merged=True)
    return check


def _base_findings(checkpoint: Checkpoint, config: ModelConfig, adapter: Path) -> Iterator[Finding]:
    """The model that the adapter names as its base, against this one: by weights where both are here, else by name."""
    named = str(read_json(adapter / CONFIG).get("base_model_name_or_path") or "")
    if not named:
        yield Finding("base", f"{CONFIG} names no base model: whether it was trained on this one is unknown", False)
    elif Path(named).expanduser().is_dir():
        base = open_checkpoint(config.model_copy(update={"id": named, "revision": None}))
        if base.folder.resolve() != checkpoint.folder.resolve() and base.fingerprint != checkpoint.fingerprint:
            yield Finding("base", f"trained on another base model: {named}, whose weights are others")
    elif Path(named).name.casefold() != Path(config.id).name.casefold():
        is_local = Path(config.id).expanduser().is_dir() or Path(named).is_absolute()
        text = f"trained on another base model by its {CONFIG}: {named}; this is {config.id}"
        yield Finding("base", text, is_wrong=not is_local)


def _template(tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[str, str]]:
    """What the chat template does that changes a measurement."""
    templates = tokenizer.chat_template
    if isinstance(templates, dict):
        yield "named templates", ", ".join(sorted(templates))
    marks = thought_marks(tokenizer)
    opened = opened_by_prompt(tokenizer, user("Hello"), marks)
    yield "thoughts", "none" if marks is None else f"{marks.opening} … {marks.closing}"
    yield "prompt opens", opened or "the answer"
    yield "system line", _system_line(tokenizer)
    end = turn_end(tokenizer)
    token = None if end.token_id is None else str(tokenizer.convert_ids_to_tokens(end.token_id))
    yield "end of turn", token or end.text or "nothing: replies end at the limit of tokens alone"


def _system_line(tokenizer: PreTrainedTokenizerBase) -> str:
    try:
        text = render(tokenizer, (Message("system", _SYSTEM), *user("Hello")), add_generation_prompt=True)
    except DataError:
        return "refused by the template"
    return "kept" if _SYSTEM in text else "dropped by the template"


def _model_rows(summary: ModelSummary) -> Iterator[tuple[str, str]]:
    yield "model", summary.id
    yield "class", f"{summary.architecture} ({summary.family})"
    yield "parameters", f"{summary.parameters / 1e6:,.1f} M, {summary.active_parameters / 1e6:,.1f} M used per token"
    yield "on disk", f"{size(summary.bytes_on_disk)}, {summary.dtype}"
    yield "chat template", "yes" if summary.chat_template else "no"
    if summary.moe is not None:
        moe = summary.moe
        yield "experts", f"{moe.layers} MoE layers x {moe.experts} experts, top-{moe.top_k}"
        yield "shared experts", str(moe.shared_experts)
        yield "expert tensors", ", ".join(f"{name} {tuple(shape)}" for name, shape in moe.expert_tensors)


def _adapter_rows(check: AdapterCheck) -> Iterator[tuple[str, str]]:
    yield "adapter", f"{check.factors} adapted matrices and stacks"
    if check.experts is not None:
        count = check.experts
        yield "experts touched", f"{count.touched} of {count.total} slices in {count.stacks} stacks"
    for finding in check.findings:
        yield f"{'wrong' if finding.is_wrong else 'note'}: {finding.subject}", finding.text
    if check.is_sound:
        merged = "; merged and attached give the same logits" if check.merged else "; not merged"
        yield "adapter's verdict", f"sound{merged}"
    else:
        wrong = sum(finding.is_wrong for finding in check.findings)
        yield "adapter's verdict", f"wrong in {amount(wrong, 'way')}"
