"""`seawall gene select` and `compose`: derive a gene from existing genes; loads no model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

from seawall.artifacts.gene import Gene
from seawall.config.gene import ExpertsBy, Keep
from seawall.errors import ConfigError
from seawall.methods.gene.compose import Interference, compose, interference
from seawall.methods.gene.experts import with_experts
from seawall.methods.gene.graft import gene_folder
from seawall.methods.gene.select import select_layers, with_layers
from seawall.methods.gene.view import gene_view
from seawall.report import render_gene
from seawall.runs.files import storage_errors, write_text
from seawall.runs.publish import published, require_free
from seawall.version import __version__

PAGE = "gene.html"
_THIRD = 1 / 3


def select_gene(
    path: Path,
    output: Path,
    *,
    keep: str | None = None,
    fraction: float | None = None,
    experts: float | None = None,
    experts_by: str = "score",
    seed: int = 0,
) -> Gene:
    """Writes a gene on a share of its layers, or of its experts.

    Args:
        path: the gene's folder.
        output: a new or empty folder.
        keep: layers: `top`, `stream`, `random` or `all`. None is `all` where only experts are selected, else `top`.
        fraction: share of the layers, at least one; None takes a third.
        experts: share of the experts in each layer's stacks, at least one; None keeps all.
        experts_by: `score` or `random`.
        seed: of random choices.

    Raises:
        ConfigError: an unknown choice; a gene without scores; a share of experts of a gene without experts.
        ArtifactError: no gene, or a damaged one.
        RunFolderError: the output is not empty.
    """
    chosen = _parse_keep(keep, default="all" if experts is not None and fraction is None else "top")
    by = _parse_experts_by(experts_by, selecting=experts is not None)
    for option, share in (("--fraction", fraction), ("--experts", experts)):
        if share is not None and not 0 < share <= 1:
            raise ConfigError(f"{option} must be above 0 and at most 1", got=share)
    fraction = _THIRD if fraction is None else fraction
    require_free(output)
    gene = Gene.load(gene_folder(path))
    layers = select_layers(gene.layers, gene.held_layers, chosen, fraction, seed=seed)
    origin = f"{chosen} {len(layers)} of {len(gene.held_layers)} layers"
    selected = with_layers(gene, layers, origin=origin)
    if experts is not None:
        origin += f", {experts:.0%} of the experts by {by}"
        selected = with_experts(selected, experts, by, seed=seed, origin=origin)
        selected = replace(selected, parents=(gene.fingerprint,))
    settings = {"keep": chosen, "fraction": fraction, "experts": experts, "experts_by": by, "seed": seed}
    page = render_gene(
        gene_view(selected),
        model=str(path),
        recipe={"gene": str(path), "select": settings},
        manifest={"seawall": __version__, "gene": gene.fingerprint},
    )
    with storage_errors(output), published(output) as scratch:
        selected.save(scratch)
        write_text(scratch / PAGE, page)
    return selected


def _parse_keep(keep: str | None, *, default: Keep) -> Keep:
    word = keep or default
    chosen: Keep | None = next((choice for choice in get_args(Keep) if choice == word), None)
    if chosen is None:
        raise ConfigError("unknown value of --keep", got=repr(word), expected=", ".join(get_args(Keep)))
    return chosen


def _parse_experts_by(word: str, *, selecting: bool) -> ExpertsBy:
    chosen: ExpertsBy | None = next((choice for choice in get_args(ExpertsBy) if choice == word), None)
    if chosen is None:
        raise ConfigError("unknown value of --experts-by", got=repr(word), expected=", ".join(get_args(ExpertsBy)))
    if chosen != "score" and not selecting:
        raise ConfigError("--experts-by has no effect without --experts", remedy="add --experts SHARE")
    return chosen


def compose_genes(
    paths: Sequence[Path], output: Path, *, weights: Sequence[float] | None = None
) -> tuple[Gene, list[Interference]]:
    """Writes the weighted sum of several genes.

    Args:
        paths: the genes' folders.
        output: a new or empty folder.
        weights: one per gene; None takes 1 each.

    Raises:
        ConfigError: fewer than two genes, or not one weight per gene.
        ArtifactError: no gene, a damaged one, or genes of different models.
        RunFolderError: the output is not empty.
    """
    require_free(output)
    genes = [Gene.load(gene_folder(path)) for path in paths]
    factors = [1.0] * len(genes) if not weights else list(weights)
    composed = compose(genes, factors)
    rows = interference(genes, factors)
    with storage_errors(output), published(output) as scratch:
        composed.save(scratch)
    return composed, rows
