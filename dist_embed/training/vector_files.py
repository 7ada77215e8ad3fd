"""A look at the files that tables are to start from. Free of torch: the launching process looks."""

from __future__ import annotations

from dist_embed.config.schema import Config
from dist_embed.training.table_settings import table_settings
from dist_embed.vectors.fit import check_fit
from dist_embed.vectors.formats import open_file_of


def check_vectors(config: Config) -> None:
    """Before the work for it: whether each file is there, of a known format, and fits its table.

    Raises UserError.
    """
    for table, settings in table_settings(config).items():
        if wanted := settings.pretrained:
            check_fit(open_file_of(wanted), wanted, table=table, width=config.embedding.width)
