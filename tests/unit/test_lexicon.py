"""The bilingual lexicon against counting by hand."""

from __future__ import annotations

import errno
import math
from argparse import Namespace
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest

from dist_embed.data import lexicon_learning
from dist_embed.data.lexicon import Lexicon
from dist_embed.data.lexicon_learning import ensure_lexicon, log_likelihood_ratio
from dist_embed.data.scratch import scratch_folder
from dist_embed.data.token_shards import PreparedData, ShardInfo, Split, write_shard
from dist_embed.errors import UserError
from dist_embed.storage.parquet import read_parquet
from tests.unit.small_corpus import one_is_this_process

SOURCE_WORDS, TARGET_WORDS = 24, 30


Item = TypeVar("Item")


def prepared(folder: Path, seed: int = 0, sentences: int = 60) -> tuple[PreparedData, list]:
    """Random pairs in three shards, with special tokens, hashed rows and empty sides in them."""
    draw = np.random.default_rng(seed)
    pairs = []
    for _ in range(sentences):
        source = draw.integers(0, SOURCE_WORDS + 5, draw.integers(0, 7)).tolist()
        target = draw.integers(0, TARGET_WORDS, draw.integers(0, 9)).tolist()
        # Word 20 means word 25.
        meant = draw.random() < 0.2
        pairs.append(([*source, 20], [*target, 25]) if meant else (source, target))
    shards = []
    for number in range(3):
        part = pairs[number::3]
        name = f"train/shard-{number:05d}.parquet"
        write_shard(str(folder / name), [s for s, _ in part], [t for _, t in part])
        tokens = [sum(len(pair[side]) for pair in part) for side in (0, 1)]
        shards.append(ShardInfo(name, len(part), *tokens))
    sizes = {"source": SOURCE_WORDS, "target": TARGET_WORDS}
    return PreparedData({}, sizes, False, {"train": Split(shards)}), pairs


def by_hand(pairs: list, translations: int) -> dict[int, list[int]]:
    """The same lexicon, word by word."""
    together: Counter = Counter()
    of_source: Counter = Counter()
    of_target: Counter = Counter()
    for source, target in pairs:
        left = {i for i in source if 4 <= i < SOURCE_WORDS}
        right = {i for i in target if i >= 4}
        of_source.update(left)
        of_target.update(right)
        together.update((s, t) for s in left for t in right)
    scored = defaultdict(list)
    for (s, t), n in together.items():
        ratio = ratio_by_hand(n, of_source[s], of_target[t], len(pairs))
        if ratio > 0:
            scored[s].append((-round(ratio, 9), t))
    return {s: [t for _, t in sorted(found)[:translations]] for s, found in scored.items()}


def ratio_by_hand(both: int, source: int, target: int, total: int) -> float:
    cells = [
        (both, source * target),
        (source - both, source * (total - target)),
        (target - both, (total - source) * target),
        (total - source - target + both, (total - source) * (total - target)),
    ]
    ratio = 2 * sum(o * math.log(o * total / e) for o, e in cells if o)
    return ratio if both * total > source * target else -ratio


def learn(folder: Path, data: PreparedData, translations: int = 3, **how: int) -> list[str]:
    said: list[str] = []
    num_processes = how.pop("processes", 1)
    with one_is_this_process(num_processes):
        ensure_lexicon(
            str(folder), data, translations=translations, num_processes=num_processes,
            say=said.append, **how,
        )  # fmt: skip
    return said


def test_the_ratio_is_dunnings() -> None:
    both, source, target = (
        np.array([10, 1, 5, 0]),
        np.array([10, 20, 10, 5]),
        np.array([12, 40, 50, 9]),
    )
    found = log_likelihood_ratio(both, source, target, 100)
    expected = [ratio_by_hand(*case, 100) for case in zip(both, source, target, strict=True)]
    np.testing.assert_allclose(found, expected, atol=1e-9)
    assert found[0] > 20
    assert found[1] < 0  # less often than by chance
    assert abs(found[2]) < 1e-9  # exactly as often


