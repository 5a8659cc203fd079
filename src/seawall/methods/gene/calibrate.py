"""A limit on over-refusal: how strong a graft may be until it refuses too many borderline requests.

Beyond the paper. Refusals, task examples and harmless replies tune the coefficients against each other; how often the
result refuses a borderline request then differs from one fine-tuned model to the next, and this sets it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from seawall.artifacts.graft import GraftLimit
from seawall.config.gene import GeneConfig
from seawall.config.judge import KeywordJudge
from seawall.data.types import Messages
from seawall.errors import NothingToGraftError
from seawall.evaluation.judges import make_judge
from seawall.methods.gene.coefficients import with_coefficients
from seawall.methods.gene.methods import GraftUpdate
from seawall.models.files.open import Checkpoint
from seawall.models.generate import generate
from seawall.models.lora.attach import attach_adapter
from seawall.runs.progress import Reporter

STRONGEST, HALVINGS = 2.0, 4
"""The largest factor, and how often the interval between a factor within the limit and one beyond it is halved."""


def within_limit(
    update: GraftUpdate,
    task: Checkpoint,
    requests: Sequence[Messages],
    settings: GeneConfig,
    reporter: Reporter,
) -> GraftUpdate:
    """The update times the largest factor found, at most 2, with which few enough of the requests are refused.

    Args:
        update: what a method adds to the model.
        task: the fine-tuned model; it is loaded once more.
        requests: borderline requests, none of which was tuned on.
        settings: with `graft.max_over_refusal`; also reply length, batch size and seed.
        reporter: receives progress.

    A reply that cannot be judged, such as noise, counts as a refusal here.

    Raises:
        NothingToGraftError: every factor above 0 that was tried refuses more.
    """
    limit = settings.graft.max_over_refusal
    assert limit is not None
    reporter.stage(f"Strength at which at most {limit:.0%} of {len(requests)} borderline requests are refused")
    model, tokenizer = task.load()
    gene, judge = update.gene, make_judge(KeywordJudge())
    attached = attach_adapter(model, gene.points, rank=gene.rank, scaling=gene.scaling, seed=settings.seed)
    attached.load_factors(gene.factors)

    def refused(factor: float) -> float:
        scale = torch.tensor([factor])
        with torch.no_grad(), attached.scaled(dict.fromkeys(gene.held_layers, scale)):
            replies = generate(
                attached.model,
                tokenizer,
                requests,
                max_new_tokens=settings.graft.reply_tokens,
                batch_size=settings.batch_size,
            )
        outcomes = [verdict.outcome for verdict in judge(requests, [reply.answer for reply in replies])]
        # Too strong a graft writes noise, which is no refusal and no reason to make it stronger still.
        share = sum(outcome in ("refused", "unscored") for outcome in outcomes) / len(requests)
        reporter.say(f"times {factor:g}: {share:.0%} refused")
        return share

    factor, share = largest_within(refused, limit)
    if not factor:
        raise NothingToGraftError(
            "the grafted model refuses more borderline requests than it may, however weak the graft",
            got=f"{share:.0%} at the weakest graft tried",
            expected=f"at most {limit:.0%} (gene.graft.max_over_refusal)",
            remedy="raise the limit; `seawall eval` of the fine-tuned model tells what it refuses without a graft",
        )
    coefficients = {layer: factor * value for layer, value in update.coefficients.items()}
    scaled = with_coefficients(gene, dict.fromkeys(gene.held_layers, factor), origin=gene.made)
    return replace(
        update,
        gene=replace(scaled, parents=gene.parents),
        coefficients=coefficients,
        limit=GraftLimit(limit, factor, share, len(requests)),
    )


def largest_within(measure: Callable[[float], float], limit: float) -> tuple[float, float]:
    """The largest factor tried whose measure is within the limit, and the measure there.

    1 and 2 are tried first, then the middle between a factor within and one beyond, `HALVINGS` times. If none is
    within, 0 and the measure of the smallest factor tried.

    Args:
        measure: of a factor; taken for rising.
        limit: the largest measure allowed.
    """
    weakest, high, best = measure(1.0), 1.0, (0.0, 0.0)
    if weakest <= limit:
        best, high = (1.0, weakest), STRONGEST
        strongest = measure(STRONGEST)
        if strongest <= limit:
            return STRONGEST, strongest
    for _ in range(HALVINGS):
        middle = (best[0] + high) / 2
        share = measure(middle)
        if share <= limit:
            best = (middle, share)
        else:
            high, weakest = middle, share
    return best if best[0] else (0.0, weakest)
