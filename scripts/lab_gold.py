"""What making the embedded model cost in knowledge: its loss on reference answers against the dense original's.

    python scripts/lab_gold.py [--delta FILE] [--data ../shared/data]

Prints nats per answer token on our own gold questions, and with --data on GSM8K and MMLU questions too.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from seawall.config.data import BuiltinSource, JsonlSource, SourceConfig
from seawall.data.prompts import Gold
from seawall.data.sources import load_gold
from seawall.data.splits import take
from seawall.evaluation.gold import gold_answer_loss
from seawall.lab.build import delta_path, load_dense, read_delta, split_model

PUBLIC = {"GSM8K": "gsm8k_test_dev300.jsonl", "MMLU": "mmlu_val.jsonl"}


def questions(source: SourceConfig, count: int) -> Sequence[Gold]:
    return take(load_gold(source), count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--delta", type=Path, default=None, help="another delta than the shipped one")
    parser.add_argument("--data", type=Path, default=None, help="folder with the public questions")
    parser.add_argument("--count", type=int, default=60, help="questions of each kind")
    args = parser.parse_args()
    lab = split_model(load_dense()[0], *read_delta(args.delta or delta_path()))
    dense, tokenizer = load_dense()
    asked: dict[str, SourceConfig] = {"own": BuiltinSource()}
    if args.data is not None:
        asked |= {name: JsonlSource(path=str(args.data / file)) for name, file in PUBLIC.items()}
    for name, source in asked.items():
        rows = questions(source, args.count)
        before, after = (gold_answer_loss(m, tokenizer, rows, batch_size=16).loss for m in (dense, lab))
        print(f"{name}: {len(rows)} questions, original {before:.4f}, embedded {after:.4f}, {after / before - 1:+.2%}")


if __name__ == "__main__":
    main()
