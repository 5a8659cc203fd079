"""The context of a verb. Prompts are read before a run folder is made; the model is opened once, at first use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from seawall.config.data import limited_note
from seawall.config.recipe import Recipe
from seawall.data.sets import Prompts
from seawall.data.types import Judge
from seawall.evaluation.engines.decoders import Decoders, EngineDecoder
from seawall.evaluation.judges import judge_state, make_judge
from seawall.models.decoding import Loaded
from seawall.models.files.open import Checkpoint
from seawall.models.memory import release_memory
from seawall.models.replicas import computed_in_step, copy_check, load_copies, register_copies, release_copies
from seawall.models.sharding import in_step
from seawall.runs.files import storage_errors
from seawall.runs.folder import RunFolder, update_manifest, version_notices
from seawall.runs.lock import locked
from seawall.runs.progress import Reporter
from seawall.shell.engines import engine_inputs, prepare
from seawall.shell.model import (
    OpenModel,
    computing,
    load_recipe_model,
    measurement_notices,
    open_checkpoint,
    open_model,
)
from seawall.shell.planned import placed_model
from seawall.shell.plugins import note_plugins
from seawall.version import __version__


@dataclass(frozen=True, eq=False)
class Context:
    """A recipe, its run folder, its prompts, and a reporter.

    Attributes:
        recipe: model, prompts and settings.
        run: the run folder.
        reporter: receives progress.
        prompts: of the recipe, with the caps of the verb.
        as_stored: whether the verb takes quantised weights as they are; it then changes none.
        verbs: as planned, whose memory decides where an automatic device map places the model.
    """

    recipe: Recipe
    run: RunFolder
    reporter: Reporter
    prompts: Prompts
    as_stored: bool = field(default=False, kw_only=True)
    verbs: tuple[str, ...] = field(kw_only=True)

    @contextmanager
    def working(self, prompts_key: str = "prompts") -> Iterator[None]:
        """Inside, this process has the run folder locked, and disk errors are one line.

        Args:
            prompts_key: key of the prompts' fingerprint in the manifest.

        Raises:
            RunFolderError: another process has the lock, or the disk is full or not writable.
        """
        with storage_errors(self.run.path), locked(self.run.path):
            key = prompts_key.replace("prompts", "near_duplicates")
            notes = {key: list(self.prompts.notes)} if self.prompts.notes else {}
            self.note({"data": {prompts_key: self.prompts.fingerprint(), **notes}})
            changed = note_plugins(self.run, self.recipe, self.prompts)
            limited = [line for line in (limited_note(self.prompts.limit),) if line]
            for line in (*limited, *version_notices(self.run), *changed, *self.prompts.notes):
                self.reporter.say(line)
            try:
                yield
            finally:
                self.close_decoders()

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """The files of the recipe's model, and its placement."""
        return open_checkpoint(placed_model(self.recipe, self.verbs, self.prompts, say=self.reporter.say))

    @cached_property
    def opened(self) -> OpenModel:
        """The loaded model, dense or MoE; a repair changes it in place.

        Raises:
            SeawallError: the model cannot be loaded.
        """
        self.reporter.stage(f"Loading {self.recipe.model.id}")
        load_copies(load_recipe_model, self.recipe.model, self.as_stored)
        with in_step():
            opened = open_model(self.checkpoint, as_stored=self.as_stored)
        register_copies(opened.model, opened.fingerprint)
        notices = computed_in_step((opened.model, opened.tokenizer), _notices, self.recipe.eval.longest)
        copy_check(opened.model)
        for line in notices:
            self.reporter.say(line)
        if notices:
            self.note({"notices": notices})
        self.note_model(opened.fingerprint)
        loaded = (opened.model, opened.tokenizer)
        for engine in (self.recipe.engine, self.recipe.eval.engine):
            if engine.kind == "vllm" or not self.recipe.model.fsdp:  # sharded weights write no reply
                prepare(self._decoders.of(engine), loaded, opened.digests, self.checkpoint.folder)
        return opened

    @cached_property
    def _decoders(self) -> Decoders:
        return Decoders(self.run.path, self.reporter.say)

    @property
    def decoder(self) -> EngineDecoder:
        """The decoder of the recipe's engine, for replies of `opened` without hooks."""
        return self._decoders.of(self.recipe.engine)

    @property
    def eval_decoder(self) -> EngineDecoder:
        """The decoder of the evaluations' engine."""
        return self._decoders.of(self.recipe.eval.engine)

    def close_decoders(self) -> None:
        """Ends what the engines have started and frees its memory; the next reply starts it again."""
        self._decoders.close()

    def release(self) -> None:
        """Frees the loaded model, where nothing else refers to it; the next use loads it again, without a repair."""
        if "opened" in vars(self):
            release_copies(self.opened.model)
        vars(self).pop("opened", None)
        release_memory()

    @cached_property
    def judge(self) -> Judge:
        """The recipe's judge; an endpoint's answers are cached in the run folder."""
        return make_judge(self.recipe.eval.judge, self.run.judge)

    def basis(self) -> dict[str, Any]:
        """The inputs of every stage that runs the model."""
        return {
            "seawall": __version__,
            "weights": self.opened.fingerprint,
            "tokenizer": self.opened.wording,
            "rendered": self.opened.rendered,
            "settings": self.opened.settings,
            "computing": computing(self.opened.model),
            "judge_state": judge_state(self.recipe.eval.judge),
            "prompts": self.prompts.fingerprint(),
            **engine_inputs(self.recipe.engine),
        }

    def note_model(self, fingerprint: str) -> None:
        """Records the model in the run's manifest."""
        model = {"id": self.recipe.model.id, "revision": self.recipe.model.revision, "weights": fingerprint}
        stated = {"license": self.checkpoint.licence, "commit": self.checkpoint.commit}
        model |= {key: value for key, value in stated.items() if value is not None}
        self.note({"model": model, "seed": self.recipe.seed})

    def note(self, facts: dict[str, Any]) -> None:
        """Records facts in the run's manifest."""
        update_manifest(self.run, facts)


def _notices(loaded: Loaded, longest: int) -> list[str]:
    return measurement_notices(*loaded, longest)
