"""Which tables a translation model has."""

from __future__ import annotations

import pytest

from dist_embed.embedding.table import Table
from dist_embed.model.translation_tables import sides_of_table, translation_tables

ROWS = {"source": 7, "target": 9, "output": 9}


def test_sharing_names_a_table_for_several_roles() -> None:
    assert translation_tables(ROWS, 4, "none") == {
        name: Table(rows, 4, (name,)) for name, rows in ROWS.items()
    }
    assert translation_tables(ROWS, 4, "decoder") == {
        "source": Table(7, 4, ("source",)),
        "decoder": Table(9, 4, ("target", "output")),
    }
    same = dict.fromkeys(ROWS, 9)
    assert translation_tables(same, 4, "all") == {
        "shared": Table(9, 4, ("source", "target", "output"))
    }


def test_sharing_different_vocabularies_is_refused() -> None:
    with pytest.raises(ValueError, match=r"share_embeddings='all'.*9 rows against 7.*shared=true"):
        translation_tables(ROWS, 4, "all")


@pytest.mark.parametrize(("sharing", "whole"), [("none", "output"), ("decoder", "decoder")])
def test_the_output_layers_table_alone_is_trained_whole(sharing: str, whole: str) -> None:
    tables = translation_tables(
        ROWS, 4, sharing,  # type: ignore[arg-type]
        trained_whole=True, initial_scale=0.5, own_rates={"source": 0.7},
    )  # fmt: skip
    assert {name for name, table in tables.items() if table.trained_whole} == {whole}
    rates = {name: table.learning_rate for name, table in tables.items()}
    assert rates == dict.fromkeys(tables) | {"source": 0.7}
    assert {table.initial_scale for table in tables.values()} == {0.5}


def test_a_table_serves_the_sides_of_its_roles() -> None:
    assert sides_of_table("none", "output") == ["target"]
    assert sides_of_table("decoder", "source") == ["source"]
    assert sides_of_table("all", "output") == ["source", "target"]
