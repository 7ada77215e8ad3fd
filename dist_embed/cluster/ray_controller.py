"""The actor by which Ray Train runs a start's workers (its controller): where it holds slots, and
its end, for which Ray Train (2.60) has no way to be asked. Private names of Ray 2.60.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import ray
from ray._private import state, worker
from ray.core.generated.gcs_pb2 import PlacementGroupTableData


def end_controllers() -> None:
    """End those of this process, and their workers: `fit` then returns, as after `ray.kill`.

    Their slots are free then, also those of one that was lost before. Left to itself Ray gives them
    free with the whole job only: tried, they were taken 92 s later.
    """
    core = worker.global_worker.core_worker
    controllers = _controllers()
    for name, actor in controllers.items():
        if actor["State"] != "DEAD":
            core.kill_actor(ray.ActorID.from_hex(name), True)
    for group in _groups():
        if group.creator_actor_id.hex() in controllers:
            core.remove_placement_group(ray.PlacementGroupID(group.placement_group_id))


def nodes_of_slots() -> set[str]:
    """Nodes on which those of this process hold slots; none where the head does not tell."""
    with suppress(Exception):  # the accessor's, of a head that is away, are of several kinds
        controllers = _controllers()
        return {
            bundle.node_id.hex()
            for group in _groups()
            if group.creator_actor_id.hex() in controllers
            for bundle in group.bundles
        }
    return set()


def _controllers() -> dict[str, dict[str, Any]]:
    actors = state.actors(job_id=worker.global_worker.current_job_id).items()
    return {name: one for name, one in actors if one["ActorClassName"] == "TrainController"}


def _groups() -> list[PlacementGroupTableData]:
    """Of all jobs, those that hold slots, or wait for some."""
    told = state.state._connect_and_get_accessor().get_placement_group_table()
    groups = [PlacementGroupTableData.FromString(one) for one in told]
    return [group for group in groups if group.state != PlacementGroupTableData.REMOVED]
