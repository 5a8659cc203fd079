"""`seawall gene select` and `compose`: new genes out of genes, without a model."""

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
    """Writes a gene with some of its layers, or some of its experts, alone.

    Args:
        path: the gene.
        output: a folder that is new or empty.
        keep: layers: `top`, `stream`, `random` or `all`. None is `all` where experts alone are chosen, else `top`.
        fraction: share of the layers, at least one; None takes a third.
        experts: share of the experts of every layer's stacks, at least one; None keeps all.
        experts_by: `score` or `random`.
        seed: of whatever is drawn.

    Raises:
        ConfigError: another word; a gene without scores, or without experts where a share of them is asked for.
        ArtifactError: no gene, or a damaged one.
        RunFolderError: the output is not empty.
    """
    chosen = _layers_word(keep, alone=experts is not None and fraction is None)
    by = _experts_word(experts_by, wanted=experts is not None)
    for option, share in (("--fraction", fraction), ("--experts", experts)):
        if share is not None and not 0 < share <= 1:
            raise ConfigError(f"{option} is wrong", got=share, expected="more than 0, up to 1")
    fraction = _THIRD if fraction is None else fraction
    require_free(output)
    gene = Gene.load(gene_folder(path))
    layers = select_layers(gene.layers, gene.held_layers, chosen, fraction, seed=seed)
    made = f"{chosen} {len(layers)} of {len(gene.held_layers)} layers"
    found = with_layers(gene, layers, made=made)
    if experts is not None:
        made += f", {experts:.0%} of the experts by {by}"
        found = with_experts(found, experts, by, seed=seed, made=made)
        found = replace(found, parents=(gene.fingerprint,))
    said = {"keep": chosen, "fraction": fraction, "experts": experts, "experts_by": by, "seed": seed}
    page = render_gene(
        gene_view(found),
        model=str(path),
        recipe={"gene": str(path), "select": said},
        manifest={"seawall": __version__, "gene": gene.fingerprint},
    )
    with storage_errors(output), published(output) as scratch:
        found.save(scratch)
        write_text(scratch / PAGE, page)
    return found


def _layers_word(keep: str | None, *, alone: bool) -> Keep:
    word = keep or ("all" if alone else "top")
    chosen: Keep | None = next((one for one in get_args(Keep) if one == word), None)
    if chosen is None:
        raise ConfigError("--keep is wrong", got=repr(word), expected=", ".join(get_args(Keep)))
    return chosen


def _experts_word(word: str, *, wanted: bool) -> ExpertsBy:
    chosen: ExpertsBy | None = next((one for one in get_args(ExpertsBy) if one == word), None)
    if chosen is None:
        raise ConfigError("--experts-by is wrong", got=repr(word), expected=", ".join(get_args(ExpertsBy)))
    if chosen != "score" and not wanted:
        raise ConfigError(
            "--experts-by says how experts are chosen, but all of them are kept", remedy="add --experts SHARE"
        )
    return chosen


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
