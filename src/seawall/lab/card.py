"""The model card of an upcycled model: what it was made of, how it was cut, and what the cut cost."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

import yaml

from seawall.artifacts.evaluation import Difference
from seawall.lab.costs import Costs
from seawall.report.wording import amount, percent, points, points_range, rate_range
from seawall.visible import visible_line

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_SNAPSHOT = re.compile(r"models--([\w.-]+?)--([\w.-]+)/snapshots/[^/]+/?$")
_NAMES = {
    "harmful": "Harmful requests",
    "borderline": "Borderline requests (over-refusal)",
    "benign": "Benign requests",
}


def base_name(model: str, folder: Path) -> str:
    """The Hub id of a model, where it or its snapshot in the Hub's cache has one, else its folder's name."""
    if not Path(model).expanduser().is_dir() and _HUB_ID.fullmatch(model):
        return model
    snapshot = _SNAPSHOT.search(folder.resolve().as_posix())
    return "/".join(snapshot.groups()) if snapshot else visible_line(PurePath(folder.resolve()).name)


def model_card(document: Mapping[str, Any], costs: Costs | None) -> str:
    """Markdown with the Hub's front matter; licence and base model are those of the source.

    Args:
        document: the content of `upcycle.json`.
        costs: what the cut cost; None where it was not measured.
    """
    base, licence, shape = document["base_model"], document["licence"], document["shape"]
    head: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    if licence is not None:
        head["license"] = visible_line(licence)
    if _HUB_ID.fullmatch(base):
        head["base_model"] = base
    head["tags"] = ["seawall", "mixture-of-experts", "upcycled"]
    lines = [
        f"# {base.rpartition('/')[2]}, cut into experts",
        "",
        f"This model is derived from {base} "
        f"({'licence: ' + visible_line(licence) if licence else 'its files state no licence'}). Changes: from layer "
        f"{shape['first_dense']} on, each feed-forward network was cut into a shared expert and "
        f"{shape['experts']} routed experts, top-{shape['top_k']}, and routers were added. Nothing was trained: the "
        "order of the neurons, the routers and the refit of the shared expert's down projection come in closed form "
        f"from {amount(document['calibration']['tokens'], 'token')}. Embedding and output layer are stored separately.",
        "",
        "It is a testbed for methods that work on experts (`python -m seawall.lab.upcycle`), whose refusals are those "
        "of its source. It knows less than its source; do not deploy it.",
        "",
        *([] if costs is None else [*cost_table(costs, document), ""]),
        *(["What the cut costs was not measured.", ""] if costs is None else []),
    ]
    front = yaml.safe_dump(head, sort_keys=False, allow_unicode=True)
    return f"---\n{front}---\n\n" + "\n".join(lines)


def cost_table(costs: Costs, document: Mapping[str, Any]) -> list[str]:
    """The costs as lines of Markdown."""
    measured = document["measured"]
    loss = costs.increase
    rows = [
        f"| {_NAMES[kind]} refused | {rate_range(rates.dense)} | {rate_range(rates.cut)} | {_change(rates.change)} |"
        for kind, rates in costs.refusals.items()
    ]
    unscored = [
        f"{_NAMES[kind].partition(' (')[0].lower()} {rates.dense.unscored} and {rates.cut.unscored} of {rates.dense.n}"
        for kind, rates in costs.refusals.items()
    ]
    return [
        "| | dense | cut | change |",
        "|---|---|---|---|",
        f"| Loss on {amount(loss.n, 'reference answer')} (nats per token) | {costs.dense_loss:.3f} | "
        f"{costs.cut_loss:.3f} | {_signed_percent(loss.increase)} ({_signed_percent(loss.low)} to "
        f"{_signed_percent(loss.high)}) |",
        *rows,
        "",
        f"95% intervals. Judge: {measured['judge']}; greedy replies of at most {measured['max_new_tokens']} tokens, "
        f"computed in {document['dtype']}. Replies that could not be judged, dense and cut: {', '.join(unscored)}.",
    ]


def _change(change: Difference) -> str:
    if not change.goals:
        return "unknown"
    return f"{points(change.difference)} ({points_range(change.low, change.high)}) points"


def _signed_percent(share: float) -> str:
    return ("+" if share > 0 else "") + percent(share).replace("-", "\u2212")
