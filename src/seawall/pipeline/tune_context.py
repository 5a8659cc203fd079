"""What fine-tuning works with: the model, its anchor, prompts and the task, opened at first use and once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from seawall.artifacts.anchor import Anchor
from seawall.config.anchor import AnchorConfig
from seawall.config.model import LAB, LAB_ORIGINAL, ModelConfig
from seawall.config.recipe import Recipe
from seawall.config.tune import ANCHORED, TuneConfig
from seawall.data.customer_messages import customer_messages
from seawall.data.sets import Prompts, load_prompts
from seawall.data.tasks import load_task
from seawall.data.types import Exchange, Judge
from seawall.distributed.process import Processes
from seawall.errors import ConfigError, DataError
from seawall.evaluation.judges import make_judge
from seawall.evaluation.suite import ATTACK, BENIGN, BORDERLINE, PLAIN, EvalSuite, build_suite
from seawall.models.fingerprint import model_fingerprint
from seawall.models.load import load_model
from seawall.pipeline.anchor import open_anchor
from seawall.pipeline.model import located, require_loadable
from seawall.pipeline.progress import Reporter
from seawall.runs.files import canonical_hash
from seawall.runs.folder import RunFolder
from seawall.runs.manifest import update_manifest

_KEPT = (PLAIN, BORDERLINE, BENIGN)


@dataclass(frozen=True, slots=True)
class Task:
    """Rows to train on and to score, and a name for both."""

    name: str
    train: tuple[Exchange, ...]
    test: tuple[Exchange, ...]

    def fingerprint(self) -> str:
        """sha256 over all rows."""
        return canonical_hash({part: [asdict(row) for row in getattr(self, part)] for part in ("train", "test")})


@dataclass(frozen=True, eq=False)
class TuneContext:
    """A recipe, its run folder, and where to report."""

    recipe: Recipe
    run: RunFolder
    reporter: Reporter
    processes: Processes

    @property
    def config(self) -> TuneConfig:
        """The recipe's section."""
        return self.recipe.tune

    @cached_property
    def prompts(self) -> Prompts:
        """The recipe's prompts, with the cap of the section `tune` on what is asked."""
        caps = dict.fromkeys(("test_goals", "test_benign", "test_borderline"), self.config.test_prompts)
        found = load_prompts(self.recipe.data.model_copy(update={**caps, "train_goals": None}))
        self.note({"data": {"tune_prompts": found.fingerprint()}})
        return found

    @cached_property
    def task(self) -> Task:
        """The task's rows.

        Raises:
            DataError: a file cannot be read, or one prompt is in both.
        """
        found = read_task(self.config)
        self.note({"data": {"task": found.fingerprint()}})
        return found

    @cached_property
    def suite(self) -> EvalSuite:
        """What is asked before and after: held-out goals plainly and, unless switched off, under every attack."""
        whole = build_suite(self.prompts, "test", gold=False)
        kept = {
            group: rows
            for group, rows in whole.groups.items()
            if group in _KEPT or (self.config.attacks and group.startswith(ATTACK))
        }
        if PLAIN not in kept:
            raise DataError(
                "there are no held-out harmful requests, so nothing could be reported",
                got="an empty test part of data.harmful",
                remedy="use more prompts, or set tune.evaluate=false",
            )
        return EvalSuite(kept)

    @cached_property
    def fingerprint(self) -> str:
        """Of the model's weights as they are loaded."""
        self.reporter.stage(f"Loading {self.recipe.model.id}")
        found = model_fingerprint(self.fresh()[0])
        named = {"id": self.recipe.model.id, "revision": self.recipe.model.revision, "weights": found}
        self.note({"model": named, "seed": self.recipe.seed})
        return found

    @cached_property
    def judge(self) -> Judge:
        """The recipe's judge; what an endpoint tells it is kept in the run folder."""
        return make_judge(self.recipe.eval.judge, self.run.judge)

    @property
    def base(self) -> ModelConfig | None:
        """The base: the recipe's, or the embedded model's own."""
        if self.config.base is None and self.recipe.model.id == LAB:
            return self.recipe.model.model_copy(update={"id": LAB_ORIGINAL})
        return self.config.base

    def fresh(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The model, loaded anew: training and merging an adapter change it."""
        return load_model(located(self.recipe.model))

    def note(self, facts: dict[str, Any]) -> None:
        """Keeps facts in the run's manifest; the first process alone writes."""
        if self.processes.first:
            update_manifest(self.run, facts)

    def anchor_config(self) -> AnchorConfig:
        """The anchor of the matrices that are adapted."""
        assert self.base is not None
        lora, size = self.config.lora, self.config.anchor
        return AnchorConfig(
            aligned=self.recipe.model,
            base=self.base,
            targets=(*lora.target_modules, *lora.target_parameters),
            rank=size.rank,
            energy=size.energy,
        )

    def make_anchor(self) -> Anchor:
        """Reads both checkpoints."""
        return open_anchor(self.anchor_config())


def check(recipe: Recipe) -> None:
    """Refuse what cannot be run, before a folder is made for it.

    Raises:
        ConfigError: an endpoint; methods that need a base, and none is named.
    """
    require_loadable(recipe.eval.engine, "a model behind an endpoint cannot be fine-tuned")
    wanting = [method for method in recipe.tune.methods if method in ANCHORED]
    if wanting and recipe.tune.base is None and recipe.model.id != LAB:
        raise ConfigError(
            f"{', '.join(wanting)} need the model's base",
            got="no tune.base",
            expected="the checkpoint that the model was aligned from",
            remedy="set tune.base.id, or choose tune.methods=[sft, mixing]",
        )


def read_task(config: TuneConfig) -> Task:
    """The rows of the section's task.

    Raises:
        DataError: as `load_task`; the same prompt is trained on and scored.
    """
    if config.task.train is None:
        ours = customer_messages()
        return Task("customer_messages", ours.train, tuple(_some(ours.test, config.task.test_rows)))
    train = load_task(config.task.train)
    test = load_task(config.task.test) if config.task.test is not None else []
    both = {_key(row) for row in train} & {_key(row) for row in test}
    if both:
        raise DataError(
            "the same prompt is trained on and scored",
            got=f"{len(both)} prompts of {config.task.train} in {config.task.test}, {min(both)[:60]!r} first",
            expected="other prompts in either file",
            remedy="remove them from one of the two",
        )
    return Task(Path(config.task.train).stem, tuple(train), tuple(_some(test, config.task.test_rows)))


def _key(row: Exchange) -> str:
    return "\n".join(message.content for message in row.prompt)


def _some(rows: Sequence[Exchange], at_most: int | None) -> Sequence[Exchange]:
    """At most so many, spread evenly over the file."""
    if at_most is None or at_most >= len(rows):
        return rows
    return [rows[at * len(rows) // at_most] for at in range(at_most)]


def settings(config: TuneConfig, *names: str) -> dict[str, Any]:
    """Some of the section's settings, as JSON."""
    return config.model_dump(mode="json", include=set(names))
