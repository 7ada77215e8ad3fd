"""The learning rates that a configuration asks for. Free of torch: a report draws them."""

from __future__ import annotations

import math

from dist_embed.config.schema import Config
from dist_embed.optim.schedule import Rates, Schedule
from dist_embed.training.table_settings import table_settings


def own_rates(config: Config) -> dict[str, float]:
    """The peak rates of tables that have one of their own."""
    return {
        table: settings.learning_rate
        for table, settings in table_settings(config).items()
        if settings.learning_rate is not None
    }


def own_schedules(config: Config) -> dict[str, Schedule]:
    """Their schedules: as that of the other tables, with another peak."""
    embedding = config.embedding
    return {
        table: Schedule(rate, embedding.schedule, embedding.warmup_steps, config.train.max_steps)
        for table, rate in own_rates(config).items()
    }


def frozen_until(config: Config) -> dict[str, float]:
    """The last step in which each frozen table stays as it is."""
    found = {
        table: math.inf if settings.freeze else float(settings.freeze_until_step)
        for table, settings in table_settings(config).items()
    }
    return {table: last for table, last in found.items() if last}


def rates_of(config: Config) -> Rates:
    """The learning rates of a run: of its dense part, and of its tables."""
    train, tables, steps = config.train, config.embedding, config.train.max_steps
    return Rates(
        dense=Schedule(train.learning_rate, train.schedule, train.warmup_steps, steps),
        tables=Schedule(tables.learning_rate, tables.schedule, tables.warmup_steps, steps),
        own=own_schedules(config),
        frozen_until=frozen_until(config),
    )
