"""The tables of a translation model: which roles there are, and which of them share rows.

Nothing here imports torch: the launching process and who only looks at vectors use it too.
"""

from __future__ import annotations

from dist_embed.embedding.table import Table
from dist_embed.model.settings import ShareEmbeddings

# Which table plays which role. Tying is naming the same table twice.
TABLE_OF_ROLE: dict[ShareEmbeddings, dict[str, str]] = {
    "none": {"source": "source", "target": "target", "output": "output"},
    "decoder": {"source": "source", "target": "decoder", "output": "decoder"},
    "all": {"source": "shared", "target": "shared", "output": "shared"},
}
SIDE_OF_ROLE = {"source": "source", "target": "target", "output": "target"}


def sides_of_table(share: ShareEmbeddings, role: str) -> list[str]:
    """The sides whose words the table of a role serves, one or both."""
    tables = TABLE_OF_ROLE[share]
    return sorted({SIDE_OF_ROLE[other] for other in tables if tables[other] == tables[role]})


def rows_of_role(vocabulary_size: dict[str, int], oov_buckets: int) -> dict[str, int]:
    """Table rows for each role, from the vocabulary sizes of both sides and hashed source rows."""
    target = vocabulary_size["target"]
    return {"source": vocabulary_size["source"] + oov_buckets, "target": target, "output": target}


def translation_tables(
    rows_of_role: dict[str, int],
    width: int,
    sharing: ShareEmbeddings,
    *,
    trained_whole: bool = False,
    initial_scale: float | None = None,
    own_rates: dict[str, float] | None = None,
) -> dict[str, Table]:
    """The tables that ``sharing`` asks for, by name; roles are their features.

    Args:
        rows_of_role: V for the roles ``source``: the encoder's input, ``target``: the decoder's,
            and ``output``: words to be scored.
        width: D.
        sharing: which roles use one table.
        trained_whole: whether training takes all rows of the output layer's table.
        initial_scale: see `Table`.
        own_rates: first rates of tables that have another than the rest.

    Raises:
        ValueError: roles with different vocabularies are to share a table.
    """
    roles_of: dict[str, list[str]] = {}
    for role, name in TABLE_OF_ROLE[sharing].items():
        roles_of.setdefault(name, []).append(role)
    found: dict[str, Table] = {}
    for name, roles in roles_of.items():
        rows = rows_of_role[roles[0]]
        for role in roles:
            if rows_of_role[role] != rows:
                raise ValueError(
                    f"model.share_embeddings={sharing!r} lets {role} share table {name!r}, but "
                    f"their vocabularies differ: {rows_of_role[role]} rows against {rows}; "
                    "set tokenizer.shared=true or model.share_embeddings to none or decoder"
                )
        found[name] = Table(
            rows,
            width,
            features=tuple(roles),
            initial_scale=initial_scale,
            learning_rate=(own_rates or {}).get(name),
            trained_whole=trained_whole and "output" in roles,
        )
    return found
