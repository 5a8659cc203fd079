"""Engines in two processes: `continuous` in both; `vllm` and an endpoint by the first, while the other waits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from launching import launch, said, vllm_program

from commands import ENVIRONMENT
from endpoints import Script, serving
from planted_refusal import refusing_by_attention
from refusing_recipe import write_refusing
from seawall.evaluation.samples import load_samples

AUTO = ["--set", "model.device=auto"]


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Evaluations of one model by every engine; `statuses.json` has the exit statuses."""
    folder = tmp_path_factory.mktemp("engines")
    recipe = write_refusing(folder, refusing_by_attention())
    program = {"SEAWALL_VLLM": str(vllm_program(folder)), "NO_PROXY": "127.0.0.1"}

    def evaluation(engine: str, *words: str) -> list[str | Path]:
        small = ["--plain", "--set", "eval.batch_size=8", "--set", f"eval.engine.kind={engine}"]
        return ["eval", recipe, "-o", folder / f"by-{engine}", *small, *AUTO, *words]

    with pytest.MonkeyPatch.context() as patch, serving(Script(lambda question: f"About {question}")) as url:
        for name, value in program.items():
            patch.setitem(ENVIRONMENT, name, value)
        statuses = launch(
            folder,
            ["kill:1:seawall.models.continuous:_tokens", *evaluation("continuous")],
            evaluation("continuous"),
            evaluation("transformers"),
            evaluation("vllm"),
            ["eval", recipe, "-o", folder / "endpoint", "--plain", "--model", "served", "--endpoint", url],
        )
    (folder / "statuses.json").write_text(json.dumps(statuses))
    return folder


def _replies(folder: Path) -> list[tuple[str, str]]:
    return sorted((sample.id, sample.response) for sample in load_samples(folder / "samples/eval.jsonl"))


def test_every_engine_works_in_a_launch(launched: Path) -> None:
    killed, *done = json.loads((launched / "statuses.json").read_text())
    assert done == [[0, 0]] * 4
    assert killed == [3, -9]
    assert len(said(launched / "0-0.err")) == 1
    assert all((launched / f"{number}-1.out").read_text() == "" for number in range(1, 5))


@pytest.mark.parametrize("engine", ["continuous", "vllm"])
def test_engines_give_the_replies_of_the_loop(launched: Path, engine: str) -> None:
    replies = _replies(launched / f"by-{engine}")
    assert replies == _replies(launched / "by-transformers")
    assert len({text for _, text in replies}) > 1


def test_an_endpoint_is_asked_once_for_each_prompt(launched: Path) -> None:
    replies = _replies(launched / "endpoint")
    assert len(replies) == len(_replies(launched / "by-transformers"))
    assert all(text.startswith("About ") for _, text in replies)
