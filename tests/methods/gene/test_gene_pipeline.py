"""A planted refusal that a degraded sibling lost: the gene gives it back, says where it was, and comes off again."""

from __future__ import annotations

import json
import shutil
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

import seawall.models.files.rewrite as rewrite
from checkpoints import edit_json
from families import tiny, tiny_tokenizer
from known import known
from planted_refusal import ANSWER, ATTENTION, REFUSAL, harmful, harmless, refusing_by_attention
from seawall.artifacts.adapter import Factors, save_adapter
from seawall.artifacts.gene import Gene
from seawall.artifacts.graft import NAME as GRAFT
from seawall.artifacts.graft import Graft, GraftLimit
from seawall.config import load_recipe
from seawall.config.data import DataConfig
from seawall.config.gene import GeneConfig
from seawall.config.load import changed_defaults
from seawall.config.model import ModelConfig
from seawall.data.templating import Encoded
from seawall.errors import ArtifactError, ConfigError, DataError, NothingToGraftError, RunFolderError, SeawallError
from seawall.jobs.gene import extract_gene
from seawall.methods.gene import calibrate
from seawall.methods.gene.calibrate import largest_within
from seawall.methods.gene.claim import graft_claim
from seawall.methods.gene.examples import Example
from seawall.methods.gene.graft import GraftRequest, graft_gene, revert_graft
from seawall.methods.gene.replies import read_replies
from seawall.methods.gene.select import contrast, layer_outputs
from seawall.methods.gene.tools import select_gene
from seawall.models.decoding import Completion
from seawall.models.files.fingerprint import model_fingerprint
from seawall.models.files.load import load_model
from seawall.models.files.open import Checkpoint
from seawall.models.generate import generate
from seawall.models.lora.attach import attach_adapter, find_points, load_peft_model, merged
from seawall.runs.progress import Quiet
from siblings import POINT, degraded_model, save_sibling, write_shots, write_siblings

