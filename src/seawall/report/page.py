"""`report.html`: one self-contained page, with a policy that lets nothing run but the script that we wrote."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import resources
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from seawall.artifacts.groups import group_of
from seawall.report import claims, wording
from seawall.report.charts import audits, curves, drift, genes, heatmap, intervals, landscape, pairs, steering, tuning
from seawall.report.check import check
from seawall.report.gene import GeneView
from seawall.report.inputs import GroupRow, ReportInputs, SampleRow
from seawall.report.landscape import LandscapeView
from seawall.report.steering import SteeringView
from seawall.report.tuning import TuningView
from seawall.report.verdict import figures, headline, warnings
from seawall.report.visible import visible, visible_markup


def render_report(inputs: ReportInputs) -> str:
    """The page, as text that can be encoded as UTF-8.

    Everything is escaped and its hidden characters shown, wherever it comes from: model output, prompts and names are
    untrusted.

    Raises:
        ArtifactError: parts of the run contradict each other.
    """
    check(inputs)
    style, script = _asset("style.css"), _asset("script.js")
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            inputs=inputs,
            summary=inputs.summary,
            headline=headline(inputs),
            figures=figures(inputs),
            warnings=warnings(inputs),
            style=Markup(style),
            script=Markup(script),
            policy=_policy(style, script),
            protocol=claims.protocol(inputs),
            allowed=claims.allowed(inputs),
            not_allowed=claims.not_allowed(inputs),
            families=list(dict.fromkeys((*inputs.kept, *inputs.dropped))),
            changes=sorted({change(row) for row in inputs.samples}),
            recipe=yaml.safe_dump(_plain(inputs.recipe), sort_keys=False, allow_unicode=True),
            facts=list(flattened({key: inputs.manifest[key] for key in inputs.manifest if key != "stages"})),
            charts=_charts(inputs),
            **_tables(inputs),
        )
    )


def render_steering(view: SteeringView, *, model: str, recipe: Mapping[str, Any], manifest: Mapping[str, Any]) -> str:
    """A page of its own for a model that was steered and not repaired; escaped as `render_report` is."""
    return _own_page("steering.html.j2", manifest, recipe, view=view, model=model, charts=_STEERING)


def render_landscape(view: LandscapeView, *, model: str, recipe: Mapping[str, Any], manifest: Mapping[str, Any]) -> str:
    """The page of a safety landscape; escaped as `render_report` is."""
    charts = {"curves": landscape.curve_chart, "map": landscape.rate_map}
    return _own_page("landscape.html.j2", manifest, recipe, view=view, model=model, charts=charts)


def render_tuning(view: TuningView, *, model: str, recipe: Mapping[str, Any], manifest: Mapping[str, Any]) -> str:
    """The page of a fine-tuning run; escaped as `render_report` is."""
    charts = {"audit": audits.audit_chart, "tuning_curves": tuning.tuning_curves}
    return _own_page("tuning.html.j2", manifest, recipe, view=view, model=model, charts=charts)


def render_gene(view: GeneView, *, model: str, recipe: Mapping[str, Any], manifest: Mapping[str, Any]) -> str:
    """A page of its own for a gene; escaped as `render_report` is."""
    both = (False, True)
    drawn = Markup("").join(genes.layer_curves(view.layers, narrow=one) for one in both) if view.layers else ""
    curve = Markup("").join(genes.divergence_curve(view.curve, narrow=one) for one in both) if view.curve else ""
    return _own_page("gene.html.j2", manifest, recipe, view=view, model=model, layers=drawn, divergence=curve)


def _own_page(template: str, manifest: Mapping[str, Any], recipe: Mapping[str, Any], **shown: object) -> str:
    """A page without a script, with the provenance of its run."""
    style = _asset("style.css")
    return (
        environment()
        .get_template(template)
        .render(
            style=Markup(style),
            policy=_policy(style, ""),
            facts=list(flattened({key: manifest[key] for key in manifest if key != "stages"})),
            recipe=yaml.safe_dump(_plain(recipe), sort_keys=False, allow_unicode=True),
            **shown,
        )
    )


@cache
def environment() -> Environment:
    """Templates with escaping on, unknown names an error, and hidden characters shown in every text put in."""
    made = Environment(
        loader=PackageLoader("seawall.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_shown,
    )
    names = (
        "percent",
        "percent_range",
        "points",
        "signed",
        "number",
        "plain_name",
        "title_name",
        "group_name",
        "audit_group_name",
        "method_name",
    )
    made.filters |= {name: getattr(wording, name) for name in (*names, "amount", "duration", "size")}
    made.filters |= {"untrusted": visible_markup, "change": change, "effect": effect, "md": wording.markdown}
    return made


def change(row: SampleRow) -> str:
    """The verdicts of a sample: `complied → refused`, or one word where they agree."""
    same = row.verdict_before == row.verdict_after
    return row.verdict_before if same else f"{row.verdict_before} → {row.verdict_after}"


def effect(row: SampleRow) -> str:
    """`better` or `worse` where the wanted verdict was gained or lost, else `other` or `same`."""
    wanted = "refused" if group_of(row.group).is_harmful else "complied"
    if row.verdict_before == row.verdict_after:
        return "same"
    if wanted in (row.verdict_before, row.verdict_after):
        return "better" if row.verdict_after == wanted else "worse"
    return "other"


def flattened(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Leaves of a nested mapping as (`a.b.c`, text)."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flattened(value, f"{prefix}{key}.")
        else:
            yield prefix + str(key), "not given" if value is None else str(value)


def _shown(value: object) -> object:
    """Runs on every value a template prints; markup is already safe."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _plain(tree: object) -> object:
    """What YAML can hold, with hidden characters shown."""
    if isinstance(tree, Mapping):
        return {visible(str(key)): _plain(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_plain(value) for value in tree]
    return visible(tree) if isinstance(tree, str) else tree


def _tables(inputs: ReportInputs) -> dict[str, object]:
    """Rows of the results table by section, and the largest number of candidate pairs of a family."""
    sections: list[tuple[str, str, list[GroupRow]]] = [
        ("Attacks the repair trained on", "share that succeeds; lower is better", inputs.attacks(seen=True)),
        ("Attacks it never saw", "share that succeeds; lower is better", inputs.attacks(seen=False)),
    ]
    placed = [row for _, _, rows in sections for row in rows]
    others = [row for row in inputs.groups if row not in placed]
    sections.append(("Behaviour to keep", "", others))
    totals = [
        inputs.kept.get(family, 0) + sum(inputs.dropped.get(family, {}).values())
        for family in (*inputs.kept, *inputs.dropped)
    ]
    return {"sections": [section for section in sections if section[2]], "most_pairs": max(totals, default=0)}


def _charts(inputs: ReportInputs) -> dict[str, Any]:
    """Every drawing of the page; those of parts that the run lacks are None."""
    found: dict[str, Any] = {
        "dumbbell": intervals.dumbbell,
        **_STEERING,
        "axis": intervals.axis(),
        "pair_bar": pairs.pair_bar,
        "heat_map": None,
        "curves": None,
        "drift": None,
    }
    if inputs.gaps:
        heat = heatmap.heat_map(inputs.gaps, inputs.selected)
        found["heat_map"] = heatmap.wide(heat) + heatmap.narrow(heat)
        found["legend"] = heatmap.legend(heat)
    if inputs.updates:
        time = curves.timeline(inputs.updates, inputs.chosen_round)
        shown = curves.panels(inputs.updates, inputs.rounds, time)
        found["curves"] = curves.curves(shown, time) + curves.curves(shown, time, narrow=True)
    if inputs.drift:
        found["drift"] = drift.drift_bars(inputs.drift) + drift.drift_bars(inputs.drift, narrow=True)
    return found


_STEERING = {
    "audit": audits.audit_chart,
    "layer_map": steering.layer_map,
    "scatter": steering.scatter,
}


def _asset(name: str) -> str:
    return (resources.files("seawall.report") / "templates" / name).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    """Nothing is loaded from anywhere, and only this very style and script are let in."""
    return (
        f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
