"""`report.html` and its sister pages: each self-contained, with a policy that runs no script but ours."""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import resources
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from seawall.artifacts.groups import group_of
from seawall.config.data import limited_note
from seawall.report import claims, wording
from seawall.report.bounds import bounds_verdict
from seawall.report.charts import audits, curves, drift, genes, heatmap, intervals, landscape, pairs, steering, tuning
from seawall.report.check import check
from seawall.report.evaluation import EvaluationView
from seawall.report.gene import BEST_EXPERTS, GeneView
from seawall.report.inputs import GroupRow, ReportInputs, SampleRow
from seawall.report.landscape import LandscapeView
from seawall.report.marked import visible_markup
from seawall.report.steering import SteeringView
from seawall.report.tuning import TuningView
from seawall.report.verdict import figures, headline, warnings
from seawall.report.wording import limit_of
from seawall.report.wrapping import contrast_text, wrapping_rows
from seawall.visible import visible


def render_report(inputs: ReportInputs) -> str:
    """The page of a repair, as text that UTF-8 can encode.

    All text is escaped and its hidden characters are replaced by visible ones: model output, prompts and names are
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
            bounds=bounds_verdict(inputs.summary),
            wrapping=wrapping_rows(inputs.summary),
            style=Markup(style),
            script=Markup(script),
            policy=_policy(style, script),
            protocol=claims.protocol(inputs),
            open_to_change=claims.open_to_change(inputs),
            trained_instead=claims.trained_instead(inputs),
            allowed=claims.allowed(inputs),
            not_allowed=claims.not_allowed(inputs),
            changes=sorted({change(row) for row in inputs.samples}),
            recipe=yaml.safe_dump(_plain(inputs.recipe), sort_keys=False, allow_unicode=True),
            facts=list(flattened({key: inputs.manifest[key] for key in inputs.manifest if key != "stages"})),
            charts=_charts(inputs),
            **_tables(inputs),
        )
    )


def render_steering(view: SteeringView, *, model: str, recipe: Mapping[str, Any], manifest: Mapping[str, Any]) -> str:
    """The page of a steering audit without a repair; escaped as in `render_report`."""
    return _own_page("steering.html.j2", manifest, recipe, view=view, model=model, charts=_STEERING)


def render_landscape(view: LandscapeView, *, model: str, recipe: Mapping[str, Any], manifest: Mapping[str, Any]) -> str:
    """The page of a safety landscape; escaped as in `render_report`."""
    charts = {"curves": landscape.curve_chart, "map": landscape.rate_map}
    return _own_page("landscape.html.j2", manifest, recipe, view=view, model=model, charts=charts)


def render_tuning(view: TuningView, *, model: str, recipe: Mapping[str, Any], manifest: Mapping[str, Any]) -> str:
    """The page of a fine-tuning run; escaped as in `render_report`."""
    charts = {"audit": audits.audit_chart, "tuning_curves": tuning.tuning_curves}
    return _own_page("tuning.html.j2", manifest, recipe, view=view, model=model, charts=charts)


def render_evaluation(view: EvaluationView, *, recipe: Mapping[str, Any], manifest: Mapping[str, Any]) -> str:
    """The page of one evaluation, or of two compared; escaped as in `render_report`."""
    charts = {"dumbbell": intervals.dumbbell, "axis": intervals.axis()}
    model = " against ".join(reversed(view.models))
    return _own_page("evaluation.html.j2", manifest, recipe, view=view, model=model, charts=charts)


def render_gene(view: GeneView, *, model: str, recipe: Mapping[str, Any], manifest: Mapping[str, Any]) -> str:
    """The page of a gene; escaped as in `render_report`."""
    charts = {"layers": genes.layer_chart, "divergence": genes.divergence_chart}
    return _own_page("gene.html.j2", manifest, recipe, view=view, model=model, charts=charts, best_experts=BEST_EXPERTS)


def _own_page(template: str, manifest: Mapping[str, Any], recipe: Mapping[str, Any], **context: object) -> str:
    """A page without a script, with the provenance of its run."""
    style = _asset("style.css")
    return (
        environment()
        .get_template(template)
        .render(
            style=Markup(style),
            policy=_policy(style, ""),
            facts=list(flattened({key: manifest[key] for key in manifest if key != "stages"})),
            limited=limited_note(limit_of(recipe)),
            recipe=yaml.safe_dump(_plain(recipe), sort_keys=False, allow_unicode=True),
            **context,
        )
    )


@cache
def environment() -> Environment:
    """Templates with escaping on, unknown names an error, and hidden characters made visible in every text."""
    templates = Environment(
        loader=PackageLoader("seawall.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_visible,
    )
    names = (
        "percent",
        "percent_range",
        "points",
        "points_range",
        "signed",
        "number",
        "plain_name",
        "title_name",
        "group_name",
        "audit_group_name",
        "method_name",
        "score_name",
    )
    templates.filters |= {name: getattr(wording, name) for name in (*names, "amount", "duration", "size")}
    templates.filters |= {
        "untrusted": visible_markup,
        "change": change,
        "effect": effect,
        "md": wording.markdown,
        "contrast": contrast_text,
    }
    return templates


def change(row: SampleRow) -> str:
    """The verdicts on both replies: `complied → refused`, or one word if they agree."""
    before, after = row.before.label, row.after.label
    return before if before == after else f"{before} → {after}"


def effect(row: SampleRow) -> str:
    """`better` or `worse` if the right verdict was gained or lost, else `other` or `same`."""
    right = "refused" if group_of(row.group).is_harmful else "complied"
    before, after = row.before.label, row.after.label
    if before == after:
        return "same"
    if right in (before, after):
        return "better" if after == right else "worse"
    return "other"


def flattened(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Leaves of a nested mapping as (`a.b.c`, text)."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flattened(value, f"{prefix}{key}.")
        else:
            yield prefix + str(key), "not given" if value is None else str(value)


def _visible(value: object) -> object:
    """Applies to every value that a template prints; markup, and with it replies and prompts, stays as it is."""
    return (
        visible(wording.without_folders(value)) if isinstance(value, str) and not isinstance(value, Markup) else value
    )


def _plain(tree: object) -> object:
    """A value for YAML, with hidden characters made visible."""
    if isinstance(tree, Mapping):
        return {visible(str(key)): _plain(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_plain(value) for value in tree]
    return visible(wording.without_folders(tree)) if isinstance(tree, str) else tree


def _tables(inputs: ReportInputs) -> dict[str, object]:
    """Rows of the results table by section; pairs by attack family, and the largest number of a family's candidates."""
    sections: list[tuple[str, str, list[GroupRow]]] = [
        ("Attacks the repair trained on", "share that succeeds; lower is better", inputs.attacks(trained_on=True)),
        ("Attacks it never saw", "share that succeeds; lower is better", inputs.attacks(trained_on=False)),
    ]
    attacks = [row for _, _, rows in sections for row in rows]
    sections.append(("Behaviour to keep", "", [row for row in inputs.groups if row not in attacks]))
    pairs = _pairs(inputs)
    return {
        "sections": [section for section in sections if section[2]],
        "pairs": pairs,
        "most_pairs": max((profiled + reasons.total() for _, profiled, reasons in pairs), default=0),
    }


