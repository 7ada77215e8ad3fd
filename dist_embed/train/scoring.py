"""BLEU and chrF of texts in one form, where an unknown word is one token that matches nothing.

Written out as ``<unk>`` it would be three tokens for the tokenizer ``13a``, and letters for chrF,
some of which match. An unknown word counts like any word that is wrong, as in fairseq and
sentencepiece, which write it as one sign.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import sacrebleu

from dist_embed.data.text_form import Form, in_form

PRIVATE_USE = range(0xE000, 0xF900)


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
        bleu_tokenize: sacrebleu's tokenizer for BLEU.
        lowercase: whether case does not count.
        form: what all texts are brought to; ``none``: they are compared as they are.

    Attributes:
        unknown: to be written for each unknown word in the translations: a character for private
            use that no reference has. sacrebleu's tokenizers take it for a letter.
    """

    def __init__(
        self, references: Sequence[str], *, bleu_tokenize: str, lowercase: bool, form: Form
    ) -> None:
        self._form = form
        self._references = in_form(references, form)
        # force: sacrebleu warns about tokenised text, which bleu_tokenize=none asks for.
        self._bleu = sacrebleu.BLEU(tokenize=bleu_tokenize, lowercase=lowercase, force=True)
        self._chrf = sacrebleu.CHRF(lowercase=lowercase)
        held: set[str] = set().union(*self._references)
        self.unknown = next(sign for sign in map(chr, PRIVATE_USE) if sign not in held)

    def score(self, translations: Sequence[str]) -> Score:
        """The score of one translation for each reference, in order."""
        texts = in_form(translations, self._form)
        bleu = self._bleu.corpus_score(texts, [self._references])
        return Score(
            bleu=bleu.score,
            chrf=self._chrf.corpus_score(texts, [self._references]).score,
            signature=f"{self._bleu.get_signature()}|unknown:one-token|form:{self._form}",
        )
