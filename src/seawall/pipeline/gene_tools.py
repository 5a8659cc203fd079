"""`seawall gene select` and `compose`: new genes out of genes, without a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from seawall.artifacts.gene import Gene
from seawall.config.gene import Keep
from seawall.errors import ConfigError
from seawall.genes.compose import Interference, compose, interference
from seawall.genes.select import select_layers, with_layers
from seawall.pipeline.export import published, require_free
from seawall.pipeline.gene_graft import gene_folder
from seawall.runs.files import storage_errors


def select_gene(path: Path, output: Path, *, keep: str = "top", fraction: float = 1 / 3, seed: int = 0) -> Gene:
    """Writes a gene with some of its layers alone.

    Args:
        path: the gene.
        output: a folder that is new or empty.
        keep: `top`, `stream`, `random` or `all`.
        fraction: share of the layers, at least one.
        seed: of `random`.

    Raises:
        ConfigError: another word; a gene without scores.
        ArtifactError: no gene, or a damaged one.
        RunFolderError: the output is not empty.
    """
    chosen: Keep | None = next((one for one in get_args(Keep) if one == keep), None)
    if chosen is None:
        raise ConfigError("--keep is wrong", got=repr(keep), expected=", ".join(get_args(Keep)))
    if not 0 < fraction <= 1:
        raise ConfigError("--fraction is wrong", got=fraction, expected="more than 0, up to 1")
    require_free(output)
    gene = Gene.load(gene_folder(path))
    layers = select_layers(gene.layers, gene.held_layers, chosen, fraction, seed=seed)
    found = with_layers(gene, layers, made=f"{chosen} {len(layers)} of {len(gene.held_layers)} layers")
    with storage_errors(output), published(output) as scratch:
        found.save(scratch)
    return found


def compose_genes(
    paths: Sequence[Path], output: Path, *, weights: Sequence[float] | None = None
) -> tuple[Gene, list[Interference]]:
    """Writes the gene that does what all of them do.

    Args:
        paths: the genes.
        output: a folder that is new or empty.
        weights: one per gene; None takes 1.

    Raises:
        ConfigError: fewer than two genes, or another number of weights.
        ArtifactError: no gene, a damaged one, or genes that do not fit each other.
        RunFolderError: the output is not empty.
    """
    require_free(output)
    genes = [Gene.load(gene_folder(path)) for path in paths]
    shares = [1.0] * len(genes) if not weights else list(weights)
    found = compose(genes, shares)
    rows = interference(genes, shares)
    with storage_errors(output), published(output) as scratch:
        found.save(scratch)
    return found, rows
