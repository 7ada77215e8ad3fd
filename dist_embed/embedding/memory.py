"""How much memory a worker needs, before it is started.

tests/distributed/test_memory_foretold.py holds it against what workers take. Free of torch: the
launching process asks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from dist_embed.checkpoint.settings import Saving
from dist_embed.embedding.plan import TableSpec, shard_of
from dist_embed.embedding.settings import Tier, Weights

# A worker process with torch, torchrec and fbgemm loaded. A whole run with a table of 146 rows
# peaked at 0.46 GiB ("peak memory of worker 0" at the end of `train`).
# CUDA takes host memory too: how much has not been measured.
PROCESS_BYTES = 512 * 2**20
CUDA_PROCESS_BYTES = 768 * 2**20
GIB = 2**30

# The exact layer computes whole logits of blocks of tokens. Where a block would hold fewer tokens
# than these, matrix products are slow and every block is an exchange: it goes by tiles instead. On
# a GPU a block reads and writes the whole shard and its gradient at the pace of memory, which from
# about 1,000 tokens on costs less than the fourth product of the tiles.
LEAST_BLOCK_TOKENS = {"cpu": 32, "cuda": 1024}
# Block sizes of `model.logits_block_mib: auto`: on the CPU what its caches like, on a GPU blocks of
# so many tokens, and not below what tiles of 8,192 tokens by 8,192 rows take.
CPU_BLOCK_BYTES = 8 * 2**20
CUDA_BLOCK_TOKENS = 2048
CUDA_TILE_BYTES = 4 * 8192 * 8192
# Of a tile: enough for a CPU's matrix product to be fast; its rows follow from its bytes.
TILE_TOKENS = 256
# Of a GPU's memory for a block; `beside_tables_bytes` counts three of them there.
CUDA_BLOCK_SHARE = 1 / 16
# Bytes a word: what counts of words and the sampler made of them hold at once, and what stays.
SAMPLER_BUILDING_BYTES, SAMPLER_BYTES = 26, 8
# Bytes a word that stay of the shares by which right answers are corrected as negatives.
SHARES_BYTES = 2
# Vectors, gradients and what exchanges hold of a negative, in float32 rows of it. Measured by peaks
# of steps of one worker: 9.4 with 50 thousand negatives of width 64, 7.5 with 200 thousand.
ROWS_OF_A_NEGATIVE = 10
# Bytes of a number that a worker has of another's token: four floats of its logits.
LOGIT_NUMBERS_BYTES = 4 * 4
# Bytes of each of the counts of rows by which clipping brings gradients to their owners: an int64,
# and in CPython a place in a list and a number.
CLIPPING_COUNT_BYTES = 8 + 8 + 32
# Values beside each parameter of the dense model: AdamW's two moments; its gradient in a step.
_MOMENTS = 2

# What reading a checkpoint leaves held of buffers (`checkpoint/read.py`) and client, and what
# writing one takes: on its way to a store each of two chunks of 64 MiB is there twice.
READING_BYTES = {"local": 32 * 2**20, "remote": 96 * 2**20}
WRITING_BYTES = {"local": 0, "remote": 256 * 2**20}

# Values of optimizer state per row of width D.
_STATE_VALUES = {
    "rowwise_adagrad": lambda width: 1,
    "adagrad": lambda width: width,
    "sgd": lambda width: 0,
    "adam": lambda width: 2 * width,
}
# Bytes of a value of a row; the optimizer's state is float32 whatever the rows are.
_VALUE_BYTES: dict[Weights, int] = {"fp32": 4, "fp16": 2}


def table_bytes(
    spec: TableSpec, optimizer: str, num_workers: int, weights: Weights = "fp32"
) -> int:
    """Bytes of one worker's shard of a table with its optimizer's state."""
    per_row = _VALUE_BYTES[weights] * spec.physical_width + 4 * _STATE_VALUES[optimizer](
        spec.physical_width
    )
    return per_row * shard_of(spec.num_rows, 0, num_workers).physical_rows


def host_table_bytes(
    spec: TableSpec, optimizer: str, num_workers: int, weights: Weights, tier: Tier
) -> int:
    """What of `table_bytes` lies in host memory where the worker has a GPU.

    FBGEMM keeps a state of one value per row on the device in every tier.
    """
    if tier == "device":
        return 0
    whole = table_bytes(spec, optimizer, num_workers, weights)
    if _STATE_VALUES[optimizer](spec.physical_width) != 1:
        return whole
    return whole - 4 * shard_of(spec.num_rows, 0, num_workers).physical_rows


def loading_in_place_bytes(
    specs: list[TableSpec], optimizer: str, num_workers: int, weights: Weights, tier: Tier | None
) -> int:
    """What a load into the tables themselves takes of host memory for a while: with a GPU, whose
    tensors no file can be read into, wherever rows lie, and where rows are padded, the largest one
    of a worker's rows or of one kind of their state; else nothing. Tensors of the dense model, all
    smaller, are left out.
    """
    if tier is None:
        specs = [spec for spec in specs if spec.width < spec.physical_width]

    def largest(spec: TableSpec) -> int:
        state = 4 * min(_STATE_VALUES[optimizer](spec.physical_width), spec.physical_width)
        per_row = max(_VALUE_BYTES[weights] * spec.physical_width, state)
        return per_row * shard_of(spec.num_rows, 0, num_workers).physical_rows

    return max(map(largest, specs), default=0)


def tokenizer_bytes(words: int, pieces: int = 0) -> int:
    """What tokenizers take that are held in memory: of ``words`` of some nine letters, as data have
    them that were prepared before words were tables on disk, or of ``pieces`` of words.

    Measured with `tokenizers` 0.23.3. Words, in MB: 120 with 350 thousand, 227 with 700 thousand,
    386 with 1.5 million, 662 with 3 million. Bytes a piece: 630 to 790 with ``bpe`` (30 and 79
    thousand), 1,070 to 1,140 with ``unigram`` (27 and 43 thousand).
    """
    first = min(words, 350_000)
    return 340 * first + 230 * (words - first) + 1140 * pieces


def block_tokens(block_bytes: int, num_rows: int, num_workers: int) -> int:
    """Tokens whose float32 logits against the longest shard of ``num_rows`` fill a block."""
    return max(1, block_bytes // (4 * shard_of(num_rows, 0, num_workers).physical_rows))


def tile_tokens(tile_bytes: int, device: Literal["cpu", "cuda"]) -> int:
    """Tokens of a tile of float32 logits, where there are so many."""
    if device == "cpu":
        return TILE_TOKENS
    # As many as rows: the fewest operations, and passes over memory.
    return max(TILE_TOKENS, math.isqrt(tile_bytes // 4))


def logits_block_bytes(
    mib: float | Literal["auto"], num_rows: int, num_workers: int, *, exact: bool,
    device_bytes: int | None,
) -> int:  # fmt: skip
    """Bytes of a block of float32 logits.

    Args:
        mib: `model.logits_block_mib`; what follows decides with ``auto`` alone.
        num_rows: V of the output layer.
        num_workers: W.
        exact: whether training takes all own rows of it.
        device_bytes: memory of the smallest GPU; None on the CPU.
    """
    if mib != "auto":
        return int(mib * 2**20)
    if device_bytes is None:
        return CPU_BLOCK_BYTES
    of_token = 4 * shard_of(num_rows, 0, num_workers).physical_rows
    tokens = min(CUDA_BLOCK_TOKENS, int(device_bytes * CUDA_BLOCK_SHARE) // of_token)
    by_blocks = exact and tokens >= LEAST_BLOCK_TOKENS["cuda"]
    return max(CUDA_TILE_BYTES, tokens * of_token if by_blocks else 0)


@dataclass(frozen=True)
class OutputNeeds:
    """What the output layer is, as far as it decides about memory.

    Attributes:
        table: the output layer's.
        exact: whether training takes all of its rows; else negatives.
        block_bytes: of a block of float32 logits.
        narrow_products: whether they are bfloat16.
        sampler_words: V where the sampler holds a number a word, else 0.
        share_words: V where right answers serve as negatives, else 0.
        negatives: how many a worker has at most in a step.
        tokens: that all workers have at most in a micro-batch; 0 with negatives.
        trained: whether any step changes the rows of the table.
        device: where it is computed.
    """

    table: TableSpec
    exact: bool
    block_bytes: int
    narrow_products: bool = False
    sampler_words: int = 0
    share_words: int = 0
    negatives: int = 0
    tokens: int = 0
    trained: bool = True
    device: Literal["cpu", "cuda"] = "cpu"


@dataclass(frozen=True)
class Replicated:
    """What every worker holds of its own, whole tables aside.

    Attributes:
        words: of the tokenizers that are held in memory; of both sides together, where they have no
            shared one.
        pieces: likewise.
        parameters: of the dense model.
        activation_bytes: what a step keeps of the dense model's forward for its backward.
        exchange_bytes: a step's rows, their gradients, and both on their way.
        clipping_bytes: how many rows each worker has for each other, see `optim.gradient_norm`; of
            the host, wherever the model is.
        sentence_bytes: prepared sentences and the plans of their batches; likewise.
    """

    words: int = 0
    pieces: int = 0
    parameters: int = 0
    activation_bytes: int = 0
    exchange_bytes: int = 0
    clipping_bytes: int = 0
    sentence_bytes: int = 0

    @property
    def dense_bytes(self) -> int:
        """Of the dense model's parameters."""
        return 4 * self.parameters

    @property
    def of_a_step(self) -> dict[str, int]:
        """What a step holds beside gradients and the output layer's, by part."""
        return {"activations": self.activation_bytes, "vectors": self.exchange_bytes}


