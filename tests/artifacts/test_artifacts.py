"""Every artifact comes back bit by bit, and a file that was cut, changed or swapped is refused with one line."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from seawall.artifacts.audit import AuditChange, AuditFigure
from seawall.artifacts.delta import Delta
from seawall.artifacts.directions import Directions, ScoredPrompt
from seawall.artifacts.evaluation import EvalResult, GoldAnswer, Rate
from seawall.artifacts.expert_set import ExpertSet
from seawall.artifacts.graft import Graft
from seawall.artifacts.profile import DroppedPair, ExpertProfile, PairRecord
from seawall.artifacts.steering import SteeringCandidate, SteeringCondition, SteeringResult
from seawall.artifacts.store import SCHEMA, load_document, require_model, save_document, tensors_fingerprint
from seawall.errors import ArtifactError
from seawall.runs.files import canonical_hash, file_hash

MODEL = "sha256:" + "ab" * 32


@pytest.fixture(autouse=True, scope="module")
def _no_waiting_for_the_disk() -> Iterator[None]:
    """Thousands of small files are written here; that each reaches the disk is tested in `tests/runs`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


class Saves(Protocol):
    def save(self, folder: Path) -> None: ...


@dataclass(frozen=True)
class Kind:
    """An artifact, how it is loaded, and its files."""

    artifact: Saves
    load: Callable[[Path], Saves]
    files: tuple[str, ...]


def profile(pairs: int = 2, layers: int = 2, experts: int = 3, *, dtype: torch.dtype = torch.float32) -> ExpertProfile:
    generator = torch.Generator().manual_seed(pairs)

    def random(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator).to(dtype)

    tensors = {
        field.name: random(pairs) if field.name.endswith("_P") else random(pairs, layers, experts)
        for field in fields(ExpertProfile)
        if field.name.endswith(("_P", "_PLE"))
    }
    return ExpertProfile(
        model_fingerprint=MODEL,
        top_k=2,
        pairs=tuple(PairRecord(f"goal {n} é\u2028", "role_play") for n in range(pairs)),
        dropped=(DroppedPair("goal", "persuasion", "the plain request was answered"),),
        **tensors,
    )


def expert_set() -> ExpertSet:
    return ExpertSet(
        model_fingerprint=MODEL,
        method="frequency",
        k=3,
        layers=((0, 2), (), (1,)),
        scores_LE=torch.arange(9.0, dtype=torch.float64).view(3, 3) / 7,
        stability=0.1 + 0.2,
        inclusion_LE=torch.rand(3, 3),
    )


GOLD = (GoldAnswer("a", 1 / 3, 4), GoldAnswer("b", 7.5, 12))


def result() -> EvalResult:
    groups = {"plain": Rate(1.0, 0.8, 1.0, 20, 1), "attack:role_play": Rate(1 / 3, 0.1, 0.5, 20, 0)}
    return EvalResult(MODEL, groups, gold_loss=2.5549, gold_n=2, samples="samples.jsonl", gold=GOLD)


def delta() -> Delta:
    old = {"layers.0.experts": torch.rand(3, 2), "router": torch.rand(2).bfloat16()}
    new = {name: tensor + 1 for name, tensor in old.items()}
    new["layers.0.experts"][1] = old["layers.0.experts"][1]
    before = {**old, "layers.0.experts": old["layers.0.experts"][[0, 2]]}
    slices = {"layers.0.experts": (0, 2), "router": None}
    return Delta.between(before, new, slices, base_model=MODEL, result_model=MODEL)


def directions() -> Directions:
    generator = torch.Generator().manual_seed(0)
    return Directions(
        model_fingerprint=MODEL,
        positions=(-2, -1),
        refusal_tokens=(40, 7),
        candidates=((0, 2), (1, 0)),
        moe_layers=(1, 3),
        prompts=(
            ScoredPrompt("harmful", "how é\u2028", 3.25, True),
            ScoredPrompt("harmful", "what", -0.5, False),
            ScoredPrompt("harmless", "why", -1 / 3, True),
        ),
        layer_NPD=torch.randn(4, 2, 5, generator=generator),
        expert_CPD=torch.randn(2, 2, 5, generator=generator),
        routing_difference_LE=torch.tensor([[0.0, 0.01, -0.3], [0.1, 0.0, 0.0]], dtype=torch.float64),
    )


