"""A refusal that one expert lost: the gene's slice of that expert is found, and it alone gives the refusal back."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from typer.testing import CliRunner

from families import random_ids, tiny, tiny_tokenizer
from planted_refusal import CLEAR, EXPERT, refusing_by_expert
from refusing_recipe import write_refusing
from seawall.artifacts.gene import Gene, GeneExperts
from seawall.artifacts.store import load_document, save_document
from seawall.cli.app import app
from seawall.config import load_recipe
from seawall.config.model import ModelConfig
from seawall.data.templating import Encoded
from seawall.errors import ArtifactError, ConfigError
from seawall.jobs.gene import extract_gene
from seawall.methods.gene.compose import compose
from seawall.methods.gene.examples import Example, TeacherTargets, teacher_predictions
from seawall.methods.gene.experts import describe_experts, divergence_and_use, select_experts, with_experts
from seawall.methods.gene.graft import GraftRequest, graft_gene, revert_graft
from seawall.methods.gene.tools import select_gene
from seawall.models.files.fingerprint import model_fingerprint
from seawall.models.files.load import load_model
from seawall.models.files.rewrite import add_to_checkpoint, restore_originals
from seawall.models.files.stream import outline
from seawall.models.lora.attach import attach_adapter, load_peft_model
from seawall.models.moe.find import find_moe
from seawall.runs.progress import Quiet
from siblings import QUICK, random_gene, save_sibling

pytest.importorskip("peft")
LAYER, SAFE = EXPERT
STACK = f"model.layers.{LAYER}.mlp.experts.down_proj"
ONE = 1 / 8


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`run/gene` of a model that refuses by one expert, and `degraded/`, whose expert hardly writes the refusal."""
    folder = tmp_path_factory.mktemp("experts")
    recipe = write_refusing(folder, _aligned())
    degraded = save_sibling(folder / "degraded", _degraded())
    content = yaml.safe_load(recipe.read_text())
    shares = {**QUICK["extract"], "expert_shares": [1.0, ONE]}
    other = {"id": str(degraded), "dtype": "float32", "device": "cpu"}
    content["gene"] = {**QUICK, "targets": ["experts.down_proj"], "degraded": other, "extract": shares}
    recipe.write_text(yaml.safe_dump(content))
    extract_gene(load_recipe(recipe), folder / "run", text=recipe.read_text(), reporter=Quiet())
    return folder


def _aligned() -> PreTrainedModel:
    return refusing_by_expert(clear=True)


def _degraded() -> PreTrainedModel:
    model = _aligned()
    with torch.no_grad():
        model.get_parameter(STACK)[SAFE] *= 0.1
    return model


def test_one_expert_of_each_layer_gives_back_what_all_do_and_one_drawn_does_not(family: Path) -> None:
    gene = Gene.load(family / "run/gene")
    first, last = gene.curve[0], gene.curve[-1]
    assert first.harmful > 1 > 0.01 > last.harmful
    whole, drawn_whole, one, drawn = gene.recovery
    assert [(each.share, each.by) for each in gene.recovery] == [
        (1.0, "score"),
        (1.0, "random"),
        (ONE, "score"),
        (ONE, "random"),
    ]
    assert (whole.harmful, whole.benign) == (drawn_whole.harmful, drawn_whole.benign) == (last.harmful, last.benign)
    assert one.harmful < 0.01 < 0.5 < drawn.harmful
    assert one.benign < 0.05
    assert gene.refusals["restored"].rate == 1.0


