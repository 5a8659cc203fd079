"""Audits as the report shows them: what was asked, in which conditions, in the reader's words."""

from __future__ import annotations

from collections.abc import Callable

from seawall.artifacts.audit import AuditResult
from seawall.artifacts.evaluation import Rate
from seawall.audits import localisation, routing_shortcut, silencing, steering, tamper
from seawall.evaluation.suite import BENIGN, BORDERLINE, PLAIN, WRAPPED
from seawall.pipeline.audit_bench import POOLED
from seawall.report.inputs import AuditRow, AuditView, Interval


def audit_view(found: AuditResult) -> AuditView:
    """What the report is given of an audit."""
    return _VIEWS[found.audit](found)


def _shortcut(found: AuditResult) -> AuditView:
    shown = (POOLED, PLAIN, BORDERLINE, BENIGN, WRAPPED)
    return AuditView(
        audit=found.audit,
        title="Is the repair a detour?",
        question="Safety that lies in new routing is lost when tokens go where they went before; safety that lies in "
        "the experts is not. The repaired model was asked again with the original routers put back, and with the "
        "original model's routing of the very same text replayed on every token of prompt and reply. As a control, the "
        "repaired routers alone were put into the original model.",
        claim=found.claim,
        groups=[group for group in shown if group in found.conditions[0].rates],
        rows=_rows(found, routing_shortcut.CONDITIONS.get),
    )


def _silencing(found: AuditResult) -> AuditView:
    who = "repaired model" if found.repaired_fingerprint else "model"
    return AuditView(
        audit=found.audit,
        title="Do refusals rest on a few experts?",
        question=f"In the {who}, the experts that refusals use most, compared with successful attacks, were masked: no "
        "token used them, and a token's other experts took their weight. As controls, as many random experts were "
        "masked, and as many that are used as often, none of them among those masked at any number.",
        claim=found.claim,
        groups=[group for group in (PLAIN, POOLED) if group in found.conditions[0].rates],
        rows=_rows(found, lambda name: silencing.SERIES.get(name.rpartition("-")[0], "no expert masked")),
        amount="experts masked",
        series=dict(zip(silencing.SERIES, ("refusal experts", "random", "used as often"), strict=True)),
    )


def _localisation(found: AuditResult) -> AuditView:
    return AuditView(
        audit=found.audit,
        title="Is safety in experts at all?",
        question="How far apart two kinds of requests are routed: the share of expert choices that differ, mean over "
        "layers, tokens of replies and of prompts apart. Attacks differ from plain requests in wording and reply, a "
        "harmless request from its unsafe twin in harm alone. As a control, random halves of the plain requests show "
        "what the distance is where nothing differs.",
        claim=found.claim,
        groups=list(localisation.KINDS),
        rows=_rows(found, localisation.CONTRASTS.get),
    )


def _steering(found: AuditResult) -> AuditView:
    beside = ", and beside the repaired one" if found.repaired_fingerprint else ""
    shown = (POOLED, PLAIN, BORDERLINE, BENIGN, WRAPPED)
    return AuditView(
        audit=found.audit,
        title="Would switches at inference do?",
        question="Without any repair, the original model was run with the experts that attacks use more than refusals "
        "do switched off, and with those that refusals use more switched on for every token, at most top-k of a layer. "
        f"It stands beside the model as it is{beside}. As a control, as many random experts of the same layers were "
        "switched.",
        claim=found.claim,
        groups=[group for group in shown if group in found.conditions[0].rates],
        rows=_rows(found, lambda name: _switched(found, name)),
    )


def _switched(found: AuditResult, name: str) -> str:
    if name in (steering.ORIGINAL, steering.REPAIRED):
        return f"{name} model"
    off, on = (int(found.figures[f"{way}:{name}"].value) for way in ("off", "on"))
    is_random = name.startswith(f"{steering.RANDOM}-")
    return f"random: {off} off, {on} on (control)" if is_random else f"{off} experts off, {on} on"


def _tamper(found: AuditResult) -> AuditView:
    return AuditView(
        audit=found.audit,
        title="Does the repair survive fine-tuning?",
        question="All experts of the repaired model were trained on answers to harmless prompts, and it was asked "
        "after several numbers of updates. As a control, the original model was trained on the same answers in the "
        "same order.",
        claim=found.claim,
        groups=[group for group in (POOLED, PLAIN, BORDERLINE) if group in found.conditions[0].rates],
        rows=_rows(found, lambda name: tamper.SERIES.get(name.rpartition("-")[0])),
        amount="updates",
        series={tamper.ORIGINAL: "original", tamper.REPAIRED: "repaired"},
    )


def _rows(found: AuditResult, label: Callable[[str], str | None]) -> list[AuditRow]:
    return [
        AuditRow(
            label=label(one.name) or one.name,
            series=one.series,
            amount=one.amount,
            rates={group: _interval(rate) for group, rate in one.rates.items()},
        )
        for one in found.conditions
    ]


def _interval(rate: Rate) -> Interval:
    return Interval(rate.rate, rate.low, rate.high, rate.n, rate.unscored)


_VIEWS: dict[str, Callable[[AuditResult], AuditView]] = {
    "routing_shortcut": _shortcut,
    "silencing": _silencing,
    "localisation": _localisation,
    "steering": _steering,
    "tamper": _tamper,
}