def steering() -> SteeringResult:
    candidates = (
        SteeringCandidate("layer", 2, (), -1, 1.0, 32, -4.5, 0.01, 2.0, 0.125, 25, kept=True),
        SteeringCandidate("pair", 1, ((0, 2), (1, 0)), -2, 400.0, 8, None, None, reason="not finite"),
    )
    rate = Rate(0.5, 0.4, 0.6, 100, 1)
    return SteeringResult(
        model_fingerprint=MODEL,
        mode="suppress",
        candidates=candidates,
        chosen={"layer": 0},
        conditions=(
            SteeringCondition("original", "reference", {"plain": rate}),
            SteeringCondition("layer", "layer", {"plain": rate}, harmless_kl=0.02),
        ),
        changes=(AuditChange("layer", "original", "plain", -0.6, -0.7, -0.5, 0.01),),
        figures={"share": AuditFigure(0.78)},
        claim="One direction takes 60 points of refusal away.",
    )


KINDS = {
    "profile": Kind(profile(), ExpertProfile.load, ("profile.json", "profile.safetensors")),
    "experts": Kind(expert_set(), ExpertSet.load, ("experts.json", "experts.safetensors")),
    "evaluation": Kind(result(), EvalResult.load, ("evaluation.json",)),
    "directions": Kind(directions(), Directions.load, ("directions.json", "directions.safetensors")),
    "steering": Kind(steering(), SteeringResult.load, ("steering.json",)),
    "delta": Kind(delta(), Delta.load, ("delta.json", "delta.safetensors")),
}
FILES = [(kind, file) for kind, entry in KINDS.items() for file in entry.files]


def contents(artifact: Saves) -> dict[str, Any]:
    """Everything in an artifact, with tensors as hashes of their names, types, shapes and bits."""

    def plain(value: Any) -> Any:
        if isinstance(value, Tensor):
            return tensors_fingerprint({"it": value})
        if isinstance(value, Mapping):
            return {key: plain(inner) for key, inner in value.items()}
        return value

    return {name: plain(getattr(artifact, name)) for name in artifact.__dataclass_fields__}  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_is_what_is_loaded(tmp_path: Path, kind: str) -> None:
    entry = KINDS[kind]
    entry.artifact.save(tmp_path / "new folder")
    assert contents(entry.load(tmp_path / "new folder")) == contents(entry.artifact)
    assert sorted(path.name for path in (tmp_path / "new folder").iterdir()) == sorted(entry.files)


@settings(deadline=None, max_examples=20)
@given(
    sizes=st.tuples(*[st.integers(1, 4)] * 2, st.integers(2, 5)),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    goal=st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
)
def test_any_profile_comes_back(sizes: tuple[int, int, int], dtype: torch.dtype, goal: str) -> None:
    pairs, layers, experts = sizes
    made = replace(profile(pairs, layers, experts, dtype=dtype), dropped=(DroppedPair(goal, goal, goal),))
    with TemporaryDirectory() as folder:
        made.save(Path(folder))
        assert contents(ExpertProfile.load(Path(folder))) == contents(made)


@settings(deadline=None, max_examples=20)
@given(
    layers=st.lists(st.sets(st.integers(0, 6)), min_size=1, max_size=4),
    stability=st.none() | st.floats(0, 1),
    inclusion=st.booleans(),
)
def test_any_expert_set_comes_back(layers: list[set[int]], stability: float | None, inclusion: bool) -> None:
    scores_LE = torch.randn(len(layers), 7, dtype=torch.float64)
    scores_LE[0, :2] = torch.tensor([-0.0, math.nan])
    made = replace(
        expert_set(),
        layers=tuple(tuple(sorted(layer)) for layer in layers),
        scores_LE=scores_LE,
        stability=stability,
        inclusion_LE=torch.rand(len(layers), 7) if inclusion else None,
    )
    with TemporaryDirectory() as folder:
        made.save(Path(folder))
        assert contents(ExpertSet.load(Path(folder))) == contents(made)
    assert made.count == sum(map(len, layers))
    assert made.total == 7 * len(layers)


@settings(deadline=None, max_examples=20)
@given(
    rate=st.floats(0, 1),
    n=st.integers(0, 10**6),
    loss=st.none() | st.floats(),
    group=st.text(st.characters(exclude_categories=["Cs"]), max_size=9),
)
def test_any_evaluation_comes_back(rate: float, n: int, loss: float | None, group: str) -> None:
    made = replace(result(), groups={group: Rate(rate, 0.0, 1.0, n, 0)}, gold_loss=loss)
    with TemporaryDirectory() as folder:
        made.save(Path(folder))
        assert repr(EvalResult.load(Path(folder))) == repr(made)


