"""What an unknown word counts in BLEU and chrF."""

from __future__ import annotations

from typing import Any

import pytest
import sacrebleu
from sacrebleu.metrics.bleu import _get_tokenizer

from dist_embed.data.text_form import FORMS, Lowercase
from dist_embed.data.tokenizer import Tokenizer
from dist_embed.training.scoring import PRIVATE_USE, Scorer

REFERENCES = ["Der Hund sieht die kleine Katze , unklar .", "er geht <unk> nach Haus-Ulm, 3.5 km"]
# `?` stands for an unknown word.
ANSWERS = ["Der Hund sieht die ? Katze , ? .", "er geht ? nach Haus-?, (?) 3.5 km"]
# Without those that need other packages.
BY_ITSELF = ("13a", "intl", "char", "zh", "none")


def target(**path: Any) -> Tokenizer:
    return Tokenizer.from_words([], **{"lowercase": False, "split_punctuation": False, **path})


@pytest.mark.parametrize("tokenize", BY_ITSELF)
def test_an_unknown_word_is_one_token_that_matches_nothing(tokenize: str) -> None:
    scorer = Scorer(REFERENCES, target(), bleu_tokenize=tokenize)
    found = scorer.score([text.replace("?", scorer.unknown) for text in ANSWERS])
    for wrong in ("Q", "Ж"):  # a word of one letter that no reference has
        answers = [text.replace("?", wrong) for text in ANSWERS]
        bleu = sacrebleu.corpus_bleu(answers, [REFERENCES], tokenize=tokenize, force=True)
        assert 0 < bleu.score < 100
        assert found.bleu == pytest.approx(bleu.score)
        chrf = sacrebleu.corpus_chrf(answers, [REFERENCES])
        assert found.chrf == pytest.approx(chrf.score)
    # The text that users see would be more tokens, or one that a reference may have.
    shown = scorer.score([text.replace("?", "<unk>") for text in ANSWERS])
    assert abs(shown.bleu - found.bleu) > 0.5
    assert abs(shown.chrf - found.chrf) > 0.5
    tokens = _get_tokenizer(tokenize)()
    assert tokens(f"eine {scorer.unknown} Katze").split().count(scorer.unknown) == 1
    assert found.signature == shown.signature
    assert f"|tok:{tokenize}|" in found.signature
    ending = f"version:{sacrebleu.__version__}|unknown:one-token|form:none"
    assert found.signature.endswith(ending)


def test_no_reference_has_the_sign_of_an_unknown_word() -> None:
    first, second, third = map(chr, PRIVATE_USE[:3])
    references = [f"we see an icon {first}", f"and then another one {second}{second}"]
    scorer = Scorer(references, target(lowercase=True), bleu_tokenize="none")
    assert scorer.unknown == third
    assert Scorer(["no icon"], target(lowercase=True), bleu_tokenize="none").unknown == first
    # The icon is a word like others.
    assert scorer.score(references).bleu == pytest.approx(100)
    assert scorer.score(references).chrf == pytest.approx(100)


@pytest.mark.parametrize("lowercase", [True, "letters"])
def test_both_sides_have_the_lower_case_that_the_tokenizer_makes(lowercase: Lowercase) -> None:
    """Of H and U+0331 a composed letter, of a capital sigma one or the other."""
    reference = "J\u030cABA YES WE H\u0331ELLO \u039b\u039f\u0393\u039f\u03a3 GO"
    for form in FORMS:
        tokenizer = target(lowercase=lowercase, form=form)
        assert (tokenizer.lowercase, tokenizer.form) == (lowercase, form)
        scorer = Scorer([reference], tokenizer, bleu_tokenize="none")
        found = scorer.score([tokenizer.normalized(reference)])
        assert (found.bleu, found.chrf) == (pytest.approx(100), pytest.approx(100))
        assert "|case:lc|" in found.signature


def test_texts_are_scored_in_one_form() -> None:
    references = ["le caf\u00e9 est\u00a0ferm\u00e9 .", "\ufb01n de la journ\u00e9e ici"]
    answers = ["\ufeffle cafe\u0301  est ferme\u0301\u202f.", "\ufb01n de la journe\u0301e ici "]
    plain = ["le caf\u00e9 est ferm\u00e9 .", "fin de la journ\u00e9e ici"]
    found = {}
    for form in FORMS:
        scorer = Scorer(references, target(form=form), bleu_tokenize="none")
        assert scorer.score(references).bleu == pytest.approx(100)
        found[form] = [(score.bleu, score.chrf) for score in map(scorer.score, (answers, plain))]
        assert scorer.score(plain).signature.endswith(f"|form:{form}")
    full = pytest.approx((100, 100))
    assert found["nfkc"] == [full, full]
    assert found["nfc"] == [full, pytest.approx((80, 90), abs=19)]  # the ligature is another word
    assert found["none"][0] < (50, 0)
