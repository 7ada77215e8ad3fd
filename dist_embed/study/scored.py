"""One run of a study: trained to its end, and measured or scored."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from typing import Any

import torch

from dist_embed.api.inference import evaluate
from dist_embed.api.training import train
from dist_embed.bench.report import machine
from dist_embed.checkpoint.catalogue import name_of_step, open_checkpoints, read_manifest
from dist_embed.config.schema import Config
from dist_embed.data.token_shards import PreparedData
from dist_embed.errors import RunStopped
from dist_embed.observe.events import Event
from dist_embed.parallel.device import device_name, resolve_device
from dist_embed.parallel.stop import taken_signal
from dist_embed.run.metrics import figure, read_metrics
from dist_embed.study.measured import figures_of
from dist_embed.training.results import Evaluation, TrainingStopped, TrainResult

# Of the training data, whose loss the gap is measured from; always the same ones.
TRAINING_TOKENS = 20_000


def _trained(config: Config, on_event: Callable[[Event], None]) -> TrainResult:
    """Train to the end. Raises RunStopped where it was asked to stop, also in the last step."""
    try:
        # The run's name has a digest of what decides on it: other differences are none.
        trained = train(config, force=True, on_event=on_event)
        stopped = taken_signal()  # in the last step
    except TrainingStopped as exc:
        trained, stopped = exc.result, 1
    if stopped:
        raise RunStopped(f"stopped as asked after step {trained.steps} of {config.run.uri}")
    return trained


def train_and_measure(config: Config, on_event: Callable[[Event], None]) -> dict[str, Any]:
    """Train a run to its end; what is kept of it. Raises what `train` does, and RunStopped."""
    trained = _trained(config, on_event)
    data = PreparedData.read(trained.data_folder)
    return _result(config, data, read_metrics(config.run.uri), trained.peak_memory_bytes)


def train_and_score(config: Config, on_event: Callable[[Event], None]) -> dict[str, Any]:
    """Likewise, with its best checkpoint scored: all measures of a comparison."""
    trained = _trained(config, on_event)
    found = evaluate(
        config, training_tokens=TRAINING_TOKENS, data_folder=trained.data_folder, on_event=on_event
    )
    data = PreparedData.read(trained.data_folder)
    lines = read_metrics(config.run.uri)
    result = _result(config, data, lines, trained.peak_memory_bytes)
    validations = dict(result["validations"])
    result["measures"] = _measures(config, data, found, lines, validations)
    result["figures"] |= {"test_bleu": found.bleu, "validation_loss": validations.get(found.step)}
    return result


def _result(
    config: Config, data: PreparedData, lines: list[dict[str, Any]], peak_bytes: int
) -> dict[str, Any]:
    """What is kept of a run whose checkpoint is not scored; ``peak_bytes``: of worker 0."""
    validations = [
        (line["step"], loss)
        for line in lines
        if (loss := figure(line, "validation_loss")) is not None
    ]
    device = torch.device(resolve_device(config.cluster.device))
    words = {f"{side}_words": size for side, size in data.vocabulary_size.items()}
    figures = figures_of(lines) | words
    if "memory_bytes" in figures:  # the last log line comes before the last checkpoint
        figures["memory_bytes"][0] = max(figures["memory_bytes"][0], peak_bytes)
    return {
        "measures": {},
        "validations": validations,
        "machine": machine(device_name(device)),
        "figures": figures,
    }


def _measures(
    config: Config,
    data: PreparedData,
    found: Evaluation,
    lines: list[dict[str, Any]],
    validations: dict[int, float],
) -> dict[str, float]:
    step = found.step
    assert found.training_loss is not None
    loss = validations.get(step, math.nan)
    run_uri = config.run.uri
    manifest = read_manifest(open_checkpoints(run_uri), name_of_step(run_uri, step))
    values = sum(
        math.prod(info.shape)
        for name, info in manifest.tensors.items()
        if name.startswith("model.") or name.endswith(".weight")
    )
    speed, step_tokens = speed_of(lines)
    train = data.splits["train"]
    return {
        "validation_perplexity": math.exp(min(loss, 700.0)),  # beyond that a float overflows
        "bleu": found.bleu,
        "chrf": found.chrf,
        "gap": loss - found.training_loss,
        "parameters": values,
        "tokens_per_second": speed,
        "sentences_per_second": speed * train.sentences / train.target_tokens,
        "epochs": config.train.max_steps * step_tokens / train.target_tokens,
        "best_step": step,
    }


def speed_of(lines: list[dict[str, Any]]) -> tuple[float, float]:
    """Target tokens per second (median) and per step (mean) of a run's metrics.

    NaN where the run has logged none, as when ``train.log_every`` is more than its steps: a trained
    run is not to be lost for it.
    """
    steps = [
        (speed, seconds)
        for line in lines
        if (speed := figure(line, "tokens_per_second")) is not None
        and (seconds := figure(line, "step_seconds")) is not None
    ]
    if not steps:
        return math.nan, math.nan
    return (
        statistics.median(speed for speed, _ in steps),
        statistics.mean(speed * seconds for speed, seconds in steps),
    )
