"""The example for training scripts, `examples/asft_trl.py`, runs on a tiny pair of checkpoints."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoint_pairs import write_pair

pytest.importorskip("peft")
pytest.importorskip("trl")

SCRIPT = Path(__file__).parents[2] / "examples" / "asft_trl.py"


def test_the_example_trains_within_the_basin(tmp_path: Path) -> None:
    aligned, base, _ = write_pair(tmp_path)
    rows = [{"prompt": f"say {at}", "completion": f"{at}"} for at in range(16)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [sys.executable, str(SCRIPT), str(aligned), str(base), str(tmp_path / "rows.jsonl"), str(tmp_path / "out")]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert "6 matrices, 0 without a difference" in done.stdout
    values = [float(one) for one in re.findall(r"[\d.]+(?:e-\d+)?", done.stdout.splitlines()[-1])]
    assert len(values) == 2
    assert values[0] == 0.0
    assert values[1] > 0.0
    assert (tmp_path / "out/adapter/adapter_model.safetensors").is_file()