def _pairs(inputs: ReportInputs) -> list[tuple[str, int, Counter[str]]]:
    """Per attack family: its name, the number of profiled pairs, and the number of dropped ones by reason."""
    profiled = Counter(pair.attack_name for pair in inputs.pairs)
    reasons: dict[str, Counter[str]] = {}
    for pair in inputs.dropped:
        reasons.setdefault(pair.attack_name, Counter())[pair.reason.partition(":")[0]] += 1
    families = dict.fromkeys((*profiled, *reasons))
    return [(family, profiled[family], reasons.get(family, Counter())) for family in families]


def _charts(inputs: ReportInputs) -> dict[str, Any]:
    """The drawings of the page; None for parts that the run lacks."""
    charts: dict[str, Any] = {
        "dumbbell": intervals.dumbbell,
        **_STEERING,
        "axis": intervals.axis(),
        "pair_bar": pairs.pair_bar,
        "heat_map": None,
        "curves": None,
        "drift": None,
    }
    if inputs.experts is not None:
        heat = heatmap.heat_map(inputs.experts.scores_LE.tolist(), inputs.experts.layers)
        charts["heat_map"] = heatmap.wide(heat) + heatmap.narrow(heat)
        charts["legend"] = heatmap.legend(heat)
    if inputs.updates:
        time = curves.timeline(inputs.updates, inputs.chosen_round)
        panels = curves.panels(inputs.updates, inputs.rounds, time)
        charts["curves"] = curves.curves(panels, time) + curves.curves(panels, time, narrow=True)
    if inputs.drift:
        charts["drift"] = drift.drift_bars(inputs.drift) + drift.drift_bars(inputs.drift, narrow=True)
    return charts


_STEERING = {
    "audit": audits.audit_chart,
    "layer_map": steering.layer_map,
    "scatter": steering.scatter,
}


def _asset(name: str) -> str:
    return (resources.files("seawall.report") / "templates" / name).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    """Content security policy: nothing is loaded, and only this style and this script apply."""
    return (
        f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
