"""Training: a run from its configuration to its last step, on one of its workers."""

from __future__ import annotations

import math
from contextlib import ExitStack
from functools import cache, partial

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dist_embed.checkpoint.catalogue import best_loss, open_checkpoints
from dist_embed.checkpoint.load import Loaded, load_newest
from dist_embed.checkpoint.of_tables import live_tensors, row_multipliers
from dist_embed.checkpoint.retention import Pruner
from dist_embed.checkpoint.saver import Saver
from dist_embed.checkpoint.state import HostBuffers, TrainingState
from dist_embed.config.schema import Config
from dist_embed.data.loader import Loader, Position
from dist_embed.data.prepare import read_counts, read_predicted
from dist_embed.data.token_blocks import index_of
from dist_embed.data.tokenizer_files import load_tokenizers
from dist_embed.model.output_layer import OutputLayer
from dist_embed.parallel.collectives import same_text_from_first
from dist_embed.parallel.device import peak_memory_bytes
from dist_embed.parallel.errors import all_or_none
from dist_embed.parallel.group import Group
from dist_embed.parallel.stop import stop_on_signals
from dist_embed.run.data import (
    data_of_all,
    digests_of_data,
    training_blocks,
    training_data,
    vocabularies,
)
from dist_embed.run.folder import (
    RunFolder,
    fingerprint,
    write_run_folder,
)
from dist_embed.run.metrics import MetricsLog
from dist_embed.storage.objects import ObjectStore
from dist_embed.training.assemble import (
    TranslationModel,
    build_dense_optimizer,
    build_output,
    build_translation_model,
    build_translator,
    dense_tensors,
)
from dist_embed.training.describe import describe
from dist_embed.training.evaluate import (
    Quality,
    evaluate_translations,
    exact_loss,
)
from dist_embed.training.loop import Hooks, train_loop
from dist_embed.training.results import TrainResult
from dist_embed.training.samples import with_kept_samples
from dist_embed.training.single_tables import (
    rates_of,
    start_tables,
    write_coverages,
)
from dist_embed.training.step import TrainStep
from dist_embed.training.tasks import Train
from dist_embed.training.translation import Translator
from dist_embed.training.worker import Context


