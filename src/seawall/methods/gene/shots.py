"""The few examples of a graft as batches and as a loss: refusals, the task, and harmless replies that are to stay."""

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
from seawall.data.sets import load_prompts
from seawall.data.templating import Encoded
from seawall.data.types import Exchange, Messages, user
from seawall.errors import ConfigError, DataError
from seawall.methods.gene.lessons import cross_entropy
from seawall.train.loop import Losses

Side = Literal["refusal", "task", "harmless"]
"""A refusal of a harmful request, an example of the task, or the task's model's own reply to a harmless request."""
SIDES: tuple[Side, ...] = get_args(Side)


@dataclass(frozen=True, slots=True)
class Shot:
    """A prompt with the reply that is wanted."""

    encoded: Encoded
    side: Side


def shot_batches(shots: Sequence[Shot], config: GeneGraft, seed: int) -> list[list[int]]:
    """Positions in batches with every side in each, for `config.steps` updates."""
    each = max(1, config.batch_size // 2)
    by_side = [[at for at, one in enumerate(shots) if one.side == side] for side in SIDES]
    sides = [positions for positions in by_side if positions]
    found: list[list[int]] = []
    epoch = 0
    while len(found) < config.steps:
        parts = [
            [[side[at] for at in some] for some in epoch_batches([1] * len(side), each, seed=seed, epoch=epoch)]
            for side in sides
        ]
        found += [[at for part in row for at in part] for row in zip(*parts, strict=False)]
        epoch += 1
    return found[: config.steps]


def shot_loss(
    model: PreTrainedModel, shots: Sequence[Shot], positions: Sequence[int], pad_id: int, *, harmless_weight: float
) -> Losses:
    """The weighted mean of the sides' mean cross-entropies, whatever their numbers, and each of these for the log.

    Args:
        model: in any mode.
        shots: of any sides.
        positions: those of this batch.
        pad_id: any token; it is masked.
        harmless_weight: of the harmless side; the others weigh 1.
    """
    loss_B = cross_entropy(model, [shots[at].encoded for at in positions], pad_id).cpu()
    masks = {side: torch.tensor([shots[at].side == side for at in positions]) for side in SIDES}
    means = {f"{side}_loss": loss_B[mask].mean() for side, mask in masks.items() if bool(mask.any())}
    weights = {name: harmless_weight if name == "harmless_loss" else 1.0 for name in means}
    total = torch.stack([weights[name] * one for name, one in means.items()]).sum() / sum(weights.values())
    return total, {name: float(one.detach()) for name, one in means.items()}


_COLUMNS = (("prompt", "completion"), ("question", "answer"), ("instruction", "output"))
_Item = TypeVar("_Item")


def refusal_shots(data: DataConfig, path: Path | None, count: int, *, seed: int) -> list[Exchange]:
    """Harmful requests with a refusal each: of a file, or of the training part of a recipe's prompts.

    Raises:
        DataError: there are fewer; a row is wrong.
    """
    if path is not None:
        return _some(read_exchanges(path), count, seed=seed, what=f"refusals in {path}")
    prompts = load_prompts(data)
    goals = _some(prompts.goals.train, count, seed=seed, what="training requests in data.harmful")
    if not prompts.refusals:
        raise DataError("there are no refusals to train towards", expected="some text in data.refusals")
    return [
        Exchange(user(one.text), prompts.refusals[at % len(prompts.refusals)], one.text) for at, one in enumerate(goals)
    ]


def harmless_requests(data: DataConfig, count: int, *, seed: int) -> list[Messages]:
    """Harmless training requests of a recipe, borderline and benign in turn.

    Raises:
        DataError: there are fewer.
    """
    prompts = load_prompts(data)
    kinds = ([one.text for one in prompts.borderline.train], [one.text for one in prompts.benign.train])
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


def task_shots(path: Path | None, count: int, *, seed: int) -> list[Exchange]:
    """Examples of the task.

    Raises:
        ConfigError: no file is given.
        DataError: there are fewer; a row is wrong.
    """
    if path is None:
        raise ConfigError(
            "refusals alone would turn the task's model into one that refuses everything",
            got="shots without examples of the task",
            expected="as many examples of the task as refusals",
            remedy="give a JSONL file with --task, or use --shots 0",
        )
    return _some(read_exchanges(path), count, seed=seed, what=f"examples in {path}")


def read_exchanges(path: Path) -> list[Exchange]:
    """The exchanges of a JSONL file: `messages` that end with the assistant, or `prompt` and `completion` (also
    `question` and `answer`, `instruction` and `output`).

    Raises:
        DataError: the file cannot be read, is empty, or a row is none of these; says where.
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
        "neither a conversation nor a prompt with a reply",
        got=f"the fields {', '.join(map(repr, row.fields)) or 'none'}",
        expected="messages, or prompt and completion",
    )


def _some(found: Sequence[_Item], count: int, *, seed: int, what: str) -> list[_Item]:
    if len(found) < count:
        raise DataError(
            f"there are too few {what}",
            got=len(found),
            expected=f"at least {count} (--shots)",
            remedy="use fewer shots",
        )
    chosen = sorted(random.Random(f"seawall shots {seed}").sample(range(len(found)), count))
    return [found[at] for at in chosen]
