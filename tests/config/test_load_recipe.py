"""A wrong recipe is answered by one line that says where, what was got, what is expected and what was perhaps meant."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from seawall.config import Recipe, dump_resolved, load_recipe
from seawall.config.yaml_text import parse_yaml
from seawall.errors import ConfigError


def error_of(folder: Path, text: str | bytes, *overrides: str) -> str:
    file = folder / "my.yaml"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(ConfigError) as caught:
        load_recipe(file, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message.replace(str(file), "my.yaml")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (
            "seed: 1\nrepair:\n  round: 3\n",
            ["my.yaml:3: repair.round is an unknown key", "did you mean repair.rounds?"],
        ),
        ("rounds: 3\n", ["my.yaml:1: rounds is an unknown key", "did you mean repair.rounds?"]),
        (
            "repair:\n  expert:\n    # slow\n    lr: abc\n",
            ["my.yaml:4: repair.expert.lr is wrong", "got 'abc'", "number"],
        ),
        ("select:\n  k: 1.5\n", ["my.yaml:2: select.k is wrong", "got 1.5", "a count of experts"]),
        ("repair:\n\n  rounds: 0\n", ["my.yaml:3:", "got 0", "expected a value greater than or equal to 1"]),
        ("select:\n  method: freqency\n", ["my.yaml:2:", "'mass'", "did you mean frequency?"]),
        ("eval:\n  gold: no\n", ["my.yaml:2: eval.gold is wrong", "got 'no'", "boolean"]),
        ("eval:\n  gold:\n", ["my.yaml:2:", "got null"]),
        ("repair:\n  rounds: true\n", ["my.yaml:2:", "got true", "integer"]),
        ("repair: 3\n", ["my.yaml:1: repair is wrong", "a section of keys and values"]),
        ("data:\n  harmful:\n    kind: jsonl\n", ["my.yaml:2: data.harmful.path is missing", "expected the file"]),
        ("data:\n  harmful:\n    kind: advbnch\n", ["my.yaml:3: data.harmful.kind is wrong", "did you mean advbench?"]),
        ("data:\n  gold:\n    path: a\n", ["my.yaml:2: data.gold.kind is missing", "expected one of builtin, jsonl"]),
        (
            "data:\n  gold:\n    kind: xstest\n    pth: a\n",
            ["my.yaml:4: data.gold.pth is an unknown", "data.gold.path?"],
        ),
        (
            "data:\n  attacks_seen:\n    - role_play\n    - roleplay\n",
            ["my.yaml:4: data.attacks_seen[1]", "role_play?"],
        ),
        ("data:\n  attacks_seen: role_play\n", ["my.yaml:2:", "got 'role_play'", "expected a list"]),
        ("name: a/b\nrepair: {rounds: 0}\n", ["my.yaml:1: name is wrong", "1 more wrong value after this one"]),
        ("seed: x\n", ["my.yaml:1: seed is wrong", "got 'x'"]),
        ("model:\n  id: ''\n", ["my.yaml:2: model.id is wrong", "at least 1 character"]),
        ("- a\n", ["my.yaml:1: not a recipe", "got a list"]),
        ("seed: 1\nseed: 2\n", ["my.yaml:2: not valid YAML: the key seed is given twice"]),
        ("repair:\n  rounds: [1\n", ["my.yaml:3: not valid YAML", "expected ',' or ']'"]),
        ("seed: 1\n\trepair: 1\n", ["my.yaml:2: not valid YAML"]),
        ("a: &x 1\nb: *x\n", ["my.yaml:2: not valid YAML: anchors and aliases are not supported"]),
        ("1: 2\n", ["my.yaml:1: not valid YAML: a key is not a word"]),
        ("seed: 1\n---\nseed: 2\n", ["my.yaml:2: not valid YAML", "expected a single document"]),
        ("name: a\nseed: \x00\n", ["my.yaml:2: not valid YAML", "got a character"]),
        ("name: !!python/object/apply:os.system [ls]\n", ["my.yaml:1: not valid YAML: tags such as"]),
        ("[" * 5000, ["my.yaml: nested too deeply"]),
        (b"name: a\nseed: \xff\n", ["my.yaml:2: not UTF-8 text"]),
        (f"seed: {'9' * 5000}\n", ["my.yaml: a value cannot be read"]),
    ],
)
def test_a_wrong_file(tmp_path: Path, text: str | bytes, parts: list[str]) -> None:
    message = error_of(tmp_path, text)
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("repair.rnds=0", ["--set repair.rnds=0: repair.rnds is an unknown key", "did you mean repair.rounds?"]),
        ("repair.rounds=0", ["--set repair.rounds=0: repair.rounds is wrong", "got 0"]),
        ("repair.rounds", ["--set is wrong", "got 'repair.rounds'", "KEY=VALUE"]),
        ("=3", ["--set is wrong"]),
        ("a..b=3", ["--set is wrong"]),
        ("repair.rounds=[1", ["--set repair.rounds:1: not valid YAML"]),
        ("name.x=1", ["--set name.x=1: name is wrong", "string"]),
        ("seed.x=1", ["--set seed.x: seed is not a section", "got 0"]),
        ("repair={rounds: x}", ["--set repair={rounds: x}: repair.rounds is wrong"]),
    ],
)
def test_a_wrong_override(tmp_path: Path, override: str, parts: list[str]) -> None:
    message = error_of(tmp_path, "seed: 0\n", override)
    for part in parts:
        assert part in message


def test_an_override_wins_over_the_file_and_a_later_one_over_an_earlier(tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    file.write_text("repair:\n  rounds: 5\n  expert: {lr: 1e-4}\nselect:\n")
    recipe = load_recipe(file, ["repair.rounds=1", "repair.rounds=2", "select.k=3", "data.attacks_seen=[persuasion]",
                                "data.attacks_unseen=[]", "data.gold.kind=jsonl", "data.gold.path=g.jsonl",
                                "model.revision=null", "repair.expert.routing = replay"])  # fmt: skip
    assert (recipe.repair.rounds, recipe.repair.expert.lr, recipe.repair.expert.routing) == (2, 1e-4, "replay")
    assert (recipe.select.k, recipe.data.attacks_seen, recipe.model.revision) == (3, ("persuasion",), None)
    assert dump_resolved(recipe)["data"]["gold"]["path"] == "g.jsonl"


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], ("a/one", "c0ffee")),
        (["model.id=a/two"], ("a/two", None)),
        (["model.id=./folder", "seed=1"], ("./folder", None)),
        (["model.id=a/one"], ("a/one", "c0ffee")),
        (["model.id=a/two", "model.revision=beef"], ("a/two", "beef")),
        (["model.revision=beef", "model.id=a/two"], ("a/two", "beef")),
        (["model.id=a/two", "model.id=a/one"], ("a/one", None)),
    ],
)
def test_a_revision_belongs_to_the_model_beside_it(
    tmp_path: Path, overrides: list[str], expected: tuple[str, str | None]
) -> None:
    file = tmp_path / "pinned.yaml"
    file.write_text("model: {id: a/one, revision: c0ffee}\ntune:\n  base: {id: a/base, revision: feed}\n")
    recipe = load_recipe(file, overrides)
    assert (recipe.model.id, recipe.model.revision) == expected
    assert recipe.tune.base is not None
    assert recipe.tune.base.revision == "feed"
    with pytest.raises(ConfigError, match="no revision with lab, which comes with seawall"):
        load_recipe(file, ["model.id=lab", "model.revision=beef"])
    other = load_recipe(file, ["tune.base.id=a/other"]).tune.base
    assert other is not None
    assert (other.id, other.revision) == ("a/other", None)


def test_an_empty_file_and_empty_sections_mean_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "my run!.yaml"
    file.write_text("")
    assert load_recipe(file) == Recipe(name="my-run")
    file.write_text("repair:\n  expert:\n  # lr: 1\nmodel:\n")
    assert load_recipe(file) == Recipe(name="my-run")


def test_a_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    file.write_bytes(b"\xef\xbb\xbfseed: 3\n")
    assert load_recipe(file).seed == 3


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml does not exist"):
        load_recipe(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match=r"cannot be read; got Is a directory; expected a YAML file"):
        load_recipe(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_without_permission(tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    file.touch(mode=0o000)
    with pytest.raises(ConfigError, match="Permission denied"):
        load_recipe(file)


@pytest.mark.parametrize(
    ("text", "value"),
    [("5e-5", 5e-5), ("1e3", 1000.0), ("-.5", -0.5), ("12", 12), ("012", "012"), ("1:30", "1:30"), ("yes", "yes"),
     ("off", "off"), ("true", True), ("~", None), ("2026-01-01", "2026-01-01"), ("1_000", "1_000"), ("'7'", "7"),
     ("+3", 3), ("e5", "e5"), ("1.", 1.0)],
)  # fmt: skip
def test_scalars_are_those_of_yaml_1_2(text: str, value: object) -> None:
    found = parse_yaml(f"x: {text}", where="t").value["x"]
    assert found == value
    assert type(found) is type(value)


@given(st.text(max_size=60))
@example("? [a]: b")
@example("x: .inf")
@example("!!binary x")
@example("!!timestamp x")
@example("!!int x")
@example("!!bool x")
@example("! x")
@example("!!set {a}")
@example("<<: {a: 1}")
def test_any_text_is_a_document_or_one_line(text: str) -> None:
    lines = 0
    try:
        parse_yaml(text, where="t")
    except ConfigError as error:
        lines = str(error).count("\n")
    assert lines == 0
