"""What is configured for single tables, and whether it can be. Free of torch: the launching process
asks.
"""

from __future__ import annotations

from dist_embed.config.schema import Config
from dist_embed.embedding.settings import TableSection
from dist_embed.model.translation_tables import TABLE_OF_ROLE
from dist_embed.vectors.fit import check_fit
from dist_embed.vectors.formats import open_file_of


def table_settings(config: Config) -> dict[str, TableSection]:
    """By table what is configured for it; tables without settings of their own are left out."""
    found: dict[str, TableSection] = {}
    for role, table in TABLE_OF_ROLE[config.model.share_embeddings].items():
        settings = getattr(config.embedding.tables, role)
        if settings is not None:
            found[table] = settings
    return found


def check_vectors(config: Config) -> None:
    """Look at the files that tables are to start from, before the work for it: whether each is
    there, of a known format, and fits its table. Raises UserError.
    """
    for table, settings in table_settings(config).items():
        if wanted := settings.pretrained:
            check_fit(open_file_of(wanted), wanted, table=table, width=config.embedding.width)
