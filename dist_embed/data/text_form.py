"""The form of text: blanks, Unicode's normal forms, lower case; for tokenizers and all beside them.

Text that differs in these alone is to be the same text, whoever wrote it: French typography has a
no-break space before a full stop, macOS and PDF files decompose letters. A tokenizer carries these
steps in its own file, so that exports do the same; here they are the library's too, so that both
agree to the letter (docs/decisions/0024-the-form-of-text.md).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from functools import cache
from typing import Any, Literal, NamedTuple, get_args

from tokenizers import Regex, normalizers

from dist_embed.data.settings import Form

# The one that tells most apart first.
FORMS: tuple[Form, ...] = get_args(Form)
# "letters": of each letter by itself, as tokenizers had it before they knew a final sigma; for runs
# that there are.
Lowercase = bool | Literal["letters"]


class TextForm(NamedTuple):
    """What all text is brought to, where that is decided."""

    form: Form = "none"
    lowercase: Lowercase = False


# What `str.isspace` calls one: in Unicode White_Space and the separators of ASCII.
BLANK = "[\\t-\\r\\x{1c}-\\x{20}\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}" + (
    "\\x{202f}\\x{205f}\\x{3000}]"
)
# U+FEFF is no letter and no blank, wherever files with one were joined.
_BYTE_ORDER_MARK = "\ufeff"
# A capital sigma at the end of a word, as Unicode (section 3.13, Final_Sigma) and `str.lower` have
# it; the library's own step looks at each character by itself.
_CASED = "[\\p{Cased}&&\\P{Case_Ignorable}]"
_FINAL_SIGMA = f"(?<={_CASED}\\p{{Case_Ignorable}}*)Σ(?!\\p{{Case_Ignorable}}*{_CASED})"


def steps(form: Form, *, lowercase: Lowercase) -> list[Any]:
    """The library's normalizers that bring text into a form; none where nothing is to be done."""
    lower: list[Any] = [normalizers.Lowercase()] if lowercase else []
    if lowercase is True:
        lower.insert(0, normalizers.Replace(Regex(_FINAL_SIGMA), "ς"))
    if form == "none":
        return lower
    letters = normalizers.NFC() if form == "nfc" else normalizers.NFKC()
    return [
        normalizers.Replace(_BYTE_ORDER_MARK, ""),
        letters,
        # Lower case has composed letters that capitals have not: ẖ of H and U+0331.
        *([*lower, letters] if lowercase else []),
        # Behind the letters, because NFKC makes spaces of U+00A8 and others.
        normalizers.Replace(Regex(f"{BLANK}+"), " "),
        normalizers.Strip(),
    ]


def in_form(texts: Iterable[str], form: Form, *, lowercase: Lowercase = False) -> list[str]:
    """``texts`` as a tokenizer of this form sees them."""
    wanted = _sequence(form, lowercase)
    return [wanted.normalize_str(text) for text in texts]


def lowercased(text: str) -> str:
    """Unicode's lower case, as tokenizers make it."""
    return in_form([text], "none", lowercase=True)[0]


@cache
def _sequence(form: Form, lowercase: Lowercase) -> Any:
    return normalizers.Sequence(steps(form, lowercase=lowercase))


def may_join(character: str) -> bool:
    """Whether a normal form may depend on this character together with the one before it.

    True for some that stay as they are: marks of all kinds, and what this Python does not know yet.
    """
    category = unicodedata.category(character)
    return (
        category[0] == "M"
        or category == "Cn"
        or "\u1100" <= character <= "\u11ff"  # letters of Hangul
        or "\U00016d40" <= character <= "\U00016d7f"  # of Kirat Rai
    )
