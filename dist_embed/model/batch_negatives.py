"""A worker's own right answers as further negatives, with what corrects for them.

Of the words that a worker's tokens are to predict in a step the vectors are there anyway. Each also
serves as a negative of the tokens of the worker's *other* sentences, beside those that were drawn.
A word then counts if it is in either set. With π the probability that it is drawn and q that it
occurs in the other sentences, which are independent, that is 1 - (1 - π)(1 - q), by which its
exponential is divided, as that of a drawn one is by π alone. For q the words of other sentences
count as drawn from the words of training: q = 1 - (1 - p)^n of n words, p a word's share (in-batch
negatives with this correction: Bengio and Senécal 2008; Yi et al. 2019, RecSys, "Sampling-bias-
corrected neural modeling"). Words that come in bunches occur in fewer sentences than that says, and
sentences of a batch that are alike, in length for instance, share more words.

A token's own sentence is left out, for its words are no draw: they come with the token. Counting
one that occurs with probability 1 as if with the small q of a rare word would push it down 1 / q
times too hard, at just those tokens whose sentence calls for it.

Nothing more travels between workers: the rows are among those that the step's lookup brings, and
their gradients go back with it. So the set is this worker's, and a run on another number of workers
has other ones, as it has another dropout.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dist_embed.model.sampler import Negatives, Sampler, place_among

if TYPE_CHECKING:
    from typing_extensions import Self

_LARGEST_ROOT = float(np.finfo(np.float16).max)  # of 4.3·10⁹ occurrences


class WordShares:
    """The share p of every word: its share of the words that training predicts.

    Holds two bytes a word, the root of its count as float16: p is right to 1 in 1,000. A count
    above 4.3·10⁹ counts as that; such a word is in every step.

    Args:
        counts: [V] how often each id is to be predicted in an epoch, end marks included.

    Raises:
        ValueError: no word occurs.
    """

    def __init__(self, counts: NDArray[np.int64]) -> None:
        self._total = float(counts.sum())
        if not self._total:
            raise ValueError("no word occurs, so none has a share")
        self._roots = np.minimum(np.sqrt(counts), _LARGEST_ROOT).astype(np.float16)

    def of(self, ids: NDArray[np.int64]) -> NDArray[np.float64]:
        """Their p, of ``ids``."""
        share: NDArray[np.float64] = self._roots[ids].astype(np.float64) ** 2 / self._total
        return share

    def occurring(self, ids: NDArray[np.int64], words: float) -> NDArray[np.float64]:
        """Their q: the probability that each of ``ids`` is among so many running words."""
        never = words * np.log1p(-np.minimum(self.of(ids), 1 - 1e-12))
        found: NDArray[np.float64] = -np.expm1(never)
        return found


@dataclass(frozen=True)
class BatchNegatives(Negatives):
    """The drawn samples of a step, then this worker's right answers that were not drawn.

    ``log_probability`` is log π of those that were drawn, [S].

    Attributes:
        batch_ids: [C - S] int64, ascending, all different, and none of ``ids``.
        log_either: [C] float32, log of the probability that a word is in either set.
        only_in: [C - S] the one sentence that has the word, or -1 where several have it.
        sentences: by micro-batch [n] which sentence of the step each token belongs to.
    """

    batch_ids: Tensor
    log_either: Tensor
    only_in: Tensor
    sentences: tuple[Tensor, ...]

    def changed(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The same with ``change`` of every tensor."""
        return replace(
            super().changed(change), sentences=tuple(change(part) for part in self.sentences)
        )

    def place_of(self, ids: Tensor) -> Tensor:
        """Where each of ``ids`` lies among both, or -1: same shape."""
        in_batch = place_among(self.batch_ids, ids)
        in_batch = torch.where(in_batch < 0, -1, in_batch + self.ids.numel())
        drawn = super().place_of(ids)
        return torch.where(drawn < 0, in_batch, drawn)

    @property
    def log_inclusion(self) -> Tensor:
        """[C] log of the probability that a word is a negative."""
        return self.log_either

    @property
    def inverse(self) -> Tensor:
        """[C] 1 / π of those that were drawn, 0 of the others."""
        return torch.cat([super().inverse, torch.zeros_like(self.only_in, dtype=torch.float32)])

    def hidden_from(self, micro: int, tokens: slice) -> Tensor:
        """Which of ``batch_ids`` are no negatives of which tokens of a micro-batch: [b, C - S]."""
        return self.sentences[micro][tokens].unsqueeze(1) == self.only_in


def with_batch(
    drawn: Negatives,
    sampler: Sampler,
    shares: WordShares,
    targets: list[Tensor],
    sentences: list[Tensor],
) -> BatchNegatives:
    """The negatives of a step of this worker: those that were drawn, and its right answers.

    Args:
        drawn: by ``sampler``, on the host.
        sampler: knows π.
        shares: know p.
        targets: of every micro-batch [n] ids of the right answers.
        sentences: of every micro-batch [n] which sentence of the step, from 0, each belongs to.

    Not collective; where targets are on a GPU its host waits for them.
    """
    answers = torch.cat(targets).cpu().numpy()
    of_sentence = torch.cat(sentences).cpu().numpy()
    num_sentences = int(of_sentence.max(initial=-1)) + 1
    words, word = np.unique(answers, return_inverse=True)
    # Each word with each sentence that has it, in the order of the words.
    pairs = np.unique(word * num_sentences + of_sentence)
    holding, place = np.divmod(pairs, max(1, num_sentences))
    first = np.searchsorted(holding, np.arange(len(words)))
    several = np.bincount(holding, minlength=len(words)) > 1
    only_in = np.where(several, -1, place[first])
    is_new = ~np.isin(words, drawn.ids.numpy(), assume_unique=True)
    batch_ids, only_in = words[is_new], only_in[is_new]
    # The words of all other sentences, for a sentence of mean length.
    others = len(answers) * (1 - 1 / max(1, num_sentences))
    drawn_probability = np.concatenate(
        [np.exp(drawn.log_probability.numpy().astype(np.float64)),
         sampler.probability_of(batch_ids)]
    )  # fmt: skip
    occurring = shares.occurring(np.concatenate([drawn.ids.numpy(), batch_ids]), others)
    either = 1 - (1 - drawn_probability) * (1 - occurring)
    return BatchNegatives(
        drawn.ids,
        drawn.log_probability,
        torch.from_numpy(batch_ids),
        torch.from_numpy(np.log(either).astype(np.float32)),
        torch.from_numpy(only_in),
        tuple(sentences),
    )
