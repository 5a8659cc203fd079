"""Whether a gene and a model belong together, from configuration and safetensors headers; no weight is read."""

from __future__ import annotations

from collections.abc import Mapping

from seawall.artifacts.adapter import GenePoint
from seawall.artifacts.gene import Gene
from seawall.errors import ArtifactError
from seawall.models.files.stream import CheckpointOutline


def require_fit(gene: Gene, outline: CheckpointOutline, tokenizer: str, *, what: str) -> None:
    """Refuse a gene of another architecture; the message names the first difference.

    Args:
        gene: the gene.
        outline: the model's checkpoint.
        tokenizer: hash of the model's vocabulary.
        what: name of the model, for the message.

    Raises:
        ArtifactError: family, depth or tokenizer differ, or a matrix that the gene changes is missing or has another
            shape.
    """
    family = str(outline.model.config.model_type)
    if family != gene.family:
        raise _misfit(what, "another family", f"model_type {family}", gene.family)
    depth = int(outline.model.config.get_text_config().num_hidden_layers)
    if gene.layers and depth != len(gene.layers):
        raise _misfit(what, "another depth", f"{depth} decoder layers", f"{len(gene.layers)}")
    shapes = outline.shapes
    for name, point in sorted(gene.points.items()):
        if name not in shapes:
            raise _misfit(what, "other adapter points", f"no parameter {name}", f"{name} {point.stored_shape}")
        if shapes[name] != point.stored_shape:
            raise _misfit(what, "other shapes", f"{name} {shapes[name]}", f"{name} {point.stored_shape}")
    if tokenizer != gene.tokenizer:
        raise _misfit(what, "another tokenizer", f"a vocabulary {tokenizer[:23]}...", f"{gene.tokenizer[:23]}...")


def _misfit(what: str, why: str, got: str, expected: str) -> ArtifactError:
    return ArtifactError(
        f"the gene does not fit {what}: it is for {why}",
        got=got,
        expected=expected,
        remedy="use a gene that was extracted from the aligned model of this fine-tuning",
    )


def require_siblings(
    aligned: CheckpointOutline,
    degraded: CheckpointOutline,
    points: Mapping[str, GenePoint],
    vocabularies: tuple[str, str],
) -> None:
    """Refuse a degraded model of another architecture than the aligned one; the message names the first difference.

    Args:
        aligned, degraded: the checkpoints.
        points: the weight matrices that the gene will change.
        vocabularies: hashes of both vocabularies.

    Raises:
        ArtifactError: another family, shape or tokenizer.
    """
    families = [str(side.model.config.model_type) for side in (aligned, degraded)]
    shapes = aligned.shapes, degraded.shapes
    differing = next((name for name in points if shapes[0][name] != shapes[1].get(name)), None)
    what, got, expected = "", "", ""
    if families[0] != families[1]:
        what, expected, got = "model_type", *families
    elif differing is not None:
        what, expected, got = differing, str(shapes[0][differing]), str(shapes[1].get(differing, "no such parameter"))
    elif vocabularies[0] != vocabularies[1]:
        what, expected, got = "the vocabulary", *(f"{vocabulary[:23]}..." for vocabulary in vocabularies)
    if what:
        raise ArtifactError(
            f"the degraded model is not a version of the aligned model: {what} differs",
            got=got,
            expected=expected,
            remedy="name a fine-tuned version of the aligned model as gene.degraded, or leave it out",
        )