def output_memory(
    output: OutputNeeds, num_workers: int, *, training: bool = True, copied: bool = False
) -> dict[str, int]:
    """Bytes that the output layer needs in a step beside the tables, by part.

    A block of logits, and one more of narrow products; the negatives of the sampled layer; where
    the exact output layer is trained, all workers' tokens, the gradient of its shard, float32, and
    where it goes by blocks of rows that are ``copied`` from the host or of another type than the
    products, the copy. On a GPU three blocks are counted: nobody has measured there what libraries
    take beside them.
    """
    blocks = 3 if output.device == "cuda" else 1.5 if output.narrow_products else 1
    needed = {"logits": int(blocks * output.block_bytes)}
    if training:
        needed["negatives"] = ROWS_OF_A_NEGATIVE * 4 * output.table.width * output.negatives
    if training and output.exact:
        shard = shard_of(output.table.num_rows, 0, num_workers).physical_rows * output.table.width
        needed["gradient of all rows"] = 4 * shard * output.trained
        needed["tokens of all workers"] = _tokens_bytes(output, num_workers)
        if by_blocks(output, num_workers) and (copied or output.narrow_products):
            needed["rows for products"] = (2 if output.narrow_products else 4) * shard
    return needed


def by_blocks(output: OutputNeeds, num_workers: int) -> bool:
    """Whether the exact output layer is trained by blocks of whole logits; else by tiles."""
    tokens = block_tokens(output.block_bytes, output.table.num_rows, num_workers)
    return tokens >= LEAST_BLOCK_TOKENS[output.device]


