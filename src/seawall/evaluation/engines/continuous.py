"""The decoder of the engine `continuous`, whose replies are compared with our loop's before the first is used."""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakSet

from transformers import PreTrainedModel

from seawall.config.engine import ContinuousEngine
from seawall.evaluation.served.client import Served, ServedReply
from seawall.evaluation.served.probes import require_same_replies
from seawall.models.continuous import ContinuousDecoder, ContinuousReply
from seawall.models.decoding import Batches, BatchSize, Decoding, Loaded, TokenIds, decoding_for
from seawall.models.reference import Reference


class CheckedContinuous:
    """Continuous batching of models that pass the probes, each once: their weights may change, and are used as is."""

    def __init__(self, config: ContinuousEngine) -> None:
        self._decoder = ContinuousDecoder(config.cache_tokens, config.batch_tokens)
        self._checked: WeakSet[PreTrainedModel] = WeakSet()

    def prepare(self, loaded: Loaded) -> None:
        """Compares the probes' replies, unless it has done so for this model.

        Raises:
            UnsupportedModelError: transformers cannot serve this model so.
            ConfigError: its replies are other ones.
        """
        if loaded[0] not in self._checked:
            require_same_replies(loaded, "continuous", lambda local: self._served(loaded, local))
            self._checked.add(loaded[0])

    def __call__(
        self, loaded: Loaded, prompts: Sequence[TokenIds], decoding: Decoding, *, batch_size: BatchSize
    ) -> Batches:
        """As `ContinuousDecoder`."""
        if prompts:
            self.prepare(loaded)
        yield from self._decoder(loaded, prompts, decoding, batch_size=batch_size)

    def close(self) -> None:
        """Nothing is open."""

    def _served(self, loaded: Loaded, local: list[Reference]) -> list[Served]:
        model, tokenizer = loaded
        decoding = decoding_for(model, tokenizer, max(len(reference.reply) for reference in local))
        replies = self._decoder.measured(model, [reference.prompt for reference in local], decoding)
        return [Served(None, _reply(loaded, reply)) for reply in replies]


def _reply(loaded: Loaded, reply: ContinuousReply) -> ServedReply:
    pieces = tuple(str(loaded[1].decode([token])) for token in reply.tokens)
    return ServedReply(pieces, reply.log_probabilities, reply.tokens, "".join(pieces))