@stop_on_signals(second_ends=False)  # torchrun passes on what the terminal has sent already
def train_task(context: Context, asked: Train) -> TrainResult:
    """Train a run to its last step, from its newest checkpoint if there is one. Collective.

    A request to stop that comes while tables are built and loaded is met before the first step.
    """
    config, group, reporter = context.config, context.group, context.reporter
    run_uri, train = config.run.uri, config.train
    data = data_of_all(config, group, asked.data_folder)
    data_uri = data.folder_uri
    must_equal = vocabularies(partial(digests_of_data, data), group)
    must_equal |= training_data(config.data.uri, data)
    must_equal |= training_blocks(config.data.uri, data, group)
    # Opened where words are wanted: a step needs none.
    tokenizers = cache(partial(load_tokenizers, data_uri, data))
    translation_model = build_translation_model(config, data.vocabulary_size, group)
    optimizer = build_dense_optimizer(config, translation_model.transformer)
    state = TrainingState(
        group=group,
        step=0,
        tensors=live_tensors(
            translation_model.lookup, dense_tensors(translation_model.transformer, optimizer)
        ),
        row_multipliers=row_multipliers(translation_model.lookup),
        scalars={"position": Position().to_dict(), "skipped_steps": 0},
        fingerprint=fingerprint(config),
        must_equal=must_equal,
        before_reading=translation_model.lookup.before_reading,
        after_writing=translation_model.lookup.after_writing,
    )
    describe(context, translation_model, data)
    store = open_checkpoints(run_uri, retry_seconds=config.checkpoint.retry_seconds)
    # A run that saves behind training keeps the memory that it is loaded through.
    buffers = HostBuffers() if config.checkpoint.saving == "behind" else None
    loaded = _resume(context, store, state, buffers)
    for name in state.scalars.keys() & {"training sentences"} - must_equal.keys():
        del state.scalars[name]  # of a checkpoint; these data do not prove that they are those
    if Position.from_dict(state.scalars["position"]).plan == "bands":
        del state.must_equal["training blocks"]  # its steps are not made of blocks
        state.scalars.pop("training blocks", None)
    skipped_before = state.scalars["skipped_steps"]
    coverages = {}
    folder: RunFolder | None = None  # worker 0 looks after it
    if not loaded.step:
        coverages = start_tables(config, data, translation_model.lookup, tokenizers, reporter.line)
    with all_or_none(group):
        if group.is_first:
            write_run_folder(config, data)
            write_coverages(run_uri, coverages)
            folder = RunFolder(run_uri)
    held_out = "validation" in data.splits
    translator: Translator | None = None
    if held_out and train.translate_every:
        with all_or_none(group):
            tokenizers()
        translator = build_translator(config, translation_model, tokenizers(), reporter.line)
    with_samples = with_kept_samples(
        config, data.vocabulary_size["target"], state.scalars, reporter.line
    )
    with all_or_none(group):
        output = build_output(
            with_samples, translation_model, partial(read_counts, data, "target"),
            partial(read_predicted, data),
        )  # fmt: skip
    train_step = build_train_step(config, translation_model, output, optimizer)
    loader = Loader(
        data_uri,
        data.splits["train"].shards,
        index=index_of(data, "train"),
        batch_tokens=train.batch_tokens,
        seed=config.run.seed,
        rank=group.rank,
        num_workers=group.num_workers,
        accumulate=train.accumulate,
        num_ids=translation_model.lookup.num_ids,
    )

    def validate() -> float:
        return exact_loss(translation_model, data_uri, data, "validation", train.batch_tokens)

    def translate() -> Quality:
        assert translator is not None
        return evaluate_translations(
            translator, data_uri, data, "validation",
            bleu_tokenize=config.search.bleu_tokenize,
        )  # fmt: skip

    with ExitStack() as stack:
        metrics = stack.enter_context(MetricsLog(run_uri, state.step)) if group.is_first else None
        saver = _build_saver(context, store, loaded, buffers, metrics)
        stopped = train_loop(
            state,
            train_step,
            loader,
            train,
            config.checkpoint,
            Hooks(
                validate if held_out else None,
                translate if translator else None,
                folder.check if folder else lambda: None,
            ),
            saver,
            reporter=reporter,
            metrics=metrics,
            best_loss=_best_so_far(config, store, loaded, group),
        )
    with all_or_none(group):
        if folder:
            folder.check_end(state.step)
    return TrainResult(
        run_uri=run_uri,
        data_folder=data_uri,
        steps=state.step,
        resumed_at=loaded.step,
        stopped=stopped,
        skipped_steps=state.scalars["skipped_steps"] - skipped_before,
        peak_memory_bytes=peak_memory_bytes(group.device),
    )


def build_train_step(
    config: Config,
    translation_model: TranslationModel,
    output: OutputLayer,
    optimizer: torch.optim.AdamW,
) -> TrainStep:
    """The step of a training run, its dense part under DDP. Collective."""
    return TrainStep(
        _distributed(translation_model.transformer, translation_model.group),
        translation_model.lookup,
        output,
        optimizer,
        config.train,
        rates_of(config),
        compute_dtype=translation_model.compute_dtype,
        seed=config.run.seed,
    )


def _distributed(transformer: nn.Module, group: Group) -> nn.Module:
    if group.num_workers == 1:
        return transformer
    return DistributedDataParallel(
        transformer,
        device_ids=[group.device] if group.device.type == "cuda" else None,
        process_group=group.process_group,
        gradient_as_bucket_view=True,
    )


def _resume(
    context: Context, store: ObjectStore, state: TrainingState, buffers: HostBuffers | None
) -> Loaded:
    """Load the newest sound checkpoint, if any. Collective."""
    in_place = context.config.checkpoint.saving == "in_place"
    loaded = load_newest(store, state, context.reporter.line, buffers=buffers, in_place=in_place)
    if loaded.step:
        context.reporter.line(f"resuming from the checkpoint of step {loaded.step}")
    else:
        context.reporter.line("starting from scratch")
    return loaded


def _best_so_far(config: Config, store: ObjectStore, loaded: Loaded, group: Group) -> float:
    """The lowest validation loss of the run's sound checkpoints, where it matters. Collective."""
    if not (loaded.step and config.checkpoint.keep_best):
        return math.inf
    found = ""
    with all_or_none(group):
        if group.is_first:
            found = repr(best_loss(store, but=loaded.damaged))
    return float(same_text_from_first(found, group))


def _build_saver(
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
