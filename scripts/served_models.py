"""What the checks of served models by other tools share: options, servers and counts."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections import Counter
from collections.abc import Generator, Sequence
from pathlib import Path

from seawall.config.model import ModelConfig
from seawall.data.types import user
from seawall.evaluation.intervals import exact_interval
from seawall.evaluation.judges.keyword import KeywordJudge
from seawall.evaluation.served.process import vllm_server
from seawall.shell.model import open_checkpoint


def options_parser(description: str | None, *, models: str, prompts: int, work: str) -> argparse.ArgumentParser:
    """A parser with the options of every such check; a signal to end it ends the programs that it started, too.

    Args:
        description: of the script.
        models: number of models, in argparse's notation.
        prompts: default number of prompts of each group.
        work: default folder of what the tool writes.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs=models, help="`lab`, folders or Hub ids")
    parser.add_argument("--vllm", default=os.environ.get("SEAWALL_VLLM", "vllm"), help="command, or its Python")
    parser.add_argument("--dtype", default="float32", help="type in which vLLM computes")
    parser.add_argument("--prompts", type=int, default=prompts, help="of each group or probe")
    parser.add_argument("--tokens", type=int, default=32, help="maximum length of a reply")
    parser.add_argument("--length", type=int, default=1024, help="tokens of the longest conversation with its reply")
    parser.add_argument("--work", type=Path, default=Path(work), help="folder of what the tool writes")
    return parser


def served_models(options: argparse.Namespace) -> Generator[tuple[int, str, str], None, None]:
    """Number, name and address of every model, one after the other, each served while it is asked.

    Whoever stops early closes the generator (`contextlib.closing`), which ends the server.
    """
    for number, name in enumerate(options.models):
        folder = open_checkpoint(ModelConfig(id=name)).folder.resolve()
        with vllm_server(options.vllm, folder, dtype=options.dtype, length=options.length, seconds=900) as url:
            yield number, name, url


def share_text(count: int, total: int) -> str:
    """A share with its exact interval: `3 of 40, 0.07 [0.02, 0.20]`."""
    low, high = exact_interval(count, total)
    return f"{count} of {total}, {count / total:.2f} [{low:.2f}, {high:.2f}]"


def keyword_outcomes(prompts: Sequence[str], replies: Sequence[str]) -> dict[str, int]:
    """The outcomes of the keyword judge."""
    verdicts = KeywordJudge()(list(map(user, prompts)), replies)
    return dict(sorted(Counter(verdict.outcome for verdict in verdicts).items()))
