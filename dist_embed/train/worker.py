"""What one worker process does, from its configuration to its result.

`run_worker` is what every launcher calls: Ray Train, plain local processes, torchrun, the tests.
"""

from __future__ import annotations

import math
import os
import resource
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dist_embed.checkpoint.catalogue import open_checkpoints
from dist_embed.checkpoint.load import Loaded, load_chosen, load_newest
from dist_embed.checkpoint.retention import Pruner, Retention
from dist_embed.checkpoint.saver import Saver, SaverSettings
from dist_embed.checkpoint.state import HostBuffers, TrainingState
from dist_embed.config.load import config_from_dict
from dist_embed.config.schema import Config
from dist_embed.data.loader import Loader, Position
from dist_embed.data.prepare import read_counts, read_predicted
from dist_embed.data.token_blocks import index_of
from dist_embed.data.token_shards import PreparedData
from dist_embed.data.tokenizer import Tokenizer
from dist_embed.data.tokenizer_files import load_tokenizers
from dist_embed.embedding.memory import table_bytes
from dist_embed.embedding.tiers import tier_line
from dist_embed.model.output_layer import OutputLayer
from dist_embed.observe.events import Emit, Reporter, silent_reporter
from dist_embed.observe.metrics import MetricsLog
from dist_embed.observe.quiet import redirect_output, worker_log_folder
from dist_embed.optim.schedule import Schedule
from dist_embed.parallel.allocator import keep_freed_memory
from dist_embed.parallel.device import device_name, resolve_device
from dist_embed.parallel.errors import all_or_none, errors_shared
from dist_embed.parallel.group import Group, joined_group
from dist_embed.parallel.stop import stop_on_signals
from dist_embed.storage.objects import ObjectStore
from dist_embed.train.assemble import (
    Translator,
    build_dense_optimizer,
    build_output,
    build_translation,
    build_translator,
    dense_tensors,
    live_tensors,
    row_multipliers,
)
from dist_embed.train.evaluate import (
    AgainstExact,
    Quality,
    against_exact,
    evaluate_translations,
    exact_loss,
)
from dist_embed.train.loop import Hooks, Rhythm, train_loop
from dist_embed.train.run_data import (
    data_of_all,
    digests_of_data,
    digests_of_tokenizers,
    training_blocks,
    training_data,
    vocabularies,
)
from dist_embed.train.run_folder import (
    RunFolder,
    check_vocabularies,
    fingerprint,
    write_run_folder,
)
from dist_embed.train.samples import samples_of_a_step, with_kept_samples
from dist_embed.train.saving import SaveRhythm
from dist_embed.train.search_choice import search_choice
from dist_embed.train.single_tables import (
    frozen_until,
    own_schedules,
    start_tables,
    write_coverages,
)
from dist_embed.train.step import TrainStep
from dist_embed.train.step_seconds import threads_per_worker
from dist_embed.train.translation import Translation

# What a worker is asked to do: a function that every launcher can name (`cluster/work.py`).
Task = Callable[["Context"], Any]


@dataclass(frozen=True)
class Context:
    """What a task gets: the configuration, this worker's place, and the line to the user."""

    config: Config
    group: Group
    reporter: Reporter
    options: dict[str, Any]

    @property
    def data_folder(self) -> str | None:
        """The prepared data that the launching process has looked into; see `data_of_all`."""
        folder: str | None = self.options.get("data_folder")
        return folder


def run_worker(
    task: Task, config_values: dict[str, Any], options: dict[str, Any], emit: Emit
) -> Any:
    """Join the group, run ``task``, and return its result.

    Args:
        task: such as the ``…_task`` functions of this module.
        config_values: the configuration as plain values.
        options: the task's own arguments.
        emit: takes worker 0's events.

    Collective. Whatever fails on one worker is raised on all of them.
    """
    config = config_from_dict(config_values)
    log_name = f"worker-{os.environ.get('RANK', '0')}.log"
    redirect_output(worker_log_folder(config.run.uri) / log_name)
    torch.set_num_threads(threads_per_worker(config))
    keep_freed_memory()
    device = resolve_device(config.cluster.device)
    with joined_group(device, config.cluster.timeout_seconds) as group, errors_shared(group):
        reporter = Reporter(emit) if group.is_first else silent_reporter()
        return task(Context(config, group, reporter, options))


