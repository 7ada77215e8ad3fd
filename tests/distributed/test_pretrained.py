"""Rows that start from files, compared with one process that holds everything in plain lists."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dist_embed.data.tokenizer import SPACE, Tokenizer
from dist_embed.embedding.initial_values import fill_initial_rows
from dist_embed.embedding.plan import TableSpec
from tests.distributed.pool import RemoteError, WorkerPool
from tests.distributed.started_rows import (
    FRESH,
    SEED,
    WIDTH,
    run,
    start_from,
    tokenizer,
)

FILE: list[tuple[str, list[float]]] = [
    ("the", [1, 2, 3, 4]),
    ("2000", [2, 2, 2, 2]),
    ("0000", [5, -1, 0.5, 8]),
    ("the", [9, 9, 9, 9]),
    ("café", [0.1, 0.2, 0.3, 0.4]),
    ("unknown", [7, 7, 7, 7]),
    (".", [-1, -2, -3, -4]),
    ("ä0", [3, 1, 4, 1]),
    ("straße", [2, 7, 1, 8]),
]


def counts() -> NDArray[np.int64]:
    return np.arange(tokenizer().size, 0, -1, dtype=np.int64)


def write(folder: Path, width: int = WIDTH) -> str:
    uri = folder / "vectors.txt"
    lines = [f"{word} {' '.join(map(str, (row * 4)[:width]))}" for word, row in FILE]
    uri.write_text("\n".join(lines) + "\n")
    return str(uri)


FORMS = {
    "lowercase": str.lower,
    "nfc": lambda w: unicodedata.normalize("NFC", w),
    "digits": lambda w: re.sub(r"\d", "0", w),
}


def expected(forms: tuple[str, ...]) -> dict[int, list[float]]:
    """By id the vector it should have: of its token, its word, then the forms in turn."""
    first: dict[str, list[float]] = {}
    for word, row in FILE:
        first.setdefault(word, row)
    found = {}
    vocabulary = tokenizer()
    for i in range(4, vocabulary.size):
        word = vocabulary.token(i).removeprefix(SPACE)
        spellings = [word]
        for form in forms:
            spellings.append(FORMS[form](spellings[-1]))
        row = next((first[spelling] for spelling in spellings if spelling in first), None)
        if row is not None:
            found[i] = row
    return found


@pytest.mark.parametrize("num_workers", [1, 2, 3])
@pytest.mark.parametrize("missing", ["random", "mean"])
@pytest.mark.parametrize(
    "forms", [(), ("lowercase",), ("lowercase", "nfc", "digits"), ("digits", "nfc")]
)
def test_rows_are_those_of_the_file_and_the_rest_follows_them(
    workers: WorkerPool, tmp_path: Path, num_workers: int, missing: Any, forms: tuple[Any, ...]
) -> None:
    rows, coverage = run(
        workers, num_workers, write(tmp_path), start_from(match=list(forms), missing=missing)
    )
    wanted = expected(forms)
    assert 3 <= len(wanted) < tokenizer().size - 4
    table = np.array([wanted[i] for i in sorted(wanted)], dtype=np.float64)
    fresh = torch.empty(len(rows), WIDTH)
    fill_initial_rows(fresh, seed=SEED, table="source", first_row=0, scale=1.0)
    order = TableSpec("source", len(rows), 1).order
    for i, row in enumerate(rows):
        if i in wanted:
            np.testing.assert_array_equal(row, np.array(wanted[i], np.float32))
            continue
        drawn = fresh[int(order.rows_of(torch.tensor(i)))].numpy() * table.std(0) + table.mean(0)
        # Hashed rows and <pad>, <s>, </s> are never equal to each other.
        mean = missing == "mean" and i < tokenizer().size and i not in (0, 2, 3)
        np.testing.assert_allclose(row, table.mean(0) if mean else drawn, rtol=1e-5)
    assert coverage.words == tokenizer().size - 4
    assert sum(coverage.found_words.values()) == len(wanted)
    assert coverage.tokens == counts()[4:].sum()
    assert coverage.found_tokens == sum(int(counts()[i]) for i in wanted)
    assert (coverage.entries, coverage.duplicates) == (len(FILE), 1)
    lacking = [i for i in range(4, tokenizer().size) if i not in wanted]
    assert coverage.missing == [
        (tokenizer().token(i).removeprefix(SPACE), int(counts()[i])) for i in lacking
    ]


@pytest.mark.parametrize("num_workers", [1, 3])
def test_duplicates_are_counted_and_the_first_wins_wherever_it_is_read(
    workers: WorkerPool, tmp_path: Path, num_workers: int
) -> None:
    lines = [f"w{n % 3} {n} 1 1 1" for n in range(30)]
    uri = tmp_path / "v.txt"
    uri.write_text("\n".join(lines))
    # A word of the file that is several tokens' is one all the same.
    words = Tokenizer.from_words(
        [*(SPACE + f"w{n}" for n in range(3)), "w0", SPACE + "W0"], lowercase=False,
        split_punctuation=True,
    )  # fmt: skip
    for block in (10, 25, 1000):
        for forms in ((), ("lowercase",)):
            rows, coverage = run(
                workers, num_workers, str(uri), start_from(match=list(forms)),
                vocabulary=words, block=block,
            )  # fmt: skip
            assert rows[4:8, 0].tolist() == [0, 1, 2, 0]
            assert (rows[8, 0] == 0) == bool(forms)
            assert (coverage.entries, coverage.duplicates) == (30, 27)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_special_tokens_start_from_what_the_file_has_under_their_names(
    workers: WorkerPool, tmp_path: Path, num_workers: int
) -> None:
    uri = tmp_path / "v.vec"
    uri.write_text("3 4\n</s> 1 2 3 4\nthe 5 6 7 8\n<unk> 9 9 9 9\n")
    pieces = Tokenizer.train(
        iter(["the them"] * 9), "bpe", vocab_size=12, min_count=1, lowercase=False
    )
    for vocabulary in (tokenizer(), pieces):
        rows, coverage = run(
            workers, num_workers, str(uri), start_from(missing="mean"), vocabulary=vocabulary
        )
        assert rows[3].tolist() == [1, 2, 3, 4]
        assert rows[1].tolist() == [9, 9, 9, 9]
        assert sum(coverage.found_words.values()) == 1
        words = [token for token in vocabulary.tokens()[4:] if vocabulary is not pieces
                 or (token[0] == SPACE and token != SPACE)]  # fmt: skip
        assert coverage.words == len(words)


@pytest.mark.parametrize("num_workers", [1, 2])
@pytest.mark.parametrize("rescale", [False, True])
def test_values_too_large_for_the_rows_are_refused(
    workers: WorkerPool, tmp_path: Path, num_workers: int, rescale: bool
) -> None:
    uri = tmp_path / "v.txt"
    uri.write_text("the 70000 1 1 1\n2000 1 1 1 1\n")
    settings = start_from(rescale=rescale)
    run(workers, num_workers, str(uri), settings)
    with pytest.raises(RemoteError, match=r"too large for the rows of table source, .* float16"):
        run(workers, num_workers, str(uri), settings, dtype=torch.float16)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_projections_keep_what_they_promise(
    workers: WorkerPool, tmp_path: Path, num_workers: int
) -> None:
    generator = np.random.default_rng(0)
    count, wide = 300, 12
    data = generator.standard_normal((count, 3)) @ generator.standard_normal((3, wide)) + 5
    uri = tmp_path / "v.txt"
    uri.write_text(
        "\n".join(f"w{n} {' '.join(map(str, row))}" for n, row in enumerate(data.astype("f4")))
    )
    words = Tokenizer.from_words(
        [SPACE + f"w{n}" for n in range(count)], lowercase=False, split_punctuation=False
    )
    rows, coverage = run(
        workers, num_workers, str(uri), start_from(project="pca"), vocabulary=words, block=999
    )
    assert f"({count} vectors, projected from 12 to {WIDTH}; " in coverage.lines()[0]
    # Three directions hold all there is: distances are kept exactly.
    centred = data - data.mean(0)
    got = rows[4 : 4 + count].astype(np.float64)
    np.testing.assert_allclose(got @ got.T, centred @ centred.T, atol=2e-3)
    spread = got.var(0)
    assert all(spread[n] >= spread[n + 1] for n in range(3))
    for width in (8, 16):
        rows, coverage = run(
            workers, num_workers, str(uri), start_from(project="random"), vocabulary=words,
            block=999, width=width,
        )  # fmt: skip
        way = "widened" if width > wide else "projected"
        assert f" vectors, {way} from {wide} to {width}; " in coverage.lines()[0]
        got = rows[4 : 4 + count].astype(np.float64)
        lengths = np.square(got).sum(1).mean() / np.square(data).sum(1).mean()
        assert 0.3 < lengths < 3
        # One linear map for all words.
        solved, _, rank, _ = np.linalg.lstsq(data, got, rcond=None)
        assert rank == 4
        np.testing.assert_allclose(data @ solved, got, atol=1e-3)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_rescaled_rows_are_as_large_as_fresh_ones(
    workers: WorkerPool, tmp_path: Path, num_workers: int
) -> None:
    plain, _ = run(workers, num_workers, write(tmp_path), start_from())
    scaled, _ = run(workers, num_workers, write(tmp_path), start_from(rescale=True))
    ids = sorted(expected(()))
    assert np.sqrt(np.square(scaled[ids]).mean()) == pytest.approx(FRESH, rel=1e-5)
    factor = scaled / plain
    np.testing.assert_allclose(factor, factor[0, 0], rtol=1e-5)


@pytest.mark.parametrize("num_workers", [1, 2])
@pytest.mark.parametrize(
    ("settings", "width", "said"),
    [
        (start_from(), 5, "its vectors have width 5, the table has 4; set embedding.width=5"),
        (start_from(project="pca"), 3, "cannot widen"),
        (start_from(missing="subword"), 4, "needs a binary fastText model"),
        (start_from(min_coverage=0.99), 4, r"min_coverage asks for 99.0%.*rare"),
    ],
)
def test_what_does_not_fit_is_refused_on_every_worker(
    workers: WorkerPool, tmp_path: Path, num_workers: int, settings: Any, width: int, said: str
) -> None:
    with pytest.raises(RemoteError, match=said) as caught:
        run(workers, num_workers, write(tmp_path, width), settings)
    assert str(caught.value).count("UserError") >= 1
    assert all(f"worker {rank}:" in str(caught.value) for rank in range(num_workers))


@pytest.mark.parametrize("num_workers", [1, 3])
def test_a_mistake_in_one_workers_part_is_raised_on_all(
    workers: WorkerPool, tmp_path: Path, num_workers: int
) -> None:
    uri = tmp_path / "v.txt"
    uri.write_text("the 1 2 3 4\nrare 1 nan 3 4\n2024 1 2 3 4\n")
    with pytest.raises(RemoteError, match=r"line 2 \('rare'\): 'nan' is not finite") as caught:
        run(workers, num_workers, str(uri), start_from())
    assert all(f"worker {rank}:" in str(caught.value) for rank in range(num_workers))
    uri.write_text("x 1 2 3 4\ny 1 2 3 4\n")
    with pytest.raises(RemoteError, match="holds none of the words of table source"):
        run(workers, num_workers, str(uri), start_from())


@pytest.mark.parametrize(
    ("has_pieces", "more"), [(True, []), (False, []), (False, ["▁▂▃▄ 9 9 9 9", "▁. 9 9 9 9"])]
)
def test_a_piece_inside_a_word_is_no_word(
    workers: WorkerPool, tmp_path: Path, has_pieces: bool, more: list[str]
) -> None:
    texts = ["going going gone sing ring king " * 3] * 5
    pieces = Tokenizer.train(iter(texts), "bpe", vocab_size=30, min_count=1, lowercase=False)
    inner = [t for t in pieces.tokens()[4:] if not t.startswith(SPACE)]
    begin = [t for t in pieces.tokens()[4:] if t.startswith(SPACE) and len(t) > 1]
    assert inner
    assert begin
    mark = SPACE if has_pieces else ""
    lines = [f"{token} 1 2 3 4" for token in inner]
    lines += [f"{mark}{token.removeprefix(SPACE)} 5 6 7 8" for token in begin]
    uri = tmp_path / "v.txt"
    uri.write_text("\n".join(lines + more))
    rows, coverage = run(workers, 2, str(uri), start_from(missing="mean"), vocabulary=pieces)
    ids = {token: i for i, token in enumerate(pieces.tokens())}
    for token in begin:
        if has_pieces or token.removeprefix(SPACE) not in inner:
            assert rows[ids[token]].tolist() == [5, 6, 7, 8]
    for token in inner:
        assert (rows[ids[token]].tolist() == [1, 2, 3, 4]) == has_pieces
    assert sum(coverage.found_words.values()) == len(begin) + (len(inner) if has_pieces else 0)