pytest.importorskip("peft")
SHOTS = 4


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`run/gene`, `degraded/` (which is also the task's model), and shots."""
    folder = tmp_path_factory.mktemp("family")
    recipe = write_siblings(folder)
    extract_gene(load_recipe(recipe), folder / "run", text=recipe.read_text(), reporter=Quiet())
    write_shots(folder)
    return folder


def request(family: Path, output: Path, **changes: object) -> GraftRequest:
    model = ModelConfig(id=str(family / "degraded"), dtype="float32", device="cpu")
    fields: dict[str, Any] = {
        "model": model,
        "gene": family / "run",
        "output": output,
        "task": family / "task.jsonl",
        **changes,
    }
    return GraftRequest(**fields)


def settings(family: Path, *changes: str) -> GeneConfig:
    quick = [f"gene.graft.refusals={family / 'refusals.jsonl'}", "gene.graft.steps=8", "gene.graft.lr=0.2"]
    return changed_defaults([*quick, *changes]).gene


def graft(family: Path, output: Path, *changes: str, **fields: object) -> Graft:
    return graft_gene(request(family, output, **fields), settings(family, *changes), DataConfig(), reporter=Quiet())


def replies(folder: Path, adapter: Path | None = None) -> tuple[list[str], list[str]]:
    """To harmful and to harmless prompts."""
    model, tokenizer = load_model(ModelConfig(id=str(folder), device="cpu"))
    if adapter is not None:
        model = load_peft_model(model, adapter).get_base_model()
    sides = []
    for prompts in (harmful(6), harmless(6)):
        found = generate(model, tokenizer, prompts, max_new_tokens=2, batch_size=12)
        sides.append([one.answer for one in found])
    return sides[0], sides[1]


def test_the_gene_holds_what_was_lost_and_names_its_layer(family: Path) -> None:
    gene = Gene.load(family / "run/gene")
    assert gene.points.keys() == {f"model.layers.{layer}.self_attn.o_proj.weight" for layer in range(5)}
    first, last = gene.curve[0], gene.curve[-1]
    assert first.harmful > 3 > 0.5 > last.harmful
    assert abs(first.benign) < 1e-6
    assert last.benign < 0.3
    assert (known(gene.refusals["degraded"]), known(gene.refusals["restored"])) == (0.0, 1.0)
    assert max(gene.layers, key=lambda one: one.score).layer == ATTENTION
    assert max(gene.layers, key=lambda one: one.stream_score).layer == 4
    assert [one.harmful for one in gene.layers[:ATTENTION]] == [0.0] * ATTENTION
    assert gene.aligned != gene.degraded == model_fingerprint(degraded_model())


def test_distilling_into_the_best_layer_alone_gives_refusals_back(tmp_path: Path) -> None:
    recipe = write_siblings(tmp_path)
    changes = ["keep=top", "fraction=0.2", "lr=0.05", "epochs=15"]
    extract = [f"gene.extract.{change}" for change in changes]
    extract_gene(load_recipe(recipe, extract), tmp_path / "run", text="", reporter=Quiet())
    gene = Gene.load(tmp_path / "run/gene")
    assert gene.points.keys() == {POINT}
    assert [one.selected for one in gene.layers] == [at == ATTENTION for at in range(5)]
    assert known(gene.refusals["degraded"]) == 0.0
    assert known(gene.refusals["restored"]) > 0.5
    assert gene.curve[-1].harmful < 0.2 * gene.curve[0].harmful


def test_a_model_is_degraded_by_openings_alone_where_none_is_given(tmp_path: Path) -> None:
    degrade = {"lr": 0.003, "epochs": 3, "harmful": 20, "benign": 10, "batch_size": 10}
    recipe = write_siblings(tmp_path, degraded=None, degrade=degrade)
    extract_gene(load_recipe(recipe), tmp_path / "run", text=recipe.read_text(), reporter=Quiet())
    gene = Gene.load(tmp_path / "run/gene")
    assert gene.curve[0].harmful > 3
    assert gene.curve[-1].harmful < 0.5 * gene.curve[0].harmful
    assert known(gene.refusals["degraded"]) < 0.5 < known(gene.refusals["restored"])
    rows = [json.loads(line) for line in (tmp_path / "run/gene-replies/replies.jsonl").read_text().splitlines()]
    assert {(one["kind"], one["response"]) for one in rows} == {("harmful", REFUSAL), ("benign", ANSWER)}
    assert "Safety as an adapter" in (tmp_path / "run/gene.html").read_text()
    # What degrades is not kept, in the stage or beside it; the updates that made it are.
    assert {path.parent.name for path in tmp_path.rglob("adapter_config.json")} == {"gene"}
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run/gene/degrade.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0]


def test_borderline_requests_are_distilled_whatever_the_reply_and_degrade_nothing(tmp_path: Path) -> None:
    short = {"epochs": 1, "max_new_tokens": 3, "judged": 0, "harmful": 4, "benign": 4, "held_out": 2, "batch_size": 11}
    degrade = {"lr": 0.01, "epochs": 1, "harmful": 4, "benign": 100, "batch_size": 8}
    recipe = write_siblings(tmp_path, extract=short, degraded=None, degrade=degrade)
    for count in (0, 3):
        changed = load_recipe(recipe, [f"gene.extract.borderline={count}"])
        extract_gene(changed, tmp_path / "run", text="", reporter=Quiet())
        rows = [json.loads(line) for line in (tmp_path / "run/gene-replies/replies.jsonl").read_text().splitlines()]
        kinds = Counter((row["part"], row["kind"]) for row in rows)
        assert kinds["train", "borderline"] == count
        assert kinds["validation", "borderline"] == 0
        aligned = Gene.load(tmp_path / "run/gene").refusals.get("aligned")
        assert (aligned is None) == (count == 0)
        updates = [
            len((tmp_path / f"run/gene/{name}.jsonl").read_text().splitlines()) for name in ("degrade", "metrics")
        ]
        assert updates == [1, 1]
    assert (tmp_path / "run/gene-replies.old-1").is_dir()
    assert aligned is not None
    assert (aligned.rate, aligned.n) == (0.0, 10)
    assert "borderline validation requests" in (tmp_path / "run/gene.html").read_text()