def test_it_is_shown_how_far_the_learning_is(tmp_path: Path) -> None:
    data, _ = prepared(tmp_path)
    watched = Counter[str]()

    def watch(what: str, items: Iterable[Item], unit: str = "pairs") -> Iterator[Item]:
        for item in items:
            watched[f"{what}: {unit}"] += 1
            yield item

    with one_is_this_process(1):
        ensure_lexicon(
            str(tmp_path), data, translations=3, num_processes=1, say=lambda text: None,
            watch=watch, block_pairs=100,
        )  # fmt: skip
    shards, parts = len(data.splits["train"].shards), Lexicon(str(tmp_path)).index.parts
    assert min(shards, parts) > 1
    assert watched == {
        "counting pairs of words: shards": shards, "scoring pairs of words: parts": parts,
    }  # fmt: skip


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, _ = prepared(tmp_path)
    with pytest.raises(OSError, match="No space left") as full:
        lexicon_learning._save(Path("/dev/full"), np.arange(9))
    assert full.value.errno == errno.ENOSPC

    def failing(*_: object) -> None:
        raise full.value

    monkeypatch.setattr(lexicon_learning, "_save", failing)
    monkeypatch.setattr("shutil.disk_usage", lambda _: Namespace(free=4096))
    with pytest.raises(UserError, match=r"no space is left for .*lexicon.*TMPDIR"):
        learn(tmp_path, data)


@pytest.mark.parametrize(
    ("number", "free", "named"),
    [(errno.ENOSPC, 2**26, True), (errno.ENOSPC, 2**26 + 1, False), (errno.EIO, 0, False)],
)
def test_a_disk_with_room_left_is_not_full(
    monkeypatch: pytest.MonkeyPatch, number: int, free: int, named: bool
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: Namespace(free=free))
    folders: list[Path] = []

    def fail() -> None:
        with scratch_folder("dist_embed-test-", "this is done") as folder:
            folders.append(Path(folder))
            raise OSError(number, "said")

    with pytest.raises(UserError if named else OSError, match="this is done" if named else "said"):
        fail()
    (folder,) = folders
    assert folder.name.startswith("dist_embed-test-")
    assert not folder.exists()


@pytest.mark.parametrize(("processes", "block_pairs"), [(1, 10**6), (2, 40), (1, 200)])
def test_it_equals_counting_by_hand(tmp_path: Path, processes: int, block_pairs: int) -> None:
    data, pairs = prepared(tmp_path)
    learn(tmp_path, data, processes=processes, block_pairs=block_pairs)
    lexicon = Lexicon(str(tmp_path))
    assert (lexicon.index.parts > 1) == (block_pairs < 1000)
    everything = np.arange(SOURCE_WORDS + 5)
    found = {s: t.tolist() for s, t in lexicon.translations(everything, 3).items()}
    assert found == by_hand(pairs, 3)
    assert found[20][0] == 25
    fewer = lexicon.translations(np.array([20, 7, 20, SOURCE_WORDS + 1]), 1)
    assert {s: t.tolist() for s, t in fewer.items()} == {s: found[s][:1] for s in (7, 20)}
    assert lexicon.index.entries == sum(map(len, found.values()))


@pytest.mark.parametrize("block_pairs", [10**6, 200, 150])
def test_a_part_tells_score_and_sentences_of_every_translation(
    tmp_path: Path, block_pairs: int
) -> None:
    data, pairs = prepared(tmp_path)
    assert len(learn(tmp_path, data, block_pairs=block_pairs)) == 2
    index = Lexicon(str(tmp_path)).index
    # As many pairs of words as there would be if all sentences of a shard were equally long.
    shards = data.splits["train"].shards
    about = sum(s.source_tokens * s.target_tokens / s.sentences for s in shards)
    assert index.parts == max(1, round(about / block_pairs))
    sides = [
        [{i for i in pair[side] if 4 <= i < size} for pair in pairs]
        for side, size in ((0, SOURCE_WORDS), (1, TARGET_WORDS))
    ]
    entries = 0
    for part in range(index.parts):
        table = read_parquet(f"{tmp_path}/lexicon/part-{part:05d}.parquet")
        for row in table.to_pylist():
            assert row["source"] % index.parts == part
            left = [row["source"] in words for words in sides[0]]
            right = [row["target"] in words for words in sides[1]]
            both = sum(a and b for a, b in zip(left, right, strict=True))
            assert row["sentences"] == both
            score = ratio_by_hand(both, sum(left), sum(right), len(pairs))
            assert row["score"] == pytest.approx(score, rel=1e-5)
            entries += 1
    assert index.entries == entries