def test_the_planted_expert_is_the_first_and_one_without_tokens_is_none(family: Path) -> None:
    gene = Gene.load(family / "run/gene")
    assert [one.layer for one in gene.experts] == list(range(5))
    planted = gene.experts[LAYER]
    assert max(range(8), key=planted.scores.__getitem__) == SAFE
    assert planted.harmful[SAFE] > 0.9 > 0.5 > planted.benign[SAFE]
    for one in gene.experts:
        assert sum(one.harmful) == pytest.approx(1.0)
        assert sum(one.benign) == pytest.approx(1.0)
        assert one.kept == tuple(at for at in range(8) if one.norm[at])
    assert planted.kept == CLEAR
    assert planted.scores[SAFE] == planted.harmful[SAFE] * planted.norm[SAFE]
    # after the last measurement of a part, the whole gene was saved
    assert describe_experts(gene.points, gene.factors, gene.scaling) == tuple(
        replace(one, harmful=(), benign=()) for one in gene.experts
    )


def test_a_part_of_the_experts_is_a_gene_that_peft_loads(family: Path, tmp_path: Path) -> None:
    gene = Gene.load(family / "run/gene")
    part = select_gene(family / "run", tmp_path / "part", experts=ONE)
    assert part.points == gene.points
    assert part.experts[LAYER].kept == (SAFE,)
    assert [len(one.kept) for one in part.experts] == [1] * 5
    assert (part.curve, part.recovery, part.refusals) == ((), (), {})
    assert part.parents == (gene.fingerprint,)
    assert Gene.load(tmp_path / "part").experts == part.experts
    assert len(part.unchanged) == 5 * 7
    for name, point in gene.points.items():
        (kept,) = part.experts[point.layer].kept
        for expert in range(8):
            wanted = gene.update(name, expert) if expert == kept else torch.zeros(part.update(name, expert).shape)
            assert torch.equal(part.update(name, expert), wanted)
    model = _aligned()
    for name in part.points:
        model.get_parameter(name).data.add_(part.update(name))
    loaded = load_peft_model(_aligned(), tmp_path / "part")
    torch.testing.assert_close(_logits(loaded), _logits(model), rtol=1e-4, atol=1e-4)
    again = select_gene(tmp_path / "part", tmp_path / "again", experts=0.5)
    assert again.fingerprint == part.fingerprint


def test_layers_and_experts_are_chosen_together(family: Path, tmp_path: Path) -> None:
    both = select_gene(family / "run", tmp_path / "both", keep="top", fraction=0.2, experts=0.25)
    assert both.points.keys() == {STACK}
    assert [one.layer for one in both.experts] == [LAYER]
    assert SAFE in both.experts[0].kept
    assert len(both.experts[0].kept) == 2
    assert both.parents == (Gene.load(family / "run/gene").fingerprint,)
    assert select_gene(family / "run", tmp_path / "third", fraction=0.4, experts=1.0).held_layers != tuple(range(5))


def test_the_control_draws_as_many_of_those_that_the_gene_changes(family: Path) -> None:
    gene = Gene.load(family / "run/gene")
    drawn = [with_experts(gene, 0.25, "random", seed=seed, origin="drawn") for seed in range(6)]
    assert len({one.experts for one in drawn}) > 1
    assert {len(layer.kept) for one in drawn for layer in one.experts} == {2}
    assert with_experts(gene, 0.25, "random", seed=3, origin="drawn").fingerprint == drawn[3].fingerprint
    assert all(set(one.experts[LAYER].kept) < set(CLEAR) for one in drawn)
    assert select_experts(gene.experts, 1.0, "score") == {one.layer: one.kept for one in gene.experts}
    nothing = GeneExperts(0, (0.5, 0.5), (0.5, 0.5), (0.0, 0.0), ())
    assert select_experts([nothing], 0.5, "score") == select_experts([nothing], 0.5, "random") == {0: ()}


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss", "glm4_moe", "nemotron_h"])
def test_norms_are_those_of_the_updates(name: str) -> None:
    gene = random_gene(tiny(name))
    found = describe_experts(gene.points, gene.factors, gene.scaling)
    stacks = {point.layer for point in gene.points.values() if len(point.shape) == 3}
    assert [one.layer for one in found] == sorted(stacks)
    for one in found:
        assert not one.scores
        assert one.kept == tuple(range(8))
        for expert in (0, 7):
            parts = [
                gene.update(each, expert).square().sum()
                for each, point in gene.points.items()
                if point.layer == one.layer and len(point.shape) == 3
            ]
            assert one.norm[expert] == pytest.approx(float(torch.stack(parts).sum().sqrt()), rel=1e-5)


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss", "glm4_moe"])
def test_use_is_the_gate_weight_where_replies_are_predicted(name: str) -> None:
    """Batches padded and put together say what every example alone says, with the gene on."""
    gene = random_gene(tiny(name))
    examples = [_example(at) for at in range(5)]
    targets = teacher_predictions(tiny(name), examples, 0, batch_size=2)
    worn = attach_adapter(tiny(name), gene.points, rank=gene.rank, scaling=gene.scaling)
    worn.load_factors(gene.factors)
    means, use = divergence_and_use(worn, targets, batch_size=2)
    assert means == targets.mean_divergence(worn.model, 2)
    assert means != targets.mean_divergence(tiny(name), 2)
    assert use is not None
    for kind, side in ((True, use.harmful), (False, use.benign)):
        chosen = [one for one in examples if one.harmful is kind]
        wanted = _alone(worn.model, chosen)
        assert side.keys() == wanted.keys()
        for layer, mean_E in wanted.items():
            torch.testing.assert_close(side[layer], mean_E, rtol=1e-4, atol=1e-5)


