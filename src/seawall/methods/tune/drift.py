"""A penalty on the routing of harmful prompts, on MoE models: the idea of SafeMoE, arXiv 2509.22745.

Fine-tuning moves the routing of harmful prompts away from the experts that refuse them. The term holds it where it was:
the divergence KL(start || now) of every token's routing distribution (softmax of the router's logits), averaged over
the prompt's tokens, the MoE layers and the prompts. It is 0, and so is its gradient, where nothing has moved. SafeMoE
optimises it in turns with the task; here it is a term of the loss, on a few prompts per optimizer step.

Legend: T tokens of a prompt, L MoE layers, E experts.
"""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from seawall.data.batching import collate, length_buckets
from seawall.data.templating import Encoded, encode_prompt
from seawall.data.types import Messages, user
from seawall.errors import ConfigError, UnsupportedModelError
from seawall.methods.tune.terms import Attachment, Moment, Term, require_attachable, require_weight
from seawall.models.forward import run
from seawall.models.moe.capture import capture
from seawall.models.moe.find import MoEModel, find_moe

LOGGED = "routing_drift"
"""The key of the trainer's logs that holds the mean unweighted drift, in nats, since the last line."""
_TITLE = _WHAT = "routing drift"


class RoutingDrift:
    """Keeps the routing of harmful prompts where it is before fine-tuning: L = L_task + weight * drift.

        RoutingDrift(prompts, weight=1.0).attach(trainer)
        SafetyBasin(anchor).attach(trainer)  # both may be there
        trainer.train()

    An optimizer step takes it once: its prompts are divided among the accumulation steps, and every data-parallel
    process takes the same ones.

    Args:
        prompts: harmful requests to train on, as texts or conversations; never those that are reported on.
        weight: its factor. 0 only measures and logs, and leaves training as it is.
        per_step: prompts of an optimizer step; at least one per accumulation step.
        tokenizer: with the model's chat template; None takes the trainer's own.
        seed: draws the prompts. Seed and step alone decide, so a resumed training draws the same ones.

    Raises:
        ConfigError: a weight below 0 or not finite; no prompts; fewer than one prompt per step.
    """

    def __init__(
        self,
        prompts: Sequence[Messages | str],
        weight: float = 1.0,
        *,
        per_step: int = 4,
        tokenizer: Any = None,
        seed: int = 0,
    ) -> None:
        require_weight(weight, _WHAT)
        if not prompts:
            raise ConfigError("routing drift needs harmful prompts", got="none", remedy="give some, or leave it out")
        if per_step < 1:
            raise ConfigError("the number of prompts per step is wrong", got=per_step, expected="1 or more")
        self.prompts = tuple(user(prompt) if isinstance(prompt, str) else prompt for prompt in prompts)
        self.weight, self.per_step = weight, per_step
        self.tokenizer, self.seed = tokenizer, seed

    def attach(self, trainer: Any) -> Attachment:
        """Record where the prompts are routed now, and add the term to the training loss of a `transformers.Trainer`.

        What is recorded stays in memory: 4 bytes x layers x experts for every token of the prompts. The logs get
        `routing_drift`. Evaluation's loss stays the task's own.

        Args:
            trainer: before `train()`, with the model from which training starts.

        Returns:
            what takes the term off again: by `remove()`, or as a context manager.

        Raises:
            ConfigError: it is attached already; the parameters are sharded; the trainer has no tokenizer. In training:
                nothing that trains moves the routing.
            UnsupportedModelError: the model is dense, or its experts cannot be reached.
            SeawallError (in training): a loss or a drift that is not finite.
        """
        require_attachable(trainer, title=_TITLE, what=_WHAT)
        tokenizer = trainer.processing_class if self.tokenizer is None else self.tokenizer
        if tokenizer is None:
            raise ConfigError("routing drift needs the model's tokenizer", remedy="give it as tokenizer=...")
        moe = find_moe(without_adapter(trainer.model))
        rows = [encode_prompt(tokenizer, prompt) for prompt in self.prompts]
        with trainer.accelerator.autocast():
            start = _recorded(moe, rows, self.per_step)
            if self.weight > 0:
                _require_gradient(moe, rows[0])

        def value(moment: Moment) -> Tensor:
            drawn = draw(len(rows), self.per_step, moment, seed=self.seed)
            with trainer.accelerator.autocast():
                now = routing(moe, [rows[at] for at in drawn])
            return divergence([start[at] for at in drawn], now)

        return Attachment(trainer, Term(LOGGED, _TITLE, _WHAT, self.weight, value))


