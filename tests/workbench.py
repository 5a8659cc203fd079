"""The folder in which the Python of README and docs runs: what the pages name stands there, tiny and real.

A page says `recipes/lab.yaml`, `my-task-model` or `"lab"`. The first two are paths and stand in the folder under these
names. Names of models become the folders of tiny ones (`MODELS`). What a page takes for given, such as the arguments
of a trainer, is in `names`.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from checkpoint_pairs import write_pair
from families import random_ids
from seawall.artifacts.evaluation import Rate
from seawall.artifacts.hardening import Effect, Hardening
from siblings import write_shots, write_siblings
from tuning_recipe import write_tuning

FAMILY = "glm4_moe"
STEER = {"positions": [-1], "train_prompts": 8, "validation_prompts": 4, "test_prompts": 4, "experts": False}
EXTRACT = {"epochs": 1, "max_new_tokens": 3, "judged": 0, "harmful": 6, "benign": 6, "held_out": 2}


@dataclass(frozen=True)
class Workbench:
    """The folder, and what names of models stand for."""

    folder: Path
    models: dict[str, Path]

    def substituted(self, code: str) -> str:
        """The code with the folders of tiny models in place of quoted names of models."""
        for name, folder in self.models.items():
            code = code.replace(f'"{name}"', repr(str(folder)))
        return code

    def names(self, page: str) -> dict[str, Any]:
        """What a page takes for given."""
        return _training_names() if page in ("asft.md", "README.md") else {}


def write_workbench(folder: Path, planted: Path, planted_run: Path) -> Workbench:
    """Recipes, runs and models under the names that the pages use."""
    (folder / "recipes").mkdir()
    (folder / "genes").mkdir()
    aligned, base, _ = write_pair(folder / "pair", FAMILY)
    models = {
        "lab": aligned,
        "lab-original": base,
        "meta-llama/Llama-2-7b-chat-hf": aligned,
        "meta-llama/Llama-2-7b-hf": base,
    }
    _recipe(folder / "recipes/lab.yaml", planted)
    tuning = write_tuning(_new(folder / "tuning"), epochs=1.0, methods=["sft"], test_prompts=4)
    _recipe(folder / "recipes/lab-tune.yaml", tuning)
    landscape = {"base": {"id": str(tuning.parent / "base")}, "random_directions": 0, "amounts": [-1.0, 0.0]}
    _recipe(folder / "recipes/quickstart.yaml", tuning, steer=STEER, landscape={**landscape, "test_prompts": 4})
    family = write_siblings(_new(folder / "family"), extract=EXTRACT)
    _recipe(folder / "recipes/lab-gene.yaml", family)
    shutil.copytree(family.parent / "degraded", folder / "my-task-model")
    shutil.move(write_shots(folder)[0], folder / "refusals.jsonl")
    shutil.copytree(planted_run, folder / "runs/lab")
    _hardening(aligned, folder / "runs/lab/steer/hardening")
    return Workbench(folder, models)


def _new(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _recipe(path: Path, source: Path, **sections: Any) -> None:
    path.write_text(yaml.safe_dump({**yaml.safe_load(source.read_text()), **sections}))


def _hardening(model: Path, path: Path) -> None:
    """One that fits the model, as `seawall steer` leaves it."""
    from transformers import AutoModelForCausalLM

    from families import WIDTH
    from seawall.models.files.fingerprint import model_fingerprint

    fingerprint = model_fingerprint(AutoModelForCausalLM.from_pretrained(model))
    before, after = (Rate(rate, 0.0, 1.0, 10, 0) for rate in (0.9, 0.1))
    effects = {"attack:story": Effect(before, after, difference=-0.8, low=-0.9, high=-0.7, p=0.01)}
    path.mkdir(parents=True)
    path.rmdir()
    Hardening(fingerprint, "float32", 1, -1, 0.5, effects, torch.ones(WIDTH)).save(path)


def _training_names() -> dict[str, Any]:
    """Rows and arguments for a `transformers.Trainer`, and harmful training goals."""
    from transformers import TrainingArguments

    arguments = TrainingArguments(
        "trained",
        per_device_train_batch_size=4,
        max_steps=1,
        optim="sgd",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    rows = [{"input_ids": row, "labels": row} for row in random_ids(8, 6)]
    return {"arguments": arguments, "rows": rows, "harmful_training_goals": ["Steal the bat", "Steal the hen"]}