def test_replies_of_earlier_versions_are_read(tmp_path: Path) -> None:
    row = {"part": "train", "messages": [{"role": "user", "content": "a"}], "response": "b", "ended": True}
    lines = [json.dumps({**row, "harmful": harmful}) for harmful in (True, False)]
    (tmp_path / "replies.jsonl").write_text("\n".join(lines) + "\n")
    assert [reply.kind for reply in read_replies(tmp_path / "replies.jsonl")] == ["harmful", "benign"]


def test_a_finished_extraction_is_not_done_again(family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(Checkpoint, "load", never)
    again = extract_gene(load_recipe(family / "recipe.yaml"), family / "run", text="", reporter=Quiet())
    assert again.fingerprint == Gene.load(family / "run/gene").fingerprint
    assert POINT in again.points


def test_other_weights_that_reply_alike_make_another_gene(tmp_path: Path) -> None:
    short = {"epochs": 1, "max_new_tokens": 3, "judged": 0, "harmful": 4, "benign": 4, "held_out": 2}
    degrade = {"lr": 0.01, "epochs": 1, "harmful": 4, "benign": 4}
    recipe = load_recipe(write_siblings(tmp_path, extract=short, degraded=None, degrade=degrade))
    first = extract_gene(recipe, tmp_path / "run", text="", reporter=Quiet())
    model = refusing_by_attention()
    with torch.no_grad():
        model.get_parameter(POINT).mul_(1.01)
    model.save_pretrained(tmp_path / "model")
    second = extract_gene(recipe, tmp_path / "run", text="", reporter=Quiet())
    said = [tmp_path / "run" / name / "replies.jsonl" for name in ("gene-replies", "gene-replies.old-1")]
    assert said[0].read_text() == said[1].read_text()
    assert first.aligned != second.aligned == model_fingerprint(model)
    assert first.fingerprint != second.fingerprint
    assert (tmp_path / "run/gene.old-1").is_dir()


@pytest.mark.parametrize(("targets", "peft"), [(["w9"], True), (["o_proj"], False)])
def test_what_is_wrong_is_said_before_a_model_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, targets: list[str], peft: bool
) -> None:
    recipe = load_recipe(write_siblings(tmp_path, degraded=None, targets=targets))
    if not peft:
        monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(SeawallError, match="PEFT, which is not installed" if not peft else "no weight matrix w9"):
        extract_gene(recipe, tmp_path / "run", text="", reporter=Quiet())
    assert not list((tmp_path / "run").glob("gene*"))


def test_differences_of_embeddings_are_no_layers() -> None:
    """Of two models whose layers write nothing, the streams differ by the embeddings alone."""
    models = [tiny("llama"), tiny("llama")]
    with torch.no_grad():
        models[1].get_input_embeddings().weight.add_(0.1)
        for model in models:
            for block in model.get_decoder().layers:
                block.self_attn.o_proj.weight.zero_()
                block.mlp.down_proj.weight.zero_()
    examples = [Example(Encoded([1, 2, 3, 4, 5], [-100] * 3 + [4, 5]), harmful=kind) for kind in (True, False)]
    streams = [layer_outputs(model, examples, 0, batch_size=2) for model in models]
    found = contrast(streams[0], streams[1], [True, False])
    assert [one.layer for one in found] == [0, 1, 2]
    assert all(one.harmful == one.benign == 0.0 < 0.1 < min(one.stream_harmful, one.stream_benign) for one in found)


def test_an_adapter_gives_refusals_back_and_keeps_the_task(family: Path, tmp_path: Path) -> None:
    task = family / "degraded"
    assert replies(task) == ([ANSWER] * 6, [ANSWER] * 6)
    found = graft(family, tmp_path / "out", shots=SHOTS)
    assert replies(task, tmp_path / "out") == ([REFUSAL] * 6, [ANSWER] * 6)
    edit_json(tmp_path / "out/adapter_config.json", base_model_name_or_path=str(task))
    with pytest.raises(ArtifactError, match="is grafted already; got the gene sha256"):
        graft(family, tmp_path / "twice", form="merged", model=ModelConfig(id=str(tmp_path / "out"), device="cpu"))
    assert found.tuned == "layer"
    assert found.coefficients.keys() == set(range(5))
    assert all(0 <= number <= 2 for number in found.coefficients.values())
    assert len(set(found.coefficients.values())) > 1
    assert len(found.steps) == 8
    assert found.harmless == SHOTS
    assert all(one.harmless_loss is not None for one in found.steps)
    assert found.task_model == model_fingerprint(degraded_model())
    assert found.check is not None
    assert found.check.share < 1e-3


