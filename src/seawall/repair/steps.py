"""The two steps of a round: losses of one batch, on the model as it now computes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from seawall.config.repair import RepairConfig
from seawall.data.batching import Batch, collate
from seawall.data.templating import IGNORED, Encoded, encode_exchange, encode_prompt
from seawall.data.types import Exchange, Messages, SafetyPair
from seawall.models.capture import RoutingTrace, capture
from seawall.models.find import MoEModel
from seawall.models.replay import replay
from seawall.train.loop import Losses
from seawall.train.losses import pairwise_router_loss, reference_router_loss, response_cross_entropy


@dataclass(frozen=True)
class SequenceRouting:
    """The original routing of one token sequence, without padding: per MoE layer (T, K)."""

    indices: tuple[Tensor, ...]
    weights: tuple[Tensor, ...]


@final
class Repairer:
    """Losses of batches, by position in the lists of attacks, retained exchanges and pairs."""

    def __init__(
        self,
        moe: MoEModel,
        tokenizer: PreTrainedTokenizerBase,
        config: RepairConfig,
        *,
        attacks: Sequence[Exchange],
        retain: Sequence[Exchange],
        pairs: Sequence[SafetyPair],
    ) -> None:
        self._moe = moe
        self._config = config
        self._pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        self.attacks = [encode(tokenizer, exchange) for exchange in attacks]
        self.retain = [encode(tokenizer, exchange) for exchange in retain]
        self._anchor_prompts = [_prompt(tokenizer, pair.anchor) for pair in pairs]
        self._attack_prompts = [_prompt(tokenizer, pair.attack) for pair in pairs]
        self._recorded: Mapping[int, SequenceRouting] = {}

    @property
    def attack_lengths(self) -> list[int]:
        """Tokens of each attack prompt."""
        return [len(row.input_ids) for row in self._attack_prompts]

    def record_routing(self) -> None:
        """Remembers where the model routes every training sequence now, for `routing: replay`."""
        found = {}
        for row in [*self.attacks, *self.retain]:
            with torch.inference_mode(), capture(self._moe) as trace:
                self._run(collate([row], self._pad, side="left"), keep=1)
            found[id(row)] = SequenceRouting(
                tuple(layer.to("cpu", torch.int32) for layer in trace.indices),
                tuple(layer.to("cpu") for layer in trace.weights),
            )
        self._recorded = found

    def expert_loss(self, batch: tuple[Sequence[int], Sequence[int]]) -> Losses:
        """Cross-entropy of the refusals on attacks, plus the retained answers' on harmless prompts."""
        attack_at, retain_at = batch
        rows = [*(self.attacks[at] for at in attack_at), *(self.retain[at] for at in retain_at)]
        collated = collate(rows, self._pad, side="left").to(self._moe.model.device)
        width = max(row.response_tokens for row in rows) + 1
        fixed = replay(self._moe, self._trace(rows, collated)) if self._recorded else nullcontext()
        with fixed:
            logits_BTV = self._run(collated, keep=width)
        loss_B = response_cross_entropy(logits_BTV, collated.labels_BT[:, -width:])
        refusal = loss_B[: len(attack_at)].mean()
        parts = {"refusal_loss": float(refusal.detach())}
        total = refusal
        if retain_at:
            retained = loss_B[len(attack_at) :].mean()
            parts["retain_loss"] = float(retained.detach())
            total = total + self._config.retain.weight * retained
        return total, parts

    def router_loss(self, pair_at: Sequence[int]) -> Losses:
        """Divergence of the attacks' routing from the plain requests', over the prompts' tokens."""
        device = self._moe.model.device
        anchors = collate([self._anchor_prompts[at] for at in pair_at], self._pad).to(device)
        attacks = collate([self._attack_prompts[at] for at in pair_at], self._pad).to(device)
        with torch.no_grad():
            anchor = self._router_logits(anchors)
        attack = self._router_logits(attacks)
        direction = self._config.router.direction
        if self._config.router.variant == "reference":
            return reference_router_loss(anchor, attack, direction=direction), {}
        loss = pairwise_router_loss(
            anchor,
            attack,
            anchor_mask_BT=anchors.attention_mask_BT,
            attack_mask_BU=attacks.attention_mask_BT,
            direction=direction,
        )
        return loss, {}

    def _router_logits(self, batch: Batch) -> list[Tensor]:
        with capture(self._moe, logits=True, detach=False) as trace:
            self._run(batch, keep=1)
            logits = list(trace.logits)
        return [layer_TE.view(*batch.input_ids_BT.shape, -1) for layer_TE in logits]

    def _run(self, batch: Batch, *, keep: int) -> Tensor:
        """Logits of the last `keep` positions. Positions count from the first real token, as in generation."""
        batch = batch.to(self._moe.model.device)
        positions_BT = (batch.attention_mask_BT.cumsum(1) - 1).clamp_min(0)
        output = self._moe.model(
            input_ids=batch.input_ids_BT,
            attention_mask=batch.attention_mask_BT,
            position_ids=positions_BT,
            use_cache=False,
            logits_to_keep=keep,
        )
        logits: Tensor = output.logits
        return logits

    def _trace(self, rows: Sequence[Encoded], batch: Batch) -> RoutingTrace:
        """The recorded routing of a left-padded batch. Padding goes to the first K experts with weight 0."""
        width, top_k = batch.input_ids_BT.shape[1], self._moe.top_k
        trace = RoutingTrace(self._moe.num_layers, self._moe.num_experts)
        device = self._moe.model.device
        for layer in range(self._moe.num_layers):
            indices, weights = [], []
            for row in rows:
                recorded = self._recorded[id(row)]
                padding = width - len(row.input_ids)
                filler = torch.arange(top_k, dtype=torch.int32).expand(padding, top_k)
                indices += [filler, recorded.indices[layer]]
                weights += [torch.zeros(padding, top_k, dtype=recorded.weights[layer].dtype), recorded.weights[layer]]
            trace.indices.append(torch.cat(indices).long().to(device))
            trace.weights.append(torch.cat(weights).to(device))
        return trace


def encode(tokenizer: PreTrainedTokenizerBase, exchange: Exchange) -> Encoded:
    """Ids and labels; a reply that was cut does not teach its end."""
    encoded = encode_exchange(tokenizer, exchange)
    return encoded if exchange.ended else Encoded(encoded.input_ids[:-1], encoded.labels[:-1])


def _prompt(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> Encoded:
    ids = encode_prompt(tokenizer, messages)
    return Encoded(ids, [IGNORED] * len(ids))