def test_an_evaluation_of_before_gold_losses_were_kept_loads(tmp_path: Path) -> None:
    result().save(tmp_path)
    old = load_document(tmp_path / "evaluation.json", "evaluation")
    assert old.pop("gold") == [{"id": "a", "nats": 1 / 3, "tokens": 4}, {"id": "b", "nats": 7.5, "tokens": 12}]
    save_document(tmp_path / "evaluation.json", "evaluation", old)
    assert EvalResult.load(tmp_path) == replace(result(), gold=())


def test_rates_by_length_come_back_with_their_lengths(tmp_path: Path) -> None:
    rate = Rate(0.5, 0.25, 0.75, 8)
    made = replace(result(), lengths={"attack:role_play": {10: rate, 2: rate}})
    made.save(tmp_path)
    assert EvalResult.load(tmp_path) == made


@pytest.mark.parametrize("pairs", [[[0, 0.5], [0, 1.0]], [["0", 0.5]], [[0]], 5, {"0": 0.5}])
def test_a_graft_has_one_coefficient_per_layer(tmp_path: Path, pairs: object) -> None:
    made = Graft(MODEL, "task", MODEL, "extracted", "adapter", {3: 0.25, 0: 1.5}, "layer", shots=4)
    made.save(tmp_path)
    path = tmp_path / "seawall_graft.json"
    assert json.loads(path.read_text())["coefficients"] == [[0, 1.5], [3, 0.25]]
    assert Graft.load(tmp_path).document() == {**made.document(), "coefficients": {"0": 1.5, "3": 0.25}}
    rewrite(path, coefficients=pairs)
    with pytest.raises(ArtifactError, match="coefficients"):
        Graft.load(tmp_path)


def error_of(kind: str, folder: Path) -> str:
    with pytest.raises(ArtifactError) as caught:
        KINDS[kind].load(folder)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(("kind", "file"), FILES)
def test_a_missing_file_is_named(tmp_path: Path, kind: str, file: str) -> None:
    KINDS[kind].artifact.save(tmp_path)
    (tmp_path / file).unlink()
    assert f"{tmp_path / file} is missing" in error_of(kind, tmp_path)


@pytest.mark.parametrize(("kind", "file"), FILES)
def test_a_folder_in_place_of_a_file_is_refused(tmp_path: Path, kind: str, file: str) -> None:
    KINDS[kind].artifact.save(tmp_path)
    (tmp_path / file).unlink()
    (tmp_path / file).mkdir()
    assert "cannot be read" in error_of(kind, tmp_path)


@pytest.mark.parametrize(("kind", "file"), FILES)
def test_a_truncated_file_is_refused_wherever_it_was_cut(tmp_path: Path, kind: str, file: str) -> None:
    KINDS[kind].artifact.save(tmp_path)
    whole = (tmp_path / file).read_bytes()
    # The last byte of a JSON file is a line feed, which says nothing.
    last = len(whole) - (2 if file.endswith(".json") else 1)
    for length in {*range(0, last, 7), last}:
        (tmp_path / file).write_bytes(whole[:length])
        assert str(tmp_path / file) in error_of(kind, tmp_path)


@pytest.mark.parametrize(("kind", "file"), FILES)
def test_one_flipped_bit_is_refused_wherever_it_is(tmp_path: Path, kind: str, file: str) -> None:
    KINDS[kind].artifact.save(tmp_path)
    whole = (tmp_path / file).read_bytes()
    meaning = json.loads(whole) if file.endswith(".json") else None
    for offset in range(0, len(whole), 3):
        flipped = bytearray(whole)
        flipped[offset] ^= 1 << offset % 8
        if meaning is not None and same_json(flipped, meaning):
            continue  # the case of a letter in an escape such as \\u00e9
        (tmp_path / file).write_bytes(flipped)
        assert str(tmp_path / file) in error_of(kind, tmp_path)


def same_json(text: bytearray, meaning: object) -> bool:
    try:
        found = json.loads(text.decode())
    except ValueError:
        return False
    return bool(found == meaning)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "text", ["", "[]", "null", "{}", '{"schema": 1}', "[" * 100_000, '{"schema": 1, "kind": "KIND"}', "\x00", "NaN"]
)
def test_another_json_is_refused(tmp_path: Path, kind: str, text: str) -> None:
    KINDS[kind].artifact.save(tmp_path)
    path = tmp_path / KINDS[kind].files[0]
    path.write_text(text.replace("KIND", kind))
    assert str(path) in error_of(kind, tmp_path)


def rewrite(path: Path, **changes: object) -> None:
    """Change a JSON file and seal it again, as an attacker or another version could."""
    document = {**json.loads(path.read_text()), **changes}
    document = {key: value for key, value in document.items() if key != "seal" and value is not ...}
    path.write_text(json.dumps({**document, "seal": canonical_hash(document)}))


