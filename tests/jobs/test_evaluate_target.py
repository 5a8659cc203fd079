"""An evaluation on its own: a base, a base with a delta or an adapter, a dense model, a model behind an endpoint."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from endpoints import HttpReply, completing, serving
from families import tiny, tiny_tokenizer
from seawall.artifacts.evaluation import EvalResult
from seawall.config import load_recipe
from seawall.config.model import ModelConfig
from seawall.errors import ArtifactError, ConfigError, RunFolderError, SeawallError
from seawall.evaluation.run import SAMPLES
from seawall.evaluation.samples import load_samples
from seawall.jobs.evaluate import EvalTarget, Evaluation, evaluate_target
from seawall.jobs.run import run_recipe
from seawall.models.files.fingerprint import model_fingerprint
from seawall.models.files.load import load_model
from seawall.models.generate import generate
from seawall.shell.evaluated import STAGE
from seawall.shell.finished import open_finished

BASE = EvalTarget()


class Heard:
    """A reporter that keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def stage(self, title: str) -> None:
        pass

    def step(self, what: str, done: int, total: int) -> None:
        pass

    def say(self, text: str) -> None:
        self.said.append(text)


def run(
    recipe: Path, folder: Path, *changes: str, target: EvalTarget = BASE, reporter: Heard | None = None
) -> Evaluation:
    text = recipe.read_text()
    return evaluate_target(load_recipe(recipe, changes), target, folder, text=text, reporter=reporter or Heard())


def at(url: str) -> tuple[str, ...]:
    engine = {"kind": "endpoint", "base_url": url, "model": "served", "backoff": 0.001, "concurrency": 2}
    return (f"eval.engine={json.dumps(engine)}",)


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def samples(folder: Path) -> dict[str, Any]:
    return {sample.id: sample for sample in load_samples(folder / SAMPLES)}


@pytest.mark.parametrize("side", ["before", "after"])
def test_base_and_base_with_delta_are_what_the_run_measured(
    planted: Path, planted_run: Path, tmp_path: Path, side: str
) -> None:
    target = EvalTarget() if side == "before" else EvalTarget(delta=planted_run / "delta")
    found = run(planted, tmp_path / "eval", target=target)
    expected = EvalResult.load(planted_run / f"eval-{side}")
    assert found.result == expected
    assert samples(found.run.stage(STAGE)) == samples(planted_run / f"eval-{side}")
    summary = json.loads(found.run.summary.read_text())
    assert summary == found.summary
    assert summary["attacks"]["story"] == asdict(expected.groups["attack:story"])
    assert summary["fingerprint"] == expected.model_fingerprint
    assert summary["gold_answer_loss"] == {"loss": expected.gold_loss, "n": expected.gold_n}
    assert (found.run.samples / f"{STAGE}.jsonl").read_bytes() == (found.run.stage(STAGE) / SAMPLES).read_bytes()


def test_a_finished_evaluation_is_only_read_again_and_another_is_refused(
    planted: Path, planted_run: Path, tmp_path: Path
) -> None:
    quick = ("eval.gold=false", "data.test_goals=3")
    first = run(planted, tmp_path / "eval", *quick)
    marker = (first.run.stage(STAGE) / "DONE").stat().st_mtime_ns
    assert run(planted, tmp_path / "eval", *quick, "repair.rounds=7").summary == first.summary
    assert (first.run.stage(STAGE) / "DONE").stat().st_mtime_ns == marker
    with pytest.raises(RunFolderError, match=r"eval\.max_new_tokens differs"):
        run(planted, tmp_path / "eval", *quick, "eval.max_new_tokens=5")
    with pytest.raises(RunFolderError, match=r"target\.delta differs"):
        run(planted, tmp_path / "eval", *quick, target=EvalTarget(delta=planted_run / "delta"))
    with pytest.raises(RunFolderError, match="differs"):
        run_recipe(load_recipe(planted, quick), tmp_path / "eval", text="", reporter=Heard())
    with pytest.raises(RunFolderError, match="holds only an evaluation"):
        open_finished(tmp_path / "eval")


def test_another_chat_template_is_another_evaluation(planted: Path, tmp_path: Path) -> None:
    model = tmp_path / "dense"
    tiny("llama").save_pretrained(model)
    tiny_tokenizer().save_pretrained(model)
    quick = (f"model.id={model}", "data.test_goals=2", "eval.gold=false")
    first = run(planted, tmp_path / "eval", *quick)
    template = model / "chat_template.jinja"
    template.write_text(template.read_text().replace("{%", " {%", 1))
    again = run(planted, tmp_path / "eval", *quick)
    assert first.run.stage(f"{STAGE}.old-1").is_dir()
    assert again.result.model_fingerprint == first.result.model_fingerprint


def test_a_run_folder_is_left_alone(planted: Path, planted_run: Path) -> None:
    before = sorted(path.name for path in planted_run.iterdir())
    with pytest.raises(RunFolderError, match="holds another recipe's run"):
        run(planted, planted_run)
    assert sorted(path.name for path in planted_run.iterdir()) == before


def test_a_delta_of_another_model_is_refused(planted: Path, planted_run: Path, tmp_path: Path) -> None:
    tiny("olmoe").save_pretrained(tmp_path / "other")
    tiny_tokenizer().save_pretrained(tmp_path / "other")
    with pytest.raises(ArtifactError):
        run(planted, tmp_path / "a", f"model.id={tmp_path / 'other'}", target=EvalTarget(delta=planted_run / "delta"))
    with pytest.raises(ArtifactError):
        run(planted, tmp_path / "b", target=EvalTarget(delta=tmp_path))
    assert not (tmp_path / "a" / STAGE).exists()