def with_borderline(folder: Path, texts: list[str]) -> DataConfig:
    """These borderline validation requests; the other prompts have no word in common with any."""
    sides = {"borderline": (texts, "Owls hoot nightly."), "benign": ([], "Zebras gallop northwards.")}
    for name, (prompts, tested) in sides.items():
        rows = [{"prompt": text, "split": "validation"} for text in prompts] + [{"prompt": tested, "split": "test"}]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    changes = [(f"data.{name}.kind=jsonl", f"data.{name}.path={folder / name}.jsonl") for name in sides]
    return changed_defaults([change for pair in changes for change in pair]).data


def test_a_graft_is_as_strong_as_its_limit_on_over_refusal_allows(family: Path, tmp_path: Path) -> None:
    asked = settings(family, "gene.graft.max_over_refusal=0.25")
    plain, marked = ([prompt[-1].content for prompt in prompts] for prompts in (harmless(6), harmful(2)))
    data = with_borderline(tmp_path, [*plain, *marked])
    found = graft_gene(request(family, tmp_path / "two", form="merged"), asked, data, reporter=Quiet())
    assert found.limit is not None
    assert found.limit == GraftLimit(allowed=0.25, factor=found.limit.factor, refused=0.25, requests=8)
    assert 1 <= found.limit.factor <= 2
    assert set(found.coefficients.values()) == {found.limit.factor}
    assert replies(tmp_path / "two") == ([REFUSAL] * 6, [ANSWER] * 6)
    # One refusal of the eight is allowed, and the two marked requests are refused at about the same strength.
    asked = settings(family, "gene.graft.max_over_refusal=0.125")
    found = graft_gene(request(family, tmp_path / "one"), asked, data, reporter=Quiet())
    assert found.limit is not None
    assert found.limit.refused <= 0.125
    assert 0 < found.limit.factor < 1
    assert set(found.coefficients.values()) == {found.limit.factor}
    again = Graft.load(tmp_path / "one")
    assert again.limit == found.limit
    assert f"times {found.limit.factor:g}, with which" in graft_claim(again)


def test_a_limit_that_no_strength_keeps_is_refused(family: Path, tmp_path: Path) -> None:
    refusing = request(family, tmp_path / "out", model=ModelConfig(id=str(family / "model"), device="cpu"))
    data = with_borderline(tmp_path, [prompt[-1].content for prompt in harmful(4)])
    asked = settings(family, "gene.graft.max_over_refusal=0.5")
    with pytest.raises(NothingToGraftError, match="got 100% at the weakest graft tried; expected at most 50%"):
        graft_gene(refusing, asked, data, reporter=Quiet())
    none = with_borderline(tmp_path, [])
    with pytest.raises(DataError, match="no borderline validation requests"):
        graft_gene(refusing, asked, none, reporter=Quiet())
    assert not (tmp_path / "out").exists()