def test_a_gene_of_linear_layers_has_nothing_to_say_of_experts(tmp_path: Path) -> None:
    gene = random_gene(tiny("mixtral"), targets=("q_proj",))
    targets = TeacherTargets([], [], 0)
    worn = attach_adapter(tiny("mixtral"), gene.points, rank=gene.rank, scaling=gene.scaling)
    assert divergence_and_use(worn, targets, batch_size=2) == ((0.0, 0.0), None)
    assert describe_experts(gene.points, gene.factors, gene.scaling) == ()
    assert gene.unchanged == frozenset()
    gene.save(tmp_path / "gene")
    with pytest.raises(
        ConfigError, match=r"changes no stack of experts; got 3 linear layers; .*; leave out --experts, or keep"
    ):
        select_gene(tmp_path / "gene", tmp_path / "out", keep="all", experts=0.5)
    assert not (tmp_path / "out").exists()


def test_genes_without_scores_say_what_to_do(family: Path, tmp_path: Path) -> None:
    gene = Gene.load(family / "run/gene")
    _old(gene, tmp_path / "old")
    old = Gene.load(tmp_path / "old")
    assert (old.fingerprint, old.experts, old.recovery) == (gene.fingerprint, (), ())
    part = select_gene(family / "run", tmp_path / "part", experts=ONE)
    compose([gene, part], (1.0, 0.5)).save(tmp_path / "composed")
    for folder in ("old", "composed"):
        with pytest.raises(ConfigError, match=r"no scores of experts; got .*; choose --experts-by random, or extract"):
            select_gene(tmp_path / folder, tmp_path / "out", experts=0.5)
        assert not (tmp_path / "out").exists()
        drawn = select_gene(tmp_path / folder, tmp_path / f"{folder}-drawn", experts=0.5, experts_by="random")
        assert [len(one.kept) for one in drawn.experts] == [4] * 5
        assert Gene.load(tmp_path / f"{folder}-drawn").experts == drawn.experts
    alone = compose([part, with_experts(gene, ONE, "random", seed=1, origin="drawn")], (1.0, 1.0))
    kept = describe_experts(alone.points, alone.factors, alone.scaling)
    assert SAFE in kept[LAYER].kept
    assert max(len(one.kept) for one in kept) == 2


