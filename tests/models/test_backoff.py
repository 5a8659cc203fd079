"""Forward passes under little memory: every row once; the size that fits stays; a failure is one line."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from families import tiny, tiny_tokenizer
from limited import limited_memory
from seawall.config.gene import GeneExtract
from seawall.data.types import Exchange, user
from seawall.errors import SeawallError
from seawall.methods.gene.distil import distil
from seawall.methods.gene.examples import distillation_examples, teacher_predictions
from seawall.methods.rasa.profiling.counting import count_routing
from seawall.methods.rasa.repair.drift import expert_usage
from seawall.methods.rasa.selection.sensitivity import refusal_sensitivity
from seawall.models.backoff import in_buckets, memory_remedy
from seawall.models.generate import generate
from seawall.models.lora.attach import attach_adapter, find_points
from seawall.models.moe.find import MoEModel, find_moe

PROMPTS = [user(text) for text in ("sing", "cook", "draw a cat", "count", "a much longer line of text", "bake")]


def _fails_above(rows: int, tried: list[int]) -> Callable[[list[int]], int]:
    def work(positions: list[int]) -> int:
        tried.append(len(positions))
        if len(positions) > rows:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return sum(positions)

    return work


@pytest.mark.parametrize(("rows", "tried"), [(8, [8, 3]), (4, [8, 4, 4, 3]), (3, [8, 4, 2, 2, 2, 2, 2, 1])])
def test_each_position_is_computed_once_and_the_size_that_fits_is_kept(rows: int, tried: list[int]) -> None:
    attempts: list[int] = []
    results = list(in_buckets([range(8), range(8, 11)], _fails_above(rows, attempts)))
    assert attempts == tried
    assert [position for positions, _ in results for position in positions] == list(range(11))
    assert all(value == sum(positions) for positions, value in results)


def test_one_row_that_does_not_fit_is_one_line() -> None:
    with pytest.raises(SeawallError, match=r"in a forward pass; got one row; lower steer\.batch_size"):
        list(in_buckets([range(4)], _fails_above(0, []), remedy="lower steer.batch_size"))


def test_other_errors_pass_through() -> None:
    def work(positions: list[int]) -> int:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        list(in_buckets([range(4)], work))
    with pytest.raises(RuntimeError, match="shapes do not match"), memory_remedy("the repair", "set x"):
        work([])


def _usage(moe: MoEModel) -> torch.Tensor:
    return expert_usage(moe, tiny_tokenizer(), PROMPTS, batch_size=6)


def _counts(moe: MoEModel) -> torch.Tensor:
    replies = generate(moe.model, tiny_tokenizer(), PROMPTS, max_new_tokens=3, batch_size=2)
    return count_routing(moe, replies, batch_size=6)[0].counts_PLE


def _sensitivity(moe: MoEModel) -> torch.Tensor:
    refusals = [Exchange(prompt, "No.", "goal") for prompt in PROMPTS]
    return refusal_sensitivity(moe, tiny_tokenizer(), refusals, batch_size=6)


@pytest.mark.parametrize("measure", [_usage, _counts, _sensitivity])
def test_forward_passes_of_the_stages_go_on_with_fewer_rows(measure: Callable[[MoEModel], torch.Tensor]) -> None:
    moe = find_moe(tiny("glm4_moe"))
    expected = measure(moe)
    with limited_memory(moe.model, 2) as sizes:
        values = measure(moe)
    assert max(sizes) > 2
    torch.testing.assert_close(values.sum(0), expected.sum(0), rtol=1e-4, atol=1e-5)


def test_a_gene_is_distilled_in_smaller_passes_to_the_same_adapter() -> None:
    settings = GeneExtract.model_validate({"epochs": 1, "batch_size": 6})
    teacher, results = tiny("glm4_moe"), []
    generator = torch.Generator().manual_seed(0)
    for parameter in teacher.parameters():
        parameter.data.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    examples = distillation_examples(tiny_tokenizer(), [Exchange(prompt, "No.") for prompt in PROMPTS], [])
    targets = teacher_predictions(teacher, examples, 0, batch_size=6)
    for rows in (1000, 2):
        student = tiny("glm4_moe")
        attached = attach_adapter(student, find_points(student, ["down_proj"]), rank=2, scaling=2.0)
        with limited_memory(attached.model, rows) as sizes:
            distil(attached, targets, targets, settings, seed=0, log=lambda row: None)
        results.append([parameter.detach().clone() for parameter in attached.parameters().values()])
    assert max(sizes) > 2
    for expected, value in zip(*results, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-3, atol=1e-4)
