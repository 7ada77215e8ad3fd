"""What a run will take, before it is started: memory, traffic, time."""

from dist_embed.planning.estimate import Plan, Remedy
from dist_embed.planning.machine import Machine, load_machine, machine_from_yaml, shipped_machines
from dist_embed.planning.verdict import plan

__all__ = [
    "Machine",
    "Plan",
    "Remedy",
    "load_machine",
    "machine_from_yaml",
    "plan",
    "shipped_machines",
]