def draw(count: int, per_step: int, moment: Moment, *, seed: int) -> list[int]:
    """Which of `count` prompts an accumulation step takes: its share of those of the optimizer step."""
    each = math.ceil(min(per_step, count) / moment.parts)
    drawn = random.Random(f"routing drift of step {moment.step} of seed {seed}").sample(range(count), count)
    return [drawn[at % count] for at in range(moment.part * each, (moment.part + 1) * each)]


def routing(moe: MoEModel, rows: Sequence[Sequence[int]]) -> list[Tensor]:
    """Log-probabilities of the experts (L, T, E) for every token of every prompt, for autograd where it is on.

    The model runs without dropout and router noise, and without gradient checkpointing; padding is cut off.

    Raises:
        UnsupportedModelError: the model does not call its experts in every MoE layer.
    """
    batch = collate([Encoded(list(row), list(row)) for row in rows], pad_id=0)
    with _evaluating(moe.model), capture(moe, logits=True, detach=False) as trace:
        run(moe, batch, keep=1)
    trace.require_complete()
    whole = [one.float().log_softmax(-1).to(trace.logits[0].device) for one in trace.logits]
    shape = (*batch.input_ids_BT.shape, moe.num_experts)
    by_layer = torch.stack([one.reshape(shape) for one in whole])
    return [by_layer[:, at, : len(row)] for at, row in enumerate(rows)]


def divergence(start: Sequence[Tensor], now: Sequence[Tensor]) -> Tensor:
    """KL(start || now) () in nats: the mean over prompts of the mean over their layers and tokens.

    Args:
        start: log-probabilities (L, T, E) of each prompt, on any device.
        now: likewise.
    """
    pairs = [(log_p.to(log_q.device), log_q) for log_p, log_q in zip(start, now, strict=True)]
    return torch.stack([(log_p.exp() * (log_p - log_q)).sum(-1).mean() for log_p, log_q in pairs]).mean()


def without_adapter(model: nn.Module) -> PreTrainedModel:
    """The model that PEFT wrapped; the layers of the adapter are in it."""
    peft = sys.modules.get("peft")
    inner = model.get_base_model() if peft is not None and isinstance(model, peft.PeftModel) else model
    if not isinstance(inner, PreTrainedModel):
        raise UnsupportedModelError(
            "routing drift needs a model of transformers", got=type(inner).__name__, expected="a PreTrainedModel"
        )
    return inner


@torch.no_grad()
def _recorded(moe: MoEModel, rows: Sequence[Sequence[int]], size: int) -> list[Tensor]:
    """The routing of all prompts as it is now, on the CPU."""
    found: dict[int, Tensor] = {}
    for positions in length_buckets([len(row) for row in rows], size):
        found |= zip(positions, (one.cpu() for one in routing(moe, [rows[at] for at in positions])), strict=True)
    return [found[at] for at in range(len(rows))]


def _require_gradient(moe: MoEModel, row: Sequence[int]) -> None:
    with torch.enable_grad():
        (found,) = routing(moe, [row])
    if not found.requires_grad:
        raise ConfigError(
            "nothing that trains moves the routing, so its drift cannot be held",
            got="an adapter behind the last router, or frozen weights",
            remedy="leave routing drift out, or adapt layers before the last router",
        )


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """All modules in evaluation mode; those that trained do so again afterwards, and no other."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
