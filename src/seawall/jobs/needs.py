"""What each verb would need for a model: routed experts, another model or a run, packages, memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec

from transformers import PreTrainedModel

from seawall.config.model import LAB
from seawall.errors import UnsupportedModelError
from seawall.jobs.facts import size
from seawall.jobs.plan import verb_peaks
from seawall.models.files.inspect import EXPERT_VERBS, ModelSummary
from seawall.models.files.open import Checkpoint
from seawall.models.files.placement import requested_device
from seawall.models.hidden.sublayers import decoder_blocks
from seawall.models.memory import total_memory

_BASE = "the model that it was aligned from"
_BASES: Mapping[str, str] = {
    "tune": f"{_BASE} (tune.base), but for methods sft and mixing",
    "landscape": f"{_BASE} (landscape.base)",
}
_BESIDE: Mapping[str, str] = {
    "audit": "a finished run of it, or --output for those without a repair",
    "gene graft": "a gene (--gene) of the model that it was fine-tuned from",
    "verify": "an endpoint that serves it (--endpoint), or vLLM (--vllm)",
    "apply": "a delta that was made from it",
}
"""Verb -> what it takes beside the model; verbs of neither table take the model and a recipe alone."""
_PACKAGES: Mapping[str, tuple[str, ...]] = {"tune": ("peft", "trl")}
_NO_EXPERTS = "routed experts, which it has not"
_NO_HALVES = "decoder layers of one attention and one MLP or mixture of experts"
_WITHOUT_PLAN = ("verify", "apply")


@dataclass(frozen=True, slots=True)
class VerbNeeds:
    """Whether a verb works on a model.

    Attributes:
        works: on this model, with what it needs.
        needs: what it takes beside the model and a recipe, or what the model lacks.
        memory: planned peak on one device with the default settings, in bytes; None without a plan.
        fits: whether this machine's device has that much; None without a plan.
    """

    works: bool
    needs: tuple[str, ...] = ()
    memory: int | None = None
    fits: bool | None = None

    @property
    def text(self) -> str:
        """For a row of a table: `yes, 2.8 GiB; needs a delta that was made from it`."""
        memory = "" if self.memory is None else f", {size(self.memory)}"
        short = " (more than this machine's)" if self.fits is False else ""
        needs = "; needs " + " and ".join(self.needs) if self.needs else ""
        return f"{'yes' if self.works else 'no'}{memory}{short}{needs}"


def verb_needs(checkpoint: Checkpoint, summary: ModelSummary, model: PreTrainedModel) -> dict[str, VerbNeeds]:
    """Every verb that takes a model; loads no weights.

    Args:
        checkpoint: the model.
        summary: of the model, which seawall supports; its `id` as the user gave it.
        model: the same, on the meta device.
    """
    peaks = verb_peaks(checkpoint, summary)
    total = total_memory(requested_device(checkpoint.config.device))
    rows = {verb: VerbNeeds(True, _needs(verb, summary.id), peak, peak <= total) for verb, peak in peaks.items()}
    rows |= {verb: VerbNeeds(True, _needs(verb, summary.id)) for verb in _WITHOUT_PLAN}
    try:
        decoder_blocks(model)
    except UnsupportedModelError:
        rows["steer"] = VerbNeeds(False, (_NO_HALVES,))
    if summary.moe is None:
        rows = {**{verb: VerbNeeds(False, (_NO_EXPERTS,)) for verb in EXPERT_VERBS}, **rows}
    return rows


def _needs(verb: str, model: str) -> tuple[str, ...]:
    base = (_BASES[verb],) if verb in _BASES and model != LAB else ()
    beside = (_BESIDE[verb],) if verb in _BESIDE else ()
    packages = tuple(f"the package {name}" for name in _PACKAGES.get(verb, ()) if find_spec(name) is None)
    return (*base, *beside, *packages)
