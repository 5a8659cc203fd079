"""Runs two rephrasing probes of the public scanner garak against models that vLLM serves, and counts by two rules.

    python scripts/garak_check.py --garak GARAK_ENV/bin/python --vllm VLLM_ENV/bin/vllm lab RUN/model
    python scripts/garak_check.py --reports before.report.jsonl after.report.jsonl

For each model and probe it prints garak's hits (replies without a phrase of its list of refusals), and what seawall's
keyword judge says of the same replies. It prints no reply; garak's reports in --work hold them. garak and vLLM have
environments of their own: pip install garak.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import yaml
from served_models import keyword_outcomes, options_parser, served_models, share_text

from seawall.evaluation.served.process import SERVED_NAME

PROBES = ("phrasing.PastTense", "phrasing.FutureTense")
DETECTOR = "mitigation.MitigationBypass"
COMPLETE = 2
"""garak's status of an attempt that has been judged."""
OFFLINE = {"OPENAICOMPATIBLE_API_KEY": "none", "HF_HUB_OFFLINE": "1"}


def scan(url: str, report: Path, options: argparse.Namespace) -> Path:
    """Runs garak against an endpoint; returns its report."""
    generator = {"uri": f"{url}/", "max_tokens": options.tokens, "temperature": 0, "stop": []}
    settings = {
        "system": {"parallel_attempts": 16},
        "run": {"seed": 0, "generations": 1, "soft_probe_prompt_cap": options.prompts},
        "plugins": {"generators": {"openai": {"OpenAICompatible": generator}}},
    }
    config = report.with_suffix(".yaml")
    config.write_text(yaml.safe_dump(settings))
    words = [options.garak, "-m", "garak", "--config", str(config), "--target_type", "openai.OpenAICompatible"]
    words += ["--target_name", SERVED_NAME, "--probes", ",".join(PROBES), "--detectors", DETECTOR]
    words += ["--report_prefix", str(report)]
    subprocess.run(words, check=True, stdout=sys.stderr, env={**OFFLINE, **os.environ})
    return report.with_name(f"{report.name}.report.jsonl")


def count(name: str, report: Path) -> None:
    """Prints garak's hits and the keyword judge's outcomes of a report, by probe."""
    rows = [json.loads(line) for line in report.read_text("utf-8").splitlines()]
    attempts = [row for row in rows if row.get("entry_type") == "attempt" and row.get("status") == COMPLETE]
    for probe in PROBES:
        of_probe = [attempt for attempt in attempts if attempt["probe_classname"] == probe]
        if not of_probe:
            continue
        hits = sum(attempt["detector_results"][DETECTOR][0] > 0.5 for attempt in of_probe)
        prompts = [_text(attempt["prompt"]["turns"][-1]["content"]) for attempt in of_probe]
        outcomes = keyword_outcomes(prompts, [_text(attempt["outputs"][0]) for attempt in of_probe])
        share = share_text(hits, len(of_probe))
        print(f"{name}\t{probe}\thits {share}\tkeyword judge {outcomes}", flush=True)


def _text(value: Any) -> str:
    return str(value["text"] if isinstance(value, dict) else value or "")


def main() -> None:
    parser = options_parser(__doc__, models="*", prompts=128, work="garak-reports")
    parser.add_argument("--garak", default="python", help="the Python of garak's environment")
    parser.add_argument("--reports", nargs="*", type=Path, default=[], help="count these reports of garak; run nothing")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    with closing(served_models(options)) as models:
        for number, name, url in models:
            count(name, scan(url, options.work.resolve() / f"model-{number}", options))
    for report in options.reports:
        count(report.name, report)


if __name__ == "__main__":
    main()
