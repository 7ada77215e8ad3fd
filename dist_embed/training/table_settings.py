"""What is configured for single tables. Free of torch: the launching process asks."""

from __future__ import annotations

from dist_embed.config.schema import Config
from dist_embed.embedding.settings import TableSection
from dist_embed.model.translation_tables import TABLE_OF_ROLE


def table_settings(config: Config) -> dict[str, TableSection]:
    """By table what is configured for it; tables without settings of their own are left out."""
    found: dict[str, TableSection] = {}
    for role, table in TABLE_OF_ROLE[config.model.share_embeddings].items():
        settings = getattr(config.embedding.tables, role)
        if settings is not None:
            found[table] = settings
    return found
