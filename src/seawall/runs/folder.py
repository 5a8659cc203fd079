"""The run folder and its layout."""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from seawall.config.gene import LATER_EXTRACT
from seawall.disk import what_lacks
from seawall.errors import RunFolderError
from seawall.runs.files import read_json, storage_errors, write_json, write_text
from seawall.runs.lock import LOCK, OWNER, locked

MARKER = "DONE"
"""Name of the marker file of a finished stage."""
_CHANGEABLE = frozenset({"output", "name", "audit", "steer", "landscape", "tune", "gene", "gate"})
"""Keys and sections of a recipe that may change in an existing run: they do not affect its repair or evaluation."""
_CHANGEABLE_SETTINGS = frozenset({"export.push_to_hub", "export.private", "repair.trackers"})
"""Settings that may change as well: they act on finished files, or report what is done."""
_MEMORY = re.compile(r"repair\.(micro_batch_size|gradient_checkpointing)|model\.(device_map|max_memory|fsdp)(\..*)?")
"""Settings that may change too, because they decide how much memory the same numbers take."""
LATER_SETTINGS: Mapping[str, Any] = {
    "device_map": None,
    "max_memory": {},
    "dequantize": False,
    "fsdp": False,
    "template": None,
    "template_options": {},
    "successes": None,
    "max_wrapping_gap_increase": 0.1,
    "patience": 0,
    "twins": 0,
    "twin_pool": 1,
    "plain_refusals": False,
    "objective": "refusal",
    "attention_lr": None,
    "random_vectors": 5,
    "sweeps": ["harmless"],
    "trained": "experts",
    "lora_rank": 16,
    "max_shard_size": None,
    "push_to_hub": None,
    "private": True,
    "optimizer": "adamw",
    "engine.kind": "transformers",
    "repair.trackers": [],
    "groups": None,
    **LATER_EXTRACT,
}
"""Settings that earlier versions lack, by their last key or in full, with the values that change nothing."""


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run. All paths in it are defined here.

    Attributes:
        path: the folder.
    """

    path: Path

    @property
    def recipe(self) -> Path:
        """The recipe as the user wrote it."""
        return self.path / "recipe.yaml"

    @property
    def resolved(self) -> Path:
        """The recipe with all defaults, as JSON."""
        return self.path / "resolved.json"

    @property
    def manifest(self) -> Path:
        """Versions, hashes, seeds, stage states, timings."""
        return self.path / "manifest.json"

    @property
    def summary(self) -> Path:
        """The results for programs."""
        return self.path / "summary.json"

    @property
    def report(self) -> Path:
        """The report for readers."""
        return self.path / "report.html"

    @property
    def comparison(self) -> Path:
        """The page of an evaluation against another."""
        return self.path / "comparison.html"

    @property
    def tracker(self) -> Path:
        """Files of the experiment trackers of a repair; not sealed."""
        return self.path / "tracker"

    @property
    def steering_report(self) -> Path:
        """The steering report of a run without a repair."""
        return self.path / "steering.html"

    @property
    def landscape_report(self) -> Path:
        """The report on the safety landscape."""
        return self.path / "landscape.html"

    @property
    def tuning_report(self) -> Path:
        """The report on fine-tuning."""
        return self.path / "tuning.html"

    @property
    def gene_report(self) -> Path:
        """The report on a gene."""
        return self.path / "gene.html"

    @property
    def samples(self) -> Path:
        """The folder with every prompt, reply and verdict."""
        return self.path / "samples"

    @property
    def judge(self) -> Path:
        """The folder with a judge endpoint's answers, saved so that no request is sent twice."""
        return self.path / "judge"

    def stage(self, name: str) -> Path:
        """The folder of a stage."""
        return self.path / name

    @property
    def has_finished_stage(self) -> bool:
        """Whether a stage is finished, so that the recipe may not change."""
        return any(any(self.path.glob(pattern)) for pattern in (f"*/{MARKER}", f"*/*/{MARKER}"))

    @classmethod
    def open(cls, path: Path, *, resolved: Mapping[str, Any], text: str) -> RunFolder:
        """Creates a run folder, or opens the run of the same recipe; until a stage is finished, the recipe may change.

        Args:
            path: the folder; created if missing.
            resolved: the recipe with all defaults, as JSON.
            text: the recipe as the user wrote it.

        Raises:
            RunFolderError: the folder holds other files or another recipe's run, is in use by another process, or
                cannot be written.
        """
        run = cls(path)
        with storage_errors(path):
            _require_ours(run)
            path.mkdir(parents=True, exist_ok=True)
            with locked(path):
                difference = _difference(read_json(run.resolved), resolved) if run.resolved.is_file() else None
                if difference is not None and run.has_finished_stage:
                    raise _other_recipe(path, *difference)
                if difference is not None or not run.resolved.is_file():
                    # `resolved.json` comes last: a folder without it is an interrupted creation, not a run.
                    write_text(run.recipe, text)
                    write_json(run.resolved, resolved)
        return run

    @classmethod
    def existing(cls, path: Path) -> RunFolder:
        """Opens an existing run folder.

        Raises:
            RunFolderError: the path is no run folder.
        """
        run = cls(path)
        if not run.resolved.is_file():
            got = what_lacks(path, run.resolved.name)
            raise RunFolderError(f"{path} is no run folder", got=got, remedy="name a folder that `seawall run` wrote")
        return run


