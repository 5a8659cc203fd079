"""Safe LoRA does to an adapter what the formula says, to those matrices that it should, and to nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from anchors import anchor_of, matrix_of
from checkpoint_pairs import config_of, write, write_pair
from families import tiny
from seawall.artifacts.anchor import Anchor, AnchorMatrix
from seawall.errors import ConfigError, UnsupportedModelError
from seawall.methods.tune.alignment import AlignmentDifference
from seawall.methods.tune.anchor import extract_anchor
from seawall.methods.tune.safelora import SafeLoraReport, project
from seawall.models.files.stream import matrices, outline

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
RANK = 6
LINEARS: dict[str, Any] = {"target_modules": ["q_proj", "v_proj"]}
EXPERTS: dict[str, Any] = {"target_modules": [], "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]}


def adapted(family: str, *, seed: int = 3, **settings: Any) -> Any:
    torch.manual_seed(seed)
    model = peft.get_peft_model(tiny(family), peft.LoraConfig(r=3, lora_alpha=6, **settings))
    with torch.no_grad():
        for name, one in model.named_parameters():
            if "lora_" in name:
                one.normal_(std=0.3)
    return model


def changes(family: str, *, rank: int = RANK, seed: int = 1) -> dict[str, Tensor]:
    """V of every matrix, as (..., rows, columns)."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, one in matrices(tiny(family)).items():
        *stack, rows, columns = (*one.shape[:-2], one.shape[-1], one.shape[-2]) if one.transposed else one.shape
        left = torch.randn(*stack, rows, rank, generator=generator)
        found[name] = left @ torch.randn(*stack, rank, columns, generator=generator)
    return found


def anchor_for(family: str, moved: dict[str, Tensor], *, rank: int = RANK) -> Anchor:
    """Keeps every direction, so that C is exact."""
    found = matrices(tiny(family))
    return anchor_of({name: matrix_of(V, rank=rank, transposed=found[name].transposed) for name, V in moved.items()})


def updates(model: Any) -> dict[str, Tensor]:
    """dW of every adapted parameter as PEFT makes it, by name, as (..., rows, columns) of the stored weight."""
    found = {}
    for name, one in model.named_modules():
        if hasattr(one, "get_delta_weight") and "default" in getattr(one, "lora_A", {}):
            key = getattr(one, "parameter_name", "weight")
            plain = name.removeprefix("base_model.model.").replace(".base_layer", "")
            found[f"{plain}.{key}"] = one.get_delta_weight("default").detach().clone()
    return found


def expected(V: Tensor, dW: Tensor, *, reference: bool = True) -> tuple[Tensor, Tensor]:
    """C dW with C formed, and the cosine of it and dW, in float64."""
    V, dW = V.double(), dW.double()
    C = V @ V.mT / torch.linalg.matrix_norm(V)[..., None, None] if reference else V @ torch.linalg.pinv(V, rtol=1e-5)
    made = C @ dW
    norms = torch.linalg.matrix_norm(made) * torch.linalg.matrix_norm(dW)
    return made, (made * dW).sum((-2, -1)) / norms


def cosines(report: SafeLoraReport) -> dict[str, float]:
    return {one.name: one.cosine for one in report.matrices if one.cosine is not None}


@pytest.mark.parametrize(("family", "settings"), [("llama", LINEARS), ("mixtral", EXPERTS), ("gpt_oss", EXPERTS)])
@pytest.mark.parametrize("projector", ["reference", "subspace"])
def test_it_is_the_formula_formed_densely(family: str, settings: dict[str, Any], projector: Any) -> None:
    model, moved = adapted(family, **settings), changes(family)
    transposed = {name: one.transposed for name, one in matrices(tiny(family)).items()}
    before = updates(model)
    report = project(model, anchor_for(family, moved), threshold=1.0, projector=projector)
    found = cosines(report)
    after = updates(model)
    assert after.keys() == before.keys()
    assert len(before) >= 6
    for name, dW in before.items():
        turned = dW.mT if transposed[name] else dW
        made, cosine = expected(moved[name], turned, reference=projector == "reference")
        stored = made.mT if transposed[name] else made
        torch.testing.assert_close(after[name], stored.float(), rtol=1e-3, atol=1e-4)
        names = [name] if cosine.ndim == 0 else [f"{name}[{expert}]" for expert in range(len(cosine))]
        assert [found[one] for one in names] == pytest.approx(cosine.reshape(-1).tolist(), rel=1e-3)
    assert len(report.projected) == len(report.matrices)


