"""The model card of the repaired checkpoint: `README.md` with the Hub's YAML front matter."""

from __future__ import annotations

import json

from seawall.report.inputs import ReportInputs
from seawall.report.page import environment, headline


def render_model_card(inputs: ReportInputs) -> str:
    """Markdown with front matter. Quoted values are JSON strings, which YAML reads alike."""
    card = environment()
    card.autoescape = False
    base = str(inputs.summary["model"])
    return card.get_template("card.md.j2").render(
        inputs=inputs,
        summary=inputs.summary,
        headline=headline(inputs),
        base=base,
        quoted_base=json.dumps(base),
        on_hub="/" in base and not base.startswith(("/", ".")),
        manifest=inputs.manifest,
    )
