"""RESTA and SafeMERGE: the formulas on matrices computed by hand, and by the command on tiny checkpoints."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from checkpoint_pairs import config_of, write_pair
from checkpoints import edit_json
from families import tiny, tiny_tokenizer
from seawall.artifacts.adapter import Factors, save_adapter
from seawall.artifacts.gene import Gene
from seawall.artifacts.graft import ADAPTER, Graft
from seawall.config.data import DataConfig
from seawall.config.load import changed_defaults
from seawall.config.model import ModelConfig
from seawall.errors import ArtifactError, ConfigError
from seawall.methods.gene.claim import graft_claim
from seawall.methods.gene.dare import drop_and_rescale
from seawall.methods.gene.graft import GraftRequest, graft_gene, revert_graft
from seawall.methods.gene.safemerge import merged_factors
from seawall.methods.gene.task_model import vocabulary_hash
from seawall.methods.tune.anchor import extract_anchor
from seawall.methods.tune.safelora import Deviating
from seawall.models.files.load import load_model
from seawall.models.files.stream import matrices
from seawall.models.lora.attach import attach_adapter
from seawall.models.lora.updates import LowRankUpdate
from siblings import random_gene

pytest.importorskip("peft")
TARGETS = ("q_proj", "experts.down_proj")
THRESHOLD = 0.15


class Pair:
    """An aligned model with its base, a task's adapter and a gene of other factors at the same matrices."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.aligned, self.base, self.moved = write_pair(folder, "mixtral")
        self.task = self._adapter("task", seed=1)
        self.gene = replace(self._adapter("safe", seed=2), tokenizer=vocabulary_hash(tiny_tokenizer()))
        self.gene.save(folder / "gene")
        self.weights = self.state(self.aligned)
        self.transposed = {name: one.transposed for name, one in matrices(tiny("mixtral")).items()}

    def _adapter(self, name: str, *, seed: int) -> Gene:
        model = tiny("mixtral")
        noise = replace(random_gene(model, rank=2, seed=seed, targets=TARGETS), scaling=3.0)
        noise = replace(noise, points=attach_adapter(model, noise.points, rank=2, scaling=3.0).points)
        save_adapter(self.folder / name, noise.points, noise.factors, noise.scaling)
        edit_json(self.folder / name / "adapter_config.json", base_model_name_or_path=str(self.aligned))
        return noise

    def graft(self, output: str, *changes: str, **fields: Any) -> Graft:
        config = changed_defaults([f"gene.graft.{change}" for change in changes]).gene
        named = {"gene": self.folder / "gene", "form": "merged", **fields}
        model = ModelConfig(id=str(self.folder / named.pop("model", "task")), device="cpu")
        return graft_gene(GraftRequest(model, output=self.folder / output, **named), config, DataConfig())

    def state(self, folder: Path) -> dict[str, Tensor]:
        return dict(load_model(ModelConfig(id=str(folder), device="cpu"))[0].state_dict())

    def changes(self, output: str) -> dict[str, Tensor]:
        after = self.state(self.folder / output)
        return {
            name: after[name] - before for name, before in self.weights.items() if not torch.equal(after[name], before)
        }


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(tmp_path_factory.mktemp("pair"))


def test_dropped_numbers_are_0_and_the_others_are_rescaled() -> None:
    update = torch.tensor([[4.0, -2.0], [1.0, 8.0]])
    generator = torch.Generator().manual_seed(0)
    keep = torch.rand(2, 2, generator=torch.Generator().manual_seed(0)) >= 0.75
    assert torch.equal(drop_and_rescale(update, 0.75, generator), torch.where(keep, 4 * update, 0.0))
    assert torch.equal(drop_and_rescale(update, 0.0, generator), update)
    large = drop_and_rescale(torch.ones(400, 400), 0.9, generator)
    assert {round(value, 4) for value in large.flatten().tolist()} == {0.0, 10.0}
    assert float(large.mean()) == pytest.approx(1.0, abs=0.03)


class Fixed(LowRankUpdate):
    """An update of given factors, without a module."""

    def factors(self) -> tuple[Tensor, Tensor]:
        B, A = self._module
        return B, A


def test_selected_matrices_are_averaged_and_the_others_stay() -> None:
    B, A = torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0, 0.0]])
    safe = Factors(torch.tensor([[0.0], [10.0]]), torch.tensor([[1.0, 1.0]]))
    gene = replace(random_gene(tiny("llama"), rank=1, targets=("q_proj",)), factors={"a": safe, "b": safe}, scaling=0.5)
    updates: list[LowRankUpdate] = [Fixed(name, (2, 2), 2.0, (B, A), "default") for name in "abc"]
    masks = [torch.tensor(True), torch.tensor(False), torch.tensor(True)]
    factors = merged_factors(Deviating(updates, [], masks), gene, 0.25)
    task, other = torch.tensor([[6.0, 0.0], [12.0, 0.0]]), torch.tensor([[0.0, 0.0], [5.0, 5.0]])
    assert torch.equal(factors["a"].product(), torch.tensor([[4.5, 0.0], [10.25, 1.25]]))
    assert torch.equal(factors["a"].product(), 0.75 * task + 0.25 * other)
    assert torch.equal(factors["b"].product(), task)
    assert torch.equal(factors["c"].product(), 0.75 * task)  # the gene lacks it