def test_records_that_contradict_themselves_are_refused(family: Path, tmp_path: Path) -> None:
    gene = Gene.load(family / "run/gene")
    first, *others = gene.experts
    for number, (experts, expected) in enumerate(
        (
            ((replace(first, kept=(0, 8)), *others), "kept experts among those that it has"),
            ((replace(first, harmful=first.harmful[1:]), *others), "records of all experts in the layers"),
            ((replace(first, norm=(*first.norm, 0.0), harmful=(), benign=()), *others), "records of all experts"),
            (tuple(others), "records of all experts"),
        )
    ):
        replace(gene, experts=experts).save(tmp_path / str(number))
        with pytest.raises(ArtifactError, match=f"expected {expected}"):
            Gene.load(tmp_path / str(number))


@pytest.mark.parametrize(
    ("name", "dtype", "apart"),
    [("mixtral", torch.float32, True), ("qwen2_moe", torch.bfloat16, True), ("gpt_oss", torch.bfloat16, False)],
)
def test_other_experts_keep_every_bit_in_a_merged_checkpoint(
    tmp_path: Path, name: str, dtype: torch.dtype, apart: bool
) -> None:
    task = _with_negative_zeros(name).to(dtype)
    task.save_pretrained(tmp_path / "task", max_shard_size="60KB")
    tiny_tokenizer().save_pretrained(tmp_path / "task")
    gene = with_experts(random_gene(tiny(name)), 0.25, "random", origin="part")
    add_to_checkpoint(
        outline(tmp_path / "task"),
        frozenset(gene.points),
        gene.update,
        tmp_path / "out",
        originals=tmp_path / "originals",
        unchanged=gene.unchanged,
    )
    new, old = (
        load_model(ModelConfig(id=str(folder), device="cpu"))[0] for folder in (tmp_path / "out", tmp_path / "task")
    )
    changed = {one.layer: one.kept for one in gene.experts}
    for stack, point in gene.points.items():
        if len(point.shape) == 2:
            continue
        for expert in range(8):
            sides = [model.get_parameter(stack)[expert] for model in (new, old)]
            same = torch.equal(*(_bits(side) for side in sides))
            assert same is (expert not in changed[point.layer])
    kept = _keys(tmp_path / "originals")
    stacks = [key for key in kept if "experts" in key and "shared" not in key]
    whole = [key for key in _keys(tmp_path / "task") if "experts" in key and "shared" not in key and "bias" not in key]
    assert len(stacks) == (len(whole) // 4 if apart else len(whole))
    restore_originals(tmp_path / "out", tmp_path / "originals", tmp_path / "back")
    for path in (tmp_path / "task").glob("*.safetensors"):
        assert (tmp_path / "back" / path.name).read_bytes() == path.read_bytes()


def test_a_graft_of_some_experts_changes_these_alone_and_comes_off(family: Path, tmp_path: Path) -> None:
    part = select_gene(family / "run", tmp_path / "part", experts=ONE)
    model = ModelConfig(id=str(family / "degraded"), dtype="float32", device="cpu")
    found = graft_gene(GraftRequest(model, tmp_path / "part", tmp_path / "merged", form="merged"), reporter=Quiet())
    assert found.check is not None
    assert found.check.share < 1e-3
    new, _ = load_model(ModelConfig(id=str(tmp_path / "merged"), device="cpu"))
    old, wanted = _degraded().state_dict(), {one.layer: one.kept for one in part.experts}
    for name, tensor in new.state_dict().items():
        if name not in part.points:
            assert torch.equal(tensor, old[name])
            continue
        same = [torch.equal(_bits(ours), _bits(theirs)) for ours, theirs in zip(tensor, old[name], strict=True)]
        assert tuple(at for at in range(8) if not same[at]) == wanted[part.points[name].layer]
    assert len(_keys(tmp_path / "merged/graft/originals")) == 5
    back = revert_graft(tmp_path / "merged", tmp_path / "back", reporter=Quiet())
    assert back == model_fingerprint(_degraded()) != model_fingerprint(new)
    compose([Gene.load(family / "run/gene"), part], (0.0, 0.0)).save(tmp_path / "nothing")
    with pytest.raises(ConfigError, match=r"updates are all 0, .*; got 5 weight matrices"):
        graft_gene(GraftRequest(model, tmp_path / "nothing", tmp_path / "no", form="merged"), reporter=Quiet())
    assert not (tmp_path / "no").exists()


def test_the_command_says_what_is_kept(family: Path, tmp_path: Path) -> None:
    words = ["gene", "select", str(family / "run"), "--experts", "0.25", "-o"]
    shown = CliRunner().invoke(app, [*words, str(tmp_path / "shown")], catch_exceptions=False)
    assert shown.exit_code == 0
    gene = Gene.load(tmp_path / "shown")
    planted = gene.experts[LAYER]
    share = planted.kept_squared_norm / planted.squared_norm
    row = next(line for line in shown.stdout.splitlines() if line.split()[:4] == [str(LAYER), "2", "of", "8"])
    assert row.split()[4] == f"{share:.1%}"
    assert row.split()[6].startswith(str(SAFE))
    assert "rank 2, 10 of 40 experts with " in " ".join(shown.output.split())
    page = (tmp_path / "shown/gene.html").read_text()
    assert f"<td>2 of 8</td><td>{share:.1%}</td>" in page
    assert "With some experts alone" not in page
    assert "With some experts alone" in (family / "run/gene.html").read_text()
    control = CliRunner().invoke(app, [*words, str(tmp_path / "control"), "--experts-by", "random", "--json"])
    found = json.loads(control.stdout)
    assert [len(one["kept"]) for one in found["experts"]] == [2] * 5
    for one, recorded in zip(found["experts"], Gene.load(tmp_path / "control").experts, strict=True):
        assert one["kept"] == list(recorded.kept)
        assert one["scores"] == pytest.approx(list(recorded.scores))
        assert 0 < one["kept_squared_norm_share"] < 1


def _logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(random_ids()).logits
    return found


def _example(at: int) -> Example:
    """Prompts and replies of different lengths."""
    prompt, reply = 3 + 2 * at, 2 + (3 * at) % 4
    ids = [(7 * at + 11 * position) % 250 + 3 for position in range(prompt + reply)]
    return Example(Encoded(ids, [-100] * prompt + ids[prompt:]), harmful=at % 2 == 0)


def _alone(model: Any, examples: list[Example]) -> dict[int, Tensor]:
    """Mean gate weight by layer (E), each example run by itself."""
    rows: dict[int, list[Tensor]] = {}
    moe = find_moe(model)
    seen: dict[int, Tensor] = {}

    def hook(layer: int) -> Any:
        def read(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            indices_TK, weights_TK = args[1:]
            seen[layer] = torch.zeros(len(indices_TK), 8).scatter(1, indices_TK, weights_TK.detach().float())

        return read

    handles = [layer.experts.register_forward_pre_hook(hook(layer.decoder_layer)) for layer in moe.layers]
    for one in examples:
        with torch.no_grad():
            model(torch.tensor([one.encoded.input_ids]))
        for at, dense_TE in seen.items():
            rows.setdefault(at, []).append(dense_TE[-1 - one.encoded.response_tokens : -1])
    for handle in handles:
        handle.remove()
    return {layer: torch.cat(parts).double().mean(0) for layer, parts in rows.items()}


def _with_negative_zeros(name: str) -> Any:
    """Every expert has some: adding 0 to them would change a bit."""
    model = tiny(name)
    with torch.no_grad():
        for layer in find_moe(model).layers:
            for weight in layer.weights:
                layer.parameter(weight)[:, 0] = -0.0
    return model


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().view(torch.int16 if tensor.element_size() == 2 else torch.int32)


def _keys(folder: Path) -> list[str]:
    return [key for path in folder.glob("*.safetensors") for key in load_file(path)]


def _old(gene: Gene, folder: Path) -> None:
    """A gene as it was saved before experts were scored."""
    gene.save(folder)
    document = load_document(folder / "gene.json", "gene")
    save_document(
        folder / "gene.json", "gene", {key: document[key] for key in document if key not in ("experts", "recovery")}
    )
