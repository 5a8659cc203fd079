"""`seawall eval` as a user types it: targets of its own, wrong options in one line, an endpoint, a second call."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from commands import forked, fresh, refused
from endpoints import Script, serving
from seawall.cli.evaluate import evaluate
from seawall.errors import RunFolderError, SeawallError

LENGTHS = ("--set", "eval.lengths=[3, 24]")
SMALL = [
    word
    for change in ("data.test_goals=2", "data.test_benign=2", "data.test_borderline=2", "eval.gold=false")
    for word in ("--set", change)
]


def test_a_folder_is_evaluated_on_the_recipes_prompts(
    planted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place: list[str | Path] = ["--model", planted.parent / "model", "-o", tmp_path / "out"]
    words: list[str | Path] = ["eval", planted, *place, *SMALL, *LENGTHS]
    done = fresh(*words)
    assert done.returncode == 0, done.stderr
    assert "attack: story" in done.stdout
    assert "reply length, tokens" in done.stdout
    assert done.stdout.rstrip().endswith("out")
    assert (tmp_path / "out" / "eval" / "evaluation.json").is_file()
    options: dict[str, Any] = {"model": str(planted.parent / "model"), "output": tmp_path / "out", "as_json": True}
    evaluate(planted, **options, sets=[*SMALL, *LENGTHS][1::2])
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "out" / "summary.json").read_text())
    with pytest.raises(RunFolderError, match=r"eval\.lengths differs"):
        evaluate(planted, **options, sets=SMALL[1::2])


def test_a_served_model_is_evaluated(planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    tale, refusal = "First I found it, then I ran.", "I can't help with that."
    script = Script(lambda asked: tale if asked.startswith("Story") else refusal)
    words: list[str | Path] = ["--model", "served", "-o", tmp_path / "out", *SMALL, "--json"]
    with serving(script) as url:
        done = forked("eval", planted, "--endpoint", url, *words)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert (summary["model"], summary["fingerprint"]) == ("served", f"endpoint:{url}#served")
    assert (summary["attacks"]["story"]["rate"], summary["plain_refusal"]["rate"]) == (1.0, 1.0)
    assert {body["model"] for body in script.bodies} == {"served"}


def test_a_group_without_a_scored_reply_ends_with_exit_code_1(
    planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    script = Script(lambda asked: "zq " * 30 if asked.startswith("Story") else "I can't help with that.")
    words: list[str | Path] = ["--model", "served", "-o", tmp_path / "out", *SMALL, "--json"]
    with serving(script) as url:
        done = forked("eval", planted, "--endpoint", url, *words)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "seawall: nothing could be scored, so there is no rate: attack: story (rate: 2 replies)"
    )
    summary = json.loads(done.stdout)
    assert summary == json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["attacks"]["story"]["rate"] is None
    assert summary["plain_refusal"]["rate"] == 1.0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"endpoint": "http://127.0.0.1:1/v1"}, "--endpoint needs the model's name"),
        ({"endpoint": "ftp://x", "model": "m"}, "expected an http or https address"),
        ({"model": "./none"}, "model folder ./none does not exist"),
        ({"adapter": Path("none")}, "adapter folder none does not exist"),
        ({"delta": Path("none")}, "none/delta.json is missing"),
        ({"delta": Path("a"), "adapter": Path("b")}, "got a delta and an adapter"),
        ({"endpoint": "http://127.0.0.1:1/v1", "model": "m", "delta": Path("a")}, "cannot be added to a model behind"),
    ],
)
def test_wrong_targets_are_one_line(planted: Path, tmp_path: Path, options: dict[str, Any], says: str) -> None:
    with pytest.raises(SeawallError, match=re.escape(says)) as found:
        evaluate(planted, output=tmp_path / "out", as_json=True, **options)
    assert "\n" not in str(found.value)
    assert not (tmp_path / "out").exists()


def test_a_foreign_folder_is_left_alone(planted: Path, tmp_path: Path) -> None:
    (tmp_path / "diary.txt").write_text("dear diary")
    with pytest.raises(RunFolderError, match="holds no seawall run"):
        evaluate(planted, model=str(planted.parent / "model"), output=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["diary.txt"]


def test_plain_requests_alone_are_asked(planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    script = Script(lambda asked: "I can't help with that.")
    with serving(script) as url:
        words: list[str | Path] = ["--endpoint", url, "--model", "served", *SMALL, "--json"]
        done = forked("eval", planted, *words, "--plain", "-o", tmp_path / "plain")
        benign = forked("eval", planted, *words, "--set", "eval.groups=[benign]", "-o", tmp_path / "benign")
    assert (done.returncode, benign.returncode) == (0, 0), done.stderr + benign.stderr
    summary = json.loads(done.stdout)
    assert summary["attacks"] == {}
    names = ("plain_refusal", "over_refusal", "benign_compliance")
    assert [summary[name]["n"] for name in names] == [2, 2, 2]
    alone = json.loads(benign.stdout)
    assert (alone["plain_refusal"], alone["over_refusal"], alone["benign_compliance"]["n"]) == (None, None, 2)
    compared = json.loads(forked("diff", tmp_path / "plain", tmp_path / "benign", "--json").stdout)
    assert [row["group"] for row in compared["groups"]] == ["benign"]
    assert forked("report", tmp_path / "benign").returncode == 0
    refused("gate", tmp_path / "plain", "--max-asr", "0.1", saying="--max-asr bounds a quantity that was not measured")


def test_a_repair_is_measured_on_every_kind(planted: Path, tmp_path: Path) -> None:
    refused("run", planted, "--set", "eval.groups=[plain]", "-o", tmp_path / "run", saying="leave out eval.groups")
    refused("eval", planted, "--set", "eval.groups=[]", saying="eval.groups")
    refused("eval", planted, "--set", "eval.groups=[wrapped]", saying="eval.groups")
