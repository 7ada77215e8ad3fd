"""How large a pool of sentences is, and what it takes a worker to plan one. Free of numpy."""

from __future__ import annotations

# Of a pool: sentence pairs, or steps where those are larger. With fewer steps a stream's units pad
# more, the last step weighs more, and so do the first and the last block of a worker's part, which
# it shares with others.
POOL_SENTENCES = 500_000
POOL_STEPS = 128
# Tokens of the longer side of a pair, where nobody has counted (docs/benchmarks/balance.md).
PAIR_TOKENS = 30
# Seconds of one core for each pair, whatever the number of workers: 3.27 for 8.9 million pairs
# (docs/benchmarks/balance.md, ``--batches``).
PLANNING_SECONDS = 3.27 / 8_947_848
# Bytes for each pair: while a pool is planned, (1.06 GB less 0.4 GB of libraries) for as many
# (docs/scale.md); and of its plan: order, lengths, and units of some twenty sentences.
_PLANNING_BYTES, _PLAN_BYTES = 70, 10
_POOLS = 2  # one is used, the next one is planned and read meanwhile
_TOKEN_BYTES = 4


def number_of_pools(sentences: int, wanted: int) -> int:
    """Into how many pools of about ``wanted`` pairs a text is cut: of up to half as many again."""
    return max(1, round(sentences / wanted))


def pool_pairs(batch_tokens: int, sentences: int | None) -> int:
    """Pairs of a pool, of a text of so many; None: of many pools."""
    wanted = max(POOL_SENTENCES, POOL_STEPS * batch_tokens // PAIR_TOKENS)
    return wanted if sentences is None else -(-sentences // number_of_pools(sentences, wanted))


def pools_bytes(batch_tokens: int, sentences: int | None, num_workers: int) -> int:
    """What a worker holds of two pools: plan and tokens, and what planning one takes.

    Arguments as of `pool_pairs`; every worker plans all pairs of a pool and reads its part of them.
    """
    own_tokens = _POOLS * 2 * PAIR_TOKENS * _TOKEN_BYTES / num_workers
    return int(pool_pairs(batch_tokens, sentences) * (_PLANNING_BYTES + _PLAN_BYTES + own_tokens))
