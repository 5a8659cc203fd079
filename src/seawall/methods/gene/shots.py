"""The shots of a graft: refusals, task examples and harmless replies to keep; read, batched, and as a loss."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Literal, TypeVar, get_args

import torch
from transformers import PreTrainedModel

from seawall.config.data import DataConfig
from seawall.config.gene import GeneGraft
from seawall.data.batching import epoch_batches
from seawall.data.chat import read_chat_jsonl, to_exchange
from seawall.data.files import Row, json_lines
from seawall.data.sets import Prompts, load_prompts
from seawall.data.splits import take
from seawall.data.templating import Encoded
from seawall.data.types import Exchange, Messages, user
from seawall.errors import ConfigError, DataError
from seawall.methods.gene.examples import cross_entropy
from seawall.train.loop import Losses

ShotKind = Literal["refusal", "task", "harmless"]
"""A refusal of a harmful request, a task example, or the fine-tuned model's own reply to a harmless request."""
SHOT_KINDS: tuple[ShotKind, ...] = get_args(ShotKind)


@dataclass(frozen=True, slots=True)
class Shots:
    """Refusals, task examples, and harmless requests whose replies the graft keeps."""

    refusals: Sequence[Exchange]
    task: Sequence[Exchange]
    harmless: Sequence[Messages] = ()

    def __str__(self) -> str:
        """The numbers of shots, for people."""
        harmless = f", keeping replies to {len(self.harmless)} harmless requests" if self.harmless else ""
        return f"{len(self.refusals)} refusals and {len(self.task)} task examples{harmless}"


@dataclass(frozen=True, slots=True)
class Shot:
    """A tokenised prompt with its target reply."""

    encoded: Encoded
    kind: ShotKind


