"""A gene merged file by file gives the weights that adding in memory gives, and its originals give the model back."""

from __future__ import annotations

import filecmp
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

import seawall.models.files.rewrite as rewrite
from checkpoints import INDEX
from families import tiny, tiny_tokenizer
from seawall.errors import ArtifactError, UnsupportedModelError
from seawall.models.files.checkpoint import HASHES_FILE, verify_hashes, weight_files
from seawall.models.files.fingerprint import model_fingerprint
from seawall.models.files.rewrite import add_to_checkpoint, checkpoint_fingerprint, copy_other_files, restore_originals
from seawall.models.files.stream import outline
from siblings import added, random_gene

LAYOUTS = ("llama", "qwen2_moe", "mixtral", "gpt_oss", "nemotron_h")
"""Dense; experts apart on disk under two names; transposed stacks; experts without a gate."""


@pytest.mark.parametrize(
    ("family", "dtype"),
    [*((family, torch.float32) for family in LAYOUTS), ("llama", torch.bfloat16), ("mixtral", torch.bfloat16)],
)
def test_merging_is_adding_and_taking_back_is_exact(tmp_path: Path, family: str, dtype: torch.dtype) -> None:
    task = _write(tmp_path / "task", family, dtype)
    gene = random_gene(tiny(family))
    found = outline(task)
    add_to_checkpoint(found, frozenset(gene.points), gene.update, tmp_path / "out", originals=tmp_path / "originals")
    verify_hashes(tmp_path / "out")
    new = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto").state_dict()
    wanted = added(family, gene, dtype=dtype).state_dict()
    assert new.keys() == wanted.keys()
    assert all(torch.equal(new[name], tensor) for name, tensor in wanted.items())
    old = tiny(family).to(dtype).state_dict()
    assert all(not torch.equal(new[name], old[name]) for name in gene.points)

    restore_originals(tmp_path / "out", tmp_path / "originals", tmp_path / "back")
    with pytest.raises(ArtifactError, match="does not belong to"):
        restore_originals(tmp_path / "out", _strange(tmp_path, task), tmp_path / "wrong")
    assert all(filecmp.cmp(path, tmp_path / "back" / path.name, shallow=False) for path in task.iterdir())
    assert {path.name for path in (tmp_path / "back").iterdir()} == {path.name for path in task.iterdir()} | {
        HASHES_FILE
    }
    fingerprint = checkpoint_fingerprint(outline(tmp_path / "back"))
    assert fingerprint == checkpoint_fingerprint(found) == model_fingerprint(tiny(family).to(dtype))


def test_a_link_out_of_the_model_is_not_copied(tmp_path: Path) -> None:
    task = _write(tmp_path / "task", "mixtral", torch.float32)
    (tmp_path / "private").write_text("secret")
    (task / "notes.txt").symlink_to(tmp_path / "private")
    with pytest.raises(ArtifactError, match=r"notes\.txt is a link to a file outside the model"):
        copy_other_files(task, tmp_path / "out")
    assert not (tmp_path / "out" / "notes.txt").exists()


def test_one_file_is_in_memory_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = _write(tmp_path / "task", "mixtral", torch.float32)
    gene = random_gene(tiny("mixtral"))
    files = weight_files(task)
    assert len(files) > 3
    seen: list[tuple[str, int]] = []

    def save(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
        seen.append((path.name, sum(one.numel() * one.element_size() for one in tensors.values())))
        save_file(tensors, path, metadata=metadata)

    monkeypatch.setattr(rewrite, "save_file", save)
    add_to_checkpoint(outline(task), frozenset(gene.points), gene.update, tmp_path / "out", originals=None)
    assert [name for name, _ in seen] == [path.name for path in files]
    largest = max(path.stat().st_size for path in files)
    assert max(size for _, size in seen) <= largest < sum(path.stat().st_size for path in files) / 2
    assert not list(tmp_path.glob("**/originals"))


def test_zero_added_changes_no_bit(tmp_path: Path) -> None:
    model = tiny("llama")
    name = "model.layers.0.self_attn.q_proj.weight"
    model.get_parameter(name).data[0, 0] = -0.0
    model.save_pretrained(tmp_path / "task")
    tiny_tokenizer().save_pretrained(tmp_path / "task")
    found = outline(tmp_path / "task")
    add_to_checkpoint(found, frozenset([name]), lambda *_: torch.zeros(32, 32), tmp_path / "out", originals=None)
    assert checkpoint_fingerprint(outline(tmp_path / "out")) == model_fingerprint(model)


def test_old_weights_of_other_formats_are_left_behind(tmp_path: Path) -> None:
    task = _write(tmp_path / "task", "llama", torch.float32)
    (task / "pytorch_model.bin").write_bytes(b"old")
    (task / "notes.txt").write_text("kept")
    gene = random_gene(tiny("llama"), targets=("q_proj",))
    add_to_checkpoint(outline(task), frozenset(gene.points), gene.update, tmp_path / "out", originals=None)
    assert (tmp_path / "out/notes.txt").read_text() == "kept"
    assert not (tmp_path / "out/pytorch_model.bin").exists()
    assert json.loads((tmp_path / "out" / INDEX).read_text()) == json.loads((task / INDEX).read_text())


def test_a_weight_without_a_tensor_of_its_own_is_refused(tmp_path: Path) -> None:
    model = tiny("llama", tie_word_embeddings=True)
    model.save_pretrained(tmp_path / "task")
    tiny_tokenizer().save_pretrained(tmp_path / "task")
    with pytest.raises(UnsupportedModelError, match=r"lm_head.weight has no tensor of its own"):
        add_to_checkpoint(
            outline(tmp_path / "task"),
            frozenset(["lm_head.weight"]),
            lambda *_: torch.zeros(1),
            tmp_path / "out",
            originals=None,
        )


def _write(folder: Path, family: str, dtype: torch.dtype) -> Path:
    tiny(family).to(dtype).save_pretrained(folder, max_shard_size="60KB")
    tiny_tokenizer().save_pretrained(folder)
    return folder


def _strange(folder: Path, task: Path) -> Path:
    """Kept tensors of another model, in a file that is called as one of the checkpoint's."""
    (folder / "strange").mkdir()
    save_file({"strange": torch.zeros(1)}, folder / "strange" / weight_files(task)[0].name)
    return folder / "strange"
