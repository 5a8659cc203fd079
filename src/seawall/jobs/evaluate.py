"""`seawall eval`: evaluate a model, a model with a delta or an adapter, or a model behind an endpoint."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seawall.artifacts.delta import Delta, DeltaOutline
from seawall.artifacts.evaluation import EvalResult
from seawall.artifacts.groups import GROUPS
from seawall.config.data import limited_note
from seawall.config.engine import EndpointEngine
from seawall.config.recipe import Recipe
from seawall.data.sets import Prompts
from seawall.distributed.process import require_joined
from seawall.errors import ConfigError, DataError
from seawall.evaluation.capability.run import check_capability, file_hashes
from seawall.evaluation.engines import make_engine
from seawall.evaluation.engines.decoders import Decoders
from seawall.evaluation.judges import judge_state, make_judge
from seawall.evaluation.run import SAMPLES, evaluate, evaluate_engine
from seawall.evaluation.suite import EvalSuite, build_suite
from seawall.jobs.export import add_delta
from seawall.jobs.summary import (
    attacks_by_length,
    families,
    harm_document,
    judge_disagreement,
    scores,
    wrapping_document,
)
from seawall.models.files.companions import own_tokenizer, require_base
from seawall.models.files.fingerprint import WeightDigests, rendering_fingerprint, tokenizer_fingerprint
from seawall.models.lora.merge import check_adapter, load_merged
from seawall.models.replicas import copy_check, load_copies, register_copies
from seawall.runs.files import read_json, storage_errors, write_json
from seawall.runs.folder import RunFolder, update_manifest
from seawall.runs.lock import locked
from seawall.runs.progress import Quiet, Reporter
from seawall.runs.publish import copy_file
from seawall.runs.sealed import seal_files
from seawall.runs.stage import run_stage
from seawall.shell.engines import prepare
from seawall.shell.evaluated import STAGE
from seawall.shell.job import read_inputs
from seawall.shell.model import computing, measurement_notices, open_checkpoint
from seawall.shell.planned import placed_model
from seawall.shell.plugins import note_plugins
from seawall.version import __version__

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class EvalTarget:
    """A change of the recipe's model before its evaluation; at most one of the two.

    Attributes:
        delta: a `delta` folder of a run.
        adapter: a folder with a PEFT LoRA adapter.
    """

    delta: Path | None = None
    adapter: Path | None = None

    def document(self) -> dict[str, str | None]:
        """The JSON form in `resolved.json` and `summary.json`."""
        folders = {"delta": self.delta, "adapter": self.adapter}
        return {name: None if folder is None else str(folder) for name, folder in folders.items()}


@dataclass(frozen=True)
class Evaluation:
    """The run folder, result and summary of an evaluation."""

    run: RunFolder
    result: EvalResult
    summary: dict[str, Any]


def evaluate_target(recipe: Recipe, target: EvalTarget, folder: Path, *, text: str, reporter: Reporter) -> Evaluation:
    """Evaluates a target into a separate run folder; continues an interrupted evaluation.

    Args:
        recipe: model, prompts and settings; its engine may be an endpoint.
        target: delta or adapter to add to the model.
        folder: the run folder.
        text: the recipe as the user wrote it, saved in the folder.
        reporter: receives progress.

    Raises:
        SeawallError: an error that the user can correct.
    """
    require_joined()
    _check(recipe, target)
    prompts = read_inputs(recipe)
    sections = recipe.model_dump(mode="json", include={"name", "seed", "model", "data", "eval", "output"})
    run = RunFolder.open(folder, resolved={"target": target.document(), **sections}, text=text)
    begun = time.monotonic()
    with storage_errors(folder), locked(run.path):
        update_manifest(run, {"data": {"prompts": prompts.fingerprint()}, "seed": recipe.seed})
        for line in filter(None, (limited_note(prompts.limit), *note_plugins(run, recipe, prompts))):
            reporter.say(line)
        engine = recipe.eval.engine
        if isinstance(engine, EndpointEngine):
            result = _of_endpoint(recipe, engine, run, prompts, reporter)
        else:
            result = _of_model(recipe, target, run, prompts, reporter)
        reporter.stage("Summary")
        run.samples.mkdir(exist_ok=True)
        copy_file(run.stage(STAGE) / SAMPLES, run.samples / f"{STAGE}.jsonl")
        earlier = read_json(run.summary).get("seconds") if run.summary.is_file() else None
        summary = _summary(recipe, target, result, seconds=earlier or round(time.monotonic() - begun, 1))
        write_json(run.summary, summary)
        seal_files(run)
    return Evaluation(run, result, summary)


def model_name(recipe: Recipe) -> str:
    """The evaluated model's id, or its name at the endpoint."""
    engine = recipe.eval.engine
    return engine.model if isinstance(engine, EndpointEngine) else recipe.model.id


