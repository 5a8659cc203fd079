"""Hostile input with known outcomes: a mutated file is refused, or gives the numbers that it should.

An outcome is `refused` (exit code 2 or a failed check, one line), `same` (the numbers of the untouched input), `anew`
(a stage was made again, and its numbers are those of a fresh folder), `accepted` (exactly what the file says was read),
or a failure: `traceback`, `hang`, `changed`.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import yaml

from commands import start
from mutations import mutated_bytes, mutated_document, mutated_file, mutated_json, paths
from planted import write_planted
from seawall.config.data import SourceConfig
from seawall.config.load import dump_resolved, load_recipe
from seawall.data.sources import load_benign, load_borderline, load_goals, load_gold
from seawall.errors import SeawallError
from seawall.evaluation.endpoint import _answer

FAILURES = ("traceback", "hang", "changed")
SECONDS = 60
QUICK = ("eval.max_new_tokens=6", "data.test_goals=2", "eval.gold=false", "eval.bootstrap=100")


@dataclass(frozen=True)
class Outcome:
    """What became of a case, and in which words where it is a failure."""

    kind: str
    name: str
    result: str
    detail: str = ""


class Hang(BaseException):
    """Raised by the alarm; no error handler swallows it."""


@dataclass(frozen=True)
class Ground:
    """Untouched input in a folder: recipe and model, its finished run, an adapter, and an evaluation with its model."""

    folder: Path

    @property
    def source(self) -> Path:
        return self.folder / "source"

    @property
    def run(self) -> Path:
        return self.folder / "run"

    @property
    def evaluated(self) -> Path:
        return self.folder / "evaluated"

    def build(self, run: Path | None = None) -> Ground:
        """Writes all of it; without a finished run of the same recipe in about half a minute."""
        path = write_planted(self.source)
        if run is None:
            succeed("run", path, "-o", self.run)
        else:
            shutil.copytree(run, self.run)
        shutil.copytree(self.source, self.evaluated)
        _write_adapter(self.source / "model", self.folder / "adapter")
        document = yaml.safe_load(path.read_text().replace(f"{self.source}/", ""))
        (self.evaluated / "recipe.yaml").write_text(yaml.safe_dump(document))
        with inside(self.evaluated):
            succeed(*_evaluation("out"))
        return self


def cases(ground: Ground) -> dict[str, Callable[[Path, random.Random], Outcome]]:
    """Kind -> a function of an empty folder and a generator, which makes and judges one case."""
    return {
        "recipe": lambda folder, generator: recipe_case(ground, folder, generator),
        "prompts": lambda folder, generator: prompts_case(ground, folder, generator),
        "artifact": lambda folder, generator: artifact_case(ground, folder, generator),
        "model": lambda folder, generator: model_case(ground, folder, generator),
        "template": lambda folder, generator: template_case(ground, folder, generator),
        "adapter": lambda folder, generator: adapter_case(ground, folder, generator),
        "body": lambda folder, generator: body_case(generator),
    }


def recipe_case(ground: Ground, folder: Path, generator: random.Random) -> Outcome:
    """A mutated recipe is refused, or resolves to exactly what it says; `plan` ends with it."""
    original = (ground.source / "recipe.yaml").read_text()
    path = folder / "recipe.yaml"
    if generator.random() < 0.7:
        written = mutated_document(yaml.safe_load(original), generator)
        path.write_text(yaml.safe_dump(written))
    else:
        path.write_bytes(mutated_bytes(original.encode(), generator))
        try:
            written = yaml.safe_load(path.read_bytes())
        except (yaml.YAMLError, ValueError):
            written = None
    try:
        with _alarm():
            resolved = dump_resolved(load_recipe(path))
    except SeawallError:
        return Outcome("recipe", "load", "refused")
    except Hang:
        return Outcome("recipe", "load", "hang", path.read_text(errors="replace")[:200])
    wrong = _unlike(written, resolved)
    if wrong is not None:
        return Outcome("recipe", "load", "changed", wrong)
    if resolved["model"]["id"].startswith("lab"):
        return Outcome("recipe", "load", "accepted")
    return _judged("recipe", "plan", _command("plan", path), lambda: "accepted")


def prompts_case(ground: Ground, folder: Path, generator: random.Random) -> Outcome:
    """A mutated file of prompts is refused, or its rows are those that an independent reader finds."""
    place = _copy(ground.source, folder)
    name = generator.choice(("harmful", "benign", "borderline", "gold", "attacks", "refusals"))
    file = place / f"{name}.{'json' if name == 'refusals' else 'jsonl'}"
    file.write_bytes(mutated_file(file.name, file.read_bytes(), generator))
    recipe = place / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace(str(ground.source), str(place)))
    loaders: dict[str, Callable[[SourceConfig], Sequence[object]]]
    loaders = {"harmful": load_goals, "benign": load_benign, "borderline": load_borderline, "gold": load_gold}
    if name in loaders:
        source = getattr(load_recipe(recipe).data, name)
        try:
            with _alarm():
                loaded = [vars_text(row) for row in loaders[name](source)]
        except SeawallError:
            return Outcome("prompts", name, "refused")
        except Hang:
            return Outcome("prompts", name, "hang")
        lines = [json.loads(line) for line in file.read_text("utf-8-sig").split("\n") if line.strip()]
        if loaded != [row["prompt"].strip() for row in lines]:
            return Outcome("prompts", name, "changed", str(loaded)[:200])
    return _judged("prompts", name, _command("plan", recipe), lambda: "accepted")


def vars_text(row: Any) -> str:
    """The prompt of a goal, an instruction or a question."""
    return str(row.question if hasattr(row, "question") else row.text)


def artifact_case(ground: Ground, folder: Path, generator: random.Random) -> Outcome:
    """A finished run with one mutated file is refused by a verb, or gives that verb's numbers of the untouched run."""
    run = _copy(ground.run, folder)
    files = [path for path in sorted(run.rglob("*")) if path.is_file() and path.name != ".lock"]
    file = generator.choice(files)
    content = file.read_bytes()
    change = mutated_file(file.name, content, generator)
    if generator.random() < 0.1:
        file.unlink()
    else:
        file.write_bytes(change)
    verb = generator.choice(("gate", "gate", "diff", "report", "apply"))
    name = f"{verb} {file.relative_to(run)}"
    match verb:
        case "gate":
            done = _command("gate", run, "--max-asr", "1", "--max-asr-unseen", "1", "--json")
            if done.returncode == 1:
                return Outcome("artifact", name, "refused")
            wanted = _command("gate", ground.run, "--max-asr", "1", "--max-asr-unseen", "1", "--json")
            return _judged("artifact", name, done, lambda: _same(_gate(done), _gate(wanted)))
        case "diff":
            done = _command("diff", run, ground.run, "--json")
            wanted = _command("diff", ground.run, ground.run, "--json")
            return _judged("artifact", name, done, lambda: _same(done.stdout, wanted.stdout))
        case "report":
            done = _command("report", run)
            return _judged("artifact", name, done, lambda: "accepted")
    done = _command("apply", run / "delta", "-m", ground.source / "model", "-o", folder / "applied", "--json")
    return _judged("artifact", name, done, lambda: _same(json.loads(done.stdout)["weights"], _weights(ground)))


