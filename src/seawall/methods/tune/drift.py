"""A penalty on the routing of harmful prompts in MoE models, after SafeMoE (arXiv 2509.22745).

Fine-tuning moves the routing of harmful prompts away from the experts that refuse them. The term penalises this drift:
KL(start || current) of each token's routing distribution (softmax of the router's logits), averaged over the prompt's
tokens, the MoE layers and the prompts. Drift and gradient are 0 at the start of training.

SafeMoE's own term (`variant="safemoe"`, after its code) takes softmax(logits / .1) at the last token of the prompt
alone, and sums over the layers. Its code alternates: after each epoch of the task one pass over 100 prompts with the
same optimizer. Here either is a term of the loss, on a few prompts per optimizer step.

Legend: T tokens of a prompt, L MoE layers, E experts.
"""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from seawall.data.batching import collate, length_buckets
from seawall.data.templating import Encoded, encode_prompt
from seawall.data.types import Messages, user
from seawall.errors import ConfigError, UnsupportedModelError
from seawall.methods.tune.terms import AccumulationStep, Attachment, LossTerm, require_attachable, require_weight
from seawall.models.backoff import in_buckets
from seawall.models.forward import run
from seawall.models.moe.capture import capture
from seawall.models.moe.find import MoEModel, find_moe

LOGGED = "routing_drift"
"""Key of the trainer's logs for the mean unweighted drift since the last log line, in nats."""
_TITLE = _WHAT = "routing drift"
DriftVariant = Literal["mean", "safemoe"]
TEMPERATURE = 0.1
"""Of SafeMoE's softmax, as its README runs it."""


class RoutingDrift:
    """Penalises the drift of the routing of harmful prompts during fine-tuning: L = L_task + weight * drift.

        RoutingDrift(prompts, weight=1.0).attach(trainer)
        SafetyBasin(anchor).attach(trainer)  # both terms can be attached
        trainer.train()

    The term enters each optimizer step once: the step's prompts are divided among its accumulation steps, and every
    data-parallel process uses the same prompts.

    Args:
        prompts: harmful training requests, as texts or conversations; never held-out ones.
        weight: factor of the term; 0 logs the drift without a gradient.
        per_step: prompts per optimizer step; at least one per accumulation step is used.
        tokenizer: with the model's chat template; None uses the trainer's.
        seed: of the sampled prompts, which depend on seed and step alone, so that a resumed training repeats them.
        variant: `mean` over all tokens and layers, or `safemoe`, as in the authors' code.

    Raises:
        ConfigError: a weight that is negative or not finite; no prompts; `per_step` below 1.
    """

    def __init__(
        self,
        prompts: Sequence[Messages | str],
        weight: float = 1.0,
        *,
        per_step: int = 4,
        tokenizer: Any = None,
        seed: int = 0,
        variant: DriftVariant = "mean",
    ) -> None:
        require_weight(weight, _WHAT)
        if not prompts:
            raise ConfigError("routing drift needs harmful prompts", got="no prompts")
        if per_step < 1:
            raise ConfigError("per_step must be at least 1", got=per_step)
        self.prompts = tuple(user(prompt) if isinstance(prompt, str) else prompt for prompt in prompts)
        self.weight, self.per_step = weight, per_step
        self.tokenizer, self.seed, self.variant = tokenizer, seed, variant

    def attach(self, trainer: Any) -> Attachment:
        """Records the current routing of the prompts, and adds the term to the loss of a `transformers.Trainer`.

        The record takes 4 bytes x layers x experts per prompt token in memory. The logs get `routing_drift`; the
        evaluation loss is unchanged.

        Args:
            trainer: before `train()`, with the model from which training starts.

        Returns:
            the attachment: `remove()` it, or use it as a context manager.

        Raises:
            ConfigError: a routing drift is attached already; the parameters are sharded; the trainer has no tokenizer;
                no trained parameter affects the routing.
            UnsupportedModelError: the model is dense, or its experts cannot be reached.
            SeawallError (in training): a loss or a drift that is not finite.
        """
        require_attachable(trainer, title=_TITLE, what=_WHAT)
        tokenizer = trainer.processing_class if self.tokenizer is None else self.tokenizer
        if tokenizer is None:
            raise ConfigError("routing drift needs the model's tokenizer", remedy="pass tokenizer=...")
        moe = find_moe(without_adapter(trainer.model))
        rows = [encode_prompt(tokenizer, prompt) for prompt in self.prompts]
        with trainer.accelerator.autocast():
            start = _recorded(moe, rows, self.per_step, self.variant)
            if self.weight > 0:
                _require_gradient(moe, rows[0])

        def value(step: AccumulationStep) -> Tensor:
            indices = draw(len(rows), self.per_step, step, seed=self.seed)
            with trainer.accelerator.autocast():
                current = routing(moe, [rows[index] for index in indices], self.variant)
            return divergence([start[index] for index in indices], current, self.variant)

        return Attachment(trainer, LossTerm(LOGGED, _TITLE, _WHAT, self.weight, value))


