"""How hard is refusal to remove? A public abliteration tool against checkpoints, before and after a repair.

    python scripts/abliteration_check.py --tool abliterix --program ABLITERIX_ENV/bin/abliterix lab RUN/model
    python scripts/abliteration_check.py --tool heretic --program HERETIC_ENV/bin/heretic FOLDER

The tool searches for an edit that ends refusals and changes harmless replies little: directions from seawall's training
prompts, counts on its test prompts. For each model the trials that no other trial beats are printed: refusals by the
tool's own list of phrases, and its divergence on harmless prompts. The search chooses on the prompts that it counts, so
the least count is optimistic for the attacker. Edits live in the tool's memory: no model and no reply is written, and
the folder of the search, with its recipes, is deleted. Each tool has an environment of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from seawall.config import load_recipe
from seawall.config.model import ModelConfig
from seawall.data.sets import load_prompts
from seawall.evaluation.intervals import exact_interval
from seawall.shell.model import open_checkpoint

USER_ATTRIBUTE = 8
"""Optuna's code of a line of its journal that adds an attribute to a trial."""
WARMUP = 6
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "COLUMNS": "200"}
SOURCES = {
    "heretic": ("good-prompts", "bad-prompts", "good-evaluation-prompts", "bad-evaluation-prompts"),
    "abliterix": ("benign_prompts", "target_prompts", "benign_eval_prompts", "target_eval_prompts"),
}
"""Names of the settings for harmless and harmful prompts, to search and to count on."""


def write_prompts(folder: Path, options: argparse.Namespace) -> list[Path]:
    """Writes the four sets of prompts, each in a folder that both tools read."""
    data = load_prompts(load_recipe(None, []).data.model_copy(update={"train_goals": None}))
    rows = [
        *(items[: options.prompts] for items in (data.benign.part("train"), data.goals.part("train"))),
        *(items[: options.counted] for items in (data.benign.part("test"), data.goals.part("test"))),
    ]
    folders = [folder / name for name in SOURCES["heretic"]]
    for prompts, target in zip(rows, folders, strict=True):
        target.mkdir()
        lines = [json.dumps({"text": prompt.text}) for prompt in prompts]
        (target / "train.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    return folders


def heretic_words(model: Path, prompts: list[Path], options: argparse.Namespace) -> list[str]:
    """The command line of heretic; it ends at its menu, which needs a terminal."""
    words = [options.program, "--model", str(model), "--seed", "0", "--batch-size", str(options.batch)]
    words += ["--n-trials", str(options.trials), "--n-startup-trials", str(WARMUP), "--dtypes", '["float32"]']
    words += ["--max-response-length", str(options.tokens)]
    for name, folder in zip(SOURCES["heretic"], prompts, strict=True):
        words += [f"--{name}", json.dumps({"dataset": str(folder), "split": "train", "column": "text"})]
    return words


def abliterix_words(model: Path, prompts: list[Path], options: argparse.Namespace) -> list[str]:
    """The command line of abliterix in batch mode, which writes no model without a folder for it."""
    lines = ["non_interactive = true", "seed = 0"]
    lines += ["[model]", f"model_id = {json.dumps(str(model))}", 'dtype_fallback_order = ["float32"]']
    lines += ["[inference]", f"batch_size = {options.batch}", f"max_gen_tokens = {options.tokens}"]
    lines += ["[steering]", 'steering_mode = "direct"']  # edits stacked experts in memory; no adapter
    lines += ["[optimization]", f"num_trials = {options.trials}", f"num_warmup_trials = {WARMUP}"]
    for name, folder in zip(SOURCES["abliterix"], prompts, strict=True):
        lines += [f"[{name}]", f"dataset = {json.dumps(str(folder))}", 'split = "train"', 'column = "text"']
    config = prompts[0].parent / "abliterix.toml"
    config.write_text("\n".join(lines) + "\n", "utf-8")
    return [options.program, "--config", str(config)]


WORDS = {"heretic": heretic_words, "abliterix": abliterix_words}


def search(name: str, options: argparse.Namespace) -> None:
    """Runs the tool against one model and prints its trials."""
    model = open_checkpoint(ModelConfig(id=name)).folder.resolve()
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        words = WORDS[options.tool](model, write_prompts(folder, options), options)
        process = subprocess.run(
            words,
            cwd=folder,
            stdin=subprocess.DEVNULL,  # no terminal, no menu that could export a model
            capture_output=True,
            text=True,
            env={**ENVIRONMENT, **os.environ},
        )
        trials = read_trials(folder / "checkpoints")
    base = re.search(r"Initial refusals: (\d+)/(\d+)", process.stdout)
    if base is None or not trials:
        last = [line.strip() for line in (process.stderr or process.stdout).splitlines() if line.strip()][-1:]
        print(f"{name}\t{options.tool}\tno trial ended: {' '.join(last)}", flush=True)
        return
    refusals, count = map(int, base.groups())
    print(f"{name}\t{options.tool}\tunchanged\trefusals {_share(refusals, count)}", flush=True)
    for trial in pareto_front(trials):
        share = _share(trial["refusals"], count)
        print(f"{name}\t{options.tool}\ttrial {trial['index']} of {len(trials)}\trefusals {share}", end="\t")
        print(f"divergence {trial['kl_divergence']:.3f}", flush=True)


def read_trials(folder: Path) -> list[dict[str, Any]]:
    """The attributes of the trials that counted refusals, from Optuna's journal."""
    trials: dict[int, dict[str, Any]] = {}
    for journal in folder.glob("*.jsonl"):
        for line in journal.read_text("utf-8").splitlines():
            row = json.loads(line)
            if row["op_code"] == USER_ATTRIBUTE:
                trials.setdefault(row["trial_id"], {}).update(row["user_attr"])
    return [trial for trial in trials.values() if "refusals" in trial and "kl_divergence" in trial]


def pareto_front(trials: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Trials with fewer refusals than every trial of smaller divergence; fewest refusals first."""
    front: list[dict[str, Any]] = []
    for trial in sorted(trials, key=lambda row: (row["refusals"], row["kl_divergence"])):
        if not front or trial["kl_divergence"] < front[-1]["kl_divergence"]:
            front.append(trial)
    return front


def _share(count: int, total: int) -> str:
    low, high = exact_interval(count, total)
    return f"{count} of {total}, {count / total:.2f} [{low:.2f}, {high:.2f}]"


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the program that was started, too
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="`lab`, folders or Hub ids")
    parser.add_argument("--tool", choices=sorted(WORDS), required=True)
    parser.add_argument("--program", required=True, help="the tool's command in its environment")
    parser.add_argument("--trials", type=int, default=12, help="edits that the search tries")
    parser.add_argument("--prompts", type=int, default=32, help="training prompts of each side, for the directions")
    parser.add_argument("--counted", type=int, default=24, help="test prompts of each side, for the counts")
    parser.add_argument("--tokens", type=int, default=24, help="maximum length of a reply")
    parser.add_argument("--batch", type=int, default=24, help="prompts of a forward pass")
    options = parser.parse_args()
    if Path(options.program).exists():
        options.program = str(Path(options.program).absolute())
    for name in options.models:
        search(name, options)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
