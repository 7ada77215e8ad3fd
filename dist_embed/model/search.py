"""Beam search, several sentences at a time on every worker.

Hypotheses are ranked by log probability divided by length^α (Wu et al. 2016, arXiv 1609.08144,
without the constant). A sentence is done when ``beam`` hypotheses have ended among the best
``beam`` candidates of their step, or at the longest allowed length.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from dist_embed.data.tokenizer import END, PAD, START
from dist_embed.embedding.sharded_tables import ShardedTables
from dist_embed.model.next_words import NextWords
from dist_embed.model.search_batches import batches_within
from dist_embed.model.settings import SearchSection
from dist_embed.model.transformer import DecoderState, Transformer
from dist_embed.parallel.collectives import stack_over_workers

NEG_INF = float("-inf")


@dataclass
class _Sentence:
    """A sentence under way: where its answer goes and what has ended so far."""

    number: int
    longest: int
    finished: list[tuple[float, list[int]]] = field(default_factory=list)


class Searcher:
    """Translates with a model whose tables are sharded.

    Args:
        model: the replicated part, in evaluation mode.
        lookup: the tables.
        next_words: what may follow a hypothesis.
        settings: beam width and limits.
    """

    def __init__(
        self,
        model: Transformer,
        lookup: ShardedTables,
        next_words: NextWords,
        settings: SearchSection,
    ) -> None:
        self._model = model
        self._lookup = lookup
        self._next = next_words
        self._settings = settings
        self._device = lookup.group.device

    @torch.no_grad()
    def translate(self, sources: list[list[int]]) -> list[list[int]]:
        """Best target ids (without marks) for each of this worker's sentences, in order.

        Collective: every worker calls it, with as many sentences of its own as it likes, also none.
        """
        self._next.open(sources)
        batches = batches_within([len(ids) for ids in sources], self._settings.batch_tokens)
        rounds = int(self._from_every_worker(len(batches)).max())
        answers: list[list[int]] = [[] for _ in sources]
        for number in range(rounds):
            chosen = batches[number] if number < len(batches) else []
            for place, ids in self._search(chosen, sources):
                answers[place] = ids
        return answers

    def _from_every_worker(self, number: int) -> Tensor:
        return stack_over_workers(torch.tensor(number, device=self._device), self._lookup.group)

    def _search(self, chosen: list[int], sources: list[list[int]]) -> list[tuple[int, list[int]]]:
        beam = self._settings.beam
        active = [_Sentence(i, self._settings.longest(len(sources[i]))) for i in chosen]
        sentences = list(active)
        state = self._start([sources[i] for i in chosen])
        self._next.begin([sources[i] for i in chosen], beam)
        prefixes = torch.full((len(active) * beam, 1), START, device=self._device)
        # Only the first of the equal start hypotheses counts.
        scores = torch.full((len(active), beam), NEG_INF, device=self._device)
        scores[:, 0] = 0.0
        while True:
            tokens_of_worker = self._from_every_worker(len(active) * beam).tolist()
            if not any(tokens_of_worker):
                break
            log_probs, ids = self._next_words(prefixes[:, -1], state, tokens_of_worker)
            if not active:
                continue
            scores, parents, words = self._extend(scores, log_probs, ids, active, prefixes)
            rows = (
                torch.arange(len(active), device=self._device).unsqueeze(1) * beam + parents
            ).view(-1)
            prefixes = torch.cat([prefixes[rows], words.view(-1, 1)], dim=1)
            length = prefixes.shape[1] - 1
            going = [
                place
                for place, sentence in enumerate(active)
                if len(sentence.finished) < beam and length < sentence.longest
            ]
            if len(going) == len(active):
                state = state.select_past(rows)
                continue
            for place, sentence in enumerate(active):
                if not sentence.finished:  # nothing ended in time: the best unfinished one
                    best = int(scores[place].argmax())
                    ids_so_far = prefixes[place * beam + best, 1:].tolist()
                    if place not in going:
                        sentence.finished.append((float(scores[place, best]), ids_so_far))
            kept = torch.tensor(going, dtype=torch.int64, device=self._device)
            rows_kept = (kept.unsqueeze(1) * beam + torch.arange(beam, device=self._device)).view(
                -1
            )
            state = state.select(rows[rows_kept])
            prefixes, scores = prefixes[rows_kept], scores[kept]
            active = [active[place] for place in going]
            self._next.keep(going)
        return [(s.number, max(s.finished, key=lambda f: f[0])[1]) for s in sentences]

    def _extend(
        self,
        scores: Tensor,
        log_probs: Tensor,
        ids: Tensor,
        active: list[_Sentence],
        prefixes: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One step of the beam: candidates that end are noted, the best others go on.

        Returns the new scores, the place of each one's parent in the beam, and its word: [B, K].
        """
        beam = self._settings.beam
        log_probs = log_probs.masked_fill((ids == PAD) | (ids == START), NEG_INF)
        per_hypothesis = ids.shape[1]
        total = (scores.view(-1, 1) + log_probs).view(len(active), -1)
        # Twice the beam: even if half of the candidates end, enough go on.
        values, place = total.topk(min(2 * beam, total.shape[1]), dim=1)
        words = ids.reshape(len(active), -1).gather(1, place)
        parents = place // per_hypothesis
        ends = words == END
        length = prefixes.shape[1]  # tokens with the new one, without the start mark
        for row, rank in (ends[:, :beam] & (values[:, :beam] > NEG_INF)).nonzero().tolist():
            prefix = prefixes[row * beam + int(parents[row, rank]), 1:].tolist()
            score = float(values[row, rank]) / length**self._settings.length_penalty
            active[row].finished.append((score, prefix))
        going_on = ends.to(torch.int8).argsort(dim=1, stable=True)[:, :beam]
        values = values.masked_fill(ends, NEG_INF).gather(1, going_on)
        return values, parents.gather(1, going_on), words.gather(1, going_on)

    def _start(self, sources: list[list[int]]) -> DecoderState:
        lengths = [len(ids) + 1 for ids in sources]
        longest = max(lengths, default=0)
        padded = [ids + [END] + [PAD] * (longest - len(ids) - 1) for ids in sources]
        ids = torch.tensor(padded, dtype=torch.int64, device=self._device)
        ids = ids.view(len(sources), longest)
        rows = self._lookup.lookup({"source": [ids]})
        real = torch.tensor(lengths, dtype=torch.int64, device=self._device)
        state = self._model.start(rows.vectors("source", 0), real)
        beams = torch.arange(len(sources), device=self._device).repeat_interleave(
            self._settings.beam
        )
        return state.select(beams)

    def _next_words(
        self, words: Tensor, state: DecoderState, tokens_of_worker: list[int]
    ) -> tuple[Tensor, Tensor]:
        rows = self._lookup.lookup({"target": [words]})
        hidden = rows.vectors("target", 0)  # as wide; of no words as good
        if len(words):
            hidden = self._model.step(hidden, state)
        # Two more than can go on: padding and start mark may be among them, and never follow.
        return self._next.top(hidden, tokens_of_worker, 2 * self._settings.beam + 2)