@pytest.mark.parametrize("kind", KINDS)
def test_another_version_or_kind_is_refused(tmp_path: Path, kind: str) -> None:
    KINDS[kind].artifact.save(tmp_path)
    rewrite(tmp_path / KINDS[kind].files[0], schema=SCHEMA + 1)
    assert f"schema {SCHEMA + 1}" in error_of(kind, tmp_path)
    rewrite(tmp_path / KINDS[kind].files[0], schema=SCHEMA, kind="gene")
    assert "kind 'gene'" in error_of(kind, tmp_path)


@pytest.mark.parametrize(
    ("kind", "changes", "part"),
    [
        ("profile", {"top_k": 99}, "top_k of at least 1"),
        ("profile", {"top_k": "2"}, "top_k is wrong"),
        ("profile", {"top_k": ...}, "top_k is wrong"),
        ("profile", {"extra": 1}, "extra is wrong"),
        ("profile", {"pairs": []}, "counts of shape P x L x E for P pairs"),
        ("profile", {"pairs": [["goal"]]}, "pairs.0"),
        ("experts", {"layers": [[2, 0], [], [1]]}, "ascending expert indices below 3"),
        ("experts", {"layers": [[0, 0], [], [1]]}, "ascending expert indices below 3"),
        ("experts", {"layers": [[0, 3], [], [1]]}, "ascending expert indices below 3"),
        ("experts", {"layers": [[-1], [], [1]]}, "ascending expert indices below 3"),
        ("experts", {"layers": [[0]]}, "scores of shape L x E for L layers"),
        ("experts", {"k": True}, "k is wrong"),
        ("evaluation", {"groups": {"plain": {"rate": 1.0}}}, "groups.plain"),
        ("evaluation", {"groups": []}, "groups is wrong"),
        ("evaluation", {"groups": {"plain": {"rate": 1.0, "low": 0.5, "high": 1.0, "n": 3, "seen": 1}}}, "plain.seen"),
        ("evaluation", {"gold_loss": ...}, "gold_loss is wrong"),
        ("evaluation", {"lengths": {"plain": {"many": []}}}, "lengths.plain.many"),
        ("experts", {"stability": ...}, "stability is wrong"),
        ("steering", {"claim": ...}, "claim is wrong"),
        ("directions", {"positions": [-1, -2]}, "negative and ascending"),
        ("directions", {"positions": [-1, 0]}, "negative and ascending"),
        ("directions", {"positions": [-1]}, "P positions"),
        ("directions", {"candidates": [[0, 2]]}, "C x P x D for C candidates"),
        ("directions", {"candidates": [[0, 2], [1, 3]]}, "distinct experts within L x E"),
        ("directions", {"candidates": [[0, 2], [0, 2]]}, "distinct experts within L x E"),
        ("directions", {"moe_layers": [1, 4]}, "a decoder layer below N"),
        ("directions", {"moe_layers": [1]}, "each of L MoE layers"),
        ("directions", {"prompts": [["harmful", "how", 1.0]]}, "prompts.0"),
        ("directions", {"prompts": [["benign", "how", 1.0, True]]}, "prompts.0"),
        ("steering", {"chosen": {"layer": 2}}, "choices among its 2 candidates"),
        ("steering", {"chosen": {"layer": -1}}, "choices among its 2 candidates"),
        ("steering", {"conditions": []}, "its own, distinct conditions"),
        ("steering", {"mode": "remove"}, "mode is wrong"),
        ("steering", {"candidates": [{"family": "layer"}]}, "candidates.0"),
        ("delta", {"slices": {"router": None}}, "exactly the tensors"),
        ("delta", {"slices": {"router": None, "layers.0.experts": [2, 0]}}, "ascending indices"),
        ("delta", {"slices": {"router": None, "layers.0.experts": [0]}}, "ascending indices"),
        ("delta", {"encoding": "difference"}, "encoding"),
        ("delta", {"tensors": {}}, "lists other tensors"),
        ("delta", {"tensors": ...}, "lists other tensors"),
        ("delta", {"sha256": ...}, "damaged or was changed"),
    ],
)
def test_fields_that_contradict_each_other_are_refused(
    tmp_path: Path, kind: str, changes: dict[str, object], part: str
) -> None:
    KINDS[kind].artifact.save(tmp_path)
    rewrite(tmp_path / KINDS[kind].files[0], **changes)
    assert part in error_of(kind, tmp_path)


