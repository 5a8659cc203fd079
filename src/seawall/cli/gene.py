"""`seawall gene extract|select|graft|revert|compose`: a family's safety as an adapter for its fine-tuned models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from seawall.cli.common import (
    JsonOption,
    OutputOption,
    RecipeArgument,
    SetOption,
    print_json,
    quiet_libraries,
    read_recipe,
    results_console,
    run_folder,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import RenderableType

    from seawall.runs.progress import Reporter

app = typer.Typer(
    no_args_is_help=True, help="Safety as an adapter: extract it once, graft it onto fine-tuned siblings (SafeGene)."
)
_Path = Optional[Path]  # noqa: UP045 - typer reads these annotations
_Numbers = Optional[list[float]]  # noqa: UP045
_Number = Optional[float]  # noqa: UP045
_Text = Optional[str]  # noqa: UP045

NewFolder = Annotated[Path, typer.Option("--output", "-o", help="Folder for the result; must be new or empty.")]
GeneArgument = Annotated[Path, typer.Argument(metavar="GENE", help="A gene's folder, or a run that extracted one.")]


@app.command("extract")
def extract(
    recipe: RecipeArgument = None,
    *,
    sets: SetOption = None,
    output: OutputOption = None,
    as_json: JsonOption = False,
) -> None:
    """Distil what an aligned model has and a degraded one lacks into an adapter: RUN/gene.

    The recipe's model is the aligned one; `gene.degraded` names the other, or a short LoRA makes it.
    """
    read = read_recipe(recipe, sets)
    folder = run_folder(read[0], output)
    quiet_libraries()
    from seawall.jobs.gene import extract_gene
    from seawall.methods.gene.context import GENE
    from seawall.methods.gene.view import gene_document, gene_table

    def work(reporter: Reporter) -> RenderableType:
        found = extract_gene(read[0], folder, text=read[1], reporter=reporter)
        if as_json:
            print_json({"gene": str(folder / GENE), **gene_document(found)})
        return gene_table(found)

    _run(work, folder / GENE, folder / "gene.html", as_json=as_json)


@app.command("select")
def select(
    gene: GeneArgument,
    output: NewFolder,
    *,
    keep: Annotated[
        _Text,
        typer.Option(
            help="Layers: `top` by what they write (the default), `stream` by their output; controls: `random` (as "
            "many), `all` (the default with --experts alone)."
        ),
    ] = None,
    fraction: Annotated[_Number, typer.Option(help="Share of the layers to keep; a third, unless given.")] = None,
    experts: Annotated[_Number, typer.Option(help="Share of every layer's experts to keep; all, unless given.")] = None,
    experts_by: Annotated[
        str,
        typer.Option(help="`score`: gate weight on harmful requests times norm of the update; control: `random`."),
    ] = "score",
    seed: Annotated[int, typer.Option(min=0, help="Seed of `random`.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Keep the layers of a gene in which harmful and harmless prompts tell the two models apart most, or its experts
    that harmful requests use most and that it changes most.
    """
    quiet_libraries()
    from seawall.methods.gene.claim import claim
    from seawall.methods.gene.tools import PAGE, select_gene
    from seawall.methods.gene.view import gene_document, gene_table

    def work(reporter: Reporter) -> RenderableType:
        found = select_gene(
            gene, output, keep=keep, fraction=fraction, experts=experts, experts_by=experts_by, seed=seed
        )
        reporter.say(claim(found))
        if as_json:
            print_json({"gene": str(output), **gene_document(found)})
        return gene_table(found)

    _run(work, output / PAGE, output, as_json=as_json)


@app.command("compose")
def compose(
    genes: Annotated[list[Path], typer.Argument(metavar="GENE...", help="Two or more genes of one family.")],
    output: NewFolder,
    weight: Annotated[_Numbers, typer.Option("--weight", help="One per gene, in their order; none takes 1.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Put several genes together as one, and say how far they are in each other's way, layer by layer."""
    quiet_libraries()
    from seawall.methods.gene.tools import compose_genes
    from seawall.methods.gene.view import gene_document, interference_document, interference_table

    def work(reporter: Reporter) -> RenderableType:
        found, rows = compose_genes(genes, output, weights=weight)
        if as_json:
            print_json({"gene": str(output), **gene_document(found), "interference": interference_document(rows)})
        return interference_table(rows)

    _run(work, output, as_json=as_json)


@app.command("graft")
def graft(
    model: Annotated[str, typer.Argument(metavar="TASK_MODEL", help="The fine-tuned model: a folder, or a Hub id.")],
    output: NewFolder,
    *,
    gene: Annotated[
        _Path, typer.Option("--gene", "-g", help="A gene's folder, or a run that extracted one; `safelora` needs none.")
    ] = None,
    shots: Annotated[int, typer.Option(min=0, help="Refusals, and as many task examples; 0 takes 1 everywhere.")] = 0,
    task: Annotated[
        _Path, typer.Option(help="JSONL with task examples: `messages`, or `prompt` and `completion`.")
    ] = None,
    merge: Annotated[bool, typer.Option("--merge", help="Write a whole checkpoint instead of an adapter.")] = False,
    sets: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put a gene on a fine-tuned model, with a coefficient per layer tuned on a few examples; no weight is trained.

    Baselines in its place: --set gene.graft.method=safety_sft, safelora, or --set gene.graft.coefficients=global.
    Settings are those of the sections `gene.graft`, `data` and `model` of a recipe: --set gene.graft.steps=40.
    """
    from seawall.config.load import changed_defaults

    settings = changed_defaults(sets or ())
    quiet_libraries()
    from seawall.methods.gene.graft import GraftRequest, graft_gene
    from seawall.methods.gene.view import graft_table

    request = GraftRequest(
        model=settings.model.model_copy(update={"id": model}),
        gene=gene,
        output=output,
        shots=shots,
        task=task,
        form="merged" if merge else "adapter",
    )

    def work(reporter: Reporter) -> RenderableType:
        found = graft_gene(request, settings.gene, settings.data, reporter=reporter)
        if as_json:
            print_json({"output": str(output), **found.document()})
        return graft_table(found)

    _run(work, output, as_json=as_json)


@app.command("revert")
def revert(
    folder: Annotated[Path, typer.Argument(metavar="GRAFTED", help="A merged checkpoint of `seawall gene graft`.")],
    output: NewFolder,
    as_json: JsonOption = False,
) -> None:
    """Write the fine-tuned model as it was before the graft, to the last bit."""
    quiet_libraries()
    from seawall.methods.gene.graft import revert_graft

    def work(reporter: Reporter) -> RenderableType:
        fingerprint = revert_graft(folder, output, reporter=reporter)
        if as_json:
            print_json({"model": str(output), "weights": fingerprint})
        return f"weights {fingerprint}, as before the graft"

    _run(work, output, as_json=as_json)


def _run(work: Callable[[Reporter], RenderableType], *places: Path, as_json: bool) -> None:
    from seawall.runs.progress import Quiet, TerminalReporter

    if as_json:
        work(Quiet())
        return
    with TerminalReporter() as reporter:
        shown = work(reporter)
    console = results_console()
    console.print(shown)
    for place in places:
        console.print(str(place), soft_wrap=True, markup=False)
