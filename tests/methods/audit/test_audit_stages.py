"""Audits of a real run of a tiny model, and what cannot be audited."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from families import TOP_K, tiny
from known import known
from seawall.artifacts.audit import NAME, AuditResult
from seawall.artifacts.delta import DeltaOutline
from seawall.artifacts.evaluation import SIGNIFICANT
from seawall.artifacts.groups import POOLED
from seawall.artifacts.profile import ExpertProfile
from seawall.artifacts.store import load_document
from seawall.config import Recipe, load_recipe
from seawall.config.audit import AUDITS
from seawall.errors import ArtifactError, ConfigError, Interrupted, RunFolderError
from seawall.evaluation.samples import load_samples
from seawall.jobs.audit import NEEDS_RUN, audit_model, audit_run, parse_names
from seawall.jobs.report import rewrite_report
from seawall.methods.audit.methods import AUDITS as METHODS
from seawall.methods.audit.methods import audit_view
from seawall.methods.audit.patching import ATTACK_REFUSAL
from seawall.methods.audit.shortcut import CONDITIONS, set_up
from seawall.models.files.fingerprint import model_fingerprint
from seawall.models.generate import generate
from seawall.models.moe.find import find_moe
from seawall.models.moe.switch import steered
from seawall.models.slices import Slices
from seawall.runs.files import file_hash, read_json
from seawall.runs.folder import RunFolder
from seawall.runs.progress import Quiet
from seawall.runs.sealed import seal_files

QUICK = (
    "audit.silencing.goals=3",
    "audit.silencing.largest=0.17",
    "audit.localisation.bootstrap=100",
    "audit.steering.amounts=[2, 40]",
    "audit.steering.goals=3",
    "audit.tamper.steps=[0, 2, 12]",
    "audit.tamper.goals=3",
    "audit.tamper.lr=0.02",
    "audit.tamper.sweeps=[harmless]",
    "audit.tamper.trained=experts",
    "audit.patching.goals=3",
)
JUDGED = ("routing_shortcut", "patching", "silencing", "steering", "tamper")
GENERATE = "seawall.evaluation.engines.transformers.generate"


@pytest.fixture(scope="module")
def audited(planted_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = shutil.copytree(planted_run, tmp_path_factory.mktemp("audited") / "run")
    audit_run(folder, only=(), changes=QUICK, reporter=Quiet())
    return folder


@pytest.fixture
def copied(planted_run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(planted_run, tmp_path / "run")


def _loaded(run: Path, name: str) -> AuditResult:
    return AuditResult.load(run / "audit" / name)


def test_every_audit_has_work_a_section_of_the_recipe_and_a_place(audited: Path) -> None:
    assert set(METHODS) == set(AUDITS)
    assert set(AUDITS) <= set(Recipe().audit.model_dump())
    assert set(NEEDS_RUN) < set(AUDITS)
    for name in AUDITS:
        found = _loaded(audited, name)
        assert found.audit == name
        for one in found.conditions if name in JUDGED else ():
            samples = load_samples(audited / "audit" / name / "samples" / f"{one.name}.jsonl")
            assert sum(rate.n for group, rate in one.rates.items() if group not in (POOLED, ATTACK_REFUSAL)) == len(
                samples
            )
    stages = read_json(audited / "manifest.json")["stages"]
    assert {name: stages[f"audit/{name}"]["state"] for name in AUDITS} == dict.fromkeys(AUDITS, "done")
    assert not any(name in stages for name in AUDITS)


def test_the_references_are_the_runs_own_evaluations(audited: Path) -> None:
    found = _loaded(audited, "routing_shortcut")
    summary = read_json(audited / "summary.json")
    for name, when in (("original", "before"), ("repaired", "after")):
        rates = found.condition(name).rates
        assert rates["attack:story"].rate == summary["attacks"]["story"][when]["rate"]
        assert rates["plain"].rate == summary["plain_refusal"][when]["rate"]
        mine, theirs = (
            {one.id: one for one in load_samples(path)}
            for path in (
                audited / "audit/routing_shortcut/samples" / f"{name}.jsonl",
                audited / f"eval-{when}/samples.jsonl",
            )
        )
        assert mine == theirs
    delta = DeltaOutline.load(audited / "repair" / "delta")
    assert (found.model_fingerprint, found.repaired_fingerprint) == (delta.base_model, delta.result_model)


def test_a_gain_on_too_few_goals_has_no_shares_to_lose(audited: Path) -> None:
    found = _loaded(audited, "routing_shortcut")
    gain = found.change("repaired", "original", POOLED)
    assert gain is not None
    assert gain.high < 0
    assert gain.p > SIGNIFICANT  # five goals: of 32 signs two are as extreme
    for name in ("original_routers", "original_routing"):
        lost = found.change(name, "repaired", POOLED)
        assert lost is not None
        rates = [known(found.condition(one).rates[POOLED]) for one in (name, "repaired")]
        assert lost.difference == pytest.approx(rates[0] - rates[1])
    assert not any(name.startswith("lost:") for name in found.figures)
    assert "did not clearly lower attack success" in found.claim


def test_parts_of_the_repair_are_patched_and_their_figures_need_a_clear_gain(audited: Path) -> None:
    result = _loaded(audited, "patching")
    assert [condition.name for condition in result.conditions] == [
        "original",
        "repaired",
        "only_experts",
        "only_routers",
        "repaired_routing",
        "original_routing",
    ]
    for pair in (("only_experts", "original"), ("only_routers", "repaired"), ("only_experts", "only_routers")):
        assert result.change(*pair, ATTACK_REFUSAL) is not None
    assert not result.figures
    assert "no gain to divide" in result.claim
    own = load_samples(audited / "audit/patching/samples/only_routers.jsonl")
    control = {row.id: row for row in load_samples(audited / "audit/routing_shortcut/samples/repaired_routers.jsonl")}
    assert all(row == control[row.id] for row in own)


def test_masks_grow_and_stand_beside_controls_of_equal_number(audited: Path) -> None:
    found = _loaded(audited, "silencing")
    amounts = {
        series: [one.amount for one in found.conditions if one.series == series]
        for series in ("none", "refusal", "random", "frequency_matched")
    }
    assert amounts == {"none": [0], **{key: [1, 2, 4] for key in ("refusal", "random", "frequency_matched")}}
    assert found.change("refusal-4", "random-4", "plain") is not None
    assert all(found.change(one.name, "none", POOLED) for one in found.conditions[1:])
    assert found.condition("none").rates["plain"].n == 3


def test_the_report_shows_every_audit_with_its_numbers(audited: Path) -> None:
    page = (audited / "report.html").read_text(encoding="utf-8")
    for name in AUDITS:
        found = _loaded(audited, name)
        assert f'<section id="audit-{name}"' in page
        assert found.claim.replace("'", "&#39;") in page
        for one in found.conditions:
            shown = one.rates["plain" if name in JUDGED else "prompt"]
            assert shown.rate is None or f'value="{shown.rate}"' in page
    assert page.count("<svg") > 4
    (audited / "report.html").unlink()
    assert rewrite_report(audited).read_text(encoding="utf-8") == page


def test_what_is_done_is_skipped_and_other_settings_set_it_aside(audited: Path) -> None:
    marks = {name: (audited / "audit" / name / "DONE").stat().st_mtime_ns for name in AUDITS}
    audit_run(audited, only=(), changes=QUICK, reporter=Quiet())
    assert {name: (audited / "audit" / name / "DONE").stat().st_mtime_ns for name in AUDITS} == marks
    before = file_hash(audited / "audit/silencing" / NAME)
    audit_run(audited, only=["silencing"], changes=("audit.silencing.goals=2", QUICK[1]), reporter=Quiet())
    assert _loaded(audited, "silencing").condition("none").rates["plain"].n == 2
    assert file_hash(audited / "audit/silencing.old-1" / NAME) == before
    assert (audited / "audit/routing_shortcut/DONE").stat().st_mtime_ns == marks["routing_shortcut"]


def test_an_interrupted_audit_goes_on_and_finds_the_same(
    audited: Path, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = list[int]()

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        calls.append(len(args[2]))
        if len(calls) == 2:
            raise Interrupted
        return generate(*args, **kwargs)

    monkeypatch.setattr(GENERATE, interrupted)
    with pytest.raises(Interrupted):
        audit_run(copied, only=["routing_shortcut"], changes=QUICK, reporter=Quiet())
    assert not (copied / "audit/routing_shortcut").exists()
    asked = calls[0]
    audit_run(copied, only=["routing_shortcut"], changes=QUICK, reporter=Quiet())
    assert calls[2:] == [asked, asked]
    ours, theirs = (load_document(one / "audit/routing_shortcut" / NAME, "audit") for one in (copied, audited))
    assert ours == theirs


def test_an_interrupted_tuning_leaves_the_original_model_and_finds_the_same(
    audited: Path, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = list[str]()
    models = list[Any]()

    def interrupted(model: Any, *args: Any, **kwargs: Any) -> Any:
        models.append(model)
        seen.append(model_fingerprint(model))
        if len(seen) == 3:
            raise Interrupted
        return generate(model, *args, **kwargs)

    monkeypatch.setattr(GENERATE, interrupted)
    with pytest.raises(Interrupted):
        audit_run(copied, only=["tamper"], changes=QUICK, reporter=Quiet())
    original = _loaded(audited, "tamper").model_fingerprint
    assert original not in seen
    assert model_fingerprint(models[-1]) == original
    assert not list(copied.rglob("audit/**/*.safetensors"))
    (found,) = audit_run(copied, only=["tamper"], changes=QUICK, reporter=Quiet())
    assert len(set(seen)) == 4
    assert seen[2] == seen[3]
    assert len(seen) == 5
    assert found == _loaded(audited, "tamper")


def test_a_finished_runs_other_settings_stay(copied: Path) -> None:
    with pytest.raises(ConfigError, match=r"--set eval\.seed=1: .*expected settings of `audit` alone"):
        audit_run(copied, only=(), changes=["eval.seed=1"], reporter=Quiet())
    with pytest.raises(ConfigError, match=r"audit\.silencing\.goals is wrong; got 1"):
        audit_run(copied, only=(), changes=["audit.silencing.goals=1"], reporter=Quiet())
    with pytest.raises(ConfigError, match=r"audit.silencing.*goal"):
        audit_run(copied, only=(), changes=["audit.silencing.goal=2"], reporter=Quiet())
    with pytest.raises(ConfigError, match=r"audit\.steering\.amounts is wrong; got .*; expected ascending numbers of"):
        audit_run(copied, only=(), changes=["audit.steering.amounts=[4, 2]"], reporter=Quiet())
    for steps in ("[10, 30]", "[0]", "[0, 30, 10]"):
        with pytest.raises(ConfigError, match=r"audit\.tamper\.steps is wrong; got "):
            audit_run(copied, only=(), changes=[f"audit.tamper.steps={steps}"], reporter=Quiet())
    assert not (copied / "audit").exists()


def test_a_run_of_before_there_were_audits_can_be_audited(copied: Path) -> None:
    document = read_json(copied / "resolved.json")
    del document["audit"]
    (copied / "resolved.json").write_text(json.dumps(document))
    seal_files(RunFolder(copied))
    quick = ("audit.routing_shortcut.goals=2",)
    found = audit_run(copied, only=["routing_shortcut"], changes=quick, reporter=Quiet())
    assert found[0].condition("original_routing").rates["plain"].n == 2


def test_another_model_than_the_runs_is_refused(copied: Path, planted: Path, tmp_path: Path) -> None:
    other = shutil.copytree(copied / "model", tmp_path / "other")
    document = read_json(copied / "resolved.json")
    document["model"]["id"] = str(other)
    (copied / "resolved.json").write_text(json.dumps(document))
    seal_files(RunFolder(copied))
    with pytest.raises(ArtifactError, match="the run was made from another model"):
        audit_run(copied, only=(), changes=QUICK, reporter=Quiet())


def test_unknown_audits_and_unfinished_runs_are_refused(copied: Path) -> None:
    assert parse_names("silencing, routing_shortcut,silencing") == ["silencing", "routing_shortcut"]
    assert parse_names(None) == []
    with pytest.raises(ConfigError, match=r"--only names an unknown audit; got 'loud'; expected routing_shortcut"):
        parse_names("silencing,loud")
    (copied / "summary.json").unlink()
    with pytest.raises(RunFolderError, match="is not finished"):
        audit_run(copied, only=(), changes=QUICK, reporter=Quiet())


def test_a_model_alone_can_be_audited_where_no_repair_is_needed(planted: Path, tmp_path: Path) -> None:
    text = planted.read_text()
    with pytest.raises(ConfigError, match="the audit routing_shortcut needs a finished run: it compares"):
        audit_model(load_recipe(planted), tmp_path / "run", text=text, only=["routing_shortcut"], reporter=Quiet())
    assert not (tmp_path / "run").exists()
    recipe = load_recipe(planted, [*QUICK, "data.train_goals=8"])
    found = audit_model(recipe, tmp_path / "run", text=text, only=["silencing"], reporter=Quiet())
    assert [one.audit for one in found] == ["silencing"]
    assert found[0].repaired_fingerprint is None
    assert found[0].condition("none").rates["attack:story"].rate == 1.0


@pytest.fixture
def switches(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[dict[str, Any]]]:
    """What `steered` is told, by the module that tells it."""
    told: dict[str, list[dict[str, Any]]] = {"silencing": [], "switches": []}

    def watched(name: str) -> Any:
        def steer(moe: Any, **ways: Any) -> Any:
            told[name].append({way: _places(layers) for way, layers in ways.items()})
            return steered(moe, **ways)

        return steer

    for name in told:
        monkeypatch.setattr(f"seawall.methods.audit.{name}.steered", watched(name))
    return told


def _places(layers: Any) -> set[tuple[int, int]]:
    return {(layer, expert) for layer, experts in enumerate(layers) for expert in experts}


def test_steering_and_silencing_of_a_model_switch_what_its_profile_says(
    planted: Path, tmp_path: Path, switches: dict[str, list[dict[str, Any]]]
) -> None:
    changes = [*QUICK, "data.train_goals=8"]
    found = audit_model(
        load_recipe(planted, changes),
        tmp_path / "run",
        text=planted.read_text(),
        only=["silencing", "steering"],
        reporter=Quiet(),
    )
    profile = ExpertProfile.load(tmp_path / "run/profile")
    attack_LE, anchor_LE = (
        counts.double().sum(0) / tokens.double().sum()
        for counts, tokens in (
            (profile.attack_counts_PLE, profile.attack_tokens_P),
            (profile.anchor_counts_PLE, profile.anchor_tokens_P),
        )
    )
    gap = {
        (at, expert): float(value) for at, row in enumerate(attack_LE - anchor_LE) for expert, value in enumerate(row)
    }
    ascending = sorted(gap, key=lambda place: gap[place])
    first, control, most, most_control = switches["switches"]
    assert first == {"off": set(ascending[-2:]), "on": set(ascending[:2])}
    assert most["off"] == {place for place in gap if gap[place] > 1e-12}
    assert all(len([at for at, _ in most["on"] if at == layer]) <= TOP_K for layer in range(len(attack_LE)))
    assert {layer for layer, _ in control["off"] | control["on"]} == {layer for layer, _ in first["off"] | first["on"]}
    assert all(not switched["off"] & switched["on"] for switched in (first, control, most, most_control))
    assert [one.name for one in found[1].conditions] == ["original", "steered-2", "random-2", "steered-40", "random-40"]
    assert found[1].figures["off:steered-40"].value == len(most["off"])
    assert "From the repaired model's" not in found[1].claim
    masked = [one["off"] for one in switches["silencing"]]
    assert masked[-3] == set(ascending[:4])
    assert not any(masked[-3] & masked[at] for at in range(len(masked)) if at % 3)


def test_the_report_names_what_is_switched(audited: Path) -> None:
    found = _loaded(audited, "steering")
    view = audit_view(found)
    assert [view.label(condition) for condition in view.conditions[:4]] == [
        "original model",
        "repaired model",
        "2 experts off, 2 on",
        "random: 2 off, 2 on (control)",
    ]
    assert view.amount is None
    assert found.change("steered-2", "random-2", POOLED) is not None
    assert found.change("steered-2", "repaired", "borderline") is not None
    assert "From the repaired model's attack success it lies" in found.claim


def test_harmless_tuning_takes_refusals_away_and_begins_with_the_runs_own_samples(audited: Path) -> None:
    found = _loaded(audited, "tamper")
    assert [(one.series, one.amount) for one in found.conditions] == [
        (side, steps) for side in ("original", "repaired") for steps in (0, 2, 12)
    ]
    summary = read_json(audited / "summary.json")
    assert found.condition("original-0").rates[POOLED].rate == summary["attacks"]["story"]["before"]["rate"]
    assert found.condition("original-0").rates["plain"].rate == 1.0
    assert known(found.condition("original-12").rates["plain"]) < 0.5
    own, answered = (audited / name / "retain.jsonl" for name in ("audit/tamper", "repair"))
    assert own.read_bytes() == answered.read_bytes()
    assert set(audit_view(found).series) == {one.series for one in found.conditions}
    assert found.change("repaired-12", "original-12", POOLED) is not None


def test_a_low_rank_attack_with_openers_stands_beside_the_harmless_one(copied: Path) -> None:
    changes = ("audit.tamper.steps=[0, 2]", "audit.tamper.goals=3", "audit.tamper.lr=0.01")
    (result,) = audit_run(copied, only=["tamper"], changes=changes, reporter=Quiet())
    series = ["original", "repaired", "original_openers", "repaired_openers"]
    assert [(row.series, row.amount) for row in result.conditions] == [(name, n) for name in series for n in (0, 2)]
    assert result.condition("repaired_openers-0").rates == result.condition("repaired-0").rates
    assert set(result.figures) == {f"resilience_gap:{name}" for name in series}
    for name in series:
        change = result.change(f"{name}-2", f"{name}-0", "plain")
        assert change is not None
        assert result.figures[f"resilience_gap:{name}"].value == -change.difference
    assert list(audit_view(result).series) == series
    assert "Resilience gap (refusal of plain requests before minus after 2 updates): with harmless" in result.claim
    assert not list(copied.rglob("audit/**/*.safetensors"))


def _holds(tensor: Tensor, slices: Slices) -> bool:
    return torch.equal(Slices.copied(tensor, slices.indices).tensor, slices.tensor)


def test_the_model_is_the_original_again_after_every_condition() -> None:
    moe = find_moe(tiny("glm4_moe"))
    before, state = model_fingerprint(moe.model), moe.model.state_dict()
    names = [moe.layers[0].full_name(moe.layers[0].weights[0]), f"{moe.layers[1].router_name}.weight"]
    repaired = {
        names[0]: Slices((1, 3), state[names[0]][[1, 3]] + torch.ones(())),
        names[1]: Slices(None, state[names[1]] + torch.ones(())),
    }
    seen = {}
    for name in CONDITIONS:
        with set_up(name, moe, repaired):
            seen[name] = [_holds(state[key], repaired[key]) for key in names]
        assert model_fingerprint(moe.model) == before
    assert seen == {
        "original": [False, False],
        "repaired": [True, True],
        "original_routers": [True, False],
        "original_routing": [True, True],
        "repaired_routers": [False, True],
    }


def test_twins_are_asked_and_compared(copied: Path, planted: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (planted.parent / "borderline.jsonl").read_text().splitlines()]
    twins = [{**row, "unsafe_twin": row["prompt"].replace("Watch", "Steal")} for row in rows]
    (tmp_path / "twins.jsonl").write_text("".join(json.dumps(row) + "\n" for row in twins))
    document = read_json(copied / "resolved.json")
    document["data"]["borderline"]["path"] = str(tmp_path / "twins.jsonl")
    (copied / "resolved.json").write_text(json.dumps(document))
    seal_files(RunFolder(copied))
    quick = ("audit.localisation.bootstrap=100", "audit.localisation.twins=6")
    (found,) = audit_run(copied, only=["localisation"], changes=quick, reporter=Quiet())
    assert [one.name for one in found.conditions] == ["attack_anchor", "twins", "noise"]
    assert found.condition("twins").rates["prompt"].n == 6
    assert {"agreement:generated", "agreement:prompt", "overlap:prompt_generated"} <= set(found.figures)
    replies = (copied / "audit/localisation/replies.jsonl").read_text().splitlines()
    assert len(replies) == 12
    assert 0 <= found.figures["stable:generated"].value <= 1


def test_without_twins_the_claim_says_what_is_missing(audited: Path) -> None:
    found = _loaded(audited, "localisation")
    assert [one.name for one in found.conditions] == ["attack_anchor", "noise"]
    assert "without unsafe twins" in found.claim or "no more than chance" in found.claim


def _with_other_harmless_prompts(run: Path, folder: Path) -> None:
    document = read_json(run / "resolved.json")
    for name in ("benign", "borderline"):
        rows = [{"prompt": f"Draw the {name} {at}", "split": "train"} for at in range(4)]
        rows += [{"prompt": f"Draw the {name} of {part}", "split": part} for part in ("validation", "test")]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        document["data"][name]["path"] = str(folder / f"{name}.jsonl")
    (run / "resolved.json").write_text(json.dumps(document))
    seal_files(RunFolder(run))


def test_other_prompts_are_answered_anew(copied: Path, tmp_path: Path) -> None:
    changes = [*QUICK, "audit.tamper.steps=[0, 1]"]
    _with_other_harmless_prompts(copied, tmp_path)
    audit_run(copied, only=["tamper"], changes=changes, reporter=Quiet())
    assert len((copied / "audit/tamper/retain.jsonl").read_text().splitlines()) == 8