def _require_ours(run: RunFolder) -> None:
    """Refuses files, and folders with foreign files: seawall writes only into new and empty folders and its own."""
    path = run.path
    if path.exists() and not path.is_dir():
        raise RunFolderError(f"{path} is a file", expected="a folder", remedy="choose another --output")
    if not path.is_dir() or run.resolved.is_file():
        return
    written = [name for file in (run.recipe, run.resolved) for name in (file.name, f".{file.name}.part")]
    own_files = {LOCK, OWNER, *written}
    foreign = sorted(entry.name for entry in path.iterdir() if entry.name not in own_files)
    if foreign:
        raise RunFolderError(
            f"{path} is not empty and holds no seawall run",
            got=foreign[0] + (f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""),
            expected="a new or empty folder, or a run of this recipe",
            remedy="choose another folder with --output",
        )


def _difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[str, str, str] | None:
    """The first key that differs, with its old and new value; None where the recipes agree."""
    old_values, new_values = _flat(old), _flat(new)
    for key in dict.fromkeys([*new_values, *old_values]):
        is_changeable = key in _CHANGEABLE_SETTINGS or _MEMORY.fullmatch(key) is not None
        fixed = key.partition(".")[0] not in _CHANGEABLE and not is_changeable
        # Earlier versions of seawall lack some settings: a missing key has the value that changes nothing.
        unset = json.dumps(LATER_SETTINGS.get(key, LATER_SETTINGS.get(key.rpartition(".")[2])))
        if fixed and old_values.get(key, unset) != new_values.get(key, unset):
            return key, old_values.get(key, "nothing"), new_values.get(key, "nothing")
    return None


def _other_recipe(path: Path, key: str, old: str, new: str) -> RunFolderError:
    return RunFolderError(
        f"{path} holds another recipe's run: {key} differs",
        got=new,
        expected=f"{old}, as in that run",
        remedy=f"choose another folder with --output, or restore {key}",
    )


def _flat(document: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Full key -> its value as JSON text, in which the count 1 and the fraction 1.0 differ."""
    flat: dict[str, str] = {}
    for key, value in document.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": json.dumps(value)}
    return flat


SCHEMA = 1
_PACKAGES = ("seawall", "torch", "transformers", "accelerate", "safetensors", "tokenizers", "numpy")


def environment() -> dict[str, Any]:
    """Versions of Python and packages, and the machine; imports no package. A missing package has version null."""
    return {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processors": os.cpu_count(),
    }


def version_notices(run: RunFolder) -> list[str]:
    """One line if a run with finished stages was begun with other versions of packages: the stages are kept."""
    if not (run.manifest.is_file() and run.has_finished_stage):
        return []
    before = read_json(run.manifest).get("environment", {}).get("packages", {})
    now = environment()["packages"]
    changed = [f"{name} {before[name]}, now {now[name]}" for name in now if before.get(name, now[name]) != now[name]]
    return [f"This run was begun with {'; '.join(changed)}. Finished stages are kept."] if changed else []


def update_manifest(run: RunFolder, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Merges `changes` into the manifest, section by section, writes it atomically, and returns it."""
    exists = run.manifest.is_file()
    old = read_json(run.manifest) if exists else {"schema": SCHEMA, "environment": environment()}
    merged = _merge(old, changes)
    if merged != old or not exists:
        write_json(run.manifest, merged)
    return merged


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _merge(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(old)
    for key, value in new.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = _merge(result[key], value) if both else value
    return result