def draw(count: int, per_step: int, step: AccumulationStep, *, seed: int) -> list[int]:
    """Indices of the prompts, out of `count`, of one accumulation step."""
    per_part = math.ceil(min(per_step, count) / step.parts)
    order = random.Random(f"routing drift of step {step.step} of seed {seed}").sample(range(count), count)
    return [order[index % count] for index in range(step.part * per_part, (step.part + 1) * per_part)]


def routing(moe: MoEModel, rows: Sequence[Sequence[int]], variant: DriftVariant = "mean") -> list[Tensor]:
    """Log-probabilities of the experts (L, T, E) at each token of each prompt, with gradients if autograd is on.

    With `safemoe` at the last token alone (L, 1, E), of logits / TEMPERATURE.

    The model runs without dropout, router noise and gradient checkpointing; padding is removed.

    Raises:
        UnsupportedModelError: the model does not call its experts in every MoE layer.
    """
    batch = collate([Encoded(list(row), list(row)) for row in rows], pad_id=0)
    with _evaluating(moe.model), capture(moe, logits=True, detach=False) as trace:
        run(moe, batch, keep=1)
    trace.require_complete()
    temperature = TEMPERATURE if variant == "safemoe" else 1.0
    device = trace.logits[0].device
    log_probabilities = [(logits_TE.float() / temperature).log_softmax(-1).to(device) for logits_TE in trace.logits]
    shape = (*batch.input_ids_BT.shape, moe.num_experts)
    log_LBTE = torch.stack([flat_TE.reshape(shape) for flat_TE in log_probabilities])
    first = [len(row) - 1 if variant == "safemoe" else 0 for row in rows]
    return [log_LBTE[:, index, first[index] : len(row)] for index, row in enumerate(rows)]


def divergence(start: Sequence[Tensor], current: Sequence[Tensor], variant: DriftVariant = "mean") -> Tensor:
    """KL(start || current) () in nats: mean over prompts of the mean over layers and tokens.

    Args:
        start: log-probabilities (L, T, E) of each prompt, on any device.
        current: likewise.
        variant: `safemoe` sums over layers.
    """
    pairs = [(log_p.to(log_q.device), log_q) for log_p, log_q in zip(start, current, strict=True)]
    drifts_LT = [(log_p.exp() * (log_p - log_q)).sum(-1) for log_p, log_q in pairs]
    return torch.stack([drift_LT.sum() if variant == "safemoe" else drift_LT.mean() for drift_LT in drifts_LT]).mean()


def without_adapter(model: nn.Module) -> PreTrainedModel:
    """The model inside PEFT's wrapper, with the adapter's layers; any other model as it is."""
    peft = sys.modules.get("peft")
    inner = model.get_base_model() if peft is not None and isinstance(model, peft.PeftModel) else model
    if not isinstance(inner, PreTrainedModel):
        raise UnsupportedModelError(
            "routing drift needs a model of transformers", got=type(inner).__name__, expected="a PreTrainedModel"
        )
    return inner


@torch.no_grad()
def _recorded(moe: MoEModel, rows: Sequence[Sequence[int]], size: int, variant: DriftVariant) -> list[Tensor]:
    """The current routing of all prompts, on the CPU."""
    recorded: dict[int, Tensor] = {}

    def record(positions: list[int]) -> list[Tensor]:
        return [routing_LTE.cpu() for routing_LTE in routing(moe, [rows[index] for index in positions], variant)]

    for positions, routings in in_buckets(length_buckets([len(row) for row in rows], size), record):
        recorded |= zip(positions, routings, strict=True)
    return [recorded[position] for position in range(len(rows))]


def _require_gradient(moe: MoEModel, row: Sequence[int]) -> None:
    with torch.enable_grad():
        (routing_LTE,) = routing(moe, [row])
    if not routing_LTE.requires_grad:
        raise ConfigError(
            "no trained parameter affects the routing, so routing drift has no gradient",
            got="an adapter after the last router, or frozen weights",
            remedy="leave routing drift out, or adapt layers before the last router",
        )


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Inside, every module is in evaluation mode; afterwards each has its own mode again."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
