"""From artifacts to pages: `report.html` for people, a model card for the checkpoint."""

from seawall.report.card import render_model_card
from seawall.report.inputs import GroupRow, ReportInputs, SampleRow
from seawall.report.page import (
    render_evaluation,
    render_gene,
    render_landscape,
    render_report,
    render_steering,
    render_tuning,
)

__all__ = [
    "GroupRow",
    "ReportInputs",
    "SampleRow",
    "render_evaluation",
    "render_gene",
    "render_landscape",
    "render_model_card",
    "render_report",
    "render_steering",
    "render_tuning",
]
