"""What the vectors of `skipgram.py` know, beside those of gensim's word2vec from the same text.

Both train on the same files with equal width, window, subsampling, least count and epochs, once for
each seed; all else is what either does by itself. Two questions::

    python docs/examples/skipgram_quality.py
    MULTI30K_DIR=/path/to/the/folder python docs/examples/skipgram_quality.py

**Generated text.** A noun of the invented language shows number and case by its ending, and its
gender nowhere but by the words that agree with it. Of the ten nouns that are nearest to one by
cosine, how many are of its gender, number and case? Nothing about stems can be asked: they are
drawn independently.

**Multi30k.** One side's vectors are trained on the odd lines, the other's on the even ones, so that
the two have no sentence in common. For words that are each other's likeliest translation: do two
words of one language have a high cosine where their translations have one (rank correlation over
all pairs of words)? Frequent words have frequent translations, and cosines follow frequency in
vectors that have been trained little; so what frequencies explain is taken out of both.
"""

import gzip
import os
import re
from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory

import numpy as np
from gensim.models import KeyedVectors, Word2Vec
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.stats import rankdata
from skipgram import DEFAULTS
from skipgram import main as train_ours

from dist_embed.cli.table import print_table
from dist_embed.data.languages.inflected import InflectedLanguage
from dist_embed.data.lexicon_learning import log_likelihood_ratio

NEAREST = 10
MINIMUM = 5  # occurrences, for a word to have a vector
ARTICLE = re.compile("[mt]([oae]k?[nsl]?)")  # definite or not, then gender, number, case
Train = Callable[[Path, Namespace, int], KeyedVectors]


def by_gensim(text: Path, args: Namespace, seed: int) -> KeyedVectors:
    """Skip-gram with five negatives for each pair, gensim's default; one thread."""
    return Word2Vec(
        corpus_file=str(text), sg=1, vector_size=args.width, window=args.window, workers=1,
        min_count=MINIMUM, epochs=args.epochs, sample=DEFAULTS["subsample"], seed=seed,
    ).wv  # fmt: skip


def by_ours(text: Path, args: Namespace, seed: int) -> KeyedVectors:
    """One worker; more give the same vectors."""
    with TemporaryDirectory() as out:
        given = {"text": text, "out": out, "width": args.width, "window": args.window}
        given |= {"epochs": args.epochs, "min-count": MINIMUM, "seed": seed}
        train_ours([part for key, value in given.items() for part in (f"--{key}", str(value))])
        return KeyedVectors.load_word2vec_format(f"{out}/vectors.txt")


WAYS: dict[str, Train] = {"gensim": by_gensim, "skipgram.py": by_ours}


