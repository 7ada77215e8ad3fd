"""How many negatives a step draws. Free of torch: the launching process asks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from dist_embed.config.schema import Config

LEAST_SAMPLES, LEAST_TOKENS = 8192, 4096


def samples_of_a_step(config: Config, num_words: int) -> int:
    """S: `model.num_samples`, or what ``auto`` is for a vocabulary of ``num_words``.

    8,192 for steps of up to 4,096 tokens; beyond, it grows as the root of `train.batch_tokens`. The
    variance that shared samples bring into a step falls as 1 / S, that of its N tokens as 1 / N, so
    a share of it that stays asks for S in proportion to N. But every worker receives all S vectors
    and multiplies its tokens by them: with N in proportion to the workers, a step would take the
    longer the more there are. The root lies between: 2 million tokens have 185 thousand samples.
    """
    samples = config.model.num_samples
    if samples != "auto":
        return samples
    growth = math.sqrt(max(1.0, config.train.batch_tokens / LEAST_TOKENS))
    return min(num_words, round(LEAST_SAMPLES * growth))


def with_kept_samples(
    config: Config, num_words: int, scalars: dict[str, Any], say: Callable[[str], None]
) -> Config:
    """``config`` with a number for ``auto``: that of ``scalars``, what the run's checkpoint holds
    beside its tensors, or else that of today, which is then noted there for the next one.

    So a run keeps its number whatever ``auto`` comes to mean; ``say`` takes a line where they
    differ.
    """
    if config.model.output == "exact" or config.model.num_samples != "auto":
        scalars.pop("num_samples", None)  # of a run that was told to go on with a number
        return config
    today = samples_of_a_step(config, num_words)
    kept = scalars.get("num_samples")
    samples = scalars["num_samples"] = kept if type(kept) is int and kept > 0 else today
    if samples != today:
        say(f"model.num_samples=auto: {samples:,} negatives a step, as the run began")
    return config.model_copy(
        update={"model": config.model.model_copy(update={"num_samples": samples})}
    )