def _tokens_bytes(output: OutputNeeds, num_workers: int) -> int:
    """Of all workers' tokens, which each has at its rows of the exact output layer.

    Their hidden states in the type of the products; the gradient of these, what comes back of it
    from each worker, and its sum; and what workers tell each other of logits, by tiles of all
    tokens, before there is a gradient, else of a block's.
    """
    values = output.table.width * output.tokens
    if num_workers == 1:  # its hidden states are those of the decoder, which nothing brings back
        hidden, gradients = 2 * output.narrow_products * values, 4 * values
    else:
        hidden = (2 if output.narrow_products else 4) * values
        gradients = 2 * 4 * values + 4 * values // num_workers
    of_token = LOGIT_NUMBERS_BYTES * num_workers
    if not by_blocks(output, num_workers):
        return hidden + max(gradients, of_token * output.tokens)
    block = block_tokens(output.block_bytes, output.table.num_rows, num_workers)
    return hidden + gradients + of_token * min(block, output.tokens)


def beside_tables_bytes(
    output: OutputNeeds, num_workers: int, *, training: bool = True, copied: bool = False
) -> int:
    """Bytes that a step needs beside the tables, as far as they can be foretold: the sum of
    `output_memory`.
    """
    return sum(output_memory(output, num_workers, training=training, copied=copied).values())


