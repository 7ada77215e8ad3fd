"""Training: a run from its configuration to its last step, on one of its workers."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import cache, partial
from typing import TypeAlias

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dist_embed.checkpoint.catalogue import open_checkpoints
from dist_embed.checkpoint.state import HostBuffers, TrainingState
from dist_embed.config.schema import Config
from dist_embed.data.loader import Loader
from dist_embed.data.prepare import read_counts, read_predicted
from dist_embed.data.token_blocks import index_of
from dist_embed.data.token_shards import PreparedData
from dist_embed.data.tokenizer import Tokenizer
from dist_embed.data.tokenizer_files import load_tokenizers
from dist_embed.model.output_layer import OutputLayer
from dist_embed.parallel.device import peak_memory_bytes
from dist_embed.parallel.errors import all_or_none
from dist_embed.parallel.group import Group
from dist_embed.parallel.stop import stop_on_signals
from dist_embed.run.data import data_of_all
from dist_embed.run.folder import RunFolder, write_run_folder
from dist_embed.run.metrics import MetricsLog
from dist_embed.run.shared import check_shared
from dist_embed.storage.objects import ObjectStore
from dist_embed.storage.retry import RETRY_SECONDS, retrying_for
from dist_embed.training.assemble import (
    TranslationModel,
    build_dense_optimizer,
    build_output,
    build_translation_model,
    build_translator,
)
from dist_embed.training.bleu import bleu_with
from dist_embed.training.describe import describe
from dist_embed.training.evaluate import Quality, evaluate_translations, exact_loss
from dist_embed.training.loop import LEFT_OUT, Hooks, train_loop
from dist_embed.training.rates import rates_of
from dist_embed.training.results import TrainResult
from dist_embed.training.resume import (
    best_so_far,
    build_saver,
    keep_what_holds,
    resume,
    training_state,
    what_must_equal,
)
from dist_embed.training.samples import with_kept_samples
from dist_embed.training.single_tables import start_tables, write_coverages
from dist_embed.training.step import TrainStep
from dist_embed.training.step_traces import StepTraces
from dist_embed.training.tasks import Train
from dist_embed.training.translation import Translator
from dist_embed.training.watched import WatchedWords
from dist_embed.training.worker import Context

Tokenizers: TypeAlias = Callable[[], dict[str, Tokenizer]]


@stop_on_signals(second_ends=False)  # torchrun passes on what the terminal has sent already
def train_task(context: Context, asked: Train) -> TrainResult:
    """Train a run to its last step, from its newest checkpoint if there is one. Collective.

    A request to stop that comes while tables are built and loaded is met before the first step.
    """
    with retrying_for(context.config.checkpoint.retry_seconds):
        return _train(context, asked)


def _train(context: Context, asked: Train) -> TrainResult:
    config, group, reporter = context.config, context.group, context.reporter
    data = data_of_all(config, group, asked.data_folder)
    check_shared(config.run.uri, group)
    must_equal = what_must_equal(config, data, group)
    # Opened where words are wanted: a step needs none.
    tokenizers = cache(partial(load_tokenizers, data.folder_uri, data))
    model = build_translation_model(config, data.vocabulary_size, group)
    optimizer = build_dense_optimizer(config, model.transformer)
    state = training_state(config, model, optimizer, must_equal)
    describe(context, model, data)
    store = open_checkpoints(config.run.uri, retry_seconds=config.checkpoint.retry_seconds)
    # A run that saves behind training keeps the memory that it is loaded through.
    buffers = HostBuffers() if config.checkpoint.saving == "behind" else None
    loaded = resume(context, store, state, buffers)
    keep_what_holds(state)
    skipped_before = state.scalars["skipped_steps"]
    folder = _begin(context, data, model, tokenizers, store, from_scratch=not loaded.step)
    hooks = _hooks(context, data, model, tokenizers, folder)
    output = _output_layer(context, data, model, state)
    train_step = build_train_step(config, model, output, optimizer)
    loader = _loader(config, data, model)
    with ExitStack() as stack:
        stack.enter_context(retrying_for(RETRY_SECONDS))  # a validation waits as reading ahead does
        metrics = None
        if group.is_first:
            log = MetricsLog(config.run.uri, state.step, evaluates_again=LEFT_OUT in state.scalars)
            metrics = stack.enter_context(log)
        if asked.profile:  # left before the metrics, which may fail on worker 0 alone
            traces = StepTraces(*asked.profile, config.run.uri, group, reporter.line)
            hooks = replace(hooks, traces=stack.enter_context(traces))
        stopped = train_loop(
            state, train_step, loader, config.train, config.checkpoint, hooks,
            build_saver(context, store, loaded, buffers, metrics),
            reporter=reporter, metrics=metrics,
            best_loss=best_so_far(config, store, loaded, group),
        )  # fmt: skip
    with all_or_none(group):
        if folder:
            folder.check_end(state.step)
    return TrainResult(
        run_uri=config.run.uri,
        data_folder=data.folder_uri,
        steps=state.step,
        resumed_at=loaded.step,
        stopped=stopped,
        skipped_steps=state.scalars["skipped_steps"] - skipped_before,
        peak_memory_bytes=peak_memory_bytes(group.device),
    )


def _begin(
    context: Context, data: PreparedData, model: TranslationModel, tokenizers: Tokenizers,
    store: ObjectStore, *, from_scratch: bool,
) -> RunFolder | None:  # fmt: skip
    """Start the tables where there is no checkpoint, and write the run's folder; worker 0, which
    looks after that, gets it, and finds out what its store promises. Collective.
    """
    config, group = context.config, context.group
    coverages = {}
    if from_scratch:
        coverages = start_tables(config, data, model.lookup, tokenizers, context.reporter.line)
    folder: RunFolder | None = None
    with all_or_none(group):
        if group.is_first:
            write_run_folder(config, data)
            write_coverages(config.run.uri, coverages)
            folder = RunFolder(config.run.uri)
            if not store.keeps_conditions():
                context.reporter.line(
                    f"{config.run.uri}: the store does not promise that an object is written only "
                    "where there is none: let no second command train this run meanwhile"
                )
    return folder


def _hooks(
    context: Context, data: PreparedData, model: TranslationModel, tokenizers: Tokenizers,
    folder: RunFolder | None,
) -> Hooks:  # fmt: skip
    """What the loop calls beside the step. Collective."""
    config = context.config
    held_out = "validation" in data.splits
    translator: Translator | None = None
    watched: WatchedWords | None = None
    if held_out and config.train.translate_every:
        with all_or_none(context.group):
            tokenizers()
            if context.group.is_first:  # which scores: not to fail at the first validation
                bleu_with(config.search.bleu_tokenize)
        # A long sentence is no reason to end a training at its first validation.
        search = config.search.model_copy(update={"too_long": "cut"})
        translator = build_translator(
            config.model_copy(update={"search": search}), model, tokenizers(),
            context.reporter.line,
        )  # fmt: skip
        if config.train.neighbors_of:
            watched = WatchedWords(
                config.train.neighbors_of, tokenizers()["source"], data,
                config.model.share_embeddings, model.lookup,
            )  # fmt: skip

    def validate() -> float:
        return exact_loss(model, data.folder_uri, data, "validation", config.train.batch_tokens)

    def translate() -> Quality:
        assert translator is not None
        quality = evaluate_translations(
            translator, data.folder_uri, data, "validation",
            bleu_tokenize=config.search.bleu_tokenize, say=context.reporter.line,
        )  # fmt: skip
        return replace(quality, neighbors=watched.neighbors()) if watched else quality

    return Hooks(
        validate if held_out else None,
        translate if translator else None,
        folder.check if folder else lambda: None,
    )


def _output_layer(
    context: Context, data: PreparedData, model: TranslationModel, state: TrainingState
) -> OutputLayer:
    """With as many negatives as the run began with. Collective."""
    with_samples = with_kept_samples(
        context.config, data.vocabulary_size["target"], state.scalars, context.reporter.line
    )
    with all_or_none(context.group):
        return output_of_data(with_samples, model, data)


def micro_batches(config: Config, num_workers: int) -> int:
    """Of a worker and step: of workers that come and go each makes, where they are few, as many
    more as keeps them as small as they are with all. A global batch is the same with any number.
    """
    accumulate, cluster = config.train.accumulate, config.cluster
    if isinstance(cluster.num_workers, int):
        return accumulate
    return math.ceil(accumulate * cluster.max_workers / num_workers)


def _loader(config: Config, data: PreparedData, model: TranslationModel) -> Loader:
    return Loader(
        data.folder_uri,
        data.splits["train"].shards,
        index=index_of(data, "train"),
        batch_tokens=config.train.batch_tokens,
        seed=config.run.seed,
        rank=model.group.rank,
        num_workers=model.group.num_workers,
        accumulate=micro_batches(config, model.group.num_workers),
        num_ids=model.lookup.num_ids,
    )


def output_of_data(
    config: Config, translation_model: TranslationModel, data: PreparedData
) -> OutputLayer:
    """`build_output` for a training on ``data``."""
    return build_output(
        config, translation_model, partial(read_counts, data, "target"),
        partial(read_predicted, data),
    )  # fmt: skip


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