def test_a_dense_model_can_be_evaluated(planted: Path, tmp_path: Path) -> None:
    tiny("llama").save_pretrained(tmp_path / "dense")
    tiny_tokenizer().save_pretrained(tmp_path / "dense")
    found = run(planted, tmp_path / "eval", f"model.id={tmp_path / 'dense'}", "data.test_goals=2", "eval.gold=false")
    assert found.summary["attacks"]["story"]["n"] == 2
    assert found.result.model_fingerprint == model_fingerprint(AutoModelForCausalLM.from_pretrained(tmp_path / "dense"))


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_an_adapter_is_merged_and_measured(planted: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    base = AutoModelForCausalLM.from_pretrained(planted.parent / "model")
    fingerprint = model_fingerprint(base)
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    peft.get_peft_model(base, config).save_pretrained(str(tmp_path / "adapter"))
    quick = ("data.test_goals=2", "eval.gold=false")
    found = run(planted, tmp_path / "eval", *quick, target=EvalTarget(adapter=tmp_path / "adapter"))
    assert found.result.model_fingerprint != fingerprint
    assert found.summary["target"] == {"delta": None, "adapter": str(tmp_path / "adapter")}
    assert found.summary["attacks"]["story"]["n"] == 2


class TestAnEndpoint:
    def test_the_served_model_gets_the_rates_of_the_loaded_one(self, planted: Path, tmp_path: Path) -> None:
        here = run(planted, tmp_path / "here", "eval.lengths=[4, 24]", "data.test_goals=4", "data.test_benign=4")
        model, tokenizer = load_model(ModelConfig(id=str(planted.parent / "model"), dtype="float32", device="cpu"))
        heard = Heard()
        changes = ("eval.lengths=[4, 24]", "data.test_goals=4", "data.test_benign=4")
        with serving(completing(model, tokenizer)) as url:
            there = run(planted, tmp_path / "there", *changes, *at(url), reporter=heard)
        assert there.result.groups == here.result.groups
        assert there.result.lengths == here.result.lengths
        assert samples(there.run.stage(STAGE)) == samples(here.run.stage(STAGE))
        assert there.result.model_fingerprint == f"endpoint:{url}#served"
        assert (there.result.gold_loss, there.summary["gold_answer_loss"]) == (None, None)
        assert sum("gold" in text for text in heard.said) == 1
        by_length = there.summary["attacks_by_length"]["story"]
        assert by_length["24"] == there.summary["attacks"]["story"]
        assert list(by_length) == ["4", "24"]

    def test_one_that_goes_down_is_continued_when_it_is_back(self, planted: Path, tmp_path: Path) -> None:
        model, tokenizer = tiny("olmoe"), tiny_tokenizer()
        script = completing(model, tokenizer)
        asked: list[int] = []
        quick = ("data.test_goals=8", "eval.max_new_tokens=3")
        with serving(script) as url:
            script.always = HttpReply(503, b"")
            port = int(url.split(":")[2].split("/")[0])
            with pytest.raises(SeawallError, match="run the same command"):
                run(planted, tmp_path / "eval", *quick, *at(url))
        script.always = None
        with serving(script, port) as again:
            assert again == url
            found = run(planted, tmp_path / "eval", *quick, *at(url))
            asked.append(len(script.answered))
            assert run(planted, tmp_path / "eval", *quick, *at(url)).summary == found.summary
            asked.append(len(script.answered))
        assert asked[0] == asked[1]
        replies = samples(found.run.stage(STAGE)).values()
        alone = generate(model, tokenizer, [one.prompt for one in replies], max_new_tokens=3, batch_size=8)
        assert [one.response for one in replies] == [one.answer for one in alone]

    def test_what_cannot_be_done_with_one_is_said(self, planted: Path, tmp_path: Path) -> None:
        nowhere = at("http://127.0.0.1:1/v1")
        with pytest.raises(ConfigError, match="behind an endpoint cannot be repaired"):
            run_recipe(load_recipe(planted, nowhere), tmp_path / "run", text="", reporter=Heard())
        for target in (EvalTarget(delta=tmp_path), EvalTarget(adapter=tmp_path)):
            with pytest.raises(ConfigError, match="cannot be added to a model behind an endpoint"):
                run(planted, tmp_path / "run", *nowhere, target=target)
        with pytest.raises(ConfigError, match="got a delta and an adapter"):
            run(planted, tmp_path / "run", target=EvalTarget(delta=tmp_path, adapter=tmp_path))
        assert not (tmp_path / "run").exists()


QUICK = (
    "repair.rounds=1",
    "repair.expert.max_steps=1",
    "repair.router.enabled=false",
    "export.checkpoint=false",
    "eval.gold=false",
    *(f"data.{part}={count}" for part, count in (("train_goals", 4), ("test_goals", 4), ("validation_goals", 2))),
    *(f"data.{part}=2" for part in ("test_benign", "test_borderline", "validation_benign")),
)


def test_the_main_job_reports_every_length(planted: Path, tmp_path: Path) -> None:
    outcome = run_recipe(
        load_recipe(planted, ["eval.lengths=[2, 24]", *QUICK]),
        tmp_path / "run",
        text="",
        reporter=Heard(),
    )
    assert outcome.summary is not None
    by_length = outcome.summary["attacks_by_length"]["story"]
    assert by_length["24"] == {side: outcome.summary["attacks"]["story"][side] for side in ("before", "after")}
    for side, result in outcome.rates:
        assert by_length["2"][side] == asdict(result.lengths["attack:story"][2])
    assert "24 tokens" in outcome.run.report.read_text("utf-8")
