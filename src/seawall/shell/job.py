"""The steps of every verb: check and read the inputs, open the run folder, run a stage, report its claim."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from seawall.config.data import DataConfig
from seawall.config.load import change_recipe
from seawall.config.model import EMBEDDED
from seawall.config.recipe import Recipe
from seawall.data.sets import Prompts, load_prompts
from seawall.distributed.process import require_joined
from seawall.errors import ConfigError
from seawall.evaluation.judges import check_judge
from seawall.models.files.checkpoint import read_config
from seawall.models.files.open import Checkpoint
from seawall.runs.files import read_json
from seawall.runs.folder import RunFolder
from seawall.runs.stage import run_stage
from seawall.shell.context import Context
from seawall.shell.engines import check_engines
from seawall.shell.plugins import require_own_recipe


class Claiming(Protocol):
    """A result with a claim."""

    @property
    def claim(self) -> str:
        """What may be said of the result, in a few sentences."""
        ...


ContextT = TypeVar("ContextT", bound=Context)
ResultT = TypeVar("ResultT", bound=Claiming)


def check_inputs(recipe: Recipe, *, shards: bool = False) -> None:
    """Refuse an unusable judge or engine and a missing model, before a run folder is made; no weight is read.

    Args:
        recipe: model, judge and engines.
        shards: whether the verb works on sharded weights.

    Raises:
        SeawallError: the judge or the engine cannot be used; there is no such model, or it has no configuration; or
            its weights are to be sharded, and the verb does not do this.
    """
    gene, landscape = recipe.gene, recipe.landscape
    beside = (gene.graft.base, gene.degraded, landscape.base, landscape.tuned, recipe.tune.base)
    if (recipe.model.fsdp and not shards) or any(model is not None and model.fsdp for model in beside):
        raise ConfigError(
            "model.fsdp is for `seawall repair` alone",
            got="fsdp=true in another command, or of another model",
            expected="whole weights in each process",
            remedy="set fsdp=false",
        )
    check_judge(recipe.eval.judge)
    check_engines(recipe)
    if recipe.eval.engine.kind != "endpoint" and recipe.model.id not in EMBEDDED:
        read_config(Checkpoint(recipe.model).small_files)


def read_inputs(recipe: Recipe, data: DataConfig | None = None, *, shards: bool = False) -> Prompts:
    """The prompts of a recipe; judge and model are checked too, before a run folder is made.

    Args:
        recipe: model, prompts and settings.
        data: the recipe's section `data` with the caps of the verb; None for the section unchanged.
        shards: as of `check_inputs`.

    Raises:
        SeawallError: a source, the attack file, the judge or the model cannot be used.
    """
    check_inputs(recipe, shards=shards)
    return load_prompts(recipe.data if data is None else data)


def recipe_of_run(path: Path, changes: Sequence[str], *, section: str) -> tuple[Recipe, RunFolder]:
    """The recipe of an existing run, with changes to one section.

    Args:
        path: the run folder.
        changes: settings as `SECTION.KEY=VALUE`.
        section: the only section that may be changed.

    Raises:
        SeawallError: no run, an invalid setting, or a recipe that names code by `module:function`.
    """
    run = RunFolder.existing(path)
    recipe = change_recipe(read_json(run.resolved), changes, where=str(run.resolved), section=section)
    require_own_recipe(recipe, path)
    return recipe, run


def new_run(recipe: Recipe, folder: Path, text: str) -> RunFolder:
    """The run folder of a recipe, new or existing.

    Raises:
        ConfigError: a launcher has started several processes, and this function was called in each.
        RunFolderError: it holds something else, or is not writable.
    """
    require_joined()
    return RunFolder.open(folder, resolved=recipe.model_dump(mode="json"), text=text)


def claiming_stage(
    context: ContextT,
    name: str,
    inputs: Mapping[str, Any],
    *,
    work: Callable[[ContextT, Path], None],
    load: Callable[[Path], ResultT],
) -> ResultT:
    """Runs a stage unless it is finished, and reports the claim of its result.

    Args:
        context: passed to `work`.
        name: of the stage.
        inputs: everything that the result depends on.
        work: makes the result in a scratch folder.
        load: reads the result.
    """
    result = load(
        run_stage(context.run, name, inputs, lambda scratch: work(context, scratch), skipped=context.reporter.say)
    )
    context.reporter.say(result.claim)
    return result
