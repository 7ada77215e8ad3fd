"""Unknown words in translations: replaced by what the source word means that they look at.

Where the best translation has ``<unk>``, the decoder has looked at some source word. That word's
strongest translation in the lexicon stands in for it, or the word itself, which is right for names
and numbers (Jean et al. 2015, arXiv 1412.2007, section 3.4; Luong et al. 2015, arXiv 1410.8206).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from dist_embed.data.tokenizer import END, PAD, START, UNKNOWN, Tokenizer
from dist_embed.embedding.sharded_tables import ShardedTables
from dist_embed.model.candidates import Translations
from dist_embed.model.search_batches import batches_within
from dist_embed.model.transformer import Transformer
from dist_embed.parallel.collectives import stack_over_workers


class UnknownWords:
    """Writes translations with unknown words out without them.

    Args:
        model: the replicated part, in evaluation mode.
        lookup: the tables.
        tokenizers: of ``source`` and ``target``, both of kind ``word``.
        translations: the lexicon; None: source words are copied.
        batch_tokens: of the longer side of the sentences that are looked at together, with
            padding.
    """

    def __init__(
        self,
        model: Transformer,
        lookup: ShardedTables,
        tokenizers: dict[str, Tokenizer],
        translations: Translations | None,
        batch_tokens: int,
    ) -> None:
        self._model = model
        self._lookup = lookup
        self._source, self._target = tokenizers["source"], tokenizers["target"]
        self._translations = translations
        self._batch_tokens = batch_tokens

    def texts(
        self, texts: list[str], sources: list[list[int]], answers: list[list[int]]
    ) -> dict[int, str]:
        """The translations with unknown words as text, by place; not those of sentences without
        words, which leave nothing to look at.

        Args:
            texts: source sentences.
            sources: their ids.
            answers: ids of their translations.

        Collective: every worker calls it, with as many sentences of its own as it likes.
        """
        written = {}
        unknown = [place for place, ids in enumerate(answers) if UNKNOWN in ids]
        # Of all sentences at once: the lexicon's files are read whole.
        words = np.array([w for place in unknown for w in sources[place]], dtype=np.int64)
        known = self._translations(words, 1) if self._translations and len(words) else {}
        for places, looked_at in self._looked_at(unknown, sources, answers):
            for place, attended in zip(places, looked_at, strict=True):
                source_words = self._source.split(texts[place])
                pieces = [
                    self._target.token(i) if i != UNKNOWN
                    else self._target.token(int(known[sources[place][j]][0]))
                    if sources[place][j] in known
                    else source_words[j]
                    for i, j in zip(answers[place], attended, strict=True)
                ]  # fmt: skip
                written[place] = self._target.join(pieces)
        return written

    @torch.no_grad()
    def _looked_at(
        self, places: list[int], sources: list[list[int]], answers: list[list[int]]
    ) -> Iterator[tuple[list[int], list[list[int]]]]:
        """Batches of sentences, each with the source place that every target word looks at most.

        Collective.
        """
        device = self._lookup.group.device
        # A sentence without source words has nothing to look at.
        places = [place for place in places if sources[place]]
        lengths = [max(len(sources[place]), len(answers[place])) for place in places]
        batches = [
            [places[i] for i in batch] for batch in batches_within(lengths, self._batch_tokens)
        ]
        number = torch.tensor(len(batches), device=device)
        for turn in range(int(stack_over_workers(number, self._lookup.group).max())):
            batch = batches[turn] if turn < len(batches) else []
            source = _padded([[*sources[place], END] for place in batch], device)
            target = _padded([[START, *answers[place][:-1]] for place in batch], device)
            rows = self._lookup.lookup({"source": [source], "target": [target]})
            if not batch:
                continue
            source_lengths = torch.tensor(
                [len(sources[place]) + 1 for place in batch], device=device
            )
            weights = self._model.attention_over_source(
                rows.vectors("source", 0), source_lengths, rows.vectors("target", 0)
            )
            # The end mark is no word.
            behind = torch.arange(source.shape[1], device=device) >= (source_lengths - 1).unsqueeze(
                1
            )
            best = weights.masked_fill(behind.unsqueeze(1), -1.0).argmax(2).tolist()
            yield batch, [row[: len(answers[p])] for row, p in zip(best, batch, strict=True)]


def _padded(sentences: list[list[int]], device: torch.device) -> Tensor:
    longest = max(map(len, sentences), default=0)
    padded = [ids + [PAD] * (longest - len(ids)) for ids in sentences]
    return torch.tensor(padded, dtype=torch.int64, device=device).view(len(sentences), longest)