@pytest.mark.parametrize(("family", "settings"), [("llama", LINEARS), ("mixtral", EXPERTS), ("gpt_oss", EXPERTS)])
def test_all_of_the_difference_is_read_from_the_checkpoints(
    family: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    aligned, base, moved = write_pair(tmp_path, family)
    transposed = {name: one.transposed for name, one in matrices(tiny(family)).items()}
    model = adapted(family, **settings)
    before = updates(model)
    difference = AlignmentDifference(outline(aligned), outline(base))
    report = project(model, None, difference=difference, threshold=1.0)
    after, found = updates(model), cosines(report)
    for name, dW in before.items():
        made, cosine = expected(moved[name], dW.mT if transposed[name] else dW)
        torch.testing.assert_close(after[name], (made.mT if transposed[name] else made).float(), rtol=1e-3, atol=1e-4)
        names = [name] if cosine.ndim == 0 else [f"{name}[{expert}]" for expert in range(len(cosine))]
        assert [found[one] for one in names] == pytest.approx(cosine.reshape(-1).tolist(), rel=1e-3)


def test_a_truncated_anchor_would_delete_what_all_of_the_difference_leaves(tmp_path: Path) -> None:
    base, aligned = tiny("llama"), tiny("llama")
    for layer in range(3):  # alignment moved the matrix by a rotation: every direction counts alike
        weight = aligned.get_parameter(f"model.layers.{layer}.self_attn.q_proj.weight").data
        weight += torch.linalg.qr(torch.randn(weight.shape, generator=torch.Generator().manual_seed(layer))).Q
    sides = write(tmp_path / "aligned", aligned), write(tmp_path / "base", base)
    truncated = extract_anchor(config_of(*sides, targets=("q_proj",), rank=2))
    model = adapted("llama", target_modules=["q_proj"])
    before = updates(model)
    for name, dW in before.items():
        matrix = truncated.matrices[name]
        part = matrix.basis * matrix.singular_values @ matrix.basis.mT  # V of the two directions alone
        assert float(expected(part, dW)[1]) < 0.5
    difference = AlignmentDifference(*(outline(folder) for folder in sides))
    report = project(model, truncated, difference=difference, threshold=0.707)
    assert report.projected == ()
    assert min(cosines(report).values()) > 0.999
    assert all(torch.equal(one, before[name]) for name, one in updates(model).items())
    refused(r"leaves out directions .* got 6% of the squared norm of V in .*q_proj", model, truncated, threshold=0.707)
    refused("projector: subspace needs an anchor", model, None, difference=difference, layers=1, projector="subspace")


def one_by_one(model: Any, anchor: Anchor) -> dict[str, float]:
    """The cosines, with nothing projected."""
    before = updates(model)
    report = project(model, anchor, layers=0)
    assert all(torch.equal(one, before[name]) for name, one in updates(model).items())
    assert report.projected == ()
    assert {one.kept for one in report.matrices} == {1.0}
    return cosines(report)


def test_those_below_the_threshold_are_projected_and_no_other() -> None:
    anchor = anchor_for("llama", changes("llama"))
    model = adapted("llama", **LINEARS)
    found = one_by_one(model, anchor)
    middle = sorted(found.values())[3]
    before = updates(model)
    report = project(model, anchor, threshold=middle)
    low = {name for name, cosine in found.items() if cosine < middle}
    assert set(report.projected) == low
    assert len(low) == 3
    for name, one in updates(model).items():
        assert torch.equal(one, before[name]) is (name not in low)
    assert str(report).startswith("3 of 6 updates projected, ")


@pytest.mark.parametrize("count", [1, 4, 100])
def test_so_many_experts_of_the_lowest_cosines_are_projected(count: int) -> None:
    anchor = anchor_for("mixtral", changes("mixtral"))
    model = adapted("mixtral", **EXPERTS)
    found = one_by_one(model, anchor)
    assert len(found) == 3 * 2 * 8
    lowest = sorted(found, key=found.__getitem__)[:count]
    before = updates(model)
    report = project(model, anchor, layers=count)
    assert set(report.projected) == set(lowest)
    for name, stack in updates(model).items():
        for expert, one in enumerate(stack):
            assert torch.equal(one, before[name][expert]) is (f"{name}[{expert}]" not in lowest)


def test_what_lies_within_is_left_and_what_lies_outside_goes() -> None:
    moved = changes("llama", rank=5)
    anchor = anchor_for("llama", moved, rank=5)
    model = adapted("llama", **LINEARS)
    names = list(updates(model))
    with torch.no_grad():
        for name in names:
            U = anchor.matrices[name].basis
            factor = model.get_submodule(f"base_model.model.{name.removesuffix('.weight')}").lora_B["default"].weight
            within = U @ (U.mT @ factor)
            factor.copy_(within if "q_proj" in name else factor - within)
    before = updates(model)
    report = project(model, anchor, threshold=0.5, projector="subspace")
    assert set(report.projected) == {name for name in names if "v_proj" in name}
    for name, one in updates(model).items():
        assert torch.equal(one, before[name]) if "q_proj" in name else float(one.abs().max()) < 1e-5
    assert max(one.kept for one in report.matrices if one.projected) < 1e-5


@pytest.mark.parametrize("unmoved", ["keep", "remove"])
def test_matrices_that_alignment_did_not_move(unmoved: Any) -> None:
    moved = changes("llama")
    still = [name for name in moved if ".0." in name]
    matrix = {name: moved[name] * (name not in still) for name in moved}
    anchor = anchor_for("llama", matrix)
    empty = {name: anchor.matrices[name] for name in still}
    for name, one in empty.items():
        empty[name] = AnchorMatrix(
            one.basis[:, :0], one.singular_values[:0], one.norm, columns=one.columns, transposed=one.transposed
        )
    anchor = anchor_of({**anchor.matrices, **empty})
    model = adapted("llama", **LINEARS)
    before = updates(model)
    report = project(model, anchor, layers=1, unmoved=unmoved)
    assert len([one for one in report.matrices if one.cosine is None]) == 2
    gone = [name for name, one in updates(model).items() if not one.any()]
    assert gone == ([] if unmoved == "keep" else [name for name in before if ".0." in name])
    assert len(report.projected) == 1 + len(gone)


def test_an_untrained_adapter_stays_and_says_nothing() -> None:
    model = peft.get_peft_model(tiny("llama"), peft.LoraConfig(r=3, **LINEARS))
    report = project(model, anchor_for("llama", changes("llama")), threshold=1.0, unmoved="remove")
    assert report.projected == ()
    assert str(report) == "0 of 6 updates projected; no cosine, 6 without one"


@pytest.mark.parametrize(("family", "settings"), [("llama", LINEARS), ("mixtral", EXPERTS)])
def test_a_saved_adapter_is_projected_and_saved_again(tmp_path: Path, family: str, settings: dict[str, Any]) -> None:
    aligned, base, _ = write_pair(tmp_path / "pair", family)
    anchor = extract_anchor(config_of(aligned, base, energy=1.0))
    adapted(family, **settings).save_pretrained(tmp_path / "adapter")
    loaded = peft.PeftModel.from_pretrained(tiny(family), tmp_path / "adapter")
    assert not any(one.requires_grad for one in loaded.parameters())
    report = project(loaded, anchor, threshold=1.0)
    assert len(report.projected) == len(report.matrices) > 0
    loaded.save_pretrained(tmp_path / "projected")
    again = peft.PeftModel.from_pretrained(tiny(family), tmp_path / "projected")
    kept = updates(again)
    assert all(torch.equal(one, kept[name]) for name, one in updates(loaded).items())


def test_bfloat16_factors_keep_their_type() -> None:
    model, plain = (adapted("llama", **LINEARS) for _ in range(2))
    for name, one in model.named_parameters():
        if "lora_" in name:
            one.data = one.data.bfloat16()
    anchor = anchor_for("llama", changes("llama"))
    found, exact = (cosines(project(one, anchor, threshold=1.0)) for one in (model, plain))
    assert found == pytest.approx(exact, rel=0.05)
    kinds = {one.dtype for name, one in model.named_parameters() if "lora_" in name}
    assert kinds == {torch.bfloat16}


def refused(
    saying: str, model: Any, anchor: Anchor | None, kind: type[Exception] = ConfigError, **settings: Any
) -> None:
    before = {name: one.clone() for name, one in model.named_parameters()}
    with pytest.raises(kind, match=saying) as caught:
        project(model, anchor, **settings)
    assert "\n" not in str(caught.value)
    for name, one in model.named_parameters():
        torch.testing.assert_close(one, before[name], rtol=0, atol=0, equal_nan=True)


def test_wrong_input_is_refused_and_nothing_is_written() -> None:
    moved = changes("llama")
    anchor, model = anchor_for("llama", moved), adapted("llama", **LINEARS)
    refused("a threshold or a number of layers; got neither", model, anchor)
    refused("a threshold or a number of layers; got both", model, anchor, threshold=0.3, layers=2)
    refused(r"threshold of Safe LoRA must be .*; got 1.5", model, anchor, threshold=1.5)
    refused(r"threshold of Safe LoRA must be .*; got nan", model, anchor, threshold=float("nan"))
    refused("number of layers to project must be .*; got -1", model, anchor, layers=-1)
    refused("there is no adapter to project", tiny("llama"), anchor, layers=1)
    some = anchor_of({name: one for name, one in anchor.matrices.items() if "q_proj" in name})
    refused("that the anchor lacks; got 3 of 6, .*v_proj", model, some, layers=1)
    other = anchor_of({name: matrix_of(V[:-1]) for name, V in moved.items()})
    refused("the anchor is of another model", model, other, layers=1)
    refused(
        "got a variant of LoRA; expected plain LoRA",
        adapted("llama", use_dora=True, **LINEARS),
        anchor,
        UnsupportedModelError,
        layers=1,
    )
    ia3 = peft.get_peft_model(tiny("llama"), peft.IA3Config(target_modules=["k_proj"], feedforward_modules=[]))
    refused("k_proj .*; got 0 active", ia3, anchor, UnsupportedModelError, layers=1)
    with torch.no_grad():
        next(one for name, one in reversed(list(model.named_parameters())) if "lora_B" in name)[0, 0] = torch.nan
    refused("is not finite", model, anchor, threshold=1.0)
    merged = adapted("llama", **LINEARS)
    merged.merge_adapter()
    refused("the adapter is merged into the weights", merged, anchor, layers=1)


def test_only_the_active_adapter_is_projected() -> None:
    model = adapted("llama", **LINEARS)
    model.add_adapter("other", peft.LoraConfig(r=2, init_lora_weights=False, target_modules=["q_proj", "o_proj"]))
    before = {name: one.clone() for name, one in model.named_parameters()}
    report = project(model, anchor_for("llama", changes("llama")), threshold=1.0)
    assert len(report.matrices) == 6
    moved = {name for name, one in model.named_parameters() if not torch.equal(one, before[name])}
    assert moved == {name for name in before if "lora_B.default" in name}
