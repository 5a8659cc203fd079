"""What grafting is compared with does what its formula says, and is written, checked and taken off like a gene."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from checkpoint_pairs import config_of, write, write_pair
from checkpoints import edit_json
from families import tiny
from planted_refusal import ANSWER, REFUSAL, harmful, harmless, refusing_tokenizer
from seawall.artifacts.adapter import Factors, save_adapter
from seawall.artifacts.gene import Gene
from seawall.artifacts.graft import ADAPTER, Graft, GraftForm
from seawall.artifacts.graft import NAME as GRAFT
from seawall.artifacts.store import load_document, save_document
from seawall.config.data import DataConfig
from seawall.config.gene import PROJECTING, GeneGraft, GraftMethod
from seawall.config.load import changed_defaults
from seawall.config.model import ModelConfig
from seawall.data.templating import Encoded
from seawall.errors import ArtifactError, ConfigError, SeawallError
from seawall.methods.gene.claim import graft_claim
from seawall.methods.gene.coefficients import tune_coefficients
from seawall.methods.gene.examples import cross_entropy
from seawall.methods.gene.graft import GraftRequest, graft_gene, revert_graft
from seawall.methods.gene.methods import METHODS, fine_tune
from seawall.methods.gene.shots import SHOT_KINDS, Shot, ShotKind, harmless_requests, shot_batches, shot_loss
from seawall.methods.gene.task_model import vocabulary_hash
from seawall.methods.tune.anchor import extract_anchor
from seawall.models.files.fingerprint import model_fingerprint
from seawall.models.files.load import load_model
from seawall.models.files.stream import matrices
from seawall.models.generate import generate
from seawall.models.lora.attach import AttachedAdapter, attach_adapter, find_points, load_peft_model, merged
from siblings import degraded_model, random_gene, save_sibling, write_shots

pytest.importorskip("peft")
SFT = ("gene.graft.method=safety_sft", "gene.graft.sft_lr=0.005", "gene.graft.steps=24")
PROJECTED = ("gene.graft.method=safelora", "gene.graft.safelora.threshold=1.0")


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`degraded/`, the task's model; `gene/` and `other/`, noise at the same points; shots."""
    folder = tmp_path_factory.mktemp("family")
    save_sibling(folder / "degraded", degraded_model())
    for name, prompts, reply in (("refusals", harmful(50)[20:], REFUSAL), ("task", harmless(50)[20:], ANSWER)):
        rows = [json.dumps({"prompt": one[-1].content, "completion": reply}) for one in prompts]
        (folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n")
    for name, seed in (("gene", 1), ("other", 2)):
        noise = random_gene(degraded_model(), rank=2, seed=seed, targets=("o_proj",))
        replace(noise, tokenizer=vocabulary_hash(refusing_tokenizer())).save(folder / name)
    return folder


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    """`base/`, `aligned/`, `anchor/` of both, `task/`, an adapter of the aligned one; and how alignment moved it."""
    folder = tmp_path_factory.mktemp("tuned")
    aligned, base, moved = write_pair(folder, "mixtral")
    extract_anchor(config_of(aligned, base, energy=1.0)).save(folder / "anchor")
    extract_anchor(config_of(aligned, base, energy=1.0, targets=("k_proj",))).save(folder / "narrow")
    model, _ = load_model(ModelConfig(id=str(aligned), device="cpu"))
    noise = random_gene(model, targets=("q_proj", "experts.down_proj"))
    attached = attach_adapter(model, noise.points, rank=noise.rank, scaling=noise.scaling)
    save_adapter(folder / "task", attached.points, noise.factors, noise.scaling)
    edit_json(folder / "task/adapter_config.json", base_model_name_or_path=str(aligned))
    return folder, moved


def graft(model: Path, output: Path, *changes: str, **fields: Any) -> Graft:
    named = {"gene": None, **fields}
    config = changed_defaults(changes).gene
    task = ModelConfig(id=str(model), dtype="float32", device="cpu")
    return graft_gene(GraftRequest(task, output=output, **named), config, DataConfig())


def fine_tuned(family: Path, output: Path, *changes: str, **fields: Any) -> Graft:
    refusals = f"gene.graft.refusals={family / 'refusals.jsonl'}"
    fields = {"gene": family / "gene", "task": family / "task.jsonl", "shots": 16, **fields}
    return graft(family / "degraded", output, *SFT, refusals, *changes, **fields)


def refusing(folder: Path, adapter: Path | None = None) -> tuple[float, float]:
    """The shares of harmful and of harmless prompts that are refused; none of them is among the shots."""
    model, tokenizer = load_model(ModelConfig(id=str(folder), device="cpu"))
    if adapter is not None:
        model = load_peft_model(model, adapter).get_base_model()
    shares = []
    for prompts in (harmful(20), harmless(20)):
        texts = [one.answer for one in generate(model, tokenizer, prompts, max_new_tokens=2, batch_size=20)]
        assert set(texts) <= {REFUSAL, ANSWER}
        shares.append(texts.count(REFUSAL) / len(texts))
    return shares[0], shares[1]


def weights(folder: Path) -> dict[str, Tensor]:
    return dict(load_model(ModelConfig(id=str(folder), device="cpu"))[0].state_dict())


def some(refusals: int, task: int, harmless: int = 0) -> list[Shot]:
    """Replies of unequal lengths."""
    counts: dict[ShotKind, int] = {"refusal": refusals, "task": task, "harmless": harmless}
    sides = [side for side, count in counts.items() for _ in range(count)]
    return [
        Shot(Encoded([at + 1, at + 2, at + 3, at + 4], [-100] * (1 + at % 2) + list(range(at, at + 3 - at % 2))), side)
        for at, side in enumerate(sides)
    ]


def test_every_method_is_a_function_or_the_projection() -> None:
    assert {*METHODS, *PROJECTING} == set(get_args(GraftMethod))


@pytest.mark.parametrize("counts", [(2, 6, 0), (2, 6, 3)])
def test_sides_weigh_the_same_whatever_their_numbers_and_are_in_every_batch(counts: tuple[int, int, int]) -> None:
    shots = some(*counts)
    model = tiny("llama")
    total, parts = shot_loss(model, shots, range(len(shots)), 0, harmless_weight=0.5)
    alone = [float(cross_entropy(model, [one.encoded], 0).detach()) for one in shots]
    means = {
        f"{side}_loss": sum(losses) / len(losses)
        for side in SHOT_KINDS
        if (losses := [loss for loss, one in zip(alone, shots, strict=True) if one.kind == side])
    }
    weights = {"refusal_loss": 1.0, "task_loss": 1.0, "harmless_loss": 0.5}
    wanted = sum(weights[name] * one for name, one in means.items()) / sum(weights[name] for name in means)
    assert float(total.detach()) == pytest.approx(wanted, rel=1e-5)
    assert parts == pytest.approx(means, rel=1e-5)
    assert abs(float(total.detach()) - sum(alone) / len(alone)) > 1e-3
    batches = shot_batches(shots, GeneGraft(steps=7, batch_size=4), seed=0)
    assert len(batches) == 7
    assert all({shots[at].kind for at in batch} == {one.kind for one in shots} for batch in batches)


def said(model: PreTrainedModel, first: int, side: ShotKind) -> list[Shot]:
    """What a model replies to four prompts, three tokens each."""
    found = []
    for at in range(first, first + 4):
        ids = [at, at + 1, at + 2]
        for _ in range(3):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        found.append(Shot(Encoded(ids, [-100] * 3 + ids[3:]), side))
    return found


def test_kept_replies_are_what_the_model_says_token_by_token_and_empty_ones_do_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny("llama", vocab_size=262)
    prompts = harmless_requests(DataConfig(), 4, seed=0)
    first = generate(model, refusing_tokenizer(), prompts, max_new_tokens=1, batch_size=4)[0]
    end = first.token_ids[0]
    model.generation_config.eos_token_id = end  # so the first reply is empty
    replies = generate(model, refusing_tokenizer(), prompts, max_new_tokens=3, batch_size=4)
    save_sibling(tmp_path / "task", model)
    write_shots(tmp_path)
    noise = random_gene(model, rank=1, targets=("q_proj",))
    replace(noise, tokenizer=vocabulary_hash(refusing_tokenizer())).save(tmp_path / "gene")
    seen: list[list[int]] = []

    def tune(worn: AttachedAdapter, shots: Sequence[Shot], *rest: Any, **named: Any) -> dict[int, float]:
        seen.extend(list(one.encoded.input_ids) for one in shots if one.kind == "harmless")
        return tune_coefficients(worn, shots, *rest, **named)

    monkeypatch.setattr("seawall.methods.gene.methods.tune_coefficients", tune)
    settings = ("steps=1", "verify=false", "reply_tokens=3", f"refusals={tmp_path / 'refusals.jsonl'}")
    found = graft(
        tmp_path / "task",
        tmp_path / "out",
        *(f"gene.graft.{one}" for one in settings),
        gene=tmp_path / "gene",
        shots=4,
        task=tmp_path / "task.jsonl",
    )
    kept = [one for one in replies if one.answer.strip()]
    assert 0 < len(kept) < 4
    assert any("\ufffd" in one.answer for one in kept)  # encoding the text would not give the tokens back
    assert seen == [[*one.prompt_ids, *one.token_ids, *([end] if one.ended else [])] for one in kept]
    assert found.harmless == len(kept)


def test_replies_that_are_to_stay_hold_coefficients_back() -> None:
    gene = random_gene(tiny("llama"), rank=2)
    attached = attach_adapter(tiny("llama"), gene.points, rank=gene.rank, scaling=20.0)  # so strong that replies change
    attached.load_factors(gene.factors)
    layers = {point.layer for point in gene.points.values()}
    with attached.disabled():
        own = said(attached.model, 40, "harmless")
    with attached.scaled(dict.fromkeys(layers, torch.tensor([2.0]))):
        wanted = said(attached.model, 5, "refusal")
    assert wanted[0].encoded.input_ids != said(tiny("llama"), 5, "refusal")[0].encoded.input_ids
    losses, means = [], []
    for shots in (wanted, [*wanted, *own]):
        rows: list[Mapping[str, float]] = []
        found = tune_coefficients(attached, shots, 0, GeneGraft(steps=24, lr=0.2), seed=0, log=rows.append)
        with attached.scaled({layer: torch.tensor([number]) for layer, number in found.items()}):
            losses.append(float(cross_entropy(attached.model, [one.encoded for one in own], 0).mean()))
        means.append(sum(found.values()) / len(found))
    assert losses[1] < 0.8 * losses[0]
    assert means[1] < means[0]


@pytest.mark.parametrize(
    ("name", "targets"), [("llama", ("q_proj", "down_proj")), ("mixtral", ("v_proj", "experts.down_proj"))]
)
def test_fine_tuning_trains_the_factors_alone(name: str, targets: tuple[str, ...]) -> None:
    shots = some(3, 3)
    before = tiny(name).state_dict()
    points = find_points(tiny(name), targets)
    found = []
    for seed in (0, 0, 1):
        attached = attach_adapter(tiny(name), points, rank=2, scaling=2.0, seed=seed)
        fresh = attached.factors()
        assert not any(bool(one.B.any()) for one in fresh.values())
        rows: list[Mapping[str, float]] = []
        fine_tune(attached, shots, 0, GeneGraft(steps=10, sft_lr=0.02), seed=seed, log=rows.append)
        trained = attached.factors()
        assert all(bool(one.B.any()) and not torch.equal(one.A, fresh[key].A) for key, one in trained.items())
        assert rows[-1]["loss"] < 0.8 * rows[0]["loss"]
        plain = attached.detach().state_dict()
        assert all(torch.equal(plain[key], value) for key, value in before.items())
        found.append(trained)
    key = min(points)
    assert torch.equal(found[0][key].B, found[1][key].B)
    assert not torch.equal(found[0][key].B, found[2][key].B)


def test_safety_fine_tuning_gives_refusals_back(family: Path, tmp_path: Path) -> None:
    assert refusing(family / "degraded") == (0.0, 0.0)
    found = fine_tuned(family, tmp_path / "out")
    harmful_share, harmless_share = refusing(family / "degraded", tmp_path / "out")
    assert harmful_share > 0.8 > 0.2 > harmless_share
    assert (found.method, found.tuned, found.shots, len(found.steps)) == ("safety_sft", "fixed", 16, 24)
    assert found.gene == Gene.load(family / "gene").fingerprint
    assert found.coefficients == dict.fromkeys(range(5), 1.0)
    assert found.document()["method"] == "safety_sft"
    assert found.steps[-1].refusal_loss < 0.5 * found.steps[0].refusal_loss
    assert found.check is not None
    assert found.check.share < 1e-3


def test_of_the_gene_only_its_points_count_and_the_seed_does(family: Path, tmp_path: Path) -> None:
    quick = ("gene.graft.verify=false", "gene.graft.steps=2")
    written = []
    for name, gene, seed in (("one", "gene", 0), ("same", "other", 0), ("else", "gene", 1)):
        fine_tuned(family, tmp_path / name, *quick, f"gene.seed={seed}", gene=family / gene)
        written.append((tmp_path / name / "adapter_model.safetensors").read_bytes())
    assert written[0] == written[1] != written[2]


def test_merged_fine_tuning_counts_as_a_graft_and_comes_off_to_the_last_bit(family: Path, tmp_path: Path) -> None:
    found = fine_tuned(family, tmp_path / "out", form="merged")
    assert found.check is not None
    assert found.check.share < 1e-3
    harmful_share, harmless_share = refusing(tmp_path / "out")
    assert harmful_share > 0.8 > 0.2 > harmless_share
    for changes in (("gene.graft.verify=false",), SFT):
        with pytest.raises(ArtifactError, match="is grafted already; got safety fine-tuning at the points of the gene"):
            graft(
                tmp_path / "out",
                tmp_path / "twice",
                *changes,
                gene=family / "gene",
                shots=1 if changes == SFT else 0,
                task=family / "task.jsonl",
            )
    assert not (tmp_path / "twice").exists()
    assert revert_graft(tmp_path / "out", tmp_path / "back") == found.task_model == model_fingerprint(degraded_model())
    assert not (tmp_path / "back" / GRAFT).exists()


def test_stacked_experts_are_fine_tuned_too(tmp_path: Path) -> None:
    task = save_sibling(tmp_path / "task", tiny("mixtral", vocab_size=262))
    write_shots(tmp_path)
    noise = random_gene(tiny("mixtral", vocab_size=262), rank=2, targets=("experts.down_proj",))
    replace(noise, tokenizer=vocabulary_hash(refusing_tokenizer())).save(tmp_path / "gene")
    fields: dict[str, Any] = {"gene": tmp_path / "gene", "task": tmp_path / "task.jsonl", "shots": 2, "form": "merged"}
    refusals = f"gene.graft.refusals={tmp_path / 'refusals.jsonl'}"
    found = graft(task, tmp_path / "out", *SFT, refusals, **fields)
    assert found.check is not None
    assert found.check.share < 1e-3
    assert found.steps[-1].refusal_loss < found.steps[0].refusal_loss
    before, after = weights(task), weights(tmp_path / "out")
    assert {name for name in before if not torch.equal(before[name], after[name])} == set(noise.points)
    revert_graft(tmp_path / "out", tmp_path / "back")
    assert all(torch.equal(one, before[name]) for name, one in weights(tmp_path / "back").items())


def test_safe_lora_leaves_the_base_with_the_projected_update(
    tuned: tuple[Path, dict[str, Tensor]], tmp_path: Path
) -> None:
    folder, moved = tuned
    asked = (*PROJECTED, f"gene.graft.anchor={folder / 'anchor'}")
    found = graft(folder / "task", tmp_path / "out", *asked, form="merged")
    before, after, whole = (weights(one) for one in (folder / "aligned", tmp_path / "out", folder / "aligned"))
    task = merged(load_model(ModelConfig(id=str(folder / "aligned"), device="cpu"))[0], folder / "task").state_dict()
    changed = {name for name in whole if not torch.equal(task[name], whole[name])}
    assert changed == {
        name for name in matrices(tiny("mixtral")) if name.endswith(("q_proj.weight", "experts.down_proj"))
    }
    for name, weight in before.items():
        if name not in changed:
            assert torch.equal(after[name], weight)
            continue
        V, dW = moved[name].double(), task[name].double() - weight.double()
        C = V @ V.mT / torch.linalg.matrix_norm(V)[..., None, None]
        torch.testing.assert_close(after[name].double() - weight.double(), C @ dW, rtol=1e-3, atol=1e-5)
        assert float((C @ dW - dW).norm()) > 0.1 * float(dW.norm())
    assert (found.method, found.form, found.coefficients, found.gene, found.shots) == (
        "safelora",
        "merged",
        {},
        None,
        0,
    )
    assert found.task_model == model_fingerprint(load_model(ModelConfig(id=str(folder / "aligned"), device="cpu"))[0])
    assert found.result is not None
    assert found.anchor is not None
    assert "updates projected" in found.note
    assert "nothing to revert" in found.note
    assert found.check is not None
    assert found.check.share < 1e-3
    assert load_peft_model(
        load_model(ModelConfig(id=str(folder / "aligned"), device="cpu"))[0], tmp_path / "out" / ADAPTER
    )
    with pytest.raises(ConfigError, match=r"holds no graft to revert.*; got the adapter .*task"):
        revert_graft(tmp_path / "out", tmp_path / "back")
    with pytest.raises(
        ArtifactError, match=r"got the projected adapter of Safe LoRA .* use the original task adapter and its base"
    ):
        graft(tmp_path / "out", tmp_path / "back", gene=_gene(tmp_path))
    assert not (tmp_path / "back").exists()


def test_safe_lora_that_projects_nothing_leaves_base_and_task(
    tuned: tuple[Path, dict[str, Tensor]], tmp_path: Path
) -> None:
    folder, _ = tuned
    none = ("gene.graft.safelora.threshold=null", "gene.graft.safelora.layers=0", "gene.graft.verify=false")
    anchor = f"gene.graft.anchor={folder / 'anchor'}"
    found = graft(folder / "task", tmp_path / "out", PROJECTED[0], *none, anchor, form="merged")
    task = merged(load_model(ModelConfig(id=str(folder / "aligned"), device="cpu"))[0], folder / "task")
    assert found.result == model_fingerprint(task)
    assert found.note.startswith("0 of ")
    assert found.check is None


@pytest.mark.parametrize(
    ("changes", "fields", "saying"),
    [
        (PROJECTED, {"form": "adapter"}, "as one checkpoint; got no --merge; add --merge"),
        (PROJECTED, {"shots": 4}, "without tuning; got --shots 4; remove --shots"),
        (PROJECTED, {"shots": 4, "task": Path("t.jsonl")}, "got --shots 4, --task t.jsonl; remove --shots and --task"),
        (PROJECTED, {"gene": Path("mine")}, "got --gene mine; remove --gene"),
        (
            PROJECTED,
            {"model": "aligned"},
            "aligned is not one; got a checkpoint without a separate adapter",
        ),
        (PROJECTED, {"model": "nowhere"}, "nowhere is not one; got no such folder"),
        (PROJECTED, {"anchor": "nowhere"}, "nowhere"),
        (PROJECTED, {"anchor": "narrow"}, "the adapter changes matrices that the anchor lacks; got 6 of 6"),
        (PROJECTED, {"model": "stranger"}, "the anchor was made from another model"),
        (SFT, {"gene": Path("mine")}, "safety fine-tuning has nothing to train on; got --shots 0"),
        (SFT, {"shots": 4}, "no gene is named; expected the folder of a gene, or of a run"),
        ((), {}, "no gene is named; expected the folder of a gene, or of a run"),
    ],
)
def test_wrong_input_is_one_line_and_writes_nothing(
    tuned: tuple[Path, dict[str, Tensor]], tmp_path: Path, changes: tuple[str, ...], fields: dict[str, Any], saying: str
) -> None:
    folder, _ = tuned
    named = {"form": "merged", **fields}
    anchor, model = folder / named.pop("anchor", "anchor"), folder / named.pop("model", "task")
    if model.name == "stranger":
        _stranger(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SeawallError, match=saying) as caught:
        graft(model, tmp_path / "empty/out", *changes, f"gene.graft.anchor={anchor}", **named)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "empty").iterdir())


