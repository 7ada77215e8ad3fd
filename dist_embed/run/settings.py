"""Settings of a run: where it lies, and what makes it reproducible."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from dist_embed.section import NO_RESULT, Paths, Section, Seed


class RunSection(Section):
    """Where a run lives and what makes it reproducible."""

    uri: Annotated[str, Paths, NO_RESULT] = Field(
        min_length=1, description="Folder or fsspec URL that holds the whole run."
    )
    seed: Seed = Field(1, description="Decides initial values, batch order and dropout.")
