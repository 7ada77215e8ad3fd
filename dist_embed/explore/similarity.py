"""How well cosines agree with people's judgement of how alike two words are."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from torch.nn import functional

from dist_embed.arguments import begins
from dist_embed.data.text.lines import read_lines
from dist_embed.errors import UserError
from dist_embed.explore.table import RunTable
from dist_embed.installed import require

_SEPARATORS = [re.compile(signs) for signs in ("\t", "[,;]", r"[\s,;]+")]


@dataclass(frozen=True)
class Agreement:
    """What was found.

    Attributes:
        spearman: rank correlation of cosines and judgements.
        pairs: pairs that were compared.
        unknown: pairs with a word that is not in the vocabulary.
        untrained: pairs of words of the vocabulary, one of which is untrained.
    """

    spearman: float
    pairs: int
    unknown: int
    untrained: int


def similarity_agreement(table: RunTable, uri: str) -> Agreement:
    """Compare a table with a file of word pairs.

    Args:
        table: the table.
        uri: lines of two words and a judgement, separated by tabs, else by commas or semicolons,
            else by any of these or blanks, as WordSim-353 and SimLex-999 have them. The judgement
            is the first column behind the words that is a number in the second line; if it is none
            in the first, that is a header. Lines that begin with ``#`` are passed over.

    Raises:
        UserError: the file cannot be read, a judgement is missing, fewer than two of its pairs can
            be compared, or all of these are judged alike.
    """
    require("scipy")
    from scipy.stats import spearmanr

    lines = [
        (number, _fields(line))
        for number, line in enumerate(read_lines(uri), start=1)
        if line.strip() and not line.startswith("#")
    ]
    example = lines[min(1, len(lines) - 1)][1] if lines else []
    column = next((i for i, text in enumerate(example) if i > 1 and _number(text) is not None), 2)
    pairs: list[tuple[int, int]] = []
    judged: list[float] = []
    unknown = untrained = 0
    for place, (number, fields) in enumerate(lines):
        value = _number(fields[column]) if column < len(fields) else None
        if value is None:
            if place == 0:
                continue
            raise UserError(
                f"{uri}, line {number}: expected two words and a number, as column {column + 1}: "
                f"{begins(' | '.join(fields))!r}"
            )
        first, second = table.find_word(fields[0]), table.find_word(fields[1])
        if first is None or second is None:
            unknown += 1
            continue
        if not (table.trained[first] and table.trained[second]):
            untrained += 1
            continue
        pairs.append((first, second))
        judged.append(value)
    if len(set(judged)) == 1 < len(judged):
        raise UserError(
            f"{uri}: all {len(judged):,} pairs that the vocabulary knows are judged {judged[0]:g}: "
            "there is no order to compare"
        )
    if len(pairs) < 2:
        raise UserError(
            f"{uri}: the vocabulary knows {len(pairs)} of its pairs, 2 are needed"
            + (
                f"; {untrained:,} more have a word that never occurs {table.on_sides}"
                if untrained
                else ""
            )
        )
    vectors = functional.normalize(table.rows_of([i for pair in pairs for i in pair]))
    cosines = (vectors[0::2] * vectors[1::2]).sum(1).numpy()
    if (cosines == cosines[0]).all():
        raise UserError(f"{uri}: all pairs have the cosine {cosines[0]:g}: there is no order")
    spearman = float(spearmanr(cosines, judged).statistic)
    return Agreement(spearman, len(pairs), unknown, untrained)


def _fields(line: str) -> list[str]:
    found: list[str] = []
    for separators in _SEPARATORS:
        found = [field for text in separators.split(line) if (field := text.strip())]
        if len(found) > 2:
            break
    return found


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None  # as pandas writes what is missing
