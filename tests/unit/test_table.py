"""What a user may say of tables."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torchrec.modules.embedding_configs import EmbeddingBagConfig, EmbeddingConfig
from torchrec.types import DataType

from dist_embed.embedding.table import Table, named_tables
from dist_embed.errors import UserError


def test_torchrecs_configurations_are_tables() -> None:
    configs = [
        EmbeddingConfig(num_embeddings=9, embedding_dim=4, name="user"),
        EmbeddingConfig(
            num_embeddings=7, embedding_dim=8, name="item", feature_names=["seen", "bought"]
        ),
    ]
    expected = {"user": Table(9, 4), "item": Table(7, 8, ("seen", "bought"))}
    assert named_tables(configs) == expected
    assert named_tables({config.name: config for config in configs}) == expected
    nameless = EmbeddingConfig(num_embeddings=9, embedding_dim=4)
    assert named_tables({"a": nameless, "b": Table(3, 4)}) == {"a": Table(9, 4), "b": Table(3, 4)}


def config(**how: Any) -> EmbeddingConfig:
    return EmbeddingConfig(num_embeddings=9, embedding_dim=4, **how)


@pytest.mark.parametrize(
    ("tables", "said"),
    [({}, "at least one"),
     ({"a.b": Table(9, 4)}, r"'a\.b': a name has .* no full stop"),
     ({"": Table(9, 4)}, "'': a name has at least one"),
     ({"t": Table(0, 4)}, "'t': rows: 0 is not allowed: a whole number in 1"),
     ({"t": Table(2**31, 4)}, "2147483648 is not allowed: a whole number in 1 … 2,147,483,647"),
     ({"t": Table(None, 4)}, "'t': rows: None is not allowed: a whole number in 1"),  # type: ignore[arg-type]
     ({"t": Table("10", 4)}, "'t': rows: '10' is not allowed: a whole"),  # type: ignore[arg-type]
     ({"t": Table(1e3, 4)}, r"'t': rows: 1000\.0 is not allowed: a whole"),  # type: ignore[arg-type]
     ({"t": Table(9, None)}, "'t': width: None is not allowed: a whole"),  # type: ignore[arg-type]
     ({"t": Table(9, 4, learning_rate=-1.0)}, r"'t': learning_rate: -1\.0 is not allowed: a n"),
     ({"t": Table(9, 4, initial_scale=float("nan"))}, "'t': initial_scale: nan is not"),
     ([Table(9, 4)], r"tables: a Table among them has no name: give each by its name"),
     (Table(9, 4), "tables: a Table is not allowed: give each by its name"),
     ({"w": 10}, "table 'w': 10 is not allowed: give each by its name"),
     (None, "tables: None is not allowed: give each"), ("w", "tables: 'w' is not allowed"),
     ({1: Table(9, 4)}, "table 1: a name has at least one character"),
     ({"t": Table(9, 0)}, "'t': width: 0 is not allowed: a whole number"),
     ({"a": Table(9, 4, ("x",)), "b": Table(9, 4, ("y", "x"))}, "'b': its feature 'x' is one of"),
     ({"a": Table(9, 4, ("b",)), "b": Table(9, 4)}, "'b': its feature 'b' is one of table 'a'"),
     ([config(name="t"), config(name="t")], "two go by the name 't'"),
     ({"t": config(name="other")}, "'t': its EmbeddingConfig has the name 'other'"),
     ([config(name="t", data_type=DataType.FP16)], "'t': data_type=.*FP16.* has no meaning here"),
     ([EmbeddingBagConfig(num_embeddings=9, embedding_dim=4, name="t")],
      "'t': EmbeddingBagConfig is not allowed: vectors are not pooled here"),
     ([config(name="t", weight_init_max=0.5)], "'t': weight_init_max=0.5 of its"),
     ([config(name="t", init_fn=torch.nn.init.ones_)], "'t': init_fn of its .* is not called"),
     ([config(name="t", init_fn=partial(torch.nn.init.uniform_, a=-2.0, b=2.0))],
      "'t': init_fn of its")],
)  # fmt: skip
def test_what_cannot_be_a_table_is_refused_by_name(tables: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        named_tables(tables)


def test_features_are_names_and_one_may_be_given_as_text() -> None:
    assert Table(9, 4, "input").features == ("input",)  # type: ignore[arg-type]
    assert Table(9, 4, ["a", "b"]) == Table(9, 4, ("a", "b"))  # type: ignore[arg-type]
    for features in (3, (1, 2), torch.tensor(2)):
        with pytest.raises(UserError, match=r"features: .* is not allowed: give names"):
            Table(9, 4, features)  # type: ignore[arg-type]


def test_fresh_rows_have_length_one_unless_told_otherwise() -> None:
    assert Table(9, 16).scale == 0.25
    assert Table(9, 16, initial_scale=0.0).scale == 0.0
