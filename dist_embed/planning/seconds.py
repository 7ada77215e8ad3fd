"""How long a step's phases take: a roofline of each, by what a machine does at most.

Each phase is counted as products, bytes that are read and written, operations, and exchanges.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from dist_embed.embedding.memory import table_bytes
from dist_embed.observe.phase_names import PhaseName
from dist_embed.planning.cost import Cost
from dist_embed.planning.roofline import Roofline
from dist_embed.planning.step import Step
from dist_embed.planning.traffic import sent_ids, traffic

# Passes over values of a layer's activations, forward; a backward makes twice as many of all.
_PASSES_OF_WIDTH, _PASSES_OF_INNER = 24, 4
_CROSS_PASSES = 14
# Operations of a layer, and of each rectangle of sentences in it.
_LAYER_OPERATIONS, _RECTANGLE_OPERATIONS = 16, 8
_RECTANGLE_TOKENS, _MOST_RECTANGLES = 512, 8
_SENTENCE_TOKENS = 32  # over which attention goes, where it counts for little
# Passes over a block of logits and its gradient: in one pass of blocks, by tiles, with samples.
_BLOCK_PASSES, _TILE_PASSES, _SAMPLED_PASSES = 10, 16, 14
_BLOCK_OPERATIONS = 24
_ADAM_PASSES, _UPDATE_PASSES, _CLIP_PASSES = 7, 6, 2
# Operations of TorchRec and of our own around an exchange of ids or rows.
_EXCHANGE_OPERATIONS = 120
_TENSORS_OF_A_LAYER = 15
# Seconds for each count that clipping makes a number of Python of: two million took 130 ns each on
# one core of two that were busy.
_COUNT_SECONDS = 1e-7
# Of a backward, in which the exchange of gradients can go on beside it.
_BESIDE_BACKWARD = 0.5


@dataclass(frozen=True)
class StepTime:
    """A step's time.

    Attributes:
        step: which.
    """

    step: Step

    def costs(self) -> dict[PhaseName, Cost]:
        """By phase, without waits: see `dist_embed.planning.waits`."""
        roof = self._roof
        dense = self._layers("encoder"), self._layers("decoder")
        forward = dense[0] + dense[1]
        update, owners = self._optimizer(), self._table_backward()
        # On a GPU ids of the next step travel while this one updates.
        updating = update.work + owners.work if self._beside else 0.0
        return {
            "agreement": roof.own(operations=20) + roof.exchanged("all_reduce", 0.0),
            "data wait": roof.own(operations=20),
            "ids exchange": self._ids().beside(updating),
            "lookup": self._lookup(),
            "encoder": dense[0],
            "decoder": dense[1],
            "output": self._exact() if self.step.output.exact else self._sampled(forward.work),
            "dense backward": self._backward(forward.times(2, 2)),
            "gradient norm": self._norm(),
            "optimizer": update,
            "table backward": owners,
        }

    def seconds_of_asked_rows(self) -> dict[PhaseName, float]:
        """By phase the part of `costs` that goes with the rows a worker is asked for by others: it
        reads and updates them one by one, and what is told of them goes over its link.
        """
        step, roof = self.step, self._roof
        rows, width = sum(step.distinct_rows.values()), step.config.embedding.width

        def served(times: int, sent: float) -> float:
            own = roof.gathered(times * rows, width)
            if roof.share_on_device == 0:  # what misses a cache are rare words: all have as many
                own += roof.missed(times)
            return own.seconds + roof.network.sending("all_to_all", sent)

        found: dict[PhaseName, float] = {
            "ids exchange": served(0, sent_ids(step)), "lookup": served(1, self._sent["vectors"]),
            "table backward": served(2, self._sent["row gradients"]),
        }  # fmt: skip
        if "rows for clipping" in self._sent:
            found["gradient norm"] = served(2, self._sent["rows for clipping"])
        return found

    @property
    def _beside(self) -> bool:
        """Whether exchanges go on beside other work: on a CPU the same cores do both."""
        return self.step.machine.device == "cuda"

    @cached_property
    def _sent(self) -> dict[str, float]:
        return traffic(self.step)

    @cached_property
    def _roof(self) -> Roofline:
        return Roofline(self.step)

    def _layers(self, side: str) -> Cost:
        """The forward of the encoder or the decoder, with what leads from rows to it."""
        model, tokens = self.step.config.model, self.step.padded_tokens
        width, inner = model.width, model.feed_forward
        layers = model.encoder_layers if side == "encoder" else model.decoder_layers
        cross = side == "decoder"
        weights = (8 if cross else 4) * width * width + 2 * width * inner
        attention = (2 if cross else 1) * 2 * _SENTENCE_TOKENS * width
        passes = (_PASSES_OF_WIDTH + cross * _CROSS_PASSES) * width + _PASSES_OF_INNER * inner
        parts = self.step.config.train.accumulate
        ends = 0 if width == self.step.config.embedding.width else 1 + cross  # projections
        rectangles = min(_MOST_RECTANGLES, max(1.0, tokens / parts / _RECTANGLE_TOKENS))
        operations = parts * (1.75 if cross else 1) * (
            _LAYER_OPERATIONS + _RECTANGLE_OPERATIONS * rectangles
        )  # fmt: skip
        entering = 8 * max(width, self.step.config.embedding.width) * tokens
        return self._roof.own(
            flops=2 * tokens * (
                layers * (weights + attention) + ends * width * self.step.config.embedding.width
            ),
            inner=width,
            values=layers * passes * tokens + entering,
            operations=layers * operations + 20 * parts,
        )  # fmt: skip

    def _backward(self, twice_forward: Cost) -> Cost:
        exchange = self._roof.exchanged("all_reduce", self._sent["dense gradients"])
        if self._beside:
            beside = _BESIDE_BACKWARD * twice_forward.seconds
            exchange = Cost(latency=exchange.latency, network=max(0.0, exchange.network - beside))
        return twice_forward + exchange

    def _ids(self) -> Cost:
        """How many, then which rows: two exchanges."""
        exchange = self._roof.exchanged("all_to_all", self._sent["ids"], times=2)
        return self._roof.own(operations=_EXCHANGE_OPERATIONS) + exchange

    def _lookup(self) -> Cost:
        width, rows = self.step.config.embedding.width, self.step.looked_up
        return (
            self._roof.own(values=3 * width * rows, operations=_EXCHANGE_OPERATIONS)
            + self._roof.gathered(rows, width)
            + self._roof.missed(1)
            + self._roof.exchanged("all_to_all", self._sent["vectors"])
        )

    def _exact(self) -> Cost:
        """All workers' tokens against own rows, a micro-batch at a time; see `model.output`."""
        step, parts = self.step, self.step.config.train.accumulate
        tokens, rows, width = step.target_tokens, step.output_rows, step.output.table.width
        products = (6 if step.output.trained else 4) + 2 * step.by_tiles
        passes = _TILE_PASSES if step.by_tiles else _BLOCK_PASSES
        block = step.tile_tokens if step.by_tiles else step.block_tokens
        blocks = parts * max(1.0, tokens / parts / block)
        operations = _BLOCK_OPERATIONS * blocks
        if step.by_tiles:
            operations *= max(1.0, 4 * block * rows / step.output.block_bytes)
        gathered = self._sent["hidden states"] + self._sent["numbers of logits"]
        own = self._roof.own(
            flops=products * tokens * rows * width, inner=width,
            values=passes * tokens * rows + 2 * parts * rows * width,
            operations=operations,
        )  # fmt: skip
        if (
            self._roof.rows_on_host
        ):  # by blocks they are copied once, by tiles fetched in both passes
            own += self._roof.from_host((1 + step.by_tiles) * parts * rows * width)
        back = self._roof.exchanged(
            "all_to_all", self._sent["gradients of hidden states"], times=parts
        )
        times = 2 * parts + (parts if step.by_tiles else blocks)
        return own + back + self._roof.exchanged("all_gather", gathered, times=times)

    def _sampled(self, forward: float) -> Cost:
        """Own tokens against all negatives; ``forward``: seconds of the dense model's."""
        step, first = self.step, forward / self.step.config.train.accumulate
        tokens, width = step.target_tokens / step.workers, step.output.table.width
        blocks = max(1.0, 4 * tokens * step.samples / step.output.block_bytes)
        own = self._roof.own(
            flops=6 * tokens * step.samples * width, inner=width,
            values=_SAMPLED_PASSES * tokens * step.samples + 6 * step.samples * width,
            operations=_BLOCK_OPERATIONS * blocks,
        )  # fmt: skip
        there = self._roof.exchanged("all_gather", self._sent["negatives"])
        back = self._roof.exchanged("all_to_all", self._sent["gradients of negatives"])
        if self._beside:  # the first forward, and of the last backward what the dense model leaves
            there = there.beside(first)
            back = back.beside((1 - _BESIDE_BACKWARD) * 2 * first)
        return own + there + back

    def _norm(self) -> Cost:
        values = self.step.parameters + self.step.looked_up * self.step.config.embedding.width
        found = self._roof.own(values=values, operations=self._tensors)
        found += self._roof.exchanged("all_reduce", 0.0)
        if self.step.config.train.clip_norm:
            found += self._summed_at_owners(sum(self.step.distinct_rows.values()))
        return found

    def _summed_at_owners(self, rows: float) -> Cost:
        """Gradients of rows for the norm of their sums, see `optim.gradient_norm`."""
        step, width = self.step, self.step.config.embedding.width
        found = Cost()
        if step.output.exact and step.output.trained:  # the gradient of the whole shard is there
            found += self._roof.own(values=step.output_rows * width)
        if step.workers == 1:
            return found
        counts = len(step.specs) * step.workers**2
        found += Cost(operations=_COUNT_SECONDS * counts)
        # Put in order of rows, and added up there.
        found += self._roof.own(values=4 * width * rows, operations=_EXCHANGE_OPERATIONS)
        found += self._roof.gathered(2 * rows, width)
        found += self._roof.exchanged("all_gather", self._sent["counts for clipping"])
        return found + self._roof.exchanged("all_to_all", self._sent["rows for clipping"], times=2)

    @property
    def _tensors(self) -> int:
        """Of the dense model's parameters."""
        model = self.step.config.model
        return _TENSORS_OF_A_LAYER * (model.encoder_layers + model.decoder_layers)

    def _optimizer(self) -> Cost:
        step, values = self.step, float(_ADAM_PASSES * self.step.parameters)
        if step.config.train.clip_norm:  # all gradients are multiplied, where the norm is above it
            width = step.config.embedding.width
            gradients = step.parameters + step.looked_up * width
            if step.output.exact and step.output.trained:
                gradients += step.output_rows * width
            values += _CLIP_PASSES * gradients
        return self._roof.own(values=values, operations=2 * self._tensors)

    def _table_backward(self) -> Cost:
        """Gradients to the owners of rows, which update them."""
        step = self.step
        width, workers, rows = step.config.embedding.width, step.workers, step.looked_up
        found = (
            self._roof.own(values=3 * width * rows, operations=_EXCHANGE_OPERATIONS)
            + self._roof.gathered(2 * rows, width)
            + self._roof.missed(2)
            + self._roof.exchanged("all_to_all", self._sent["row gradients"])
        )
        if step.head_rows:  # its gradient is summed over all workers, and each updates all of it
            found += self._roof.own(values=_UPDATE_PASSES * step.head_rows * width)
            found += self._roof.exchanged("all_reduce", self._sent["gradients of the head"])
        if step.output.exact and step.output.trained:  # all rows of the output layer's table
            optimizer, weights = step.config.embedding.optimizer, step.config.embedding.weights
            shard = table_bytes(step.output.table, optimizer, workers, weights) / 4
            found += self._roof.own(values=_UPDATE_PASSES * shard)
            if self._roof.rows_on_host:
                found += self._roof.from_host(2 * step.output_rows * width)
        return found
