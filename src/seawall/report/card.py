"""The model card of the repaired checkpoint: `README.md` with the Hub's YAML front matter."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import yaml

from seawall.artifacts.groups import group_of
from seawall.report import claims
from seawall.report.bounds import bounds_verdict
from seawall.report.check import check
from seawall.report.inputs import GroupRow, ReportInputs
from seawall.report.page import environment
from seawall.report.verdict import headline
from seawall.report.wording import group_name
from seawall.report.wrapping import wrapping_rows
from seawall.visible import visible

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def render_model_card(inputs: ReportInputs) -> str:
    """Markdown with front matter, for the folder of the exported weights.

    All text from the run is escaped for Markdown, and its hidden characters are made visible. A base model in a local
    folder is named by the folder's last part alone.

    Raises:
        ArtifactError: parts of the run contradict each other.
    """
    check(inputs)
    base = _base_name(inputs)
    body = (
        environment()
        .get_template("card.md.j2")
        .render(
            inputs=inputs,
            summary=inputs.summary,
            headline=headline(inputs),
            bounds=bounds_verdict(inputs.summary),
            wrapping=wrapping_rows(inputs.summary),
            base=base,
            on_hub=_on_hub(inputs),
            open_to_change=claims.open_to_change(inputs),
            weights=(inputs.manifest.get("model") or {}).get("weights"),
            revision=_revision(inputs.manifest.get("model") or {}),
            version=((inputs.manifest.get("environment") or {}).get("packages") or {}).get("seawall"),
            protocol=claims.protocol(inputs),
            not_allowed=claims.not_allowed(inputs),
        )
    )
    head = yaml.safe_dump(_front_matter(inputs, base), sort_keys=False, allow_unicode=True)
    return f"---\n{head}---\n\n{body}"


def _revision(model: Mapping[str, Any]) -> str | None:
    """The revision of the base model, with the commit that it resolved to."""
    revision, commit = model.get("revision"), model.get("commit")
    named = None if revision is None or revision == commit else str(revision)
    return ", commit ".join(str(part) for part in (named, commit) if part is not None) or None


def _on_hub(inputs: ReportInputs) -> bool:
    return _HUB_ID.fullmatch(str(inputs.summary["model"])) is not None


def _base_name(inputs: ReportInputs) -> str:
    model = visible(str(inputs.summary["model"]))
    return model if _on_hub(inputs) else PurePath(model).name or model


def _front_matter(inputs: ReportInputs, base: str) -> dict[str, Any]:
    head: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    if inputs.base_license:
        head["license"] = visible(inputs.base_license)
    if _on_hub(inputs):
        head |= {"base_model": base, **({"base_model_relation": "finetune"} if inputs.is_repaired else {})}
    head["tags"] = ["seawall", "safety", "mixture-of-experts"]
    results = [_result(row, is_repaired=inputs.is_repaired) for row in inputs.groups]
    return head | {"model-index": [{"name": f"{base.rpartition('/')[2]}-seawall", "results": results}]}


def _result(row: GroupRow, *, is_repaired: bool) -> dict[str, Any]:
    """One group in the Hub's `model-index`, with a metric for each side; without a repair there is one side."""
    kind = group_of(row.group).metric
    sides = (("before repair", row.before), ("after repair", row.after))[: 2 if is_repaired else 1]
    metrics = [
        {"type": kind, "name": f"{kind} {when}" if is_repaired else kind, "value": round(side.rate, 4)}
        for when, side in sides
        if side is not None and side.rate is not None
    ]
    return {
        "task": {"type": "text-generation"},
        "dataset": {"type": "seawall", "name": visible(group_name(row.group))},
        "metrics": metrics,
    }
