"""Load a model, inspect one, compare runs, and check finished runs against bounds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from seawall.api.common import PathText, RecipeOrPath, Result, read_recipe
from seawall.config.load import checked_model
from seawall.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load(
    model: PathText,
    *,
    steering: PathText | None = None,
    revision: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model in evaluation mode and its tokenizer, hardened if `steering` is given.

    Args:
        model: `lab` (the embedded model), a Hub id, or a local folder.
        steering: the folder `steer/hardening` of a `seawall steer` run in mode `induce`. Its direction is added on
            every token for as long as the model lives; no weight changes, so `save_pretrained` does not save it.
        revision: branch, tag or commit on the Hub.
        dtype: `auto` (that of the checkpoint, or that the hardening was measured with), `float32`, `bfloat16` or
            `float16`.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, ...

    Raises:
        ConfigError: no such model, dtype or device.
        ArtifactError: the hardening is missing, damaged, or of another model.
        UnsupportedModelError: the model cannot be loaded.
    """
    from seawall.methods.steer.hardening import load_hardened

    config = checked_model(model, caller="seawall.load", revision=revision, dtype=dtype, device=device)
    return load_hardened(config, None if steering is None else Path(steering))


def gate(
    run: PathText, *, against: PathText | None = None, across_templates: bool = False, **bounds: float | None
) -> Result:
    """Checks a run or an evaluation against bounds; `summary["passed"]` is whether every interval is within its bound.

    Args:
        run: the folder of a finished run or evaluation.
        against: for an evaluation: that of the model before, for bounds on changes.
        across_templates: compare models whose chat templates or tokenizers differ.
        **bounds: `max_asr`, `max_asr_unseen`, `max_over_refusal_increase`, `max_benign_drop`, `max_wrapping_gap`,
            `max_capability_drop`, `min_plain_refusal`: shares between 0 and 1, in place of those of the recipe's
            section `gate`.

    Raises:
        SeawallError: no finished run, no such bound, or a bound on a rate that was not measured.
    """
    from seawall.evaluation.gate import Bounds
    from seawall.jobs.gate import gate_folder, recipe_bounds

    unknown = sorted(set(bounds) - set(Bounds.__dataclass_fields__))
    if unknown:
        raise ConfigError("unknown bound", got=unknown[0], expected=", ".join(Bounds.__dataclass_fields__))
    base = None if against is None else Path(against)
    limits = recipe_bounds(Path(run), **bounds)
    return Result(Path(run), gate_folder(Path(run), limits, against=base, across_templates=across_templates).document())


def diff(a: PathText, b: PathText, *, across_templates: bool = False) -> Result:
    """What differs between two evaluations, two runs, or two checkpoints.

    Args:
        a, b: the folders, both of one kind.
        across_templates: of evaluations: compare models whose chat templates or tokenizers differ.

    Raises:
        SeawallError: folders of two kinds, evaluations of different prompts, or damaged files.
    """
    from seawall.jobs.diff import diff as compare
    from seawall.jobs.diff import document

    return Result(None, document(compare(Path(a), Path(b), across_templates=across_templates)))


def doctor(
    model: PathText, *, adapter: PathText | None = None, merge: bool = True, trust_remote_code: bool = False
) -> Result:
    """A model's layers and experts, the verbs that work on it, its template, and what an adapter of it is.

    Args:
        model: `lab`, a folder, or a Hub id.
        adapter: folder of a LoRA adapter to check against the model.
        merge: with an adapter: load the weights, merge it and compare logits.
        trust_remote_code: run Python code of the checkpoint; only for authors you trust.

    Raises:
        SeawallError: there is no such model.
    """
    from seawall.jobs.doctor import diagnose

    config = checked_model(model, caller="seawall.doctor", trust_remote_code=trust_remote_code)
    return Result(None, diagnose(config, None if adapter is None else Path(adapter), merge=merge).document())


def plan(
    recipe: RecipeOrPath = None,
    *,
    verb: str | None = None,
    memory: str | None = None,
    devices: int | None = None,
    tflops: float | None = None,
    measure: bool = False,
    **settings: Any,
) -> Result:
    """Memory, disk and, with a rate, time of a verb, and whether it fits, from the model's configuration alone.

    Args:
        recipe: model, prompts and settings.
        verb: `run`, `repair`, `eval`, `tune`, ... (as `seawall plan --verb`); None takes that of the recipe.
        memory: of each GPU, such as `24GB`; None takes this machine's device.
        devices: number of GPUs that share the model's layers.
        tflops: the device's rate in 1e12 FLOP per second, for an estimate of the time.
        measure: measure the rates on this machine, on layers of the model's shapes with random weights.
        **settings: of the recipe, by section.

    Raises:
        SeawallError: the model, the prompts or an argument cannot be used.
    """
    from seawall.jobs.plan import plan_recipe

    estimate = plan_recipe(
        read_recipe(recipe, settings)[0], verb=verb, memory=memory, devices=devices, tflops=tflops, measure=measure
    )
    return Result(None, estimate.as_document())
