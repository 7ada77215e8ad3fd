"""How often the words of a run's table occur in its training data, and which of them never do.

A row belongs to a side if its table is read or written for words of that side. What never occurs
there has only been moved as a wrong answer of the output layer, or not at all: nothing was learned
of what it means.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dist_embed.data.prepare import read_counts, read_occurrences, sides_unknown
from dist_embed.data.prepared_folder import prepared_folder
from dist_embed.data.proof import NotReached
from dist_embed.data.token_shards import PreparedData
from dist_embed.data.tokenizer import SPECIAL_TOKENS
from dist_embed.errors import StorageError
from dist_embed.model.translation_tables import SIDE_OF_ROLE, sides_of_table
from dist_embed.run.folder import OtherVocabulary, check_vocabularies, read_run_config

if TYPE_CHECKING:
    from dist_embed.explore.table import Role


@dataclass(frozen=True)
class Occurrences:
    """What is known of a table's words.

    Attributes:
        on_side: [V] how often each occurs on the side of the role, or in the whole training text
            where the data do not tell their sides apart; None: not known.
        trained: [V] whether each occurs on any side that the table serves; special tokens count as
            if they did. None: not known.
        told: lines for the user.
        refused: why counts cannot be written down, although there may be some.
    """

    on_side: NDArray[np.int64] | None
    trained: NDArray[np.bool_] | None
    told: tuple[str, ...] = ()
    refused: str | None = None


def occurrences(run_uri: str, role: Role) -> Occurrences:
    """Look into the run's prepared data, if they are there.

    Raises UserError where they are damaged.
    """
    config = read_run_config(run_uri)
    sides = sides_of_table(config.model.share_embeddings, role)
    data_uri = config.data.uri
    unknown = "which words never occur in its training data is not known"
    try:
        data_uri = prepared_folder(data_uri)
        data = PreparedData.read(data_uri)
        check_vocabularies(run_uri, data)
        in_table = read_occurrences(data, sides)
        side = [SIDE_OF_ROLE[role]]
        on_side = in_table if sides == side else read_occurrences(data, side)
        if on_side is None:
            on_side = read_counts(data, SIDE_OF_ROLE[role])
    except FileNotFoundError:
        return Occurrences(None, None, (f"{run_uri}: {unknown}: they are not in {data_uri}",))
    except OtherVocabulary:
        line = f"{run_uri}: {unknown}: {data_uri} holds others by now"
        refused = f"{data_uri} holds other data by now than the run {run_uri} was trained on"
        return Occurrences(None, None, (line,), refused)
    except (OSError, StorageError, NotReached) as exc:
        refused = f"{data_uri} cannot be read ({exc})"
        return Occurrences(None, None, (f"{run_uri}: {unknown}: {refused}",), refused)
    told = [line for line in (data.not_proven(data_uri),) if line]
    if in_table is None:
        return Occurrences(on_side, None, (*told, sides_unknown(data_uri)))
    trained = in_table > 0
    trained[: len(SPECIAL_TOKENS)] = True
    return Occurrences(on_side, trained, tuple(told))
