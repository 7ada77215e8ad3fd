"""From source text to target text, on all workers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import NamedTuple

from dist_embed.data.tokenizer import SPECIAL_TOKENS, UNKNOWN, Tokenizer
from dist_embed.errors import UserError
from dist_embed.model.search import Searcher
from dist_embed.model.settings import SearchSection
from dist_embed.model.transformer import Transformer
from dist_embed.model.unknown_words import UnknownWords
from dist_embed.parallel.collectives import gather_texts
from dist_embed.parallel.group import Group

# Characters whose tokens are looked for at once: each takes a hundred bytes and more meanwhile.
_TOGETHER = 2**20
# Ids of sentences: `Tokenizer.encode`, or `encode_hashed` where the source has hashed rows.
Encode = Callable[[list[str]], list[list[int]]]
_SHOWN = SPECIAL_TOKENS[UNKNOWN]


class Written(NamedTuple):
    """A translation as text.

    Attributes:
        shown: to users; what is unknown is ``<unk>``.
        marked: the same, with what the caller wants in place of unknown words.
        cut: whether only the beginning of the source text was translated, which is too long.
    """

    shown: str
    marked: str
    cut: bool = False


class TooLongError(UserError):
    """A source text has more tokens than are translated.

    Attributes:
        place: of the first one, among those that were given.
    """

    def __init__(self, place: int, found: str, most: int) -> None:
        super().__init__(
            f"{found} are not allowed: at most {most:,} source tokens "
            "(search.max_source_tokens; with search.too_long=cut those are translated)"
        )
        self.place = place


class Translator:
    """Translates texts with a model whose tables are sharded.

    Args:
        transformer: the replicated part.
        group: see below.
        searcher: beam search over model and tables.
        encode: how source texts become ids.
        target: see below.
        unknown_words: replaces unknown words of translations; None: they stay ``<unk>``.
        settings: see below.

    Attributes:
        group: this worker and its peers.
        target: the target side's tokenizer.
        settings: of the search; of them it keeps what is done with long texts.
    """

    def __init__(
        self,
        transformer: Transformer,
        group: Group,
        searcher: Searcher,
        encode: Encode,
        target: Tokenizer,
        unknown_words: UnknownWords | None,
        settings: SearchSection,
    ) -> None:
        self._transformer = transformer
        self.group = group
        self._searcher = searcher
        self._encode = encode
        self.target = target
        self._unknown_words = unknown_words
        self.settings = settings

    def written(self, texts: list[str], unknown: str = _SHOWN) -> list[Written]:
        """Translations of ``texts``, in order, on every worker, each also with ``unknown`` for
        every unknown word. A text that is blank has a blank one: the training data have no such
        pair, and the model would say something.

        Raises TooLongError on all workers, before any is translated. Collective: equal texts
        everywhere.
        """
        group = self.group
        self._transformer.eval()
        sources, is_cut = self._within_limit(texts)
        # Neighbours in length go to different workers, so that all have equal work.
        spoken = [i for i, text in enumerate(texts) if sources[i] and text.strip()]
        order = sorted(spoken, key=lambda i: len(sources[i]))
        mine = order[group.rank :: group.num_workers]
        answers = self._searcher.translate([sources[i] for i in mine])
        shown = self.target.decode(answers)
        marked = [*shown]
        lacking = [place for place, ids in enumerate(answers) if UNKNOWN in ids]
        again = self.target.decode([answers[place] for place in lacking], unknown=unknown)
        for place, text in zip(lacking, again, strict=True):
            marked[place] = text
        if self._unknown_words is not None:
            replaced = self._unknown_words.texts(
                [self._looked_at(texts[i]) for i in mine], [sources[i] for i in mine], answers
            )
            for place, text in replaced.items():
                shown[place] = marked[place] = text
        gathered = gather_texts(json.dumps(list(zip(mine, shown, marked, strict=True))), group)
        by_place = [Written("", "")] * len(texts)
        for part in gathered:
            for place, shown_one, marked_one in json.loads(part):
                by_place[place] = Written(shown_one, marked_one, is_cut[place])
        return by_place

    def _within_limit(self, texts: list[str]) -> tuple[list[list[int]], list[bool]]:
        """Ids of the texts as far as they are translated, and which of them go on."""
        most, characters = self.settings.max_source_tokens, self.settings.most_characters
        sources: list[list[int]] = []
        is_cut: list[bool] = []
        for some in _portions([self._looked_at(text) for text in texts]):
            for ids in self._encode(some):
                place, goes_on = len(sources), len(texts[len(sources)]) > characters
                is_cut.append(goes_on or len(ids) > most)
                if is_cut[-1] and self.settings.too_long == "refuse":
                    found = f"{len(ids):,} source tokens"
                    found = f"more than {characters:,} characters" if goes_on else found
                    raise TooLongError(place, found, most)
                sources.append(ids[:most])
        return sources, is_cut

    def _looked_at(self, text: str) -> str:
        return text[: self.settings.most_characters]


def _portions(texts: list[str]) -> Iterator[list[str]]:
    """The texts, some at a time: one, or as many as have `_TOGETHER` characters."""
    some: list[str] = []
    size = 0
    for text in texts:
        if some and size + len(text) > _TOGETHER:
            yield some
            some, size = [], 0
        some.append(text)
        size += len(text)
    if some:
        yield some
