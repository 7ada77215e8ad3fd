"""Whether a file of vectors can serve a table: what is known before any vector is read."""

from __future__ import annotations

from dist_embed.errors import UserError
from dist_embed.vectors.fasttext_binary import FastTextBinary
from dist_embed.vectors.file import VectorFile
from dist_embed.vectors.settings import PretrainedSection


def check_fit(
    file: VectorFile | FastTextBinary, settings: PretrainedSection, *, table: str, width: int
) -> None:
    """Raise UserError where ``file`` cannot start rows of ``width`` values of a table."""
    where = f"embedding.tables: {table} from {file.uri}"
    if file.width > width and settings.project == "no":
        raise UserError(
            f"{where}: its vectors have width {file.width}, the table has {width}; set "
            f"embedding.width={file.width}, or `project` to pca or random"
        )
    if file.width < width and settings.project == "pca":
        raise UserError(
            f"{where}: `project: pca` cannot widen vectors, from {file.width} to {width}; leave "
            "`project` out, and zeros are added, or set it to random"
        )
    if settings.missing == "subword" and not isinstance(file, FastTextBinary):
        raise UserError(
            f"{where}: `missing: subword` needs a binary fastText model, which knows the parts "
            "of words; set it to random or mean"
        )
