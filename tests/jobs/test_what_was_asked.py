"""An evaluation says what it pins, what it does differently, and whose tokenizer it uses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dependent_rows import dependent
from families import CHATML, tiny, tiny_tokenizer
from seawall.config import load_recipe
from seawall.errors import DataError
from seawall.evaluation.samples import load_samples
from seawall.jobs.evaluate import EvalTarget, Evaluation, evaluate_target

CLOCK = "<|im_start|>system\nToday: {{ strftime_now('%Y-%m-%d') }}.<|im_end|>\n" + CHATML
QUICK = ("data.test_goals=2", "data.test_benign=2", "eval.gold=false", "eval.max_new_tokens=6", "eval.batch_size=4")


class Heard:
    def __init__(self) -> None:
        self.said: list[str] = []

    def stage(self, title: str) -> None: ...

    def step(self, what: str, done: int, total: int) -> None: ...

    def say(self, text: str) -> None:
        self.said.append(text)


def evaluated(
    recipe: Path, model: Any, folder: Path, *changes: str, template: str = CHATML, adapter: Path | None = None
) -> tuple[Evaluation, list[str]]:
    """The evaluation of a model, and what the user is told."""
    if not (folder / "model").exists():
        words = tiny_tokenizer()
        words.chat_template = template
        model.save_pretrained(folder / "model")
        words.save_pretrained(folder / "model")
    heard = Heard()
    named = load_recipe(recipe, (f"model.id={folder / 'model'}", *QUICK, *changes))
    name = f"eval{len(list(folder.iterdir()))}"
    done = evaluate_target(named, EvalTarget(adapter=adapter), folder / name, text="", reporter=heard)
    return done, heard.said


def replies(done: Evaluation) -> dict[str, str]:
    return {sample.id: sample.response for sample in load_samples(done.run.samples / "eval.jsonl")}


def test_a_clock_is_said_and_recorded(planted: Path, tmp_path: Path) -> None:
    done, said = evaluated(planted, tiny("llama"), tmp_path, template=CLOCK)
    assert any("pinned to 01 January 2025" in line for line in said)
    assert json.loads((done.run.path / "manifest.json").read_text())["notices"] == said
    plain = tmp_path / "plain"
    plain.mkdir()
    assert evaluated(planted, tiny("llama"), plain)[1] == []


def test_rows_of_a_batch_get_the_replies_of_rows_alone(planted: Path, tmp_path: Path) -> None:
    model = dependent("minimax")
    together, said = evaluated(planted, model, tmp_path)
    alone, _ = evaluated(planted, model, tmp_path, "eval.batch_size=1")
    assert any("one prompt at a time" in line for line in said)
    assert replies(together) == replies(alone)


def test_prompts_that_drop_a_message_end_the_evaluation_before_any_reply(planted: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="drops or rewrites a message"):
        evaluated(
            planted, tiny("llama"), tmp_path, template=CHATML.replace("message['content']", "message['content'][:9]")
        )


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_an_adapters_own_template_is_used_and_said(planted: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    adapter = tmp_path / "adapter"
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    wrapped = peft.get_peft_model(tiny("llama"), config)
    wrapped.save_pretrained(str(adapter))
    base, said = evaluated(planted, tiny("llama"), tmp_path, adapter=adapter)
    assert said == []
    (adapter / "chat_template.jinja").write_text(CHATML.replace("assistant\n{% endif", "assistant\nSure. {% endif"))
    own, said = evaluated(planted, tiny("llama"), tmp_path, adapter=adapter)
    assert [line for line in said if "tokenizer and chat template in" in line]
    assert replies(own) != replies(base)
    assert own.result.model_fingerprint == base.result.model_fingerprint