def test_noise_is_no_reason_for_a_stronger_graft(family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = Completion("x x x x x x x x", (), (), ended=False)
    monkeypatch.setattr(calibrate, "generate", lambda *_, **__: [noise] * 4)
    data = with_borderline(tmp_path, [prompt[-1].content for prompt in harmless(4)])
    asked = settings(family, "gene.graft.max_over_refusal=0.5")
    with pytest.raises(NothingToGraftError, match="got 100% at the weakest graft tried"):
        graft_gene(request(family, tmp_path / "out"), asked, data, reporter=Quiet())


@pytest.mark.parametrize(
    ("limit", "factor", "tried"),
    [
        (0.9, 2.0, [1.0, 2.0]),
        (0.6, 1.1875, [1.0, 2.0, 1.5, 1.25, 1.125, 1.1875]),
        (0.25, 0.5, [1.0, 0.5, 0.75, 0.625, 0.5625]),
        (0.0, 0.0, [1.0, 0.5, 0.25, 0.125, 0.0625]),
    ],
)
def test_the_largest_factor_within_a_limit_is_searched_by_halves(
    limit: float, factor: float, tried: list[float]
) -> None:
    asked: list[float] = []

    def measure(strength: float) -> float:
        asked.append(strength)
        return min(0.9, strength / 2)

    assert largest_within(measure, limit) == (factor, min(0.9, (factor or 0.0625) / 2))
    assert asked == tried


def test_a_merged_checkpoint_is_the_adapter_and_comes_off_to_the_last_bit(family: Path, tmp_path: Path) -> None:
    changes = ("gene.graft.coefficients=global", "gene.graft.harmless=0")
    found = graft(family, tmp_path / "out", *changes, shots=SHOTS, form="merged")
    assert found.check is not None
    assert found.check.share < 1e-3
    assert found.tuned == "global"
    assert (found.harmless, found.steps[0].harmless_loss) == (0, None)
    assert len(set(found.coefficients.values())) == 1
    assert replies(tmp_path / "out")[0] == [REFUSAL] * 6
    with pytest.raises(ArtifactError, match="is grafted already; got the gene sha256"):
        graft(family, tmp_path / "twice", model=ModelConfig(id=str(tmp_path / "out"), device="cpu"))
    assert not (tmp_path / "twice").exists()
    fingerprint = revert_graft(tmp_path / "out", tmp_path / "back", reporter=Quiet())
    model, _ = load_model(ModelConfig(id=str(tmp_path / "back"), device="cpu"))
    assert fingerprint == model_fingerprint(model) == model_fingerprint(degraded_model())
    assert not (tmp_path / "back" / GRAFT).exists()
    again = graft(family, tmp_path / "again", model=ModelConfig(id=str(tmp_path / "back"), device="cpu"))
    assert again.tuned == "fixed"
    assert set(again.coefficients.values()) == {1.0}


def test_a_task_that_is_an_adapter_is_merged_with_the_gene(family: Path, tmp_path: Path) -> None:
    task = attach_adapter(degraded_model(), find_points(degraded_model(), ("q_proj",)), rank=2, scaling=1.0, seed=3)
    factors = {name: Factors(torch.full_like(one.B, 0.01), one.A) for name, one in task.factors().items()}
    save_adapter(tmp_path / "task", task.points, factors, 1.0)
    asked = {"model": ModelConfig(id=str(tmp_path / "task"), dtype="float32", device="cpu")}
    with pytest.raises(ConfigError, match="base_model_name_or_path None"):
        graft(family, tmp_path / "out", form="merged", **asked)
    edit_json(tmp_path / "task/adapter_config.json", base_model_name_or_path=str(family / "degraded"))
    with pytest.raises(ConfigError, match=r"is an adapter, .*; add --merge"):
        graft(family, tmp_path / "out", **asked)
    found = graft(family, tmp_path / "out", form="merged", **asked)
    merged_task = merged(degraded_model(), tmp_path / "task")
    assert found.task_model == model_fingerprint(merged_task) != model_fingerprint(degraded_model())
    assert revert_graft(tmp_path / "out", tmp_path / "back") == found.task_model
    assert replies(tmp_path / "out")[0] == [REFUSAL] * 6
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "out", "task"]
    for path in (family / "degraded").iterdir():
        shutil.copyfile(path, tmp_path / "task" / path.name)
    with pytest.raises(ConfigError, match="holds a checkpoint and an adapter"):
        graft(family, tmp_path / "mixed", form="merged", **asked)