def test_manifests_from_before_there_were_baselines_are_of_a_gene(family: Path, tmp_path: Path) -> None:
    graft(family / "degraded", tmp_path / "out", "gene.graft.verify=false", gene=family / "gene")
    document = load_document(tmp_path / "out" / GRAFT, "graft")
    assert document.pop("method") == "gene"
    assert (document.pop("anchor"), document.pop("note")) == (None, "")
    save_document(tmp_path / "out" / GRAFT, "graft", document)
    found = Graft.load(tmp_path / "out")
    assert (found.method, found.anchor, found.note) == ("gene", None, "")
    save_document(tmp_path / "out" / GRAFT, "graft", {**document, "method": "safelora"})
    with pytest.raises(ArtifactError, match="contradicts itself"):
        Graft.load(tmp_path / "out")


def _gene(folder: Path) -> Path:
    """Any gene."""
    random_gene(tiny("mixtral")).save(folder / "gene")
    return folder / "gene"


def _stranger(folder: Path) -> None:
    """An adapter of a model that the anchor is not of."""
    model = tiny("mixtral")
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(1.01)
    if not (folder / "unaligned").is_dir():
        write(folder / "unaligned", model)
    points = find_points(model, ("q_proj",))
    attached = attach_adapter(model, points, rank=1, scaling=1.0)
    factors = {name: Factors(torch.ones_like(one.B), one.A) for name, one in attached.factors().items()}
    save_adapter(folder / "stranger", attached.points, factors, 1.0)
    edit_json(folder / "stranger/adapter_config.json", base_model_name_or_path=str(folder / "unaligned"))


