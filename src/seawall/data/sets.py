"""All prompts of a run, read and split once, for every stage."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

from seawall.config.data import DataConfig
from seawall.data.attacks import as_command, attack_of
from seawall.data.chat import ChatRow, read_chat_jsonl
from seawall.data.near_duplicates import separate
from seawall.data.pairs import attack_names, make_pairs, require_unseen
from seawall.data.plugin_attacks import checked_attacks
from seawall.data.plugins import PluginRecord
from seawall.data.prompts import Benign, Borderline, Goal, Gold, Request
from seawall.data.sources import (
    load_benign,
    load_borderline,
    load_goals,
    load_gold,
    load_refusals,
    source_plugins,
)
from seawall.data.splits import Split, SplitName, Splittable, split, take
from seawall.data.types import Messages, SafetyPair, framed

Item = TypeVar("Item", bound=Splittable)
Kind = TypeVar("Kind", Benign, Borderline)


@dataclass(frozen=True, slots=True)
class Prompts:
    """The prompts of a run, limited in number by the recipe.

    Attributes:
        retain: harmless training prompts, benign and borderline, whose answers a repair must preserve.
        retain_wrapped: the same for harmless training instructions wrapped like the seen attacks.
        known_goals: all goals of the source, beyond the limits too; an attack file may use any of them.
        notes: lines on near-duplicates between training, validation and test prompts.
        test_wrapped: maximum number of wrapped test requests of each harmless kind; None wraps all.
        unseen_rows: attacks of `data.attacks_unseen_file`.
        plugins: attacks and sources that are plugins.
        limit: maximum number of prompts of every group; None takes all.
    """

    goals: Split[Goal]
    benign: Split[Benign]
    borderline: Split[Borderline]
    retain: tuple[Benign | Borderline, ...]
    retain_wrapped: tuple[Messages, ...]
    gold: tuple[Gold, ...]
    refusals: tuple[str, ...]
    attacks_seen: tuple[str, ...]
    attacks_unseen: tuple[str, ...]
    attack_rows: tuple[ChatRow, ...]
    known_goals: tuple[Goal, ...]
    notes: tuple[str, ...] = ()
    test_wrapped: int | None = None
    unseen_rows: tuple[ChatRow, ...] = ()
    plugins: tuple[PluginRecord, ...] = ()
    limit: int | None = None

    @property
    def seen_families(self) -> tuple[str, ...]:
        """The families that a repair trains on: the built-in seen ones, and those of the attack file."""
        return self.attacks_seen + attack_names(self.attack_rows)

    @property
    def unseen_families(self) -> tuple[str, ...]:
        """The families of the evaluation alone: the built-in unseen ones, and those of the file of unseen attacks."""
        return self.attacks_unseen + attack_names(self.unseen_rows)

    def pairs(self, part: SplitName, *, unseen: bool = False) -> list[SafetyPair]:
        """The safety pairs of one part under every seen family; with `unseen`, under the unseen families too."""
        built_in = self.attacks_seen + (self.attacks_unseen if unseen else ())
        rows = self.attack_rows + (self.unseen_rows if unseen else ())
        pairs = make_pairs(self.goals.part(part), built_in, rows, all_goals=self.known_goals)
        return pairs if self.limit is None else _limited_pairs(pairs, self.limit)

    def wrapped(self, part: SplitName) -> list[tuple[str, Messages]]:
        """(instruction, conversation) of harmless instructions wrapped like the seen built-in attacks."""
        commands = [item for item in self.benign.part(part) if item.imperative is not False]
        return _wrapped(self._limited(commands, part), self.attacks_seen)

    def wrapped_borderline(self, part: SplitName) -> list[tuple[str, Messages]]:
        """(request, conversation) of borderline requests wrapped like the seen built-in attacks, as commands."""
        return _wrapped(self._limited(self.borderline.part(part), part), self.attacks_seen)

    def _limited(self, requests: Sequence[Request], part: SplitName) -> Sequence[Request]:
        return requests[: self.test_wrapped] if part == "test" else requests[: self.limit]

    def fingerprint(self) -> str:
        """sha256 over all prompts, for the manifest; independent of file paths and line numbers."""
        seen_rows, unseen_rows = (
            tuple(replace(row, path="", line=0) for row in rows) for rows in (self.attack_rows, self.unseen_rows)
        )
        document = asdict(replace(self, attack_rows=seen_rows, unseen_rows=unseen_rows))
        del document["notes"]
        for name in ("test_wrapped", "unseen_rows", "plugins", "limit"):
            if not document[name]:
                del document[name]  # so that prompts of before this setting have the same fingerprint
        text = json.dumps(_without_empty_context(document), sort_keys=True)
        return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def load_prompts(config: DataConfig) -> Prompts:
    """Reads every source of a recipe.

    Raises:
        DataError: a source cannot be read, an attack file has goals that the harmful source lacks, or the file of
            unseen attacks shares a family or a conversation with that of seen ones.
    """
    all_goals = load_goals(config.harmful)
    rows, unseen_rows = (
        tuple(read_chat_jsonl(path)) if path is not None else ()
        for path in (config.attack_file, config.attacks_unseen_file)
    )
    families = (*config.attacks_seen, *config.attacks_unseen)
    attack_plugins = checked_attacks(families, [goal.text for goal in all_goals], trained_on=config.attacks_seen)
    make_pairs((), (), (*rows, *unseen_rows), all_goals=all_goals)
    require_unseen(rows, unseen_rows)
    separated_goals = separate([split(all_goals)], "harmful goals")
    (goals,) = separated_goals.splits
    benign, borderline, harmless_note = _harmless(config)
    return Prompts(
        goals=_capped(goals, *map(config.capped, (config.train_goals, config.validation_goals, config.test_goals))),
        benign=_capped(benign, *map(config.capped, (None, config.validation_benign, config.test_benign))),
        borderline=_capped(borderline, *map(config.capped, (None, config.validation_benign, config.test_borderline))),
        retain=take((*benign.train, *borderline.train), config.capped(config.retain_examples)),
        retain_wrapped=tuple(
            prompt
            for _, prompt in _wrapped(
                [item for item in benign.train if item.imperative is not False][: config.capped(config.retain_wrapped)],
                config.attacks_seen,
            )
        ),
        gold=take(load_gold(config.gold), config.capped(config.gold_examples)),
        refusals=load_refusals(config.refusals),
        attacks_seen=config.attacks_seen,
        attacks_unseen=config.attacks_unseen,
        attack_rows=rows,
        unseen_rows=unseen_rows,
        known_goals=tuple(all_goals),
        test_wrapped=config.capped(config.test_wrapped),
        limit=config.limit,
        plugins=(*attack_plugins, *source_plugins(config)),
        notes=tuple(note for note in (separated_goals.note, harmless_note) if note),
    )


def _without_empty_context(value: Any) -> Any:
    """The document without empty contexts, so that prompts of before they had one have the same fingerprint."""
    if isinstance(value, dict):
        return {name: _without_empty_context(entry) for name, entry in value.items() if entry or name != "context"}
    return list(map(_without_empty_context, value)) if isinstance(value, list | tuple) else value


def _harmless(config: DataConfig) -> tuple[Split[Benign], Split[Borderline], str]:
    """Benign and borderline prompts, whose training parts are retained together, without near-duplicates."""
    sources: list[Split[Benign | Borderline]] = [
        split([*load_benign(config.benign)]),
        split([*load_borderline(config.borderline)]),
    ]
    separated = separate(sources, "harmless prompts")
    benign, borderline = separated.splits
    return _of_kind(benign, Benign), _of_kind(borderline, Borderline), separated.note


def _of_kind(parts: Split[Benign | Borderline], kind: type[Kind]) -> Split[Kind]:
    train, validation, test = (
        tuple(item for item in part if isinstance(item, kind)) for part in (parts.train, parts.validation, parts.test)
    )
    return Split(train, validation, test)


def _wrapped(requests: Sequence[Request], families: Sequence[str]) -> list[tuple[str, Messages]]:
    """Each request wrapped by one family, in turn."""
    if not families:
        return []
    return [
        (item.text, framed(item.context, attack_of(families[index % len(families)])(as_command(item.text))))
        for index, item in enumerate(requests)
    ]


def _limited_pairs(pairs: Sequence[SafetyPair], limit: int) -> list[SafetyPair]:
    """At most `limit` pairs of every family; an attack file may hold several of one family for a goal."""
    counts: Counter[str] = Counter()
    limited = []
    for pair in pairs:
        counts[pair.attack_name] += 1
        if counts[pair.attack_name] <= limit:
            limited.append(pair)
    return limited


def _capped(parts: Split[Item], train: int | None, validation: int | None, test: int | None) -> Split[Item]:
    return Split(take(parts.train, train), take(parts.validation, validation), take(parts.test, test))