def model_case(ground: Ground, folder: Path, generator: random.Random) -> Outcome:
    """A checkpoint with one mutated file: the evaluation goes on only where a fresh one gives the same numbers."""
    if generator.random() < 0.3:
        return _hashed_model_case(ground, folder, generator)
    place = _copy(ground.evaluated, folder)
    file = generator.choice(sorted((place / "model").iterdir()))
    file.write_bytes(mutated_file(file.name, file.read_bytes(), generator))
    if generator.random() < 0.4:
        return _judged("model", f"doctor {file.name}", _command("doctor", place / "model"), lambda: "accepted")
    return _continued("model", file.name, place)


def template_case(ground: Ground, folder: Path, generator: random.Random) -> Outcome:
    """The same with a mutated chat template."""
    place = _copy(ground.evaluated, folder)
    file = place / "model" / "chat_template.jinja"
    file.write_bytes(mutated_file(file.name, file.read_bytes(), generator))
    return _continued("template", file.read_text(errors="replace")[:60], place)


def adapter_case(ground: Ground, folder: Path, generator: random.Random) -> Outcome:
    """A mutated adapter is refused, or merged."""
    place = _copy(ground.folder / "adapter", folder)
    file = place / generator.choice(("adapter_config.json", "adapter_config.json", "adapter_model.safetensors"))
    file.write_bytes(mutated_file(file.name, file.read_bytes(), generator))
    words: list[str | Path] = ["eval", ground.source / "recipe.yaml", "--adapter", place, "-o", folder / "out"]
    done = _command(*words, *(word for change in QUICK for word in ("--set", change)))
    return _judged("adapter", file.name, done, lambda: "accepted")


def body_case(generator: random.Random) -> Outcome:
    """A mutated response gives the text that an independent reader finds, or is no answer."""
    choice = {"message": {"role": "assistant", "content": "No, I will not."}, "finish_reason": "stop"}
    choice["logprobs"] = {"content": [{"token": "No", "logprob": -0.1, "bytes": [78, 111]}]}
    body = json.dumps({"choices": [choice], "usage": {"completion_tokens": 5}}).encode()
    body = mutated_json(body, generator)
    try:
        with _alarm():
            answer = _answer(body)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return Outcome("body", "answer", "refused")
    except Hang:
        return Outcome("body", "answer", "hang")
    content = json.loads(body)["choices"][0]["message"]["content"]
    expected = content if content is None else content.encode("utf-8", "replace").decode()
    is_same = expected == (answer.text if answer.text is None else answer.text.replace("\ufffd", "?"))
    return Outcome("body", "answer", "accepted" if is_same else "changed", repr(answer)[:100])