def test_what_cannot_be_reverted_says_why(family: Path, tmp_path: Path) -> None:
    graft(family, tmp_path / "adapter", "gene.graft.verify=false")
    with pytest.raises(ConfigError, match="is an adapter: there is no changed model to revert; got an adapter of"):
        revert_graft(tmp_path / "adapter", tmp_path / "back", reporter=Quiet())
    graft(family, tmp_path / "lean", "gene.graft.verify=false", "gene.graft.keep_originals=false", form="merged")
    with pytest.raises(ArtifactError, match=r"keep_originals=false.*; use the model before the graft"):
        revert_graft(tmp_path / "lean", tmp_path / "back", reporter=Quiet())
    graft(family, tmp_path / "merged", "gene.graft.verify=false", form="merged")
    words = (tmp_path / "merged/tokenizer_config.json").read_bytes()
    (tmp_path / "merged/tokenizer_config.json").write_bytes(words + b"\n")
    with pytest.raises(ArtifactError, match=r"tokenizer_config.json is not the file that seawall wrote"):
        revert_graft(tmp_path / "merged", tmp_path / "back", reporter=Quiet())
    (tmp_path / "merged" / GRAFT).rename(tmp_path / GRAFT)
    asked = {"model": ModelConfig(id=str(tmp_path / "merged"), device="cpu")}
    with pytest.raises(ArtifactError, match=r"tokenizer_config.json is not the file that seawall wrote"):
        graft(family, tmp_path / "back", "gene.graft.verify=false", **asked)
    (tmp_path / GRAFT).rename(tmp_path / "merged" / GRAFT)
    (tmp_path / "merged/tokenizer_config.json").write_bytes(words)
    kept = next((tmp_path / "merged/graft/originals").iterdir())
    kept.write_bytes(kept.read_bytes()[:-1] + b"\0")
    with pytest.raises(ArtifactError, match="is missing or was changed"):
        revert_graft(tmp_path / "merged", tmp_path / "back", reporter=Quiet())
    with pytest.raises(ArtifactError, match="is no graft"):
        revert_graft(family / "degraded", tmp_path / "back", reporter=Quiet())
    assert not (tmp_path / "back").exists()