@stop_on_signals(second_ends=False)  # torchrun passes on what the terminal has sent already
def train_task(context: Context) -> dict[str, Any]:
    """Train a run to its last step, from its newest checkpoint if there is one. Collective.

    A request to stop that comes while tables are built and loaded is met before the first step.
    Option ``data_folder``: see `data_of_all`.
    """
    config, group, reporter = context.config, context.group, context.reporter
    run_uri, train = config.run.uri, config.train
    data = data_of_all(config, group, context.data_folder)
    data_uri = data.folder_uri
    must_equal = vocabularies(partial(digests_of_data, data), group)
    must_equal |= training_data(config.data.uri, data)
    must_equal |= training_blocks(config.data.uri, data, group)
    # Opened where words are wanted: a step needs none.
    tokenizers = cache(partial(load_tokenizers, data_uri, data))
    translator = build_translator(config, data.vocabulary_size, group)
    optimizer = build_dense_optimizer(config, translator.transformer)
    state = TrainingState(
        group=group,
        step=0,
        tensors=live_tensors(translator.lookup, dense_tensors(translator.transformer, optimizer)),
        row_multipliers=row_multipliers(translator.lookup),
        scalars={"position": Position().to_dict(), "skipped_steps": 0},
        fingerprint=fingerprint(config),
        must_equal=must_equal,
        before_reading=translator.lookup.before_reading,
        after_writing=translator.lookup.after_writing,
    )
    _describe(context, translator, data)
    store = open_checkpoints(run_uri, retry_seconds=config.checkpoint.retry_seconds)
    # A run that saves behind training keeps the memory that it is loaded through.
    buffers = HostBuffers() if config.checkpoint.asynchronous else None
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
        coverages = start_tables(config, data, translator.lookup, tokenizers, reporter.line)
    with all_or_none(group):
        if group.is_first:
            write_run_folder(config, data)
            write_coverages(run_uri, coverages)
            folder = RunFolder(run_uri)
    held_out = "validation" in data.splits
    translation: Translation | None = None
    if held_out and train.translate_every:
        with all_or_none(group):
            tokenizers()
        translation = build_translation(config, translator, tokenizers(), reporter.line)
    with_samples = with_kept_samples(
        config, data.vocabulary_size["target"], state.scalars, reporter.line
    )
    with all_or_none(group):
        output = build_output(
            with_samples, translator, partial(read_counts, data, "target"),
            partial(read_predicted, data),
        )  # fmt: skip
    train_step = build_train_step(config, translator, output, optimizer)
    loader = Loader(
        data_uri,
        data.splits["train"].shards,
        index=index_of(data, "train"),
        batch_tokens=train.batch_tokens,
        seed=config.run.seed,
        rank=group.rank,
        num_workers=group.num_workers,
        accumulate=train.accumulate,
        num_ids=translator.lookup.rows_of_role,
    )

    def validate() -> float:
        return exact_loss(translator, data_uri, data, "validation", train.batch_tokens)

    def translate() -> Quality:
        assert translation is not None
        return evaluate_translations(
            translation, data_uri, data, "validation",
            bleu_tokenize=config.search.bleu_tokenize,
        )  # fmt: skip

    with ExitStack() as stack:
        metrics = stack.enter_context(MetricsLog(run_uri, state.step)) if group.is_first else None
        saver = _build_saver(context, store, loaded, buffers, metrics)
        stopped = train_loop(
            state,
            train_step,
            loader,
            Rhythm(
                max_steps=train.max_steps,
                log_every=train.log_every,
                evaluate_every=train.evaluate_every,
                translate_every=train.translate_every,
                saves=SaveRhythm(
                    config.checkpoint.every_steps, 60 * config.checkpoint.every_minutes
                ),
                max_skipped_steps=train.max_skipped_steps,
                drain_seconds=config.checkpoint.drain_seconds,
            ),
            Hooks(
                validate if held_out else None,
                translate if translation else None,
                folder.check if folder else lambda: None,
            ),
            saver,
            reporter=reporter,
            metrics=metrics,
        )
    with all_or_none(group):
        if folder:
            folder.check_end(state.step)
    return {
        "steps": state.step,
        "resumed_at": loaded.step,
        "stopped": stopped,
        "skipped_steps": state.scalars["skipped_steps"] - skipped_before,
        "peak_memory_bytes": peak_memory_bytes(group),
    }


