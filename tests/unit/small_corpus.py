"""A small synthetic corpus on disk, and how the tests prepare and read it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from hypothesis import strategies as st

from dist_embed.data import lexicon_learning, processes
from dist_embed.data.corpus import ParallelText
from dist_embed.data.languages.synthetic import SyntheticLanguage
from dist_embed.data.prepare import prepare_data
from dist_embed.data.processes import ThisMachine
from dist_embed.data.settings import DataSection, Kind, TokenizerSection
from dist_embed.data.text.rows import Pair
from dist_embed.data.text_form import TextForm
from dist_embed.data.token_shards import PreparedData, TokenPairs
from dist_embed.data.tokenizer import SPECIAL_TOKENS, Tokenizer
from dist_embed.observe.events import Watch, unwatched

SHARD_SENTENCES = 60
KEEP_ALL = DataSection(max_tokens=1000)
# Letters that change their number in lower case, spaces that are none to the tokenizer, its mark,
# marks of several alphabets, joiners, letters in parts and together, and what reads like special
# tokens.
ODD = [
    *"aAbßİΣςǅ7", *"  \t\n\r\v\x1c\x85\u00a0\u2003\u3000\u200b\ufeff\x00", "▁", "▁▁",
    *".,;-'\"«»…—¿。<>/|$+^`~", "\u0301", "\u200d", "👍🏽", "<unk>", "<s>", "</s>", "<pad>",
    *"Hh\u0331é\u0327ǰﬁ¨ʰ\ufdfa", *"\u1100\u1161가\u11a8각", *"\u212b\u09c7\u09be\u0b92",
    " <unk> ", "▁<s>",
]  # fmt: skip
odd_texts = st.lists(st.lists(st.sampled_from(ODD), max_size=12).map("".join), max_size=8)
Sentence = tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class Prepared:
    """Prepared data and where its text lies."""

    uri: str
    data: PreparedData
    corpora: dict[str, ParallelText]
    pairs: dict[str, list[Pair]]


class OwnProcess:
    """Stands for `Processes` of one: this process does the work."""

    def __init__(
        self,
        number: int,
        initializer: Callable[..., None] | None = None,
        arguments: tuple[object, ...] = (),
    ) -> None:
        assert number == 1
        if initializer is not None:
            initializer(*arguments)

    def map(
        self, function: Callable[..., Any], arguments: Iterable[tuple[object, ...]]
    ) -> Iterator[Any]:
        return (function(*args) for args in arguments)


@contextmanager
def one_is_this_process(num_processes: int) -> Iterator[None]:
    """Where one process is to prepare data, it is this one, so that none has to start."""
    if num_processes != 1:
        yield
        return
    with (
        mock.patch.object(processes, "processes", lambda *how: nullcontext(OwnProcess(*how))),
        mock.patch.object(lexicon_learning, "processes", lambda n: nullcontext(OwnProcess(n))),
    ):
        yield


def recipe(kind: Kind = "word", **changes: Any) -> tuple[TokenizerSection, TextForm]:
    """How tokenizers are learned. ``changes``: of the section, and of the form of text."""
    form = TextForm(**{key: changes.pop(key) for key in TextForm._fields if key in changes})
    return TokenizerSection(**({"kind": kind, "vocab_size": 400} | changes)), form


def train_tokenizer(kind: Kind, texts: Iterable[str], **changes: Any) -> Tokenizer:
    """A tokenizer of any kind; of ``word``, with ids by frequency."""
    options: dict[str, Any] = {
        "vocab_size": 300, "min_count": 1, "lowercase": False, "split_punctuation": True,
        "form": "none",
    }  # fmt: skip
    options |= changes
    if kind != "word":
        del options["split_punctuation"]
        return Tokenizer.train(iter(texts), kind, **options)
    vocab_size, min_count = options.pop("vocab_size"), options.pop("min_count")
    counts = count_words(texts, **options)
    often = [word for word, n in counts.items() if n >= min_count]
    words = sorted(often, key=lambda word: (-counts[word], word))
    return Tokenizer.from_words(words[: vocab_size - len(SPECIAL_TOKENS)], **options)


def count_words(texts: Iterable[str], **path: Any) -> Counter[str]:
    """The words of each text by itself."""
    tokenizer = Tokenizer.from_words([], **path)
    return Counter(word for text in texts for word in tokenizer.split(text))


def write_text(folder: Path, name: str, pairs: list[Pair]) -> ParallelText:
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{name}.{side}.txt" for side in ("source", "target")]
    for place, file in enumerate(files):
        file.write_text("".join(f"{pair[place]}\n" for pair in pairs))
    return ParallelText((str(files[0]),), (str(files[1]),))


def prepare(
    uri: Path,
    corpora: dict[str, ParallelText],
    kind: Kind = "word",
    *,
    rule: DataSection = KEEP_ALL,
    num_processes: int = 1,
    shard_sentences: int = SHARD_SENTENCES,
    say: Callable[[str], None] = lambda line: None,
    watch: Watch = unwatched,
    **changes: Any,
) -> PreparedData:
    data = rule.model_copy(update={"shard_sentences": shard_sentences})
    with one_is_this_process(num_processes):
        return prepare_data(
            str(uri), corpora, data, *recipe(kind, **changes), settings={"tokenizer.kind": kind},
            say=say, executor=ThisMachine(num_processes), watch=watch,
        )  # fmt: skip


def synthetic_corpora(
    folder: Path,
) -> tuple[dict[str, ParallelText], dict[str, list[Pair]]]:
    language = SyntheticLanguage(nouns=20, verbs=10, adjectives=8, seed=3)
    sizes = {"train": 290, "validation": 12, "test": 130}
    pairs = {name: list(language.pairs(size, name, 3)) for name, size in sizes.items()}
    return {name: write_text(folder, name, pairs[name]) for name in pairs}, pairs


def sentences(tokens: TokenPairs) -> list[Sentence]:
    """The id pairs that token shards hold, in order."""
    source = [
        tuple(
            tokens.source_tokens[tokens.source_offsets[i] : tokens.source_offsets[i + 1]].tolist()
        )
        for i in range(len(tokens))
    ]
    target = [
        tuple(
            tokens.target_tokens[tokens.target_offsets[i] : tokens.target_offsets[i + 1]].tolist()
        )
        for i in range(len(tokens))
    ]
    return list(zip(source, target, strict=True))


def count(items: list[Sentence]) -> Counter[Sentence]:
    return Counter(items)
