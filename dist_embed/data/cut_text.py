"""Whether a text has been cut into pieces by another program, as its marks tell."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice

from dist_embed.data.corpus import ParallelText, read_pairs
from dist_embed.data.settings import Pieces
from dist_embed.data.tokenizer import SPACE
from dist_embed.errors import UserError

# Pairs that are looked at; of cut text nearly every one has marks, of other text hardly any.
_PAIRS = 1000
_SHARE = 0.5
_AS_CUT = (
    "for text that is cut already set tokenizer.pieces={} with tokenizer.kind=word and "
    "tokenizer.split_punctuation=false; or give the text as it was before"
)


def check_pieces(text: ParallelText, pieces: Pieces, say: Callable[[str], None]) -> None:
    """Compare the marks in a training text with what it is said to have been cut into.

    Raises:
        UserError: its marks would be lost, or there are none.
    """
    looked_at = list(islice(read_pairs(text), _PAIRS))
    sides = {
        side: [pair[place].split() for pair in looked_at]
        for place, side in enumerate(("source", "target"))
    }
    found = {side: _marked(lines) for side, lines in sides.items()}
    for side, marked in found.items():
        where = f"of the first {len(looked_at):,} {side} lines of the training text"
        if pieces != "none":
            # Of a side that subword-nmt has not cut nothing is put together.
            either = sum(one[pieces] for one in found.values())
            if not (either if pieces == "subword-nmt" else marked[pieces]):
                raise UserError(
                    f"tokenizer.pieces: {pieces!r} is not allowed for this text: none {where} has "
                    f"a mark of it ({SPACE if pieces == 'sentencepiece' else '@@'})"
                )
        elif marked["sentencepiece"] > _SHARE * len(looked_at):
            raise UserError(
                f"{marked['sentencepiece']:,} {where} hold words that begin with {SPACE} (U+2581), "
                "as sentencepiece cuts them. The tokenizers here write a space so, and the marks "
                "would be lost: " + _AS_CUT.format("sentencepiece")
            )
        elif marked["subword-nmt"] > _SHARE * len(looked_at):
            say(
                f"{marked['subword-nmt']:,} {where} hold words that end in @@, as subword-nmt cuts "
                "them; they are taken as they stand there, and translations are not put together: "
                + _AS_CUT.format("subword-nmt")
            )


def _marked(lines: list[list[str]]) -> dict[Pieces, int]:
    """How many lines have words with the marks of each program."""
    return {
        "sentencepiece": sum(any(w.startswith(SPACE) for w in words) for words in lines),
        "subword-nmt": sum(any(w.endswith("@@") for w in words) for words in lines),
    }
