"""Stages of a verb: the terms of memory that exist at once, and the work, by which time is computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from seawall.models.plan.memory import cache_bytes, logit_bytes, working_bytes
from seawall.models.plan.shapes import ModelShapes

VLLM = "vLLM server"
ON_ONE_DEVICE = ("logits", "library context", VLLM)
"""Terms that several devices do not share: output layer and server are on one of them, every device has a context."""


@dataclass(frozen=True, slots=True)
class DataSizes:
    """Numbers and lengths of a run's prompts.

    Attributes:
        train_goals: harmful goals whose pairs are profiled and repaired.
        validation_prompts: prompts answered after every round of the repair.
        test_goals: harmful goals evaluated plainly and under every attack.
        test_prompts: harmless and borderline prompts evaluated.
        seen_families: attack families that the repair trains on.
        unseen_families: attack families that only the evaluation uses; a live one counts once for each of its turns.
        retained: harmless prompts whose answers a repair preserves.
        gold: questions with reference answers.
        task_rows: training rows of `seawall tune`.
        prompt_tokens: length of a templated prompt, on average.
        longest_prompt: length of the longest templated prompt.
        response_tokens: length of a reply that is trained on.
    """

    train_goals: int
    validation_prompts: int
    test_goals: int
    test_prompts: int
    seen_families: int
    unseen_families: int
    retained: int = 0
    gold: int = 0
    task_rows: int = 0
    prompt_tokens: int = 160
    longest_prompt: int = 160
    response_tokens: int = 64

    @property
    def pairs(self) -> int:
        """Attacks that are profiled, all of which may be kept."""
        return self.train_goals * self.seen_families

    @property
    def evaluated(self) -> int:
        """Prompts of an evaluation on test goals."""
        return self.test_goals * (1 + self.seen_families + self.unseen_families) + self.test_prompts


@dataclass(frozen=True, slots=True)
class Work:
    """Tokens by kind of pass, and updates of an optimizer.

    Attributes:
        generated: tokens decoded one by one.
        forward: tokens in forward passes without a gradient.
        trained: tokens in forward and backward passes.
        updates: steps of the optimizer.
        updated: parameters of one such step.
        files: bytes of large files, written or read.
        processes: fresh Python processes that load libraries.
    """

    generated: int = 0
    forward: int = 0
    trained: int = 0
    updates: int = 0
    updated: int = 0
    files: int = 0
    processes: int = 0

    def __add__(self, addend: Work) -> Work:
        return Work(
            self.generated + addend.generated,
            self.forward + addend.forward,
            self.trained + addend.trained,
            self.updates + addend.updates,
            max(self.updated, addend.updated),
            self.files + addend.files,
            self.processes + addend.processes,
        )


@dataclass(frozen=True, slots=True)
class Moment:
    """Terms of memory that exist at the same time, in bytes by name.

    Attributes:
        name: what happens then: backward, update, decoding.
        terms: on the device (all devices together).
        settings: keys of the recipe, from the one to lower first, that make this moment smaller.
    """

    name: str
    terms: Mapping[str, int]
    settings: tuple[str, ...] = ()

    @property
    def fixed(self) -> dict[str, int]:
        """The terms that several devices do not share."""
        return {name: size for name, size in self.terms.items() if name in ON_ONE_DEVICE}

    def on_device(self, devices: int, layers: int) -> dict[str, int]:
        """The terms of the fullest of several devices, each of which holds whole layers."""
        share = -(-layers // devices) / layers
        return {
            name: size if name in ON_ONE_DEVICE else round(size * (share if devices > 1 else 1))
            for name, size in self.terms.items()
        }


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of a verb.

    Attributes:
        name: as the run folder names it.
        moments: moments that may be the largest.
        work: of the stage.
        host: terms of memory on the host, in bytes by name.
        disk: bytes written by name.
    """

    name: str
    moments: tuple[Moment, ...]
    work: Work = Work()
    host: Mapping[str, int] = field(default_factory=dict)
    disk: Mapping[str, int] = field(default_factory=dict)

    def largest(self, devices: int, layers: int) -> Moment:
        """The moment with the most memory on one device."""
        return max(self.moments, key=lambda moment: sum(moment.on_device(devices, layers).values()))


@dataclass(frozen=True, slots=True)
class Decoding:
    """A batch of replies.

    Attributes:
        rows: prompts decoded at once.
        prompt_tokens: length of the longest prompt.
        new_tokens: limit of a reply.
        settings: keys of the recipe that make the batch smaller.
    """

    rows: int
    prompt_tokens: int
    new_tokens: int
    settings: tuple[str, ...] = ()


def decoding_moments(
    shapes: ModelShapes, batch: Decoding, beside: Mapping[str, int], *, context: int
) -> tuple[Moment, Moment]:
    """The prefill of a batch and its last step, beside other terms such as copies of the repair."""
    base = {"weights": shapes.weights, **beside}
    prefill = batch.rows * batch.prompt_tokens
    logits = logit_bytes(shapes, batch.rows, copies=0)
    return (
        Moment(
            "prefill",
            base
            | {
                "key-value cache": cache_bytes(shapes, batch.rows, batch.prompt_tokens),
                "activations": working_bytes(shapes, prefill),
                "logits": logits,
                "library context": context,
            },
            batch.settings,
        ),
        Moment(
            "decoding",
            base
            | {
                "key-value cache": cache_bytes(shapes, batch.rows, batch.prompt_tokens + batch.new_tokens),
                "activations": working_bytes(shapes, batch.rows),
                "logits": logits,
                "library context": context,
            },
            batch.settings,
        ),
    )


def generation(prompts: int, batch: Decoding, mean_tokens: int) -> Work:
    """Prompts read once, and replies of the longest length."""
    return Work(generated=prompts * batch.new_tokens, forward=prompts * mean_tokens)
