"""BLEU and chrF of texts in one form, where an unknown word is one token that matches nothing.

Written out as ``<unk>`` it would be three tokens for the tokenizer ``13a``, and letters for chrF,
some of which match. An unknown word counts like any word that is wrong, as in fairseq and
sentencepiece, which write it as one sign.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass

import sacrebleu

from dist_embed.data.text_form import in_form
from dist_embed.data.tokenizer import Tokenizer
from dist_embed.parallel.collectives import same_text_from_first, sum_numbers_over_workers
from dist_embed.parallel.errors import all_or_none
from dist_embed.parallel.group import Group
from dist_embed.training.bleu import bleu_with

PRIVATE_USE = range(0xE000, 0xF900)
TURN_SECONDS = 0.5


@dataclass(frozen=True)
class Score:
    """How near translations are to their references.

    Attributes:
        bleu: corpus BLEU, 0 to 100 (Papineni et al. 2002), by sacrebleu.
        chrf: chrF2, 0 to 100 (Popović 2015), by sacrebleu.
        signature: sacrebleu's description of how BLEU was computed, and what was done before.
    """

    bleu: float
    chrf: float
    signature: str


class Scorer:
    """Scores translations against their references, after both were brought to one form.

    Args:
        references: one for each sentence.
        target: the tokenizer of the translations. Its form of text and its lower case, where it
            makes one, which decides on composed letters too, are made of both sides; pieces of
            references are put together as it puts translations together.
        bleu_tokenize: sacrebleu's tokenizer for BLEU, see `bleu_with`.

    Attributes:
        unknown: to be written for each unknown word in the translations: a character for private
            use that no reference has. sacrebleu's tokenizers take it for a letter.
    """

    def __init__(self, references: Sequence[str], target: Tokenizer, *, bleu_tokenize: str) -> None:
        self._form, self._lowercase = target.form, target.lowercase
        self._references = self._in_form(target.uncut(list(references)))
        self._bleu = bleu_with(bleu_tokenize, lowercase=bool(self._lowercase))
        self._chrf = sacrebleu.CHRF(lowercase=bool(self._lowercase))
        held: set[str] = set().union(*self._references)
        self.unknown = next(sign for sign in map(chr, PRIVATE_USE) if sign not in held)

    def score(self, translations: Sequence[str]) -> Score:
        """The score of one translation for each reference, in order."""
        texts = self._in_form(translations)
        bleu = self._bleu.corpus_score(texts, [self._references])
        return Score(
            bleu=bleu.score,
            chrf=self._chrf.corpus_score(texts, [self._references]).score,
            signature=f"{self._bleu.get_signature()}|unknown:one-token|form:{self._form}",
        )

    def _in_form(self, texts: Sequence[str]) -> list[str]:
        return in_form(texts, self._form, lowercase=self._lowercase)


def score_of_first(scorer: Scorer | None, translations: Sequence[str], group: Group) -> Score:
    """The score that worker 0 computes, on every worker. ``scorer``: there; None elsewhere.

    chrF takes milliseconds a sentence: the others hear every `TURN_SECONDS` that it is still at
    it, so that no exchange is waited for longer than allowed. Collective.
    """
    text = ""
    with ThreadPoolExecutor(1) as pool:
        score = None if scorer is None else pool.submit(scorer.score, translations)
        while not sum_numbers_over_workers([_is_done(score)], group)[0]:
            pass
    with all_or_none(group):
        if score is not None:
            text = json.dumps(asdict(score.result()))
    return Score(**json.loads(same_text_from_first(text, group)))


def _is_done(score: Future[Score] | None) -> int:
    """Whether worker 0's is there, after waiting for it a while."""
    return 0 if score is None else len(wait([score], TURN_SECONDS).done)
