"""Step (a) of SafeGene: distil the difference between an aligned and a degraded model into an adapter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from seawall.artifacts.gene import GeneStep
from seawall.config.gene import GeneExtract
from seawall.data.batching import epoch_batches
from seawall.methods.gene.examples import TeacherTargets
from seawall.methods.gene.experts import ExpertUse, divergence_and_use
from seawall.methods.gene.launched import training_everywhere
from seawall.models.lora.attach import AttachedAdapter
from seawall.train.loop import Row, Settings


@dataclass(frozen=True, eq=False)
class Distillation:
    """Measurements on held-out examples while a gene was distilled.

    Attributes:
        curve: divergence before the first update and after each epoch.
        use: how much the experts are used after the last epoch; None where the gene changes no stack of experts.
    """

    curve: tuple[GeneStep, ...]
    use: ExpertUse | None


def distil(
    attached: AttachedAdapter,
    targets: TeacherTargets,
    held_out: TeacherTargets,
    config: GeneExtract,
    *,
    seed: int,
    log: Callable[[Row], None],
) -> Distillation:
    """Trains the attached adapter to KL(aligned || degraded + adapter) on the response tokens.

    Args:
        attached: the degraded model with a new adapter.
        targets: training examples with the aligned model's predictions.
        held_out: validation examples with its predictions.
        config: epochs, batch size and learning rate.
        seed: of the order of the examples.
        log: called after each update.

    Raises:
        SeawallError: a loss is not finite.
    """
    lengths = [len(example.encoded.input_ids) for example in targets.examples]
    epochs = [epoch_batches(lengths, config.batch_size, seed=seed, epoch=epoch) for epoch in range(config.epochs)]
    settings = Settings(lr=config.lr, schedule="cosine", total_steps=sum(map(len, epochs)))
    with training_everywhere(attached, targets.divergence, settings) as training:

        def measure() -> tuple[GeneStep, ExpertUse | None]:
            means, use = divergence_and_use(attached, held_out, batch_size=config.batch_size)
            return GeneStep(training.trainer.steps, *means), use

        steps = [measure()]
        for batches in epochs:
            training.fit(batches, log)
            steps.append(measure())
    return Distillation(tuple(step for step, _ in steps), steps[-1][1])