def host_memory(
    specs: list[TableSpec],
    optimizer: str,
    num_workers: int,
    output: OutputNeeds,
    replicated: Replicated,
    *,
    saving: Saving | None,
    store: Literal["local", "remote"] = "local",
    weights: Weights = "fp32",
    tier: Tier | None = None,
    process_bytes: int | None = None,
) -> dict[str, int]:
    """Estimate of the host memory of a worker that trains, by part: on the CPU, or with a GPU and
    ``tier``.

    Process, words, tables and dense model with state, the copy through which checkpoints are saved
    and loaded, and what the sampler and a step need: the most that is held at once, of loading,
    building the sampler and training; so parts of the other times are not there. Without ``saving``
    nothing is loaded or saved. With a GPU not what pinned memory is rounded up to.
    ``process_bytes``: of a process with its libraries, where that has been measured.
    """
    states = 4 * _state_values(specs, optimizer, num_workers)
    rows = sum(table_bytes(spec, optimizer, num_workers, weights) for spec in specs) - states
    process = _process_bytes(tier) if process_bytes is None else process_bytes
    held = {"process": process + READING_BYTES[store]}
    held["words"] = tokenizer_bytes(replicated.words, replicated.pieces)
    dense, moments = replicated.dense_bytes, _MOMENTS * replicated.dense_bytes
    copy = rows + states + dense + moments
    step = {
        "counts for clipping": replicated.clipping_bytes,
        "prepared sentences": replicated.sentence_bytes,
    }
    if tier is None:
        held |= {"rows": rows, "optimizer of tables": states}
        held |= {"dense model": dense, "AdamW": moments}
        step |= {"dense gradients": dense} | replicated.of_a_step
        step |= output_memory(output, num_workers)
    else:
        in_host = (host_table_bytes(s, optimizer, num_workers, weights, tier) for s in specs)
        held["rows"] = sum(in_host)
    loading = 0 if saving is None else copy
    if saving == "in_place":
        loading = loading_in_place_bytes(specs, optimizer, num_workers, weights, tier)
    kept = {"copy for checkpoints": copy if saving == "behind" else 0}
    sampler = {"sampler": SAMPLER_BYTES * output.sampler_words}
    building = {"building the sampler": SAMPLER_BUILDING_BYTES * output.sampler_words}
    building_shares = {"building the sampler": SAMPLER_BUILDING_BYTES * output.share_words}
    shares = {"shares of words": SHARES_BYTES * output.share_words}
    times: list[dict[str, int]] = [  # of two that take as much the first is told
        kept | sampler | shares | step | {"writing a checkpoint": WRITING_BYTES[store]},
        kept | building,
        kept | sampler | building_shares,  # made from counts as well
        {"loading a checkpoint": loading},
    ]
    most = max(times, key=lambda parts: sum(parts.values()))
    return {part: size for part, size in (held | most).items() if size}


def _state_values(specs: list[TableSpec], optimizer: str, num_workers: int) -> int:
    return sum(
        _STATE_VALUES[optimizer](spec.physical_width)
        * shard_of(spec.num_rows, 0, num_workers).physical_rows
        for spec in specs
    )


def inference_bytes(
    specs: list[TableSpec],
    num_workers: int,
    block_bytes: int,
    replicated: Replicated,
    *,
    in_place: bool,
    store: Literal["local", "remote"] = "local",
    weights: Weights = "fp32",
    tier: Tier | None = None,
) -> int:
    """Estimate of the host memory of one worker that evaluates or translates.

    Process, tokenizers, rows and dense model without an optimizer's state; they are loaded through
    a copy, or ``in_place``. Blocks of logits come when that is gone.
    """
    tables = sum(table_bytes(spec, "sgd", num_workers, weights) for spec in specs)
    copy = tables + replicated.dense_bytes
    if in_place:
        copy = loading_in_place_bytes(specs, "sgd", num_workers, weights, tier)
    held = (0 if tier == "device" else tables) + tokenizer_bytes(
        replicated.words, replicated.pieces
    )
    if tier is None:
        held += replicated.dense_bytes
    scoring = block_bytes if tier is None else 0
    return _process_bytes(tier) + READING_BYTES[store] + held + max(copy, scoring)


def _process_bytes(tier: Tier | None) -> int:
    return PROCESS_BYTES if tier is None else CUDA_PROCESS_BYTES
