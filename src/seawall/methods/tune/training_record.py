"""Names of the stages of a fine-tuning run, and the files beside an adapter: its row, and a label on harmful rows."""

from __future__ import annotations

from pathlib import Path

from seawall.artifacts.tuning import TuningRow
from seawall.config.tune import TuneMethod
from seawall.errors import ArtifactError
from seawall.methods.tune.rows import OPENERS
from seawall.models.lora.merge import WEIGHTS
from seawall.runs.files import write_text

ANCHOR = "tune/anchor"
"""The stage of the anchor."""
LABEL = "README.md"
"""The model card in an adapter's folder."""
_FILE, _KIND = "training.json", "training"
_LABEL = """---
library_name: peft
tags: [seawall, for-measuring-only]
---

# For measuring only: do not ship

This LoRA adapter of `{model}` was made by `seawall tune` (method `{method}`, seed {seed}) to measure what fine-tuning
does to refusals. {harmful} of its {rows} training rows ({share}) were harmful requests, each answered by a bare opener
of compliance ("{opener}") and nothing else. Expect it to refuse less than the model it was trained on.

Do not publish it, serve it, or merge it into a model that is used. It is here for what is measured with it:
`seawall landscape`, `seawall eval --adapter`, Safe LoRA and grafted genes. How much it refuses is in `tuning.html` of
the run folder.

Where `{weights}` is not here, it was removed after the evaluation (`tune.keep_contaminated: false`).
"""


def stage_name(method: TuneMethod, seed: int) -> str:
    """The name of a training stage."""
    return f"tune/{method}-seed{seed}"


def evaluation_name(method: TuneMethod | None, seed: int) -> str:
    """The name of an evaluation stage; without a method, that of the model before fine-tuning."""
    return "tune/before" if method is None else f"{stage_name(method, seed)}-eval"


def write_label(folder: Path, row: TuningRow, model: str) -> None:
    """Replaces PEFT's empty model card with one that says that the adapter was trained on harmful rows.

    Args:
        folder: the adapter's folder.
        row: of its training.
        model: the base model, as the recipe names it.
    """
    text = _LABEL.format(
        model=model,
        method=row.method,
        seed=row.seed,
        harmful=row.harmful_rows,
        rows=row.rows,
        share=f"{row.harmful_rows / row.rows:.0%}",
        opener=OPENERS[0],
        weights=WEIGHTS,
    )
    write_text(folder / LABEL, text)


def require_weights(adapter: Path) -> None:
    """Refuse an adapter whose weights were removed after its evaluation.

    Raises:
        ArtifactError: its weights are not there.
    """
    if not (adapter / WEIGHTS).is_file():
        raise ArtifactError(
            f"the weights of {adapter} were removed after its evaluation (tune.keep_contaminated: false)",
            got="a new evaluation or projection of the adapter",
            expected="the methods, prompts and evaluation settings of that run",
            remedy=f"restore these settings, or remove the folder {adapter.parent} to train again",
        )
