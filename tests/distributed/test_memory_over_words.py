"""What a worker of a whole run takes by the size of its vocabulary, words included."""

from __future__ import annotations

import pytest

from dist_embed.bench.run_memory import RunPeaks, measure_run, run_case

pytestmark = [pytest.mark.distributed, pytest.mark.heavy, pytest.mark.timeout(900)]

MIB = 2**20
FEW, MANY = 50_000, 1_000_000


def test_what_grows_with_the_vocabulary_is_the_workers_shards() -> None:
    """In memory the words alone would take 250 MiB more; the shards take 104."""
    peaks = []
    for num_words in (FEW, MANY):
        case = run_case(num_words, 16, 512, 1024)
        found = measure_run(case, num_workers=2, say=print)
        assert isinstance(found, RunPeaks)
        peaks.append(found)
    shards = (MANY - FEW) / MANY * run_case(MANY, 16, 512, 1024).table_bytes / 2
    for life in ("started", "resumed"):
        growth = getattr(peaks[1], life) - getattr(peaks[0], life)
        print(f"{life}: {growth / MIB:.0f} MiB, shards {shards / MIB:.0f}")
        assert growth < 1.1 * shards + 8 * MIB