def _check(recipe: Recipe, target: EvalTarget) -> None:
    if target.delta is not None and target.adapter is not None:
        raise ConfigError("got a delta and an adapter", expected="one of them", remedy="apply the delta first")
    if isinstance(recipe.eval.engine, EndpointEngine) and target != EvalTarget():
        raise ConfigError(
            "a delta or an adapter cannot be added to a model behind an endpoint",
            remedy="serve the changed model (`seawall apply` writes it), or evaluate it locally with --model",
        )
    if isinstance(recipe.eval.engine, EndpointEngine) and recipe.eval.capability is not None:
        raise ConfigError(
            "capability tasks need the weights, which an endpoint does not give",
            got="eval.capability with eval.engine.kind=endpoint",
            remedy="set eval.capability=null, or run the harness's own command against the endpoint",
        )
    if target.delta is not None:
        DeltaOutline.load(target.delta)
    if target.adapter is not None:
        check_adapter(target.adapter)
    check_capability(recipe.eval.capability)


def _of_endpoint(
    recipe: Recipe, engine: EndpointEngine, run: RunFolder, prompts: Prompts, reporter: Reporter
) -> EvalResult:
    reporter.stage(f"Evaluate {engine.model} at {engine.base_url}")
    if recipe.eval.gold:
        reporter.say("the loss on gold answers is left out: an endpoint does not give it")
    name = f"endpoint:{engine.base_url}#{engine.model}"
    update_manifest(run, {"model": {"id": engine.model, "endpoint": engine.base_url}})
    suite = _suite(recipe, prompts, gold=False)

    def work(scratch: Path) -> None:
        evaluate_engine(
            make_engine(recipe.eval, folder=scratch),
            suite,
            recipe.eval,
            judge=make_judge(recipe.eval.judge, run.judge),
            folder=scratch,
            fingerprint=name,
            progress=lambda count, total: reporter.step("asking", count, total),
        ).save(scratch)

    return EvalResult.load(run_stage(run, STAGE, _inputs(recipe, prompts, name), work, skipped=reporter.say))


def _of_model(recipe: Recipe, target: EvalTarget, run: RunFolder, prompts: Prompts, reporter: Reporter) -> EvalResult:
    reporter.stage(f"Loading {recipe.model.id}")
    load_copies(_open_quietly, recipe, target)
    placed = placed_model(recipe, ("eval",), prompts, say=reporter.say)
    model, tokenizer = open_target(recipe.model_copy(update={"model": placed}), target, reporter)
    digests = WeightDigests(model)
    fingerprint = digests.fingerprint()
    register_copies(model, fingerprint)
    notices = measurement_notices(model, tokenizer, recipe.eval.longest)
    copy_check(model)
    for line in notices:
        reporter.say(line)
    if notices:
        update_manifest(run, {"notices": notices})
    described = {"id": recipe.model.id, "revision": recipe.model.revision, "weights": fingerprint}
    checkpoint = open_checkpoint(recipe.model)
    commit = checkpoint.commit
    update_manifest(run, {"model": described | ({} if commit is None else {"commit": commit})})
    reporter.stage("Evaluate, on goals of the test split")
    suite = _suite(recipe, prompts, gold=recipe.eval.gold)
    decoders = Decoders(run.path, reporter.say)
    folder = checkpoint.folder if target == EvalTarget() else None
    prepare(decoders.of(recipe.eval.engine), (model, tokenizer), digests, folder)

    def work(scratch: Path) -> None:
        evaluate(
            model,
            tokenizer,
            suite,
            recipe.eval,
            judge=make_judge(recipe.eval.judge, run.judge),
            folder=scratch,
            fingerprint=fingerprint,
            progress=lambda count, total: reporter.step("asking", count, total),
            decoder=decoders.of(recipe.eval.engine),
        ).save(scratch)

    inputs = _inputs(recipe, prompts, fingerprint)
    inputs |= {"tokenizer": tokenizer_fingerprint(tokenizer), "rendered": rendering_fingerprint(tokenizer)}
    inputs |= {"settings": checkpoint.settings, "computing": computing(model)}
    try:
        return EvalResult.load(run_stage(run, STAGE, inputs, work, skipped=reporter.say))
    finally:
        decoders.close()


