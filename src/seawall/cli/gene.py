"""`seawall gene extract|select|graft|revert|compose`: safety as an adapter for the fine-tuned models of a family."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from seawall.cli.common import (
    DryRunOption,
    JsonOption,
    LimitOption,
    OutputOption,
    QuietOption,
    RecipeArgument,
    SetOption,
    print_json,
    quiet_libraries,
    read_recipe,
    reporting,
    require_one_process,
    results_console,
    run_folder,
    shared_launch,
    with_limit,
)
from seawall.cli.plan import show_plan

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import RenderableType

    from seawall.runs.progress import Reporter

app = typer.Typer(
    no_args_is_help=True,
    help="Extract safety as an adapter once, and graft it onto the fine-tuned models of a family (SafeGene).",
)
_Path = Optional[Path]  # noqa: UP045 - typer reads these annotations
_Numbers = Optional[list[float]]  # noqa: UP045
_Number = Optional[float]  # noqa: UP045
_Text = Optional[str]  # noqa: UP045

NewFolder = Annotated[Path, typer.Option("--output", "-o", help="Folder for the result; must be new or empty.")]
GeneArgument = Annotated[Path, typer.Argument(metavar="GENE", help="Folder of a gene, or of a run that extracted one.")]


@app.callback()
def _root(context: typer.Context) -> None:
    """Options before the command."""
    if context.invoked_subcommand != "extract":
        require_one_process(f"seawall gene {context.invoked_subcommand}")


@app.command("extract")
def extract(
    recipe: RecipeArgument = None,
    *,
    sets: SetOption = None,
    limit: LimitOption = None,
    output: OutputOption = None,
    dry_run: DryRunOption = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Distil the safety that a degraded model lacks from an aligned model into an adapter, RUN/gene.

    The recipe's model is the aligned one. `gene.degraded` names the degraded
    one; by default a short LoRA trains it.
    """
    resolved, text = read_recipe(recipe, with_limit(sets, limit))
    if dry_run:
        show_plan(resolved, "gene extract", as_json=as_json)
        return
    folder = run_folder(resolved, output)
    with quiet_libraries():
        from seawall.jobs.gene import extract_gene
        from seawall.methods.gene.context import GENE
        from seawall.methods.gene.view import gene_document, gene_table

    def work(reporter: Reporter) -> RenderableType:
        extracted = extract_gene(resolved, folder, text=text, reporter=reporter)
        if as_json:
            print_json({"gene": str(folder / GENE), **gene_document(extracted)})
        return gene_table(extracted)

    with shared_launch(resolved):
        _run(work, folder / GENE, folder / "gene.html", quiet=quiet, as_json=as_json)