def evaluate_task(context: Context) -> dict[str, Any]:
    """Loss and translation quality of a run's checkpoint on a split. Collective.

    Options: ``split``; ``step`` (None: the best checkpoint); ``training_tokens``, if given: also
    the loss of so many tokens of the training data; ``against_exact``, if given: also what
    candidate lists lose, see the function of that name; ``data_folder``: see `data_of_all`.
    """
    config, split = context.config, context.options["split"]
    data = data_of_all(config, context.group, context.data_folder)
    data_uri = data.folder_uri
    with all_or_none(context.group):
        data.held_out(split, config.data.uri)
        if context.group.is_first:
            check_vocabularies(config.run.uri, data)
            if told := data.not_proven(config.data.uri):
                context.reporter.line(told)
        tokenizers = load_tokenizers(config.run.uri)
    translator, step = _load_for_inference(context, tokenizers)
    loss = exact_loss(translator, data_uri, data, split, config.train.batch_tokens)
    quality = evaluate_translations(
        build_translation(config, translator, tokenizers, context.reporter.line), data_uri, data,
        split,
        bleu_tokenize=config.search.bleu_tokenize,
    )  # fmt: skip
    compared: AgainstExact | None = None
    wanted = context.options.get("against_exact")
    if wanted and search_choice(config, translator.shard.num_rows).frequent:
        among_all = config.search.model_copy(update={"candidates": 0})
        exact = config.model_copy(update={"search": among_all})
        compared = against_exact(
            build_translation(exact, translator, tokenizers), quality, data_uri, data, split,
            bleu_tokenize=config.search.bleu_tokenize,
        )  # fmt: skip
    training_tokens = context.options.get("training_tokens")
    training_loss = training_tokens and exact_loss(
        translator, data_uri, data, "train", config.train.batch_tokens,
        at_least=training_tokens,
    )  # fmt: skip
    return {
        "data_folder": data_uri,
        "split": split,
        "step": step,
        "loss": loss,
        "training_loss": training_loss,
        "perplexity": math.exp(min(loss, 700.0)),
        "bleu": quality.bleu,
        "chrf": quality.chrf,
        "bleu_signature": quality.signature,
        "against_exact": compared and asdict(compared),
        "sentences": quality.sentences,
        "sentences_per_second": quality.sentences / quality.seconds,
        "translations": quality.translations,
        "scored": quality.scored,
    }


def translate_task(context: Context) -> list[str]:
    """Translations of ``options["texts"]`` by the checkpoint ``options["step"]``. Collective."""
    with all_or_none(context.group):
        tokenizers = load_tokenizers(context.config.run.uri)
    translator, _ = _load_for_inference(context, tokenizers)
    say = context.reporter.line
    translation = build_translation(context.config, translator, tokenizers, say)
    return translation.of(context.options["texts"])


