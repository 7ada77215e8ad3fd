"""What a training's checkpoints hold, and going on from the newest one."""

from __future__ import annotations

import math
from functools import partial

import torch

from dist_embed.checkpoint.catalogue import best_loss
from dist_embed.checkpoint.load import Loaded, load_newest
from dist_embed.checkpoint.of_tables import live_tensors, row_multipliers
from dist_embed.checkpoint.retention import Pruner
from dist_embed.checkpoint.saver import Saver
from dist_embed.checkpoint.state import Fixed, HostBuffers, TrainingState
from dist_embed.config.schema import Config
from dist_embed.data.loader import Position
from dist_embed.data.token_shards import PreparedData
from dist_embed.parallel.collectives import same_text_from_first
from dist_embed.parallel.errors import all_or_none
from dist_embed.parallel.group import Group
from dist_embed.run.data import digests_of_data, training_blocks, training_data, vocabularies
from dist_embed.run.folder import fingerprint
from dist_embed.run.metrics import MetricsLog
from dist_embed.storage.objects import ObjectStore
from dist_embed.training.assemble import TranslationModel, dense_tensors
from dist_embed.training.worker import Context


def what_must_equal(config: Config, data: PreparedData, group: Group) -> dict[str, Fixed]:
    """Digests of what a checkpoint goes with. Collective."""
    return (
        vocabularies(partial(digests_of_data, data), group)
        | training_data(config.data.uri, data)
        | training_blocks(config.data.uri, data, group)
    )


def training_state(
    config: Config, model: TranslationModel, optimizer: torch.optim.AdamW,
    must_equal: dict[str, Fixed],
) -> TrainingState:  # fmt: skip
    """What is saved and loaded, before the first step."""
    return TrainingState(
        group=model.group,
        step=0,
        tensors=live_tensors(model.lookup, dense_tensors(model.transformer, optimizer)),
        row_multipliers=row_multipliers(model.lookup),
        scalars={"position": Position().to_dict(), "skipped_steps": 0},
        fingerprint=fingerprint(config),
        must_equal=must_equal,
        before_reading=model.lookup.before_reading,
        after_writing=model.lookup.after_writing,
    )


def resume(
    context: Context, store: ObjectStore, state: TrainingState, buffers: HostBuffers | None
) -> Loaded:
    """Load the newest sound checkpoint, if any. Collective."""
    in_place = context.config.checkpoint.saving == "in_place"
    loaded = load_newest(store, state, context.reporter.line, buffers=buffers, in_place=in_place)
    context.reporter.begins(loaded.step, state.scalars["skipped_steps"])
    return loaded


def keep_what_holds(state: TrainingState) -> None:
    """Of what is told of the data, leave out what the next checkpoint could not say of itself."""
    for name in state.scalars.keys() & {"training sentences"} - state.must_equal.keys():
        del state.scalars[name]  # of a checkpoint; these data do not prove that they are those
    if Position.from_dict(state.scalars["position"]).plan == "bands":
        del state.must_equal["training blocks"]  # its steps are not made of blocks
        state.scalars.pop("training blocks", None)


def best_so_far(config: Config, store: ObjectStore, loaded: Loaded, group: Group) -> float:
    """The lowest validation loss of the run's sound checkpoints, where it matters. Collective."""
    if not (loaded.step and config.checkpoint.keep_best):
        return math.inf
    found = ""
    with all_or_none(group):
        if group.is_first:
            found = repr(best_loss(store, but=loaded.damaged))
    return float(same_text_from_first(found, group))


def build_saver(
    context: Context,
    store: ObjectStore,
    loaded: Loaded,
    buffers: HostBuffers | None,
    metrics: MetricsLog | None,
) -> Saver:
    """What saves the run."""
    settings = context.config.checkpoint
    return Saver(
        store,
        context.group,
        settings,
        Pruner(store, settings),
        damaged=loaded.damaged,
        report=context.reporter.line,
        buffers=buffers,
        # So that a run that resumes there finds the metrics of all steps before.
        beforehand=metrics.flush if metrics else None,
    )