def _hashed_model_case(ground: Ground, folder: Path, generator: random.Random) -> Outcome:
    """A checkpoint of seawall's own with one mutated file is refused, or gives the numbers of the untouched one."""
    place = _copy(ground.evaluated, folder)
    shutil.rmtree(place / "model")
    shutil.copytree(ground.run / "model", place / "model")
    listed = json.loads((place / "model" / "seawall_files.json").read_text())["files"]
    file = place / "model" / generator.choice(sorted([*listed, "seawall_files.json"]))
    content = file.read_bytes()
    file.write_bytes(mutated_file(file.name, content, generator))
    is_changed = file.read_bytes() != content
    done = _command("eval", place / "recipe.yaml", "-o", "fresh", cwd=place)
    name = f"hashed {file.name}"
    is_note = file.name == "seawall_files.json"
    return _judged("model", name, done, lambda: "changed" if is_changed and not is_note else "same")


def _continued(kind: str, name: str, place: Path) -> Outcome:
    """Goes on with a finished evaluation and makes a fresh one: both are refused, or both give the same numbers."""
    done = _command(*_evaluation("out"), cwd=place)
    if done.returncode != 0:
        return _judged(kind, name, done, lambda: "refused")
    fresh = _command(*_evaluation("fresh"), cwd=place)
    if fresh.returncode != 0:
        return _judged(kind, name, fresh, lambda: "refused", refused="changed")
    numbers = [_numbers(place / folder / "eval-before" / "evaluation.json") for folder in ("out", "fresh")]
    is_anew = (place / "out" / "eval-before.old-1").is_dir()
    return Outcome(kind, name, "changed" if numbers[0] != numbers[1] else "anew" if is_anew else "same")


def _judged(
    kind: str,
    name: str,
    done: subprocess.CompletedProcess[str],
    result: Callable[[], str],
    *,
    refused: str = "refused",
) -> Outcome:
    """A command's outcome; `result` tells it where the command succeeded."""
    words = f"{' '.join(done.args)}: {done.stderr.strip()[-400:]}"
    if done.returncode == -signal.SIGKILL:
        return Outcome(kind, name, "hang", words)
    lines = [line for line in done.stderr.splitlines() if line.startswith("seawall: ")]
    if done.returncode == 2 and done.args[0] == "doctor" and "refused" in done.stdout:
        return Outcome(kind, name, "refused")
    if done.returncode == 1 and [line for line in lines if "nothing could be scored" in line] == lines != []:
        return Outcome(kind, name, "refused")  # the model says nothing: numbers are null, and said so
    if done.returncode not in (0, 2) or "Traceback" in done.stderr or len(lines) != (done.returncode == 2):
        return Outcome(kind, name, "traceback", words)
    outcome = refused if done.returncode == 2 else result()
    return Outcome(kind, name, outcome, words if outcome in FAILURES else "")


def _same(value: object, expected: object) -> str:
    return "same" if value == expected else "changed"


def _gate(done: subprocess.CompletedProcess[str]) -> Any:
    document = json.loads(done.stdout)
    return {key: document[key] for key in ("model", "passed", "checks")}


def _weights(ground: Ground) -> str:
    return str(json.loads((ground.run / "model" / "parity.json").read_text())["weights"])


def _numbers(path: Path) -> dict[str, Any]:
    return {key: value for key, value in json.loads(path.read_text()).items() if key != "seal"}


def _unlike(written: Any, resolved: Any) -> str | None:
    """The first key whose resolved value is another than the written one; a section may be null for its defaults."""
    for path in paths(written):
        key: Any
        value: Any = written
        result: Any = resolved
        for key in path:
            value = value[key]
            if not isinstance(result, dict | list) or (isinstance(result, dict) and key not in result):
                return f"{path} is not in the resolved recipe"
            result = result[key]
        is_leaf = not isinstance(value, dict | list)
        is_default = value is None and isinstance(result, dict)
        is_number = isinstance(value, int) and isinstance(result, float) and not isinstance(value, bool)
        if is_leaf and not is_default and (value != result or (type(value) is not type(result) and not is_number)):
            return f"{path}: {value!r} became {result!r}"
    return None


def _evaluation(folder: str) -> tuple[str, ...]:
    return ("eval", "recipe.yaml", "-o", folder, *(word for change in QUICK for word in ("--set", change)))


def _copy(source: Path, folder: Path) -> Path:
    return Path(shutil.copytree(source, folder / "copy"))


def succeed(*words: str | Path) -> None:
    done = start(*words).wait()
    assert done.returncode == 0, done.stderr


def _command(*words: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """A command that is killed after `SECONDS`."""
    with inside(cwd or Path.cwd()):
        started = start(*words)
    timer = threading.Timer(SECONDS, os.kill, (started.process, signal.SIGKILL))
    timer.start()
    done = started.wait()
    timer.cancel()
    return done


def _write_adapter(model: Path, folder: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    wrapped = get_peft_model(AutoModelForCausalLM.from_pretrained(model), LoraConfig(r=2, target_modules=["q_proj"]))
    wrapped.save_pretrained(folder)


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@contextmanager
def _alarm() -> Iterator[None]:
    def ring(number: int, frame: FrameType | None) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