def peak_memory_bytes(group: Group) -> int:
    """Most memory this process has held: resident on the CPU, allocated on CUDA."""
    if group.device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(group.device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def build_train_step(
    config: Config, translator: Translator, output: OutputLayer, optimizer: torch.optim.AdamW
) -> TrainStep:
    """The step of a training run, its dense part under DDP. Collective."""
    train, embedding = config.train, config.embedding
    return TrainStep(
        model=_distributed(translator.transformer, translator.group),
        lookup=translator.lookup,
        optimizer=optimizer,
        dense_schedule=Schedule(
            train.learning_rate, train.schedule, train.warmup_steps, train.max_steps
        ),
        table_schedule=Schedule(
            embedding.learning_rate, embedding.schedule, embedding.warmup_steps, train.max_steps
        ),
        output=output,
        label_smoothing=train.label_smoothing,
        clip_norm=train.clip_norm,
        compute_dtype=translator.compute_dtype,
        seed=config.run.seed,
        own_schedules=own_schedules(config),
        frozen_until=frozen_until(config),
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
    low_memory = context.config.checkpoint.low_memory
    loaded = load_newest(store, state, context.reporter.line, buffers=buffers, in_place=low_memory)
    if loaded.step:
        context.reporter.line(f"resuming from the checkpoint of step {loaded.step}")
    else:
        context.reporter.line("starting from scratch")
    return loaded


def _build_saver(
    context: Context,
    store: ObjectStore,
    loaded: Loaded,
    buffers: HostBuffers | None,
    metrics: MetricsLog | None,
) -> Saver:
    """What saves the run."""
    kept = context.config.checkpoint
    return Saver(
        store,
        context.group,
        SaverSettings(
            asynchronous=kept.asynchronous,
            max_failures=kept.max_failures,
            timeout_seconds=kept.timeout_seconds,
            drain_seconds=kept.drain_seconds,
        ),
        Pruner(
            store, Retention(kept.keep_last, kept.keep_best, kept.keep_every, kept.leftover_hours)
        ),
        damaged=loaded.damaged,
        report=context.reporter.line,
        buffers=buffers,
        # So that a run that resumes there finds the metrics of all steps before.
        beforehand=metrics.flush if metrics else None,
    )


def _load_for_inference(
    context: Context, tokenizers: dict[str, Tokenizer]
) -> tuple[Translator, int]:
    """The translator of the wanted checkpoint. Collective."""
    config = context.config
    vocabulary_size = {side: tokenizer.size for side, tokenizer in tokenizers.items()}
    # Its rows come from the checkpoint: none is drawn.
    translator = build_translator(
        config, vocabulary_size, context.group, training=False, initial_scale=0.0
    )
    dense = {f"model.{name}": p.data for name, p in translator.transformer.named_parameters()}
    state = TrainingState(
        group=context.group,
        step=0,
        tensors=live_tensors(translator.lookup, dense, optimizer_state=False),
        row_multipliers=row_multipliers(translator.lookup),
        must_equal=vocabularies(partial(digests_of_tokenizers, tokenizers), context.group),
        before_reading=translator.lookup.before_reading,
        after_writing=translator.lookup.after_writing,
    )
    step = load_chosen(
        config.run.uri, context.options.get("step"), state, context.reporter.line,
        in_place=config.checkpoint.low_memory,
    )  # fmt: skip
    return translator, step


def _describe_output(config: Config, num_words: int) -> str:
    model = config.model
    if model.output == "exact":
        return "exact softmax over"
    samples = samples_of_a_step(config, num_words)
    chosen = " (chosen by model.num_samples=auto)" if model.num_samples == "auto" else ""
    own = " and the right words of a worker's other sentences," if model.batch_negatives else ""
    return f"sampled softmax, {samples:,} {model.sampler} negatives a step{chosen}{own} of"


def _describe(context: Context, translator: Translator, data: PreparedData) -> None:
    config, group, say = context.config, context.group, context.reporter.line
    precision = "bf16" if translator.compute_dtype == torch.bfloat16 else "fp32"
    wanted = config.train.precision
    say(
        f"{group.num_workers} workers on {group.device.type} ({device_name(group.device)}, "
        f"{torch.get_num_threads()} threads each), precision {precision}"
        + (" (chosen by train.precision=auto)" if wanted == "auto" else "")
    )
    embedding = config.embedding
    for spec in translator.lookup.specs.values():
        size = table_bytes(spec, embedding.optimizer, group.num_workers, embedding.weights)
        say(
            f"table {spec.name}: {spec.num_rows:,} rows × {spec.width}, "
            f"{embedding.optimizer}, {size / 2**20:.1f} MiB per worker"
        )
    say(
        tier_line(
            embedding.memory, translator.lookup.tier, embedding.weights, embedding.exchange,
            group.device.type,
        )
    )  # fmt: skip
    dense = sum(p.numel() for p in translator.transformer.parameters())
    say(
        f"model: {dense:,} replicated parameters, output: "
        f"{_describe_output(config, translator.lookup.num_output_rows)} "
        f"{translator.lookup.num_output_rows:,} words"
    )
    split = data.splits["train"]
    left_out = split.dropped_long + split.dropped_empty + split.dropped_ratio
    say(
        f"data: {split.sentences:,} training pairs"
        + (f", {left_out:,} left out" if left_out else "")
        + (f", {split.cut:,} cut" if split.cut else "")
    )
