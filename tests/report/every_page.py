"""An example of each HTML page, with all its sections."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from report_examples import example
from test_audit_section import by_amount, by_kind
from test_evaluation_page import compared, single
from test_gene_page import GENE, VIEW
from test_landscape_page import view as landscape
from test_steering_section import view as steering
from test_tuning_page import result as tuning

from seawall.artifacts.gene import GeneExperts, GeneRecovery
from seawall.methods.tune.view import tuning_view
from seawall.report import (
    render_evaluation,
    render_gene,
    render_landscape,
    render_report,
    render_steering,
    render_tuning,
)

LONG = "sha256:" + "0123456789abcdef" * 4
MODEL = "/home/someone/models/Some-Long-Model-Name-30B-A3B-Instruct-2507"
MANIFEST = {"versions": {"torch": "2.13.0+cpu"}, "model": {"fingerprint": LONG}}
RECIPE = {"name": "example", "model": {"id": MODEL}}


def every_page() -> dict[str, str]:
    """Name and text of each page."""
    experts = (GeneExperts(0, (0.25, 0.5, 0.25), (0.0,) * 3, norm=(2.0, 3.0, 6.0), kept=(1, 2)),)
    gene = replace(GENE, experts=experts, recovery=(GeneRecovery(0.25, "score", 0.0123, 0.0045),))
    gene_view = replace(VIEW, gene=gene, facts=[("aligned model", LONG), ("file", f"{MODEL}/gene.safetensors")])
    given: dict[str, Any] = {"model": MODEL, "recipe": RECIPE, "manifest": MANIFEST}
    evaluated: dict[str, Any] = {"recipe": RECIPE, "manifest": MANIFEST}
    return {
        "evaluation": render_evaluation(single(MODEL), **evaluated),
        "comparison": render_evaluation(compared(MODEL), **evaluated),
        "report": render_report(example(audits=[by_kind(), by_amount()], steering=steering())),
        "steering": render_steering(steering(), **given),
        "landscape": render_landscape(landscape(), **given),
        "tuning": render_tuning(replace(tuning_view(tuning()), facts=[("anchor", LONG)]), **given),
        "gene": render_gene(gene_view, **given),
    }
