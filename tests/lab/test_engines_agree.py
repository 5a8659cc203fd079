"""The embedded model says the same whether it is loaded here or stands behind an endpoint."""

from __future__ import annotations

from pathlib import Path

import pytest

from endpoints import completing, serving
from seawall.config.eval import EndpointEngine, EvalConfig
from seawall.config.load import load_recipe
from seawall.data.sets import load_prompts
from seawall.evaluation.engines import Engine, Reply, make_engine
from seawall.evaluation.suite import build_suite
from seawall.models.files.load import load_model


@pytest.mark.lab
def test_one_prompt_of_every_group_gets_the_same_reply_from_both_engines(
    lab_models: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    recipe = load_recipe(None)
    loaded = load_model(recipe.model.model_copy(update={"id": str(lab_models[0])}))
    groups = build_suite(load_prompts(recipe.data), gold=False).groups
    prompts = [items[0][1] for items in groups.values()]

    def replies(engine: Engine) -> list[str]:
        found: dict[int, Reply] = {}
        engine(
            prompts, max_new_tokens=10, lengths=(), on_replies=lambda at, got: found.update(zip(at, got, strict=True))
        )
        assert [one.problem for one in found.values()] == [None] * len(prompts)
        return [found[at].text for at in range(len(prompts))]

    here = replies(make_engine(EvalConfig(batch_size="auto"), loaded))
    with serving(completing(*loaded)) as url:
        settings = EndpointEngine(base_url=url, model="lab", timeout=300, concurrency=2)
        there = replies(make_engine(EvalConfig(engine=settings)))
    assert here == there
    assert len(set(here)) > len(groups) / 2
