"""Safety as an adapter (SafeGene, arXiv 2606.06519)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from seawall.api.common import (
    PathText,
    Progress,
    RecipeOrPath,
    Result,
    changes_of,
    read_recipe,
    reporter_of,
    run_folder,
)
from seawall.config.load import changed_defaults, checked_model
from seawall.runs.folder import RunFolder


def extract_gene(
    recipe: RecipeOrPath = None, *, output: PathText | None = None, progress: Progress = False, **settings: Any
) -> Result:
    """Distils an aligned model's safety into an adapter, `OUTPUT/gene` (SafeGene, arXiv 2606.06519).

    Args:
        recipe: the aligned model, prompts and settings.
        output: the run folder.
        progress: True prints progress to standard error; a `Reporter` receives it.
        **settings: of the recipe, by section.

    Raises:
        SeawallError: an error that the user can correct.
    """
    from seawall.jobs.gene import extract_gene as extract
    from seawall.methods.gene.view import gene_document

    resolved, text = read_recipe(recipe, settings)
    folder = run_folder(resolved, output)
    with reporter_of(progress) as reporter:
        gene = extract(resolved, folder, text=text, reporter=reporter)
    return Result(folder, gene_document(gene), RunFolder(folder).gene_report)


def graft(
    model: PathText,
    gene: PathText | None = None,
    *,
    output: PathText,
    shots: int = 0,
    task: PathText | None = None,
    merge: bool = False,
    progress: Progress = False,
    **settings: Any,
) -> Result:
    """Grafts a gene onto a fine-tuned model, with a coefficient per layer tuned on a few examples.

    Args:
        model: the fine-tuned model: a folder (of a checkpoint or of a PEFT adapter), or a Hub id.
        gene: a gene's folder, or the run that extracted it; None with `graft={"method": "safelora"}`.
        output: a new or empty folder.
        shots: number of refusals, and of task examples, to tune coefficients on; 0 leaves every coefficient at 1.
        task: JSONL file with task examples.
        merge: write a merged checkpoint instead of an adapter.
        progress: True prints progress to standard error; a `Reporter` receives it.
        **settings: `graft`, `data` and `model` as in a recipe's sections `gene.graft`, `data` and `model`.

    Raises:
        SeawallError: an error that the user can correct. Nothing is written then.
    """
    from seawall.methods.gene.graft import GraftRequest, graft_gene

    sections = {key: value for key, value in settings.items() if key != "graft"}
    resolved = changed_defaults(changes_of({**sections, "gene": {"graft": settings.get("graft", {})}}))
    request = GraftRequest(
        model=resolved.model.model_copy(update={"id": checked_model(model, caller="seawall.graft").id}),
        gene=None if gene is None else Path(gene),
        output=Path(output),
        shots=shots,
        task=None if task is None else Path(task),
        form="merged" if merge else "adapter",
    )
    with reporter_of(progress) as reporter:
        record = graft_gene(request, resolved.gene, resolved.data, reporter=reporter)
    return Result(Path(output), record.document())
