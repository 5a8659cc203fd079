"""The losses of the two steps of a round, batch by batch, on the current model. RASA sections 3.3 and 3.4."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import final

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from seawall.config.repair import RepairConfig
from seawall.data.batching import Batch, collate, length_buckets
from seawall.data.templating import IGNORED, Encoded, encode_example, encode_prompt
from seawall.data.types import Messages
from seawall.distributed.process import ALONE, Processes
from seawall.methods.rasa.repair.batches import ExpertBatch
from seawall.methods.rasa.repair.inputs import RepairInputs
from seawall.methods.rasa.repair.original import OriginalOutputs
from seawall.models.backoff import RowLimit, in_buckets
from seawall.models.forward import run
from seawall.models.greedy import rows_are_independent
from seawall.models.hidden.enter_at_layer import can_enter_at_layer, enter_at_layer
from seawall.models.moe.capture import capture
from seawall.models.moe.find import MoEModel
from seawall.models.moe.replay import replay
from seawall.models.moe.routing import RoutingRule, routing_rules
from seawall.models.sharding import is_sharded
from seawall.train.loop import Losses
from seawall.train.losses import (
    pairwise_router_loss,
    reference_router_loss,
    response_cross_entropy,
    response_divergence,
)


@final
class RepairLosses:
    """Losses of batches, given as positions in the lists of attacks, retained exchanges and pairs.

    Make it while the model is the original: it records the routing (with `routing: replay`), the predictions (with
    `retain.loss: kl`, and on plain requests with `objective: consistency`), and the input of the first decoder layer
    that the expert step changes (`first_changed`), where its forward passes then start. Where routers below that layer
    train (`moving`), `begin_round` records this input again.

    Attributes:
        rows: the rows of a forward pass.
    """

    def __init__(
        self,
        moe: MoEModel,
        tokenizer: PreTrainedTokenizerBase,
        inputs: RepairInputs,
        config: RepairConfig,
        *,
        first_changed: int = 0,
        moving: bool = False,
        processes: Processes = ALONE,
    ) -> None:
        """Records the original model; of several processes, each records some rows and computes some of the losses."""
        self._moe = moe
        self._processes = processes
        self._config = config
        self._pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        self._rows = [encode_example(tokenizer, exchange) for exchange in (*inputs.refusals, *inputs.retain)]
        self._num_attacks = len(inputs.refusals)
        teachers = dict(enumerate(inputs.teachers))
        plain_rows = {
            position: encode_example(tokenizer, replace(exchange, prompt=plain))
            for position, exchange in enumerate((*inputs.refusals, *inputs.retain))
            if (plain := teachers.get(position)) is not None
        }
        self._plain = [_prompt(tokenizer, pair.plain) for pair in inputs.pairs]
        self._attacks = [_prompt(tokenizer, pair.attack) for pair in inputs.pairs]
        replayed = config.expert.enabled and config.expert.routing == "replay"
        diverging = config.expert.enabled and config.retain.loss == "kl"
        self._routed = range(len(self._rows)) if replayed else range(0)
        own = range(self._num_attacks, len(self._rows)) if diverging else range(0)
        self._predicted = {*own, *plain_rows} if config.expert.enabled else set()
        # All layers of sharded weights are gathered anyway, and a family that cannot be entered would break a pass.
        self._sharded = is_sharded(moe.model)
        enters = config.expert.enabled and not self._sharded and can_enter_at_layer(moe.model, first_changed)
        self._entry = first_changed if enters else 0
        self._moving = moving and self._entry > 0
        # Asked here and not looked up: a resumed repair has generated nothing yet that would tell.
        independent = rows_are_independent(moe.model)
        # A process that exceeds memory cannot repeat an update alone, so rows are fixed in a launch.
        automatic = config.micro_batch_size == "auto" and independent and processes.count == 1
        self.rows = RowLimit(config.fixed_rows if independent else 1, automatic=automatic)
        self._rules = self._routing_rules()
        original = partial(
            OriginalOutputs,
            moe,
            pad_id=self._pad,
            batch_size=self.rows.rows or config.batch_size,
            processes=processes,
        )
        # One pass over the rows; a second one over the plain requests that teach what the wrapped ones are to do.
        self._original = original(
            self._rows, routed=self._routed, predicted=self._predicted - plain_rows.keys(), entry=self._entry
        )
        distinct, self._teacher_row = _distinct(plain_rows)  # the families of a goal share its plain request
        self._teacher = original(distinct, predicted=range(len(distinct)))

    def begin_round(self, number: int) -> None:
        """Prepares the expert step of round `number` (from 0) on the current model."""
        if self._moving and number > 0:
            self._original.record_hidden_again(self._rows)

    @property
    def attack_lengths(self) -> list[int]:
        """Number of tokens of each attack with its refusal."""
        return [len(row.input_ids) for row in self._rows[: self._num_attacks]]

    @property
    def pair_lengths(self) -> list[int]:
        """Number of tokens of each attack's prompt."""
        return [len(row.input_ids) for row in self._attacks]

    def expert_loss(self, batch: ExpertBatch) -> Iterator[Losses]:
        """The loss of the refusals on attacks, plus the retain loss on answers to harmless prompts.

        A refusal's loss is the cross-entropy, or with a teacher the divergence from the model on the plain request.
        """
        attacks, retained = batch
        positions = [*attacks, *(self._num_attacks + position for position in retained)]
        for bucket, counts in self._micro_batches(positions):
            # The backward pass lies inside: gradient checkpointing runs the layers again, by the same routing.
            with self._changes(bucket):
                loss, parts = self._weighted(bucket, len(attacks), len(retained))
                yield (loss, parts) if counts else (loss * 0.0, {})

    def _weighted(self, bucket: Sequence[int], attacks: int, retained: int) -> Losses:
        """The bucket's part of the loss of a batch with these numbers of attacks and retained exchanges."""
        loss_B = self._response_losses(bucket)
        refusal = [position < self._num_attacks for position in bucket]
        share_B = [1 / attacks if is_refusal else 1 / retained for is_refusal in refusal]
        weight_B = [1.0 if is_refusal else self._config.retain.weight for is_refusal in refusal]
        scaled_B = loss_B * torch.tensor(share_B, device=loss_B.device)
        parts = {"refusal_loss": 0.0, "retain_loss": 0.0} if retained else {"refusal_loss": 0.0}
        for is_refusal, value in zip(refusal, scaled_B.detach().tolist(), strict=True):
            parts["refusal_loss" if is_refusal else "retain_loss"] += value
        return (scaled_B * torch.tensor(weight_B, device=loss_B.device)).sum(), parts

    def _micro_batches(self, positions: Sequence[int]) -> list[tuple[list[int], bool]]:
        """This process's positions by forward pass, similar lengths together, and whether they count."""
        lengths = [len(self._rows[position].input_ids) for position in positions]
        buckets = length_buckets(lengths, self._rows_per_pass(len(positions)))
        return [([positions[index] for index in bucket], counts) for bucket, counts in self._share(buckets)]

    def _rows_per_pass(self, rows: int) -> int:
        """Rows of a forward pass: at most `micro_batch_size`, and so few that each process has a share."""
        return min(self.rows.of(rows), math.ceil(rows / self._processes.count))

    def _share(self, passes: list[list[int]]) -> list[tuple[list[int], bool]]:
        """The forward passes of this process, and whether each counts.

        With sharded weights all processes make equally many: the last pass is repeated where one would be missing.
        """
        share = [(rows, True) for rows in passes[self._processes.rank :: self._processes.count]]
        if self._sharded and len(share) < math.ceil(len(passes) / self._processes.count):
            share.append((passes[-1], False))
        return share

    @contextmanager
    def _changes(self, positions: Sequence[int]) -> Iterator[None]:
        """Inside, a forward pass over these rows has the original's routing and starts at the entry layer, if asked."""
        with ExitStack() as changes:
            if self._routed:
                changes.enter_context(replay(self._moe, self._original.trace(positions)))
            if self._entry:
                hidden_BTD = self._original.hidden(positions)
                changes.enter_context(enter_at_layer(self._moe.model, self._entry, hidden_BTD))
            yield

    def _response_losses(self, positions: Sequence[int]) -> Tensor:
        rows = [self._rows[position] for position in positions]
        collated = collate(rows, self._pad, side="left")
        width = max(row.response_tokens for row in rows) + 1
        logits_BTV = run(self._moe, collated, keep=width)
        labels_BT = collated.labels_BT[:, -width:].to(logits_BTV.device)
        cross_entropy, divergence = (
            partial(loss, opening_tokens=self._config.opening_tokens, opening_weight=self._config.opening_weight)
            for loss in (response_cross_entropy, response_divergence)
        )
        retained = [row for row, position in enumerate(positions) if position in self._predicted]
        if not retained:
            return cross_entropy(logits_BTV, labels_BT)
        likeliest = self._targets([positions[row] for row in retained], width=width - 1, device=logits_BTV.device)
        attacks = [row for row, position in enumerate(positions) if position not in self._predicted]
        loss_B = logits_BTV.new_zeros(len(positions), dtype=torch.float32)
        loss_B[retained] = divergence(logits_BTV[retained], labels_BT[retained], *likeliest)
        if attacks:
            loss_B[attacks] = cross_entropy(logits_BTV[attacks], labels_BT[attacks])
        return loss_B

    def _targets(self, positions: Sequence[int], *, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """The original model's likeliest tokens and their log-probabilities, on the row or on its plain request."""
        targets = [
            self._teacher.predictions([self._teacher_row[position]], width=width)
            if position in self._teacher_row
            else self._original.predictions([position], width=width)
            for position in positions
        ]
        return (
            torch.cat([target.tokens_BTK for target in targets]).to(device),
            torch.cat([target.log_probability_BTK for target in targets]).to(device),
        )

    def router_loss(self, positions: Sequence[int]) -> Iterator[Losses]:
        """KL(plain routing || attack routing), mean over layers, over the tokens of the prompts (section 3.4).

        The tokens are the templated prompt up to the opening of the assistant's turn: what the model has read when it
        decides how to answer. The authors' formula compares batch means, so its batch is one forward pass, of the first
        process.
        """
        reference = self._config.router.variant == "reference"
        size = self.rows.whole(len(positions)) if reference else self._rows_per_pass(len(positions))
        chunks = [list(positions[start : start + size]) for start in range(0, len(positions), size)]
        for chunk, counts in self._share(chunks):
            yield self._divergence(chunk) * (len(chunk) / len(positions) if counts else 0.0), {}

    def _divergence(self, positions: Sequence[int]) -> Tensor:
        plain_batch, attack_batch = (
            collate([rows[position] for position in positions], self._pad) for rows in (self._plain, self._attacks)
        )
        with torch.no_grad():
            plain = self._routing(plain_batch)
        attack = self._routing(attack_batch)
        direction = self._config.router.direction
        if self._config.router.variant == "reference":
            return reference_router_loss(plain, attack, direction=direction)
        return pairwise_router_loss(
            plain,
            attack,
            plain_mask_BT=plain_batch.attention_mask_BT,
            attack_mask_BU=attack_batch.attention_mask_BT,
            direction=direction,
        )

    def _routing(self, batch: Batch) -> list[Tensor]:
        """Routing probabilities of every token (B, T, E), or its logits for the authors' formula, by MoE layer."""
        with capture(self._moe, logits=True, detach=False) as trace:
            logits_BTV = run(self._moe, batch, keep=1)
            layers = trace.logits
            if self._rules:
                layers = [rule.probabilities(logits) for rule, logits in zip(self._rules, layers, strict=True)]
            if self._sharded:
                # The backward pass gathers a layer's weights at the layer's output, so it begins at the last one.
                layers = [*layers[:-1], layers[-1] + 0.0 * logits_BTV.sum()]
            return [values_TE.view(*batch.input_ids_BT.shape, -1) for values_TE in layers]

    def _routing_rules(self) -> tuple[RoutingRule, ...]:
        """The family's rules of routing, checked on the first pairs; none where no pairwise router loss is computed."""
        router = self._config.router
        if not (router.enabled and router.variant == "pairwise" and self._attacks):
            return ()
        first = range(min(len(self._attacks), self.rows.rows or self._config.batch_size))
        _, rules = next(in_buckets([first], self._rules_of))
        return rules

    def _rules_of(self, positions: Sequence[int]) -> tuple[RoutingRule, ...]:
        batch = collate([self._attacks[position] for position in positions], self._pad)
        with torch.no_grad(), capture(self._moe, logits=True) as trace:
            run(self._moe, batch, keep=1)
            return routing_rules(self._moe, trace)


def _distinct(rows: Mapping[int, Encoded]) -> tuple[list[Encoded], dict[int, int]]:
    """The different ones of these rows, and by key the place of its row among them."""
    places: dict[tuple[tuple[int, ...], tuple[int, ...]], int] = {}
    distinct: list[Encoded] = []
    place_of: dict[int, int] = {}
    for key, row in rows.items():
        tokens = (tuple(row.input_ids), tuple(row.labels))
        if tokens not in places:
            places[tokens] = len(distinct)
            distinct.append(row)
        place_of[key] = places[tokens]
    return distinct, place_of


def _prompt(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> Encoded:
    ids = encode_prompt(tokenizer, messages)
    return Encoded(ids, [IGNORED] * len(ids))
