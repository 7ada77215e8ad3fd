"""A plan's phases, to be set beside those that a run has recorded."""

from __future__ import annotations

from dataclasses import dataclass

from dist_embed.config.schema import Config
from dist_embed.planning.estimate import estimated, step_of
from dist_embed.planning.machine import load_machine
from dist_embed.planning.text import text_of


@dataclass(frozen=True)
class PlannedPhases:
    """Of a run.

    Attributes:
        machine: that it is planned for, with where its figures are from.
        seconds: of a step by phase, as `phases_of` has them of a run, but for what is in none.
    """

    machine: str
    seconds: dict[str, float]


def planned_phases(config: Config, machine: str) -> PlannedPhases:
    """Of a run's configuration, on a machine by its name or file. Reads prepared data, as `plan`.

    Raises UserError: there is no such machine, or no plan for so many workers.
    """
    workers, known = config.cluster.max_workers, load_machine(machine)
    found = estimated(step_of(config, workers, known, text_of(config)))
    phases = {str(name): seconds for name, seconds in found.phases.items()}
    return PlannedPhases(f"{known.name} ({known.source})", phases)
