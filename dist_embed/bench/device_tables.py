"""Tables for measurements, to which the values of rows do not matter."""

from __future__ import annotations

import torch

from dist_embed.config.schema import Config
from dist_embed.parallel.group import Group
from dist_embed.training.assemble import TranslationModel, build_translation_model


def build_filled_translator(
    config: Config, vocabulary_size: dict[str, int], group: Group
) -> TranslationModel:
    """`build_translation_model` whose rows the tables' own device draws. Collective.

    A run's rows are drawn on the CPU, to be the same on every device; a GPU would wait long for
    those of millions of words.
    """
    translation_model = build_translation_model(config, vocabulary_size, group, initial_scale=0.0)
    lookup = translation_model.lookup
    draw = torch.Generator(group.device).manual_seed(config.run.seed + group.rank)
    for table, spec in lookup.specs.items():
        lookup.weight(table).normal_(0.0, spec.width**-0.5, generator=draw)
    lookup.after_writing()
    return translation_model
