"""The plugins of a recipe: recorded in the run's manifest, and refused in the recipe of a run folder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from seawall.config.data import PluginSource
from seawall.config.judge import EnsembleJudge, PluginJudge
from seawall.config.plugin import is_plugin, names_module
from seawall.config.recipe import Recipe
from seawall.data.plugins import PluginRecord
from seawall.data.sets import Prompts
from seawall.errors import ConfigError
from seawall.evaluation.judges import judge_plugins
from seawall.runs.files import read_json
from seawall.runs.folder import RunFolder, update_manifest


def require_own_recipe(recipe: Recipe, folder: Path) -> None:
    """Refuses code that the recipe of a run folder names by `module:function`: the folder may be somebody else's.

    Raises:
        ConfigError: the recipe names such code.
    """
    names = [name for name in _plugin_names(recipe) if names_module(name)]
    if names:
        raise ConfigError(
            f"the recipe in {folder} names code, and a run folder imports none",
            got=names[0],
            expected="plugins of installed packages (package/name)",
            remedy=f"if you trust that code, name the recipe file in place of the folder, with --output {folder}",
        )


def note_plugins(run: RunFolder, recipe: Recipe, prompts: Prompts) -> list[str]:
    """Records the plugins in the manifest.

    Returns:
        A line per plugin that changed since the run was begun: its stages are computed again.
    """
    records = [*prompts.plugins, *judge_plugins(recipe.eval.judge)]
    if not records:
        return []
    before = read_json(run.manifest).get("plugins", {}) if run.manifest.is_file() else {}
    update_manifest(run, {"plugins": {record.label: asdict(record) for record in records}})
    changed = [record for record in records if before.get(record.label, asdict(record)) != asdict(record)]
    return [_change(record, before[record.label]["version"]) for record in dict.fromkeys(changed)]


def _change(record: PluginRecord, earlier: str) -> str:
    versions = f" ({earlier}, now {record.version})" if earlier != record.version else ""
    return f"{record.label} has changed since this run was begun{versions}: what depends on it is computed again."


def _plugin_names(recipe: Recipe) -> Iterator[str]:
    data, judge = recipe.data, recipe.eval.judge
    yield from filter(is_plugin, (*data.attacks_seen, *data.attacks_unseen))
    for source in (data.harmful, data.benign, data.borderline, data.gold):
        if isinstance(source, PluginSource):
            yield source.name
    for member in judge.judges if isinstance(judge, EnsembleJudge) else (judge,):
        if isinstance(member, PluginJudge):
            yield member.name
