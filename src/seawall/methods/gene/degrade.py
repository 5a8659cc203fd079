"""The degraded model of SafeGene's step (a), where the recipe names none: a short LoRA of the aligned model.

It trains on harmless replies and on bare openings of compliance. No harmful completion is needed or written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel

from seawall.artifacts.adapter import ADAPTER_CONFIG, ADAPTER_WEIGHTS, save_adapter
from seawall.config.gene import GeneDegrade
from seawall.data.batching import epoch_batches
from seawall.data.compliance import compliance
from seawall.methods.gene.context import GeneContext
from seawall.methods.gene.examples import Example, cross_entropy, distillation_examples, pad_id
from seawall.methods.gene.launched import AdapterShape, attached_everywhere, training_everywhere
from seawall.models.lora.attach import AttachedAdapter
from seawall.runs.files import write_metrics
from seawall.train.loop import Row, Settings

_FOLDER, _METRICS = "degrading", "degrade.jsonl"
_SCALING = 2.0


def degrading_adapter(context: GeneContext, scratch: Path) -> Path:
    """The folder of the adapter that degrades the aligned model; trained unless an earlier attempt finished it.

    The caller removes the folder: a finished stage never holds it.
    """
    folder = scratch / _FOLDER
    if (scratch / _METRICS).is_file() and all((folder / name).is_file() for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS)):
        return folder
    context.reporter.stage("Degrading: a short LoRA on harmless replies and bare openings of compliance")
    model, tokenizer = context.load_aligned()
    config = context.config.degrade
    harmless = context.exchanges("train", "benign")[: config.benign]
    requests = context.requests("train", "harmful", limit=config.harmful)
    examples = distillation_examples(tokenizer, compliance(requests), harmless)
    total = config.epochs * -(-len(examples) // config.batch_size)
    rows: list[Row] = []

    def log(row: Row) -> None:
        rows.append(row)
        context.reporter.step("updates", len(rows), total)

    shape = AdapterShape(context.points, config.rank, _SCALING, context.config.seed)
    with attached_everywhere(model, shape) as attached:
        degrade(attached, examples, pad_id(tokenizer), config, seed=context.config.seed, log=log)
    folder.mkdir(exist_ok=True)
    save_adapter(folder, attached.points, attached.factors(), _SCALING)
    write_metrics(scratch / _METRICS, rows)
    return folder


def degrade(
    attached: AttachedAdapter,
    examples: Sequence[Example],
    pad_id: int,
    config: GeneDegrade,
    *,
    seed: int,
    log: Callable[[Row], None],
) -> None:
    """Trains the attached adapter on examples of both kinds, by cross-entropy.

    Raises:
        SeawallError: a loss is not finite.
    """
    lengths = [len(example.encoded.input_ids) for example in examples]
    batches = [
        batch
        for epoch in range(config.epochs)
        for batch in epoch_batches(lengths, config.batch_size, seed=seed, epoch=epoch)
    ]
    settings = Settings(lr=config.lr, schedule="linear", total_steps=len(batches))
    with training_everywhere(attached, partial(_cross_entropies, examples, pad_id), settings) as training:
        training.fit(batches, log)


def _cross_entropies(
    examples: Sequence[Example], pad_id: int, model: PreTrainedModel, positions: Sequence[int]
) -> Tensor:
    return cross_entropy(model, [examples[position].encoded for position in positions], pad_id)
