"""The whole configuration of a run, put together from the sections of its components."""

from __future__ import annotations

from typing import Annotated

from dist_embed.checkpoint.settings import CheckpointSection
from dist_embed.cluster.settings import ClusterSection
from dist_embed.data.settings import DataSection, TokenizerSection
from dist_embed.embedding.settings import EmbeddingSection
from dist_embed.model.settings import ModelSection, SearchSection
from dist_embed.run.settings import RunSection
from dist_embed.section import MAY_CHANGE, Section
from dist_embed.training.settings import TrainSection


class Config(Section):
    """One run, whole."""

    run: RunSection
    data: DataSection = DataSection()
    tokenizer: TokenizerSection = TokenizerSection()
    embedding: EmbeddingSection = EmbeddingSection()
    model: ModelSection = ModelSection()
    train: TrainSection
    search: Annotated[SearchSection, MAY_CHANGE] = SearchSection()
    checkpoint: Annotated[CheckpointSection, MAY_CHANGE] = CheckpointSection()
    cluster: Annotated[ClusterSection, MAY_CHANGE] = ClusterSection()
