"""How long a step's phases take: a roofline of each, by what a machine does at most.

Each phase is counted as products, bytes that are read and written, operations, and exchanges. What
is left out, or counted too coarsely, is in the machine's ``factors``, which `bench calibrate` finds
by making steps.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property

from dist_embed.embedding.memory import table_bytes
from dist_embed.observe.phase_names import PhaseName
from dist_embed.planning.machine import Collective, Dtype, Factor
from dist_embed.planning.memory import tables_on_device
from dist_embed.planning.step import Step
from dist_embed.planning.traffic import Network, sent_ids, traffic

# Passes over values of a layer's activations, forward; a backward makes twice as many of all.
_PASSES_OF_WIDTH, _PASSES_OF_INNER = 24, 4
_CROSS_PASSES = 14
# Operations of a layer, and of each rectangle of sentences in it.
_LAYER_OPERATIONS, _RECTANGLE_OPERATIONS = 16, 8
_RECTANGLE_TOKENS, _MOST_RECTANGLES = 512, 8
_SENTENCE_TOKENS = 32  # over which attention goes, where it counts for little
# Passes over a block of logits and its gradient: in one pass of blocks, by tiles, with samples.
_BLOCK_PASSES, _TILE_PASSES, _SAMPLED_PASSES = 10, 16, 14
_BLOCK_OPERATIONS, _TILE_TOKENS = 24, 256
_ADAM_PASSES, _UPDATE_PASSES = 7, 6
# Operations of TorchRec and of our own around an exchange of ids or rows.
_EXCHANGE_OPERATIONS = 120
_TENSORS_OF_A_LAYER = 15
# Seconds for each count that clipping makes a number of Python of: two million took 130 ns each on
# one core of two that were busy.
_COUNT_SECONDS = 1e-7
# Of a backward, in which the exchange of gradients can go on beside it.
_BESIDE_BACKWARD = 0.5


@dataclass(frozen=True)
class Spent:
    """Seconds of one phase by what they are spent on.

    Attributes:
        compute: matrix products.
        memory: reading and writing.
        operations: starting operations, where they are small.
        latency: of exchanges, whatever they carry.
        network: bytes of exchanges that nothing else goes on beside.
    """

    compute: float = 0.0
    memory: float = 0.0
    operations: float = 0.0
    latency: float = 0.0
    network: float = 0.0

    def __add__(self, other: Spent) -> Spent:
        return Spent(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def times(self, work: float, exchange: float) -> Spent:
        """What a worker does by itself, and exchanges, each so many times."""
        return Spent(
            work * self.compute, work * self.memory, work * self.operations,
            exchange * self.latency, exchange * self.network,
        )  # fmt: skip

    @property
    def work(self) -> float:
        """Seconds without exchanges."""
        return self.compute + self.memory + self.operations

    @property
    def exchange(self) -> float:
        """Seconds of exchanges."""
        return self.latency + self.network

    @property
    def seconds(self) -> float:
        """All of them."""
        return self.work + self.exchange


@dataclass(frozen=True)
class StepTime:
    """A step's time.

    Attributes:
        step: which.
    """

    step: Step

    def spent(self) -> dict[PhaseName, Spent]:
        """By phase, `Machine.factors` applied. What does not depend on steps alone is not there:
        stalls of checkpoints.
        """
        forward = {"encoder": self._layers("encoder"), "decoder": self._layers("decoder")}
        found: dict[PhaseName, Spent] = {
            "agreement": self._of(operations=20) + self._exchange("all_reduce", 0.0),
            "data wait": self._of(operations=20),
            "ids exchange": self._ids(),
            "lookup": self._lookup(),
            "encoder": forward["encoder"],
            "decoder": forward["decoder"],
            "output": self._exact() if self.step.output.exact else self._sampled(),
            "dense backward": self._backward((forward["encoder"] + forward["decoder"]).times(2, 2)),
            "gradient norm": self._norm(),
            "optimizer": self._optimizer(),
            "table backward": self._table_backward(),
        }
        return {name: self._corrected(name, found[name]) for name in found}

    def seconds_of_asked_rows(self) -> dict[PhaseName, float]:
        """By phase the part of `spent` that goes with the rows a worker is asked for by others: it
        reads and updates them one by one, and what is told of them goes over its link.
        """
        step, network = self.step, Network(self.step.machine, self.step.workers)
        rows, width = sum(step.distinct_rows.values()), step.config.embedding.width

        def served(times: int, sent: float) -> Spent:
            own = self._gathered(times * rows, width)
            if self._on_device[1] == 0:  # what misses a cache are rare words: all have as many
                own += self._missed(times)
            return own + Spent(network=network.sending("all_to_all", sent))

        found: dict[PhaseName, Spent] = {
            "ids exchange": served(0, sent_ids(step)), "lookup": served(1, self._sent["vectors"]),
            "table backward": served(2, self._sent["row gradients"]),
        }  # fmt: skip
        if "rows for clipping" in self._sent:
            found["gradient norm"] = served(2, self._sent["rows for clipping"])
        return {name: self._corrected(name, found[name]).seconds for name in found}

    def _corrected(self, name: PhaseName, spent: Spent) -> Spent:
        machine = self.step.machine
        of_kind = machine.factors.exact if self.step.output.exact else machine.factors.sampled
        factor = of_kind.get(name, Factor())
        crowded = machine.crowded(machine.workers_of_node(self.step.workers))
        return spent.times(crowded * factor.work, factor.exchange)

    @cached_property
    def _sent(self) -> dict[str, float]:
        return traffic(self.step)

    @property
    def _share(self) -> float:
        """Of one core, or one GPU, that a worker has: more with several threads."""
        machine, workers = self.step.machine, self.step.workers
        if machine.device == "cuda":
            return 1.0
        share = machine.cores / machine.workers_of_node(workers)
        wanted = self.step.config.cluster.threads_per_worker or max(1, int(share))
        return min(share, wanted)

    def _of(
        self, *, flops: float = 0.0, inner: int = 64, values: float = 0.0, operations: float = 0.0
    ) -> Spent:
        """Products, float32 values that are read or written, and operations."""
        machine, share = self.step.machine, self._share
        dtype: Dtype = "bf16" if self.step.narrow else "fp32"
        compute = flops / machine.flops(dtype, inner) / share
        memory = 4 * values / machine.bytes_per_second() / share
        starting = 1e-6 * machine.operation_us * operations / min(1.0, share)
        if machine.device == "cuda":  # the host starts operations while the device works
            starting = max(0.0, starting - compute - memory)
        return Spent(compute, memory, starting)

    def _gathered(self, rows: float, width: int) -> Spent:
        """Rows that are read, or written, one by one."""
        of_row = 4 * width
        return Spent(
            memory=rows * of_row / self.step.machine.gathered_per_second(of_row) / self._share
        )

    @cached_property
    def _on_device(self) -> tuple[bool, float]:
        """Whether rows may lie on the host of a GPU, and the share of them that does not."""
        if self.step.device_bytes is None:
            return False, 1.0
        tier, _, share = tables_on_device(self.step)
        return tier in ("uvm", "uvm_caching"), share

    def _from_host(self, values: float) -> Spent:
        """Values of rows that a GPU fetches from its host, or writes there."""
        of_value = 2 if self.step.config.embedding.weights == "fp16" else 4
        return Spent(memory=of_value * values / self.step.machine.host_link())

    def _missed(self, times: int) -> Spent:
        """Rows that no cache holds, so often between a GPU and its host: those of words that are
        not among the most frequent ones, of which a cache is full.
        """
        rows = self.step.distinct_beyond(self._on_device[1])
        return self._from_host(times * self.step.config.embedding.width * rows)

    def _exchange(self, kind: Collective, sent: float, times: float = 1.0) -> Spent:
        """``times`` exchanges that carry ``sent`` bytes of this worker together."""
        network = Network(self.step.machine, self.step.workers)
        return Spent(latency=times * network.latency(kind), network=network.sending(kind, sent))

    def _layers(self, side: str) -> Spent:
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
        return self._of(
            flops=2 * tokens * (
                layers * (weights + attention) + ends * width * self.step.config.embedding.width
            ),
            inner=width,
            values=layers * passes * tokens + entering,
            operations=layers * operations + 20 * parts,
        )  # fmt: skip

    def _backward(self, twice_forward: Spent) -> Spent:
        exchange = self._exchange("all_reduce", self._sent["dense gradients"])
        if self.step.machine.device == "cuda":
            beside = _BESIDE_BACKWARD * twice_forward.seconds
            exchange = Spent(latency=exchange.latency, network=max(0.0, exchange.network - beside))
        return twice_forward + exchange

    def _ids(self) -> Spent:
        """How many, then which rows: two exchanges."""
        exchange = self._exchange("all_to_all", self._sent["ids"], times=2)
        return self._of(operations=_EXCHANGE_OPERATIONS) + exchange

    def _lookup(self) -> Spent:
        width = self.step.config.embedding.width
        rows = sum(self.step.distinct_rows.values())
        return (
            self._of(values=3 * width * rows, operations=_EXCHANGE_OPERATIONS)
            + self._gathered(rows, width)
            + self._missed(1)
            + self._exchange("all_to_all", self._sent["vectors"])
        )

    def _exact(self) -> Spent:
        """All workers' tokens against own rows, a micro-batch at a time; see `model.output`."""
        step, parts = self.step, self.step.config.train.accumulate
        tokens, rows, width = step.target_tokens, step.output_rows, step.output.table.width
        products = (6 if step.output.trained else 4) + 2 * step.by_tiles
        passes = _TILE_PASSES if step.by_tiles else _BLOCK_PASSES
        block = _TILE_TOKENS if step.by_tiles else step.block_tokens
        blocks = parts * max(1.0, tokens / parts / block)
        operations = _BLOCK_OPERATIONS * blocks
        if step.by_tiles:
            operations *= max(1.0, 4 * block * rows / step.output.block_bytes)
        gathered = self._sent["hidden states"] + self._sent["numbers of logits"]
        own = self._of(
            flops=products * tokens * rows * width, inner=width,
            values=passes * tokens * rows + 2 * parts * rows * width,
            operations=operations,
        )  # fmt: skip
        if self._on_device[0]:  # by blocks they are copied once, by tiles fetched in both passes
            own += self._from_host((1 + step.by_tiles) * parts * rows * width)
        back = self._exchange("all_to_all", self._sent["gradients of hidden states"], times=parts)
        times = 2 * parts + (parts if step.by_tiles else blocks)
        return own + back + self._exchange("all_gather", gathered, times=times)

    def _sampled(self) -> Spent:
        step = self.step
        tokens, width = step.target_tokens / step.workers, step.output.table.width
        blocks = max(1.0, 4 * tokens * step.samples / step.output.block_bytes)
        own = self._of(
            flops=6 * tokens * step.samples * width, inner=width,
            values=_SAMPLED_PASSES * tokens * step.samples + 6 * step.samples * width,
            operations=_BLOCK_OPERATIONS * blocks,
        )  # fmt: skip
        back = self._exchange("all_to_all", self._sent["gradients of negatives"])
        return own + back + self._exchange("all_gather", self._sent["negatives"])

    def _norm(self) -> Spent:
        rows = sum(self.step.distinct_rows.values())
        values = self.step.parameters + rows * self.step.config.embedding.width
        found = self._of(values=values, operations=self._tensors)
        found += self._exchange("all_reduce", 0.0)
        return found + self._summed_at_owners(rows) if self.step.config.train.clip_norm else found

    def _summed_at_owners(self, rows: float) -> Spent:
        """Gradients of rows for the norm of their sums, see `optim.gradient_norm`."""
        step, width = self.step, self.step.config.embedding.width
        found = Spent()
        if step.output.exact and step.output.trained:  # the gradient of the whole shard is there
            found += self._of(values=step.output_rows * width)
        if step.workers == 1:
            return found
        counts = len(step.specs) * step.workers**2
        found += Spent(operations=_COUNT_SECONDS * counts)
        # Put in order of rows, and added up there.
        found += self._of(values=4 * width * rows, operations=_EXCHANGE_OPERATIONS)
        found += self._gathered(2 * rows, width)
        found += self._exchange("all_gather", self._sent["counts for clipping"])
        return found + self._exchange("all_to_all", self._sent["rows for clipping"], times=2)

    @property
    def _tensors(self) -> int:
        """Of the dense model's parameters."""
        model = self.step.config.model
        return _TENSORS_OF_A_LAYER * (model.encoder_layers + model.decoder_layers)

    def _optimizer(self) -> Spent:
        return self._of(values=_ADAM_PASSES * self.step.parameters, operations=2 * self._tensors)

    def _table_backward(self) -> Spent:
        """Gradients to the owners of rows, which update them."""
        step = self.step
        width, workers = step.config.embedding.width, step.workers
        rows = sum(step.distinct_rows.values())
        found = (
            self._of(values=3 * width * rows, operations=_EXCHANGE_OPERATIONS)
            + self._gathered(2 * rows, width)
            + self._missed(2)
            + self._exchange("all_to_all", self._sent["row gradients"])
        )
        if step.output.exact and step.output.trained:  # all rows of the output layer's table
            optimizer, weights = step.config.embedding.optimizer, step.config.embedding.weights
            shard = table_bytes(step.output.table, optimizer, workers, weights) / 4
            found += self._of(values=_UPDATE_PASSES * shard)
            if self._on_device[0]:
                found += self._from_host(2 * step.output_rows * width)
        return found