@pytest.mark.parametrize(
    ("name", "targets"), [("llama", ("q_proj", "down_proj")), ("mixtral", ("v_proj", "experts.down_proj"))]
)
def test_a_merged_graft_in_bfloat16_is_held_to_what_the_gene_does(
    name: str, targets: tuple[str, ...], tmp_path: Path
) -> None:
    save_sibling(tmp_path / "task", tiny(name, vocab_size=262).to(torch.bfloat16))
    model = tiny(name, vocab_size=262)
    noise = random_gene(model, rank=2, targets=targets)
    points = attach_adapter(model, noise.points, rank=2, scaling=1.0).points  # PEFT's own names of the modules
    noise = replace(noise, points=points, tokenizer=vocabulary_hash(refusing_tokenizer()))
    for scaling, folder in ((0.02, "lost"), (0.2, "rounded")):
        replace(noise, scaling=scaling).save(tmp_path / folder)

    def merge(gene: str, output: str, form: GraftForm = "merged") -> Graft:
        task = ModelConfig(id=str(tmp_path / "task"), device="cpu")
        return graft_gene(GraftRequest(task, tmp_path / gene, tmp_path / output, form=form))

    with pytest.raises(
        ArtifactError, match=r"do not hold the graft; got .* miss \d+\.\d% .* [1-5]\d\.\d% of the update"
    ):
        merge("lost", "out-lost")
    assert not (tmp_path / "out-lost").exists()
    check = merge("rounded", "out").check
    assert check is not None
    assert check.survival is not None
    assert check.effect_error is not None
    assert 0.9 < check.survival < 1.05
    assert 0.05 < check.effect_error < 0.75
    assert Graft.load(tmp_path / "out").check == check
    assert "of its update survives rounding" in graft_claim(Graft.load(tmp_path / "out"))
    apart = merge("lost", "out-apart", form="adapter").check
    assert apart is not None
    assert apart.survival is None
    assert apart.effect_error is not None
    assert apart.effect_error < 1e-2
