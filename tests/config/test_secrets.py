"""A key where a name belongs is refused, and no message shows it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from seawall.config.judge import RubricJudge
from seawall.config.load import load_recipe
from seawall.errors import ConfigError, SeawallError, without_keys
from seawall.evaluation.endpoint import Endpoint

# Made up; no service ever issued them.
KEYS = ["sk-proj-0123456789abcdefghij", "hf_ABCdefGHIjklMNOpqr012345", "ghp_0123456789abcdefghij0123"]
SECTION = {"kind": "rubric", "base_url": "http://127.0.0.1/v1", "model": "m"}


def message(document: object, *overrides: str, folder: Path) -> str:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(document))
    with pytest.raises(ConfigError) as problem:
        load_recipe(path, overrides)
    return str(problem.value)


@pytest.mark.parametrize("key", [*KEYS, "a key with spaces 0123456789"])
def test_a_key_as_the_name_of_a_variable(key: str, tmp_path: Path) -> None:
    section = {"eval": {"judge": {**SECTION, "key_env": key}}}
    for text in (
        message(section, folder=tmp_path),
        message({}, f"eval.judge={{kind: rubric, base_url: 'http://a', model: m, key_env: '{key}'}}", folder=tmp_path),
        message({"eval": {"judge": SECTION}}, f"eval.judge.key_env={key}", folder=tmp_path),
    ):
        assert "key_env" in text
        assert key not in text


@pytest.mark.parametrize("key", KEYS)
def test_a_key_elsewhere(key: str, tmp_path: Path) -> None:
    for document in (
        {"eval": {"judge": {**SECTION, "api_key": key}}},
        {"eval": {"judge": {**SECTION, "base_url": f"https://user:{key}@host/v1"}}},
        {"eval": {"judge": {**SECTION, "base_url": f"https://host/v1?key={key}"}}},
        {"model": {"dtype": key}},
    ):
        assert key not in message(document, folder=tmp_path)
    assert key not in message({}, f"eval.judge.api_key={key}", folder=tmp_path)
    assert key not in str(SeawallError("no such model", got=key))


def test_a_password_in_an_address(tmp_path: Path) -> None:
    text = message({"eval": {"judge": {**SECTION, "base_url": "https://user:secret@host/v1"}}}, folder=tmp_path)
    assert "secret" not in text


def test_a_variable_that_is_not_set_is_named_where_it_is_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, shown in (("SEAWALL_TEST_KEY", True), ("q8x7f0123abcd", False)):
        monkeypatch.delenv(name, raising=False)
        with pytest.raises(ConfigError) as problem:
            Endpoint(RubricJudge.model_validate({**SECTION, "key_env": name}), "eval.judge")
        assert (name in str(problem.value)) == shown


@pytest.mark.parametrize("text", ["sk-learn", "hf_models", "runs/sk-experiment-of-the-team", "sha256:0123456789abcdef"])
def test_ordinary_names_are_shown(text: str) -> None:
    assert without_keys(text) == text