def shot_batches(shots: Sequence[Shot], config: GeneGraft, seed: int) -> list[list[int]]:
    """Positions of the shots in `config.steps` batches; each batch holds shots of every kind."""
    per_kind = max(1, config.batch_size // 2)
    by_kind = [[position for position, shot in enumerate(shots) if shot.kind == kind] for kind in SHOT_KINDS]
    kinds = [positions for positions in by_kind if positions]
    batches: list[list[int]] = []
    epoch = 0
    while len(batches) < config.steps:
        parts = [
            [
                [of_kind[index] for index in batch]
                for batch in epoch_batches([1] * len(of_kind), per_kind, seed=seed, epoch=epoch)
            ]
            for of_kind in kinds
        ]
        batches += [[position for part in row for position in part] for row in zip(*parts, strict=False)]
        epoch += 1
    return batches[: config.steps]


def shot_loss(
    model: PreTrainedModel, shots: Sequence[Shot], positions: Sequence[int], pad_id: int, *, harmless_weight: float
) -> Losses:
    """Weighted mean of the kinds' mean cross-entropies, and the mean of each kind for the log.

    Args:
        model: in any mode.
        shots: of any kinds.
        positions: of the batch.
        pad_id: a token to pad with; padding is masked.
        harmless_weight: weight of the harmless kind; the other kinds have weight 1.
    """
    loss_B = cross_entropy(model, [shots[position].encoded for position in positions], pad_id).cpu()
    masks = {kind: torch.tensor([shots[position].kind == kind for position in positions]) for kind in SHOT_KINDS}
    means = {f"{kind}_loss": loss_B[mask].mean() for kind, mask in masks.items() if bool(mask.any())}
    weights = {name: harmless_weight if name == "harmless_loss" else 1.0 for name in means}
    total = torch.stack([weights[name] * mean for name, mean in means.items()]).sum() / sum(weights.values())
    return total, {name: float(mean.detach()) for name, mean in means.items()}


_MOST_BORDERLINE = 64
_COLUMNS = (("prompt", "completion"), ("question", "answer"), ("instruction", "output"))
_Item = TypeVar("_Item")


def refusal_shots(data: DataConfig, path: Path | None, count: int, *, seed: int) -> list[Exchange]:
    """Harmful requests with one refusal each, from a file or from the training split of a recipe's prompts.

    Raises:
        DataError: fewer than `count`; a row of the file is malformed.
    """
    if path is not None:
        return _sample(read_exchanges(path), count, seed=seed, what=f"refusals in {path}")
    prompts = load_prompts(data)
    goals = _sample(prompts.goals.train, count, seed=seed, what="training requests in data.harmful")
    if not prompts.refusals:
        raise DataError("there are no refusals to train towards", expected="some text in data.refusals")
    return [
        Exchange(goal.prompt, prompts.refusals[index % len(prompts.refusals)], goal.text)
        for index, goal in enumerate(goals)
    ]


def harmless_requests(data: DataConfig, count: int, *, seed: int) -> list[Messages]:
    """Harmless training requests of a recipe, borderline and benign alternating.

    Raises:
        DataError: fewer than `count`.
    """
    prompts = load_prompts(data)
    kinds = ([item.text for item in prompts.borderline.train], [item.text for item in prompts.benign.train])
    draw = random.Random(f"seawall harmless {seed}")
    rows = zip_longest(*(draw.sample(texts, len(texts)) for texts in kinds))
    mixed = [user(text) for row in rows for text in row if text is not None]
    if len(mixed) < count:
        raise DataError(
            "there are too few harmless training requests in data.benign and data.borderline",
            got=len(mixed),
            expected=f"{count} (gene.graft.harmless)",
            remedy="set gene.graft.harmless lower; 0 leaves them out",
        )
    return mixed[:count]


def borderline_requests(data: DataConfig, config: GeneGraft) -> list[Messages]:
    """The borderline requests by which a graft keeps to its limit on over-refusal; empty without a limit.

    They are of the validation split, so no shot is among them.

    Raises:
        DataError: there is a limit, and no such request.
    """
    if config.max_over_refusal is None:
        return []
    requests = limiting_requests(load_prompts(data))
    if not requests:
        raise DataError(
            "there are no borderline validation requests in data.borderline",
            got="an empty split",
            expected="requests by which gene.graft.max_over_refusal can be kept",
            remedy="use more prompts, or leave gene.graft.max_over_refusal out",
        )
    return requests


def limiting_requests(prompts: Prompts) -> list[Messages]:
    """At most 64 borderline validation requests, chosen by their text."""
    return [item.prompt for item in take(prompts.borderline.validation, _MOST_BORDERLINE)]


def task_shots(path: Path | None, count: int, *, seed: int) -> list[Exchange]:
    """Task examples from a file.

    Raises:
        ConfigError: no file.
        DataError: fewer than `count`; a row is malformed.
    """
    if path is None:
        raise ConfigError(
            "tuning on refusals alone would teach the fine-tuned model to refuse everything",
            got="shots without task examples",
            expected="one task example per refusal",
            remedy="give a JSONL file with --task, or use --shots 0",
        )
    return _sample(read_exchanges(path), count, seed=seed, what=f"examples in {path}")


def read_exchanges(path: Path) -> list[Exchange]:
    """The exchanges of a JSONL file.

    Rows hold `messages` that end with the assistant, or `prompt` and `completion` (also `question` and `answer`,
    `instruction` and `output`).

    Raises:
        DataError: the file cannot be read or is empty; a row has another form (the message names its line).
    """
    first = next(json_lines(path), None)
    if first is None or "messages" in first.fields:
        return [to_exchange(row) for row in read_chat_jsonl(path, ending="assistant")]
    return [_exchange(row) for row in json_lines(path)]


def _exchange(row: Row) -> Exchange:
    for prompt, reply in _COLUMNS:
        if prompt in row.fields and reply in row.fields:
            return Exchange(user(row.text(prompt)), row.text(reply), row.text(prompt))
    raise row.error(
        "the row is neither a conversation nor a prompt with a reply",
        got=f"the fields {', '.join(map(repr, row.fields)) or 'none'}",
        expected="messages, or prompt and completion",
    )


def _sample(items: Sequence[_Item], count: int, *, seed: int, what: str) -> list[_Item]:
    if len(items) < count:
        raise DataError(
            f"there are too few {what}",
            got=len(items),
            expected=f"at least {count} (--shots)",
            remedy="use fewer shots",
        )
    chosen = sorted(random.Random(f"seawall shots {seed}").sample(range(len(items)), count))
    return [items[index] for index in chosen]