@app.command("select")
def select(
    gene: GeneArgument,
    output: NewFolder,
    *,
    keep: Annotated[
        _Text,
        typer.Option(
            help="Layers to keep: `top` by the contrast of their contribution to the residual stream, `stream` by the "
            "contrast of their output; controls: `random`, `all`. Default: `top`; with --experts alone, `all`."
        ),
    ] = None,
    fraction: Annotated[_Number, typer.Option(help="Share of the layers to keep; default: a third.")] = None,
    experts: Annotated[_Number, typer.Option(help="Share of each layer's experts to keep; default: all.")] = None,
    experts_by: Annotated[
        str,
        typer.Option(
            help="Order of experts: `score`, gate weight on harmful requests times norm of the update; control: "
            "`random`."
        ),
    ] = "score",
    seed: Annotated[int, typer.Option(min=0, help="Seed of `random`.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Keep the most safety-specific layers or experts of a gene.

    Layers: those in which aligned and degraded model differ most on harmful
    compared with harmless prompts. Experts: those that harmful requests use
    most and that the gene changes most.
    """
    with quiet_libraries():
        from seawall.methods.gene.claim import claim
        from seawall.methods.gene.tools import PAGE, select_gene
        from seawall.methods.gene.view import gene_document, gene_table

    def work(reporter: Reporter) -> RenderableType:
        selected = select_gene(
            gene, output, keep=keep, fraction=fraction, experts=experts, experts_by=experts_by, seed=seed
        )
        reporter.say(claim(selected))
        if as_json:
            print_json({"gene": str(output), **gene_document(selected)})
        return gene_table(selected)

    _run(work, output / PAGE, output, as_json=as_json)


@app.command("compose")
def compose(
    genes: Annotated[list[Path], typer.Argument(metavar="GENE...", help="Two or more genes of one family.")],
    output: NewFolder,
    weight: Annotated[_Numbers, typer.Option("--weight", help="Weight of each gene, in order; default: 1.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Combine several genes into one, and measure their interference layer by layer."""
    with quiet_libraries():
        from seawall.methods.gene.tools import compose_genes
        from seawall.methods.gene.view import gene_document, interference_document, interference_table

    def work(reporter: Reporter) -> RenderableType:
        composed, rows = compose_genes(genes, output, weights=weight)
        if as_json:
            print_json({"gene": str(output), **gene_document(composed), "interference": interference_document(rows)})
        return interference_table(rows)

    _run(work, output, as_json=as_json)


@app.command("graft")
def graft(
    model: Annotated[str, typer.Argument(metavar="TASK_MODEL", help="The fine-tuned model: a folder or a Hub id.")],
    output: NewFolder,
    *,
    gene: Annotated[
        _Path,
        typer.Option(
            "--gene", "-g", help="Folder of a gene, or of a run that extracted one; not needed by `safelora`."
        ),
    ] = None,
    shots: Annotated[
        int,
        typer.Option(
            min=0,
            help="Number of refusals, and of task examples, to tune coefficients on; 0 skips tuning (every coefficient "
            "stays 1).",
        ),
    ] = 0,
    task: Annotated[
        _Path,
        typer.Option(
            help="JSONL with task examples: `messages`, `prompt` and `completion`, or `question` and `answer`."
        ),
    ] = None,
    merge: Annotated[bool, typer.Option("--merge", help="Write a merged checkpoint in place of an adapter.")] = False,
    sets: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Graft a gene onto a fine-tuned model, with a coefficient per layer tuned on a few examples; trains no weight.

    Baselines: --set gene.graft.method=safety_sft, safelora, safemerge or resta,
    or --set gene.graft.coefficients=global. All settings of the recipe sections
    `gene.graft`, `data` and `model` apply, such as --set gene.graft.steps=40.
    """
    from seawall.config.load import changed_defaults

    settings = changed_defaults(sets or ())
    with quiet_libraries():
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
        grafted = graft_gene(request, settings.gene, settings.data, reporter=reporter)
        if as_json:
            print_json({"output": str(output), **grafted.document()})
        return graft_table(grafted)

    _run(work, output, as_json=as_json)


@app.command("revert")
def revert(
    folder: Annotated[Path, typer.Argument(metavar="GRAFTED", help="A merged checkpoint of `seawall gene graft`.")],
    output: NewFolder,
    as_json: JsonOption = False,
) -> None:
    """Restore the fine-tuned model from a grafted checkpoint, bit for bit."""
    with quiet_libraries():
        from seawall.methods.gene.graft import revert_graft

    def work(reporter: Reporter) -> RenderableType:
        fingerprint = revert_graft(folder, output, reporter=reporter)
        if as_json:
            print_json({"model": str(output), "weights": fingerprint})
        return f"weights {fingerprint}, as before the graft"

    _run(work, output, as_json=as_json)


def _run(work: Callable[[Reporter], RenderableType], *places: Path, quiet: bool = False, as_json: bool) -> None:
    with reporting(quiet=quiet or as_json) as reporter:
        table = work(reporter)
    if as_json:
        return
    console = results_console()
    console.print(table)
    for place in places:
        console.print(str(place), soft_wrap=True)