def open_target(
    recipe: Recipe, target: EvalTarget, reporter: Reporter
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The recipe's model, dense or MoE, with the delta or the adapter, and with the tokenizer that these bring.

    Raises:
        SeawallError: the model cannot be loaded, or delta or adapter are of another model.
    """
    delta = None if target.delta is None else Delta.load(target.delta)
    checkpoint = open_checkpoint(recipe.model)
    if target.adapter is not None:
        require_base(target.adapter, (checkpoint.id, recipe.model.id))
    if target.adapter is None:
        model, tokenizer = checkpoint.load(as_stored=delta is None)
    else:
        model, tokenizer = load_merged(checkpoint, target.adapter, reporter.say)
    folder = target.delta or target.adapter
    own = None if folder is None else own_tokenizer(folder, model, tokenizer, recipe.model)
    if own is not None:
        reporter.say(f"using the tokenizer and chat template in {folder}, which differ from the model's")
        tokenizer = own
    if delta is not None:
        add_delta(delta, model)
    return model, tokenizer


def _open_quietly(recipe: Recipe, target: EvalTarget) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """`open_target` in a process that only computes."""
    return open_target(recipe, target, Quiet())


def _suite(recipe: Recipe, prompts: Prompts, *, gold: bool) -> EvalSuite:
    suite = build_suite(prompts, "test", gold=gold, wrapping=True, kinds=recipe.eval.groups)
    if not suite.groups:
        raise DataError(
            "there is nothing to ask",
            got=f"no test prompt of eval.groups={list(recipe.eval.groups or ())}",
            remedy="add another kind of requests to eval.groups, or prompts to its source",
        )
    return suite


def _inputs(recipe: Recipe, prompts: Prompts, evaluated: str) -> dict[str, Any]:
    """The stage's inputs."""
    settings = recipe.eval.model_dump(mode="json")
    capability = recipe.eval.capability
    tasks = {"capability": file_hashes(capability)} if capability is not None else {}
    inputs = {"seawall": __version__, "evaluated": evaluated, "prompts": prompts.fingerprint(), "eval": settings}
    return {**inputs, "judge_state": judge_state(recipe.eval.judge), **tasks}


def _summary(recipe: Recipe, target: EvalTarget, result: EvalResult, *, seconds: float) -> dict[str, Any]:
    """The content of `summary.json`: the keys of a run's summary, with one rate instead of two."""

    def rate(group: str) -> dict[str, Any] | None:
        return asdict(result.groups[group]) if group in result.groups else None

    return {
        "schema": 1,
        "evaluation": STAGE,
        "model": model_name(recipe),
        "target": target.document(),
        "fingerprint": result.model_fingerprint,
        "recipe": recipe.name,
        **({} if recipe.data.limit is None else {"limit": recipe.data.limit}),
        "seconds": seconds,
        "attacks": {family: rate(group) for family, group in families(result).items()},
        **{group.summary: rate(name) for name, group in GROUPS.items()},
        "wrapping": wrapping_document(result),
        "gold_answer_loss": None if result.gold_loss is None else {"loss": result.gold_loss, "n": result.gold_n},
        **attacks_by_length(result),
        "capability": scores(result) if recipe.eval.capability is not None else None,
        **judge_disagreement(result),
        **harm_document(result),
    }