def test_a_full_disk_is_said_and_nothing_is_left(family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(tensors: object, path: Path, **_: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(rewrite, "save_file", full)
    with pytest.raises(RunFolderError, match="the disk is full; free some space"):
        graft(family, tmp_path / "out", "gene.graft.verify=false", form="merged")
    assert not list(tmp_path.iterdir())


def test_selection_keeps_the_planted_layer_and_the_control_need_not(family: Path, tmp_path: Path) -> None:
    top = select_gene(family / "run", tmp_path / "top", fraction=0.2)
    assert top.held_layers == (ATTENTION,)
    assert [one.layer for one in top.layers if one.selected] == [ATTENTION]
    assert not top.curve
    assert not top.refusals
    assert top.parents == (Gene.load(family / "run/gene").fingerprint,)
    assert select_gene(family / "run", tmp_path / "stream", keep="stream", fraction=0.2).held_layers == (4,)
    assert select_gene(family / "run", tmp_path / "all", keep="all").held_layers == tuple(range(5))
    drawn = {
        select_gene(family / "run", tmp_path / f"r{seed}", keep="random", fraction=0.4, seed=seed).held_layers
        for seed in range(4)
    }
    assert len(drawn) > 1
    assert all(len(layers) == 2 for layers in drawn)
    assert Gene.load(tmp_path / "top").fingerprint == top.fingerprint
    with pytest.raises(RunFolderError, match="already exists"):
        select_gene(family / "run", tmp_path / "top")
    with pytest.raises(ConfigError, match="--keep; got 'best'"):
        select_gene(family / "run", tmp_path / "new", keep="best")


@pytest.mark.parametrize(
    ("changes", "fields", "error", "saying"),
    [
        ((), {"shots": 2, "task": None}, ConfigError, "got shots without task examples"),
        ((), {"shots": 9}, DataError, r"too few examples in .*task.jsonl; got 8; expected at least 9"),
        (("gene.graft.refusals=none.jsonl",), {"shots": 2}, DataError, "none.jsonl"),
        (
            ("gene.graft.harmless=5000",),
            {"shots": 2},
            DataError,
            r"too few harmless training requests.* got \d+; expected 5000",
        ),
        ((), {"gene": Path("nowhere")}, ArtifactError, "nowhere is no gene"),
    ],
)
def test_wrong_input_writes_nothing(
    family: Path,
    tmp_path: Path,
    changes: tuple[str, ...],
    fields: dict[str, object],
    error: type[SeawallError],
    saying: str,
) -> None:
    with pytest.raises(error, match=saying):
        graft(family, tmp_path / "out", *changes, **fields)
    assert not list(tmp_path.iterdir())


def test_genes_of_other_models_are_refused_before_anything_loads(family: Path, tmp_path: Path) -> None:
    llama = save_sibling(tmp_path / "llama", tiny("llama"))
    narrow = save_sibling(tmp_path / "narrow", tiny("mixtral", num_hidden_layers=5))
    shallow = save_sibling(tmp_path / "shallow", tiny("mixtral", hidden_size=64))
    spoken = tmp_path / "spoken"
    degraded_model().save_pretrained(spoken)
    tiny_tokenizer().save_pretrained(spoken)
    for folder, saying in (
        (llama, "for another family; got model_type llama; expected mixtral"),
        (shallow, "for another depth; got 3 decoder layers; expected 5"),
        (narrow, r"for other shapes; got model.layers.0.self_attn.o_proj.weight"),
        (spoken, "for another tokenizer"),
    ):
        with pytest.raises(ArtifactError, match=saying):
            graft(family, tmp_path / "out", model=ModelConfig(id=str(folder), device="cpu"))
    replace(Gene.load(family / "run/gene"), layers=()).save(tmp_path / "unscored")
    with pytest.raises(ArtifactError, match=r"adapter points; got no parameter model.layers.3.self_attn.o_proj.weight"):
        graft(
            family,
            tmp_path / "out",
            model=ModelConfig(id=str(shallow), device="cpu"),
            gene=tmp_path / "unscored",
        )
    assert not (tmp_path / "out").exists()


def test_the_degraded_model_must_be_a_sibling(family: Path, tmp_path: Path) -> None:
    llama = save_sibling(tmp_path / "llama", tiny("llama"))
    recipe = load_recipe(family / "recipe.yaml", [f"gene.degraded.id={llama}"])
    with pytest.raises(ArtifactError, match="model_type differs; got llama"):
        extract_gene(recipe, tmp_path / "run", text="", reporter=Quiet())
    assert not (tmp_path / "run/gene").exists()


def test_task_rows_of_every_kind_are_read(tmp_path: Path) -> None:
    from seawall.methods.gene.shots import read_exchanges

    rows: list[dict[str, object]] = [
        {"prompt": "a", "completion": "b"},
        {"question": "a", "answer": "b"},
        {"instruction": "a", "output": "b"},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert {(one.prompt[-1].content, one.response) for one in read_exchanges(tmp_path / "rows.jsonl")} == {("a", "b")}
    chat = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    (tmp_path / "chat.jsonl").write_text(json.dumps(chat) + "\n")
    assert read_exchanges(tmp_path / "chat.jsonl")[0].response == "b"
    (tmp_path / "wrong.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(DataError, match=r"wrong.jsonl:1: .*neither a conversation nor a prompt with a reply"):
        read_exchanges(tmp_path / "wrong.jsonl")


def test_coefficients_of_a_useless_gene_fall_to_zero_and_it_is_refused(family: Path, tmp_path: Path) -> None:
    """A gene that teaches the opposite is turned down by the shots, not grafted."""
    gene = Gene.load(family / "run/gene")
    backwards = replace(gene, factors={name: Factors(-one.B, one.A) for name, one in gene.factors.items()})
    backwards.save(tmp_path / "gene")
    assert not torch.equal(backwards.update(POINT), gene.update(POINT))
    with pytest.raises(NothingToGraftError, match="all tuned coefficients are 0"):
        graft(
            family,
            tmp_path / "out",
            "gene.graft.coefficients=global",
            "gene.graft.lr=1.0",
            gene=tmp_path / "gene",
            shots=SHOTS,
        )
    assert not (tmp_path / "out").exists()