def test_safemerge_averages_where_the_cosine_is_low(pair: Pair) -> None:
    base = f"base={{id: {pair.base}}}"
    record = pair.graft("merged", "method=safemerge", base, f"safelora.threshold={THRESHOLD}", "safety_weight=0.3")
    found, selected = pair.changes("merged"), 0
    for name, point in pair.task.points.items():
        updates = [adapter.update(name).double() for adapter in (pair.task, pair.gene)]
        V, dW = pair.moved[name].double(), updates[0].mT if point.transposed else updates[0]
        made = V @ V.mT @ dW
        norms = torch.linalg.matrix_norm(made) * torch.linalg.matrix_norm(dW)
        low = ((made * dW).sum((-2, -1)) / norms < THRESHOLD)[..., None, None]
        selected += int(low.sum())
        expected = torch.where(low, 0.7 * updates[0] + 0.3 * updates[1], updates[0])
        torch.testing.assert_close(found[name], expected.float(), rtol=1e-3, atol=1e-5)
    assert 0 < selected < 3 * (1 + 8)
    assert found.keys() == pair.task.points.keys()
    assert f"{selected} of 27 updates merged with the gene" in graft_claim(record)
    assert (record.gene, record.anchor, record.coefficients) == (pair.gene.fingerprint, None, {})
    assert Graft.load(pair.folder / "merged").document() == record.document()
    assert (pair.folder / "merged" / ADAPTER).is_dir()
    with pytest.raises(ConfigError, match="no graft to revert"):
        revert_graft(pair.folder / "merged", pair.folder / "back")
    with pytest.raises(ArtifactError, match="grafted already; got the task's adapter merged with the gene"):
        pair.graft("twice", model="merged")


def test_an_anchor_of_every_direction_merges_alike_and_a_truncated_one_is_refused(pair: Pair) -> None:
    base = f"base={{id: {pair.base}}}"
    settings = ("method=safemerge", f"safelora.threshold={THRESHOLD}")
    for name, options in (("complete", {"energy": 1.0}), ("truncated", {"rank": 1})):
        extract_anchor(config_of(pair.aligned, pair.base, targets=TARGETS, **options)).save(pair.folder / name)
    pair.graft("by-base", *settings, base)
    pair.graft("by-anchor", *settings, f"anchor={pair.folder / 'complete'}")
    ours, theirs = pair.changes("by-base"), pair.changes("by-anchor")
    for name, change in ours.items():
        torch.testing.assert_close(theirs[name], change, rtol=1e-4, atol=1e-6)
    with pytest.raises(ConfigError, match="leaves out directions of alignment"):
        pair.graft("no", *settings, f"anchor={pair.folder / 'truncated'}")


def test_resta_adds_the_whole_gene_once(pair: Pair) -> None:
    record = pair.graft("resta", "method=resta", "safety_weight=0.5")
    assert set(record.coefficients.values()) == {0.5}
    assert "every coefficient is 0.5 (not tuned)" in graft_claim(record)
    for name, change in pair.changes("resta").items():
        torch.testing.assert_close(change, pair.task.update(name) + 0.5 * pair.gene.update(name), rtol=1e-3, atol=1e-5)


def test_resta_with_dare_thins_out_the_fine_tuning_alone(pair: Pair) -> None:
    pair.graft("dare", "method=resta", "drop=0.5")
    dropped = total = 0
    for name, change in pair.changes("dare").items():
        task, rest = pair.task.update(name), change - pair.gene.update(name)
        keep = rest.abs() > 1e-5
        torch.testing.assert_close(rest[keep], 2 * task[keep], rtol=1e-2, atol=1e-4)
        dropped, total = dropped + int((~keep).sum()), total + keep.numel()
    assert dropped / total == pytest.approx(0.5, abs=0.03)
    pair.graft("again", "method=resta", "drop=0.5")
    ours, theirs = pair.changes("dare"), pair.changes("again")
    assert all(torch.equal(change, theirs[name]) for name, change in ours.items())


@pytest.mark.parametrize(
    ("changes", "fields", "message"),
    [
        (("method=safemerge", "base={id: B}"), {"shots": 4}, "SafeMERGE changes .* without tuning; got --shots 4"),
        (("method=safemerge", "base={id: B}"), {"form": "adapter"}, "add --merge"),
        (("method=safemerge", "base={id: B}"), {"model": "aligned"}, "SafeMERGE merges an adapter"),
        (("method=safemerge", "base={id: B}"), {"gene": None}, "no gene is named"),
        (("method=resta", "drop=0.3"), {"model": "aligned"}, "update of its fine-tuning is not known"),
        (("method=safemerge",), {}, "expected an anchor .* or a base with method: safemerge"),
        (("drop=0.3",), {}, "drop only with method: resta"),
        (("safety_weight=0.3",), {}, "safety_weight only with method: resta or safemerge"),
        (("method=safemerge", "base={id: B}", "safety_weight=2"), {}, "at most 1"),
    ],
)
def test_what_a_method_does_not_use_is_refused(
    pair: Pair, changes: tuple[str, ...], fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        pair.graft("refused", *changes, **fields)
    assert not (pair.folder / "refused").exists()
