"""What a user says of a table: its size, and how it is used and trained.

Nothing here imports TorchRec or torch, which take seconds: the launching process uses it too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dist_embed.arguments import (
    can_be_listed,
    real_number,
    shown,
    true_or_false,
    whole_number,
)
from dist_embed.embedding.plan import TableSpec
from dist_embed.errors import UserError

if TYPE_CHECKING:
    from torchrec.modules.embedding_configs import EmbeddingConfig

LARGEST_TABLE = 2**31 - 1  # rows; see `dist_embed.embedding.row_order`
_NAMED = "give each by its name, as {'word': Table(1000, 64)}, or TorchRec's EmbeddingConfigs"
_NAMES = "give names, as ('input', 'output')"


@dataclass(frozen=True)
class Table:
    """One table that is split by rows over the workers.

    Attributes:
        rows: V; ids are 0 … V - 1, frequent ones first where their frequencies are known.
        width: D, values of a row; on a GPU at most 2,048. In memory it is a multiple of 4.
        features: names under which ids are looked up in it; none: the table's own name. TorchRec's
            word: two features of one table share its rows, as tied input and output vectors do. A
            single one may be given as text.
        initial_scale: standard deviation of fresh rows; 0: zeros, for rows that come from
            elsewhere; None: √(1/D).
        learning_rate: where it differs from that of the other tables.
        trained_whole: whether every step reads and trains all rows of the own shard, as
            `dist_embed.model.output_layer.ExactSoftmax` does.
    """

    rows: int
    width: int
    features: tuple[str, ...] = ()
    initial_scale: float | None = None
    learning_rate: float | None = None
    trained_whole: bool = False

    def __post_init__(self) -> None:
        given: Any = self.features
        if not can_be_listed(given):
            raise UserError(f"features: {shown(given)} is not allowed: {_NAMES}")
        names = (given,) if isinstance(given, str) else tuple(given)
        if not all(isinstance(name, str) for name in names):
            raise UserError(f"features: {shown(names)} is not allowed: {_NAMES}")
        object.__setattr__(self, "features", names)

    @property
    def scale(self) -> float:
        """The standard deviation of fresh rows."""
        return self.width**-0.5 if self.initial_scale is None else self.initial_scale

    def spec(self, name: str) -> TableSpec:
        """Its name and size."""
        return TableSpec(name, self.rows, self.width)


def named_tables(
    tables: Mapping[str, Table | EmbeddingConfig] | Iterable[EmbeddingConfig],
) -> dict[str, Table]:
    """The tables by name, each a `Table`, in their order.

    Args:
        tables: by name; or TorchRec's configurations, which have names of their own.

    Raises:
        UserError: there is none, one cannot be, or two go by one name. Of a TorchRec configuration
            also where it asks for what is not done here.
    """
    given: list[tuple[str, Any]]
    if isinstance(tables, Mapping):
        given = list(tables.items())
    elif isinstance(tables, Iterable) and not isinstance(tables, str):
        given = [(_name_of(config), config) for config in tables]
    else:
        raise UserError(f"tables: {shown(tables)} is not allowed: {_NAMED}")
    if not given:
        raise UserError("tables: there must be at least one")
    found: dict[str, Table] = {}
    table_of: dict[str, str] = {}
    for name, table in given:
        if name in found:
            raise UserError(f"tables: two go by the name {name!r}")
        found[name] = table if isinstance(table, Table) else _from_torchrec(name, table)
        _check(name, found[name])
        for feature in found[name].features or (name,):
            if feature in table_of:
                raise UserError(
                    f"table {name!r}: its feature {feature!r} is one of table "
                    f"{table_of[feature]!r} already; a feature belongs to one table"
                )
            table_of[feature] = name
    return found


def _name_of(config: Any) -> str:
    """Of a TorchRec configuration, which has one of its own."""
    if not hasattr(config, "embedding_dim"):
        raise UserError(f"tables: {shown(config)} among them has no name: {_NAMED}")
    name: str = config.name
    return name


def _check(name: str, table: Table) -> None:
    if not isinstance(name, str) or not name or "." in name:
        raise UserError(f"table {name!r}: a name has at least one character, and no full stop")
    whole_number(f"table {name!r}: rows", table.rows, 1, LARGEST_TABLE)
    true_or_false(f"table {name!r}: trained_whole", table.trained_whole)
    for key in ("initial_scale", "learning_rate"):
        if getattr(table, key) is not None:
            real_number(f"table {name!r}: {key}", getattr(table, key))
    whole_number(f"table {name!r}: width", table.width, 1)


def _from_torchrec(name: str, config: EmbeddingConfig) -> Table:
    """The table of a TorchRec configuration. Rows start as here, not as TorchRec's do."""
    if not hasattr(config, "embedding_dim"):
        raise UserError(f"table {name!r}: {shown(config)} is not allowed: {_NAMED}")
    if hasattr(config, "pooling"):
        raise UserError(
            f"table {name!r}: {type(config).__name__} is not allowed: vectors are not pooled here. "
            "Give an EmbeddingConfig, and pool the vectors of a lookup in your model"
        )
    if config.name not in ("", name):
        raise UserError(f"table {name!r}: its EmbeddingConfig has the name {config.name!r}")
    plain = type(config)(num_embeddings=config.num_embeddings, embedding_dim=config.embedding_dim)
    known = {"num_embeddings", "embedding_dim", "name", "feature_names", "init_fn"}
    for key, value in vars(config).items():
        if key not in known and value != getattr(plain, key):
            raise UserError(
                f"table {name!r}: {key}={value!r} of its EmbeddingConfig has no meaning here; the "
                "type of rows is `weights` of ShardedTables, their start `initial_scale` of Table"
            )
    # Where none is given, TorchRec puts a partial there that each makes anew.
    if _function(config.init_fn) != _function(plain.init_fn):
        raise UserError(
            f"table {name!r}: init_fn of its EmbeddingConfig is not called: rows start from seed, "
            "table and row, so that they do not depend on the number of workers. Write what you "
            "like into ShardedTables.weight"
        )
    return Table(config.num_embeddings, config.embedding_dim, tuple(config.feature_names))


def _function(partial: object) -> tuple[object, object]:
    return getattr(partial, "func", partial), getattr(partial, "keywords", None)
