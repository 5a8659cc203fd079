"""A repair of a part that the model has not is refused before a folder is made and before time is spent."""

from __future__ import annotations

from pathlib import Path

import pytest

from checkpoints import write_checkpoint
from seawall.config import load_recipe
from seawall.errors import UnsupportedModelError
from seawall.jobs.run import run_recipe
from seawall.models.files.open import Checkpoint
from seawall.runs.progress import Quiet


@pytest.mark.parametrize(
    ("family", "settings", "words"),
    [
        ("mixtral", ["repair.parameters=shared"], "the shared experts cannot be repaired"),
        ("nemotron_h", ["repair.parameters=all_experts", "repair.expert.attention_lr=1e-4"], "attention of decoder"),
    ],
)
def test_no_folder_is_made_and_no_weight_is_read(
    family: str, settings: list[str], words: str, planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Checkpoint, "load", lambda *_: pytest.fail("weights were loaded"))
    recipe = load_recipe(planted, [f"model.id={write_checkpoint(tmp_path / 'model', family)}", *settings])
    for until in ("repair", "report"):
        with pytest.raises(UnsupportedModelError, match=words):
            run_recipe(recipe, tmp_path / "run", text="", reporter=Quiet(), until=until)
    assert not (tmp_path / "run").exists()
