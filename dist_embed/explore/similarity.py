"""How well cosines agree with people's judgement of how alike two words are."""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch.nn import functional

from dist_embed.config.errors import UserError
from dist_embed.data.corpus import read_lines
from dist_embed.explore.table import RunTable

_FIELDS = re.compile(r"[\t,;]\s*|\s+")


@dataclass(frozen=True)
class Agreement:
    """What was found.

    Attributes:
        spearman: rank correlation of cosines and judgements.
        pairs: pairs that were compared.
        unknown: pairs with a word that is not in the vocabulary.
    """

    spearman: float
    pairs: int
    unknown: int


def similarity_agreement(table: RunTable, uri: str) -> Agreement:
    """Compare a table with a file of word pairs.

    Args:
        table: the table.
        uri: lines of two words and a judgement, separated by tabs, commas or spaces, as
            WordSim-353 and SimLex-999 have them: the first number behind the words is it. A first
            line without a number is taken for a header, lines that begin with ``#`` are passed
            over.

    Raises:
        UserError: the file cannot be read, or fewer than two of its pairs are known.
    """
    from scipy.stats import spearmanr

    pairs: list[tuple[int, int]] = []
    judged: list[float] = []
    unknown = 0
    for number, line in enumerate(read_lines(uri), start=1):
        fields = [field for field in _FIELDS.split(line.strip()) if field]
        if not fields or line.startswith("#"):
            continue
        value = next((v for v in map(_number, fields[2:]) if v is not None), None)
        if value is None:
            if number == 1:
                continue
            raise UserError(f"{uri}, line {number}: expected two words and a number: {line!r}")
        first, second = table.find(fields[0]), table.find(fields[1])
        if first is None or second is None:
            unknown += 1
            continue
        pairs.append((first, second))
        judged.append(value)
    if len(pairs) < 2:
        raise UserError(f"{uri}: the vocabulary knows {len(pairs)} of its pairs, 2 are needed")
    vectors = functional.normalize(table.rows_of([i for pair in pairs for i in pair]))
    cosines = (vectors[0::2] * vectors[1::2]).sum(1).numpy()
    return Agreement(float(spearmanr(cosines, judged).statistic), len(pairs), unknown)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