@pytest.mark.parametrize(
    ("kind", "tensors", "part"),
    [
        ("experts", {"scores_LE": torch.zeros(3, 3), "more": torch.zeros(1)}, "the tensors scores_LE"),
        ("experts", {"scores_LE": torch.zeros(9)}, "scores of shape L x E"),
        ("experts", {"scores_LE": torch.zeros(3, 3), "inclusion_LE": torch.zeros(3, 2)}, "as large as scores_LE"),
        ("profile", {"attack_counts_PLE": torch.zeros(2, 2, 3)}, "the tensors attack_tokens_P"),
        ("delta", {"router": torch.zeros(2), "layers.0.experts": torch.zeros(2, 2)}, "integers in"),
        ("directions", {"layer_NPD": torch.zeros(4, 2, 5)}, "the tensors layer_NPD"),
    ],
)
def test_other_tensors_are_refused_even_with_fitting_hashes(
    tmp_path: Path, kind: str, tensors: dict[str, Tensor], part: str
) -> None:
    KINDS[kind].artifact.save(tmp_path)
    path, data = (tmp_path / name for name in KINDS[kind].files)
    save_file(tensors, data)
    listed = {name: [str(t.dtype).removeprefix("torch."), list(t.shape)] for name, t in tensors.items()}
    rewrite(path, sha256=file_hash(data), tensors=listed)
    assert part in error_of(kind, tmp_path)


def test_a_file_that_is_no_safetensors_file_is_refused_even_with_a_fitting_hash(tmp_path: Path) -> None:
    KINDS["delta"].artifact.save(tmp_path)
    data = tmp_path / "delta.safetensors"
    data.write_bytes(b"\x80\x04pickle")
    rewrite(tmp_path / "delta.json", sha256=file_hash(data))
    assert "is not a safetensors file" in error_of("delta", tmp_path)


def test_files_of_two_runs_do_not_mix(tmp_path: Path) -> None:
    expert_set().save(tmp_path / "one")
    replace(expert_set(), scores_LE=torch.zeros(3, 3, dtype=torch.float64)).save(tmp_path / "two")
    shutil.copy(tmp_path / "two" / "experts.safetensors", tmp_path / "one" / "experts.safetensors")
    assert "damaged or was changed" in error_of("experts", tmp_path / "one")


def test_an_artifact_of_another_model_is_refused_with_both_names() -> None:
    require_model(MODEL, expected=MODEL, artifact="profile")
    with pytest.raises(ArtifactError, match=r"made from another model.*sha256:abab.*sha256:cdcd.*make it again"):
        require_model(MODEL, expected="sha256:" + "cd" * 32, artifact="profile")


def test_the_fingerprint_sees_names_types_shapes_and_bits_but_not_order_or_layout() -> None:
    base = {"a": torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "b": torch.zeros(2)}
    print_of = tensors_fingerprint(base)
    transposed = base["a"].t().contiguous().t()
    assert tensors_fingerprint({"b": base["b"], "a": transposed}) == print_of
    others = [
        {**base, "a": base["a"].view(4)},
        {**base, "b": -base["b"]},
        {**base, "b": base["b"].view(torch.int32)},
        {"a": base["a"], "c": base["b"]},
        {"a": base["a"]},
        {**base, "c": torch.zeros(0)},
    ]
    prints = {tensors_fingerprint(other) for other in others}
    assert len(prints | {print_of}) == len(others) + 1


def test_directions_of_another_model_are_refused(tmp_path: Path) -> None:
    directions().save(tmp_path)
    assert Directions.load(tmp_path, fingerprint=MODEL).positions == (-2, -1)
    with pytest.raises(ArtifactError, match="the set of directions was made from another model"):
        Directions.load(tmp_path, fingerprint="sha256:" + "cd" * 32)


def test_directions_are_found_by_layer_expert_and_position() -> None:
    made = directions()
    assert torch.equal(made.of_layer(3, -2), made.layer_NPD[3, 0])
    assert torch.equal(made.of_expert((1, 0), -1), made.expert_CPD[1, 1])
    assert made.num_layers == 4
    assert (made.above(0.2), made.below(0.2)) == (((0, 2),), ((1, 0),))
    assert made.above(0.1) == ((0, 2), (1, 0))
    assert made.count("harmful", used=True) == made.count("harmful", used=False) == 1


def test_a_steering_result_gives_what_was_chosen_and_what_changed() -> None:
    made = steering()
    assert made.choice("layer") == made.candidates[0]
    assert made.choice("expert") is None
    assert made.of_family("pair") == [made.candidates[1]]
    assert made.condition("layer").harmless_kl == 0.02
    assert made.change("layer", "original", "plain") == made.changes[0]
    assert made.change("layer", "original", "benign") is None
