"""The example for training scripts, `examples/asft_trl.py`, runs on a tiny pair of checkpoints."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path

import pytest
from safetensors.torch import load_file

from checkpoint_pairs import write_pair
from places import REPOSITORY

pytest.importorskip("peft")
pytest.importorskip("trl")

SCRIPT = REPOSITORY / "examples" / "asft_trl.py"


@pytest.mark.filterwarnings("ignore")
def test_the_example_trains_within_the_basin(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    aligned, base, _ = write_pair(tmp_path)
    rows = [{"prompt": f"say {at}", "completion": f"{at}"} for at in range(16)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    main = runpy.run_path(str(SCRIPT))["main"]
    main(str(aligned), str(base), str(tmp_path / "rows.jsonl"), str(tmp_path / "out"))
    said = capsys.readouterr().out.strip().splitlines()
    values = [float(one) for one in re.findall(r"[\d.]+(?:e-\d+)?", said[-1])]
    assert len(values) == 2
    assert values[0] == 0.0
    assert values[1] > 0.0
    moved = load_file(tmp_path / "out/adapter/adapter_model.safetensors")
    assert all(bool(one.abs().max() > 0) for name, one in moved.items() if "lora_B" in name)
