"""The best words of a sharded vocabulary against one list of all of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dist_embed.cli.main import main
from dist_embed.model import top_words
from dist_embed.model.output import OutputShard
from dist_embed.model.top_words import best_of_shard, merge_shards, top_log_probabilities
from dist_embed.parallel.group import Group
from tests.unit.listed_words import TOKENS, WIDTH, reference, whole_numbers

ALONE = Group(0, 1, 1, torch.device("cpu"), None)  # type: ignore[arg-type]


@pytest.mark.parametrize("rows_of_tile", [2, 5, 100])
@pytest.mark.parametrize("shards", [[26], [9, 9, 8], [2, 24, 0], [1] * 26])
@pytest.mark.parametrize("k", [1, 7, 26])
def test_merged_lists_equal_one_list_of_all_words(
    monkeypatch: pytest.MonkeyPatch, shards: list[int], k: int, rows_of_tile: int
) -> None:
    monkeypatch.setattr(top_words, "ORDERED_LOGITS", 50)
    hidden, weight, ids = whole_numbers(sum(shards))
    shard = OutputShard(ALONE, 0, sum(shards), 4 * TOKENS * rows_of_tile)
    found = [
        best_of_shard(hidden, rows, own, shard, k)
        for rows, own in zip(weight.split(shards), ids.split(shards), strict=True)
    ]
    values, words = merge_shards(torch.stack(found), k)
    expected, expected_words = reference(hidden, weight, ids, shards, k)
    assert torch.equal(words, expected_words)
    if rows_of_tile < max(shards):  # sums of exponentials of tiles come in another order
        torch.testing.assert_close(values, expected)
    else:
        assert torch.equal(values, expected)


def test_equal_words_are_the_lowest_ids_whatever_the_tiles() -> None:
    ids = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    for rows_of_tile in (3, 40):
        shard = OutputShard(ALONE, 0, 40, 4 * 2 * rows_of_tile)
        _, words = top_log_probabilities(
            torch.ones(2, WIDTH), torch.ones(40, WIDTH), ids, shard, [2], 5
        )
        assert words.tolist() == [[0, 1, 2, 3, 4]] * 2


def test_ids_travel_in_as_few_bytes_as_they_need() -> None:
    hidden, weight, ids = whole_numbers(9)
    few = OutputShard(ALONE, 0, 2**31 - 1, 1000)
    many = replace(few, num_rows=2**31)
    narrow = best_of_shard(hidden, weight, ids, few, 12)
    wide = best_of_shard(hidden, weight, ids + 2**33, many, 12)
    assert (narrow.dtype, narrow.shape) == (torch.int32, (TOKENS, 2 + 2 * 12))
    assert (wide.dtype, wide.shape) == (torch.int32, (TOKENS, 2 + 3 * 12))
    values, words = merge_shards(narrow.unsqueeze(0), 12)
    wide_values, wide_words = merge_shards(wide.unsqueeze(0), 12)
    assert torch.equal(values, wide_values)
    assert torch.equal(words[:, :9] + 2**33, wide_words[:, :9])
    assert (words[:, 9:] == few.num_rows).all()  # of fewer rows than words that are wanted
    assert (wide_words[:, 9:] == many.num_rows).all()


def test_wide_ids_of_a_single_token_are_read() -> None:
    """A slice of one row counts as contiguous, wherever it begins."""
    hidden, weight, ids = whole_numbers(9)
    for k in (4, 5):
        found = best_of_shard(hidden[:1], weight, ids + 2**33, OutputShard(ALONE, 0, 2**31, 99), k)
        _, words = merge_shards(found.unsqueeze(0), k)
        assert (words >= 2**33).all()


def test_the_benchmark_merges_lists_of_the_size_that_workers_send(
    capsys: pytest.CaptureFixture[str],
) -> None:
    sizes = ["--workers", "1", "9", "--hypotheses", "600", "--beam", "3"]
    for rows, of_a_word in ((2**31 - 1, 8), (2**31, 12)):
        assert main(["bench", "search", *sizes, "--rows", str(rows), "--repeats", "1"]) == 0
        one, nine = capsys.readouterr().out.splitlines()[-2:]
        for line, workers in ((one, 1), (nine, 9)):
            mib = workers * 600 * (8 + of_a_word * 8) / 2**20
            assert line.startswith(f"| {workers}       | {mib:,.2f} ")