def test_what_was_learned_is_said(tmp_path: Path) -> None:
    data, pairs = prepared(tmp_path)
    said = learn(tmp_path, data)
    entries = Lexicon(str(tmp_path)).index.entries
    words = {i for source, _ in pairs for i in source if 4 <= i < SOURCE_WORDS}
    told = f"lexicon: {entries:,} translations of {len(words)} source words"
    assert said == ["learning the lexicon", told]


def test_shards_without_sentences_or_words_have_no_translations(tmp_path: Path) -> None:
    write_shard(str(tmp_path / "none"), [], [])
    write_shard(str(tmp_path / "marks"), [[1, 2], []], [[], [3]])
    shards = [ShardInfo("none", 0, 0, 0), ShardInfo("marks", 2, 2, 1)]
    sizes = {"source": SOURCE_WORDS, "target": TARGET_WORDS}
    data = PreparedData({}, sizes, False, {"train": Split(shards)})
    learn(tmp_path, data)
    lexicon = Lexicon(str(tmp_path))
    assert (lexicon.index.parts, lexicon.index.entries) == (1, 0)
    assert lexicon.translations(np.arange(SOURCE_WORDS), 3) == {}


def test_it_is_learned_again_only_where_something_changed(tmp_path: Path) -> None:
    data, _ = prepared(tmp_path)
    assert learn(tmp_path, data)[0] == "learning the lexicon"
    assert learn(tmp_path, data) == []
    assert learn(tmp_path, data, translations=2)[0] == "learning the lexicon"
    data, pairs = prepared(tmp_path, seed=1)
    data.settings["changed"] = True
    assert learn(tmp_path, data, translations=2)[0] == "learning the lexicon"
    found = Lexicon(str(tmp_path)).translations(np.arange(SOURCE_WORDS), 2)
    assert {s: t.tolist() for s, t in found.items()} == by_hand(pairs, 2)


def test_target_words_are_listed_by_frequency_where_ids_are_not(tmp_path: Path) -> None:
    data, pairs = prepared(tmp_path)
    learn(tmp_path, data)
    assert Lexicon(str(tmp_path)).frequent_targets() is None
    # Of one vocabulary, the most frequent words may be the source's.
    data.shared_vocabulary = True
    learn(tmp_path, data)
    sentences = Counter(i for _, target in pairs for i in set(target) if i >= 4)
    expected = sorted(sentences, key=lambda i: (-sentences[i], i))
    assert expected != sorted(expected)
    Lexicon(str(tmp_path)).copy_to(str(tmp_path / "run"))
    for folder in (tmp_path, tmp_path / "run"):
        found = Lexicon(str(folder)).frequent_targets()
        assert found is not None
        assert found.tolist() == [0, 1, 2, 3, *expected]


def test_a_copy_says_the_same(tmp_path: Path) -> None:
    data, pairs = prepared(tmp_path)
    learn(tmp_path, data, block_pairs=50)
    Lexicon(str(tmp_path)).copy_to(str(tmp_path / "run"))
    found = Lexicon(str(tmp_path / "run")).translations(np.arange(SOURCE_WORDS), 3)
    assert {s: t.tolist() for s, t in found.items()} == by_hand(pairs, 3)


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Lexicon(str(tmp_path))
    data, _ = prepared(tmp_path)
    learn(tmp_path, data)
    lexicon = Lexicon(str(tmp_path))
    part = tmp_path / "lexicon" / "part-00000.parquet"
    part.write_bytes(part.read_bytes()[:-20])
    with pytest.raises(UserError, match="part-00000"):
        lexicon.translations(np.array([5]), 1)
    (tmp_path / "lexicon" / "lexicon.json").write_text('{"format": 9}')
    with pytest.raises(UserError, match=r"lexicon\.json"):
        Lexicon(str(tmp_path))
