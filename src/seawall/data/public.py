"""The public safety benchmarks: their datasets on the Hub, and their column names there and in the original files.

Sources: JailbreakBench (arXiv 2404.01318), AdvBench (2307.15043), HarmBench (2402.04249), StrongREJECT (2402.10260),
XSTest (2308.01263).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from seawall.config.data import HubSource
from seawall.data.columns import require_whole
from seawall.data.files import Row, rows
from seawall.errors import DataError

Purpose = Literal["harmful", "benign", "borderline", "gold"]
"""The use of a source in a recipe: its key under `data`."""


@dataclass(frozen=True, slots=True)
class Layout:
    """The layout of one benchmark.

    Attributes:
        hub: the dataset on the Hub; `subset` is its configuration.
        splits: the Hub's split for each purpose that the benchmark serves.
        prompt, category, identifier: column names, the Hub's first.
        serves: whether a row serves a purpose, in files that mix kinds of rows.
    """

    hub: str
    splits: Mapping[Purpose, str]
    prompt: tuple[str, ...]
    category: tuple[str, ...]
    identifier: tuple[str, ...] = ("id",)
    subset: str | None = None
    serves: Callable[[Row, Purpose], bool] = lambda row, purpose: True


def _is_standard(row: Row, purpose: Purpose) -> bool:
    """Whether a row of HarmBench is a plain request; the other categories need a context or concern copyright."""
    has_context = any(row.optional(name) for name in ("context", "ContextString"))
    concerns_copyright = "hash_check" in str(row.fields.get("tags") or row.fields.get("Tags"))
    is_plain = not has_context and not concerns_copyright  # copies of one category lack its name
    return is_plain and row.fields.get("FunctionalCategory", "standard") == "standard"


def _is_safe_or_unsafe(row: Row, purpose: Purpose) -> bool:
    """Whether a row of XSTest is as safe as the purpose needs; older copies mark unsafe contrasts by type alone."""
    contrast = str(row.fields.get("type", "")).startswith("contrast")
    label = row.optional("label").casefold() or ("unsafe" if contrast else "safe")
    if label not in ("safe", "unsafe"):
        raise row.error("unknown label", got=repr(row.fields["label"]), expected="safe or unsafe")
    return label == ("unsafe" if purpose == "harmful" else "safe")


LAYOUTS: dict[str, Layout] = {
    "jailbreakbench": Layout(
        hub="JailbreakBench/JBB-Behaviors",
        subset="behaviors",
        splits={"harmful": "harmful", "benign": "benign", "borderline": "benign"},
        prompt=("Goal", "goal", "prompt"),
        category=("Category", "category"),
        identifier=("Index", "id"),
    ),
    "advbench": Layout(
        hub="walledai/AdvBench",
        splits={"harmful": "train"},
        prompt=("prompt", "goal"),
        category=("category",),
    ),
    "harmbench": Layout(
        hub="walledai/HarmBench",
        subset="standard",
        splits={"harmful": "train"},
        prompt=("prompt", "Behavior"),
        category=("category", "SemanticCategory"),
        identifier=("BehaviorID", "id"),
        serves=_is_standard,
    ),
    "strongreject": Layout(
        hub="walledai/StrongREJECT",
        splits={"harmful": "train"},
        prompt=("prompt", "forbidden_prompt"),
        category=("category",),
    ),
    "xstest": Layout(
        hub="Paul/XSTest",
        splits={"harmful": "train", "benign": "train", "borderline": "train"},
        prompt=("prompt",),
        category=("type",),
        identifier=("id", "id_v2"),
        serves=_is_safe_or_unsafe,
    ),
}
"""Public benchmarks by their `kind` in recipes. To add one, add a line here and a variant in `config/data.py`."""


def hub_dataset(source: Mapping[str, Any]) -> tuple[str, str | None] | None:
    """The dataset of the Hub that a source's prompts were read from, and the revision that the recipe names.

    Args:
        source: of the resolved recipe.

    Returns:
        None for prompts from elsewhere, a local copy of a benchmark among them.
    """
    kind = source["kind"]
    if kind == "dataset":
        return str(source["id"]), source.get("revision")
    if kind in LAYOUTS and source.get("path") is None:
        return LAYOUTS[kind].hub, None
    return None


def read_public(source: HubSource, kind: str, purpose: Purpose) -> list[Row]:
    """The rows of a benchmark for a purpose, with the fields id, text, category and split.

    Raises:
        DataError: the benchmark does not serve the purpose, cannot be read, or has no row for it.
    """
    layout = LAYOUTS[kind]
    if purpose not in layout.splits:
        capable = ", ".join(name for name, benchmark in LAYOUTS.items() if purpose in benchmark.splits)
        raise DataError(
            f"data.{purpose} cannot come from {kind}",
            got=f"a source of {' and '.join(layout.splits)} prompts",
            expected=f"builtin, jsonl{f', {capable}' if capable else ''}",
        )
    rows_read = list(_local(source, kind) if source.path is not None else _from_hub(layout, source, purpose))
    matching = [row for row in rows_read if layout.serves(row, purpose)]
    if not matching:
        raise DataError(
            f"{kind} holds no {purpose} prompts",
            got=f"{len(rows_read)} rows of {source.path or layout.hub}",
            remedy="check the file and the recipe's `split`",
        )
    return [_plain(row, layout, kind, hub=source.path is None) for row in matching]


def _local(source: HubSource, kind: str) -> Iterator[Row]:
    """Rows of a local copy; a file that mixes benchmarks (by a `source` field) is filtered for this one."""
    local_rows = list(rows(Path(str(source.path))))
    mixed = any(_is_of(row, kind) for row in local_rows)
    for row in local_rows:
        if mixed and not _is_of(row, kind):
            continue
        if source.split is None or row.fields.get("split") == source.split:
            yield row


def _is_of(row: Row, kind: str) -> bool:
    return str(row.fields.get("source", "")).lower().startswith(kind)


def _from_hub(layout: Layout, source: HubSource, purpose: Purpose) -> Iterator[Row]:
    split = source.split or layout.splits[purpose]
    for number, fields in enumerate(download(layout.hub, layout.subset, split=split), start=1):
        yield Row(dict(fields), f"{layout.hub} row {number}", number)


def download(
    name: str, subset: str | None, *, split: str, revision: str | None = None
) -> Iterable[Mapping[str, object]]:
    """Downloads a split of a dataset; every failure of `datasets` is a user error: no network, no access or no split.

    Raises:
        DataError: the library is not installed, or the dataset cannot be downloaded.
    """
    try:
        datasets = importlib.import_module("datasets")
    except ImportError:
        raise DataError(
            f"{name} needs the library `datasets`, which is not installed",
            remedy="pip install 'seawall[hub]', or give a local file as `path`",
        ) from None
    options = {} if revision is None else {"revision": revision}
    try:
        loaded: Iterable[Mapping[str, object]] = datasets.load_dataset(name, subset, split=split, **options)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{name} cannot be downloaded from the Hub",
            got=f"{type(error).__name__}: {str(error)[:200]}",
            remedy="check the network and the split, log in if the dataset is gated, or give a local file as `path`",
        ) from None
    return loaded


def _plain(row: Row, layout: Layout, kind: str, *, hub: bool) -> Row:
    column = next((name for name in layout.prompt if name in row.fields), layout.prompt[0])
    require_whole(row, used=(column,))
    identifier = _first(row, layout.identifier) or str(row.number)
    fields: dict[str, object] = {
        "id": f"{kind}-{identifier}",
        "text": row.text(column),
        "category": _first(row, layout.category),
        "split": None if hub else row.fields.get("split"),
    }
    return Row(fields, row.where, row.number)


def _first(row: Row, names: tuple[str, ...]) -> str:
    return next((text for text in map(row.optional, names) if text), "")