def generated(text: Path, nouns: int, sentences: int) -> dict[str, str]:
    """Write it; returns by noun its gender, number and case, which the article before it shows."""
    language = InflectedLanguage(nouns, nouns // 5, nouns // 5, exponent=1.0, seed=1)
    kinds: dict[str, str] = {}
    with text.open("w") as file:
        for _, line in language.pairs(sentences, "train", 1):
            file.write(f"{line}\n")
            words = line.split()
            for before, word in pairwise(words):
                if article := ARTICLE.fullmatch(before):
                    kinds[word] = article[1]
    return kinds


def of_a_kind(vectors: KeyedVectors, kinds: Mapping[str, str]) -> float:
    """The share of the nearest nouns that are of a noun's kind: mean over those with a vector."""
    words = [word for word in vectors.index_to_key if word in kinds]
    kind = np.array([kinds[word] for word in words])
    cosines = cosines_of(vectors, words)
    np.fill_diagonal(cosines, -2)
    near = np.argpartition(-cosines, NEAREST, axis=1)[:, :NEAREST]
    return float((kind[near] == kind[:, None]).mean())


def cosines_of(vectors: KeyedVectors, words: list[str]) -> NDArray[np.float32]:
    """[n, n] of all pairs."""
    found = vectors[words]
    found = found / np.linalg.norm(found, axis=1, keepdims=True)
    return found @ found.T


def read_multi30k(folder: Path) -> tuple[list[str], list[str]]:
    """The training lines of both sides."""
    sides = []
    for side in ("en", "de"):
        with gzip.open(folder / f"train.lc.norm.tok.{side}.gz", "rt", encoding="utf-8") as file:
            sides.append(file.read().splitlines())
    return sides[0], sides[1]


def translations(source: list[str], target: list[str]) -> list[tuple[str, str]]:
    """Words that are each other's likeliest translation by G² over the sentence pairs, and stand in
    `MINIMUM` of them.
    """
    (words, there), (others, there_too) = _occurrences(source), _occurrences(target)
    together = (there.T @ there_too).tocoo()
    row, column = together.coords
    score = log_likelihood_ratio(
        together.data.astype(np.int64), there.sum(0)[row], there_too.sum(0)[column], len(source)
    )
    best = csr_array((np.maximum(score, 0), (row, column)), shape=together.shape)
    forth, back = best.argmax(1), best.argmax(0)
    enough = (there.sum(0) >= MINIMUM) & (there_too.sum(0)[forth] >= MINIMUM)
    mutual = np.flatnonzero((back[forth] == np.arange(len(forth))) & enough)
    return [(words[i], others[forth[i]]) for i in mutual]


def _occurrences(lines: list[str]) -> tuple[list[str], csr_array]:
    """The words, and [lines, words] of 1 where a line has it."""
    number: dict[str, int] = {}
    pairs = {(i, number.setdefault(word, len(number))) for i, line in enumerate(lines)
             for word in line.split()}  # fmt: skip
    row, column = np.array(sorted(pairs)).T
    there = csr_array((np.ones(len(row), np.int64), (row, column)), (len(lines), len(number)))
    return list(number), there


def agreement(one: KeyedVectors, other: KeyedVectors, pairs: list[tuple[str, str]]) -> float:
    """Rank correlation of the cosines of two words with those of their translations, without what
    the words' frequencies explain of both: a partial correlation.
    """
    known = [(a, b) for a, b in pairs if a in one and b in other]
    above = np.triu_indices(len(known), 1)
    cosines, frequencies = [], [np.ones(len(above[0]))]
    for vectors, words in zip((one, other), zip(*known, strict=True), strict=True):
        cosines.append(rankdata(cosines_of(vectors, list(words))[above]))
        place = np.log1p([vectors.key_to_index[word] for word in words])  # by frequency
        frequencies.append(rankdata((place[:, None] + place)[above]))
        frequencies.append(rankdata(np.abs(place[:, None] - place)[above]))
    explained = np.stack(frequencies, 1)
    ranks = np.stack(cosines, 1)
    rest = ranks - explained @ np.linalg.lstsq(explained, ranks)[0]
    return float(np.corrcoef(rest.T)[0, 1])


def compare(seeds: int, score: Callable[[Train, int], float]) -> None:
    """Print the score of both ways: mean and range over seeds."""
    rows = []
    for name, train in WAYS.items():
        values = []
        for seed in range(1, seeds + 1):
            values.append(score(train, seed))
            print(f"{name}, seed {seed}: {values[-1]:.4f}", flush=True)
        rows.append([name, f"{mean(values):.3f}", f"{min(values):.3f} to {max(values):.3f}"])
    print_table(["", f"mean of {seeds} seeds", "range"], rows)


def main() -> None:
    """Print one table for each question."""
    parser = ArgumentParser()
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--nouns", type=int, default=2000)
    parser.add_argument("--sentences", type=int, default=20_000)
    for name in ("width", "window", "epochs"):
        parser.add_argument(f"--{name}", type=int, default=DEFAULTS[name])
    args = parser.parse_args()
    with TemporaryDirectory() as folder:
        text = Path(folder, "text.txt")
        kinds = generated(text, args.nouns, args.sentences)
        shares = np.array(list(Counter(kinds.values()).values())) / len(kinds)
        print(f"generated text: of {NEAREST} nearest nouns, those of one gender, number and case; "
              f"{(shares**2).sum():.3f} by chance")  # fmt: skip
        compare(args.seeds, lambda train, seed: of_a_kind(train(text, args, seed), kinds))
        if not (given := os.environ.get("MULTI30K_DIR")):
            print("MULTI30K_DIR is not set: no comparison on Multi30k")
            return
        source, target = read_multi30k(Path(given))
        pairs = translations(source, target)
        sides = Path(folder, "source.txt"), Path(folder, "target.txt")
        sides[0].write_text("\n".join(source[0::2]), encoding="utf-8")
        sides[1].write_text("\n".join(target[1::2]), encoding="utf-8")
        print(f"Multi30k: partial rank correlation of both sides' cosines; {len(pairs):,} words")
        compare(
            args.seeds,
            lambda train, seed: agreement(*(train(side, args, seed) for side in sides), pairs),
        )


if __name__ == "__main__":
    main()
