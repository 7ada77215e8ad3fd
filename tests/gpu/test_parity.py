"""A run is the same on the device as on the CPU: from its configuration to what it saves.

Rates rise, and gradients are clipped. Without dropout, whose draws belong to the device.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
from torch import Tensor

from dist_embed.checkpoint.catalogue import current_names, open_checkpoints, read_manifest
from dist_embed.checkpoint.read import CheckpointReader
from dist_embed.config.load import config_from_dict
from dist_embed.data.preparation import ensure_data
from dist_embed.data.prepared_folder import prepared_folder
from dist_embed.embedding.settings import Tier
from dist_embed.observe.events import silent_reporter
from dist_embed.parallel.group import lone_group
from dist_embed.run.metrics import read_metrics
from dist_embed.training.tasks import Train
from dist_embed.training.train import train_task
from dist_embed.training.worker import Context
from tests.distributed.configured import Values, merged
from tests.gpu.device import DEVICE, TIERS

# Of several processes that run tests one: what the CPU finds is found once.
pytestmark = pytest.mark.xdist_group("parity")
# Where the CPU is compared with itself, some steps show as much.
STEPS = 20 if DEVICE == "cuda" else 4
RUN: Values = {
    "data": {"synthetic": {"sentences": 1500, "held_out": 30, "nouns": 120, "verbs": 40,
                           "adjectives": 40},
             "num_processes": 1},
    "tokenizer": {"shared": False, "vocab_size": 400},
    "embedding": {"width": 32, "learning_rate": 0.05, "warmup_steps": 8, "memory": "device"},
    "model": {"width": 32, "feed_forward": 64, "heads": 2, "encoder_layers": 2,
              "decoder_layers": 2, "dropout": 0.0, "attention_dropout": 0.0,
              "share_embeddings": "decoder"},
    "train": {"max_steps": STEPS, "batch_tokens": 600, "accumulate": 2, "learning_rate": 2e-3,
              "warmup_steps": 8, "schedule": "inverse_sqrt", "clip_norm": 0.5, "log_every": 1,
              "evaluate_every": STEPS // 2, "precision": "fp32"},
    "checkpoint": {"every_steps": STEPS},
    "cluster": {"num_workers": 1, "launcher": "local"},
}  # fmt: skip
OUTPUTS: dict[str, Values] = {
    "exact": {}, "sampled": {"model": {"output": "sampled", "num_samples": 60}},
}  # fmt: skip


@dataclass
class Found:
    """Losses of every step and of two validations, norms, and the tables as they were saved."""

    losses: list[float]
    validation: list[float]
    norms: list[float]
    tables: dict[str, Tensor]


@pytest.fixture(scope="module")
def data_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = str(tmp_path_factory.mktemp("parity") / "data")
    ensure_data(
        config_from_dict(merged(RUN, {"run": {"uri": "/nowhere"}, "data": {"uri": uri}})),
        lambda line: None,
    )
    return prepared_folder(uri)


def run(device: Literal["cpu", "cuda"], data_uri: str, folder: Path, *changes: Values) -> Found:
    """What `train_task` leaves in the run's folder."""
    place: Values = {
        "run": {"uri": str(folder)}, "data": {"uri": data_uri}, "cluster": {"device": device},
    }  # fmt: skip
    config = config_from_dict(merged(RUN, place, *changes))
    with lone_group(device, 60.0) as group:
        told = train_task(Context(config, group, silent_reporter()), Train())
    assert (told.steps, told.skipped_steps) == (STEPS, 0)
    lines = read_metrics(str(folder))
    losses, norms, validation = (
        [line[name] for line in lines if name in line]
        for name in ("loss", "gradient_norm", "validation_loss")
    )
    assert (len(losses), len(norms), len(validation)) == (STEPS, STEPS, 2)
    store = open_checkpoints(str(folder))
    manifest = read_manifest(store, current_names(store)[-1])
    reader = CheckpointReader(store, manifest)
    tables = {
        name: reader.rows(name, 0, info.shape[0])
        for name, info in manifest.tensors.items()
        if name.startswith("table.")
    }
    return Found(losses, validation, norms, tables)


@pytest.fixture(scope="module", params=["exact", pytest.param("sampled", marks=pytest.mark.heavy)])
def output(request: pytest.FixtureRequest) -> Values:
    """The settings of an output layer."""
    return OUTPUTS[request.param]


@pytest.fixture(scope="module")
def on_cpu(output: Values, data_uri: str, tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What the CPU finds in float32."""
    return run("cpu", data_uri, tmp_path_factory.mktemp("cpu"), output)


@pytest.mark.parametrize("memory", TIERS)
def test_float32(
    on_cpu: Found, output: Values, memory: Tier, data_uri: str, tmp_path: Path
) -> None:
    found = run(DEVICE, data_uri, tmp_path, output, {"embedding": {"memory": memory}})
    assert found.losses == pytest.approx(on_cpu.losses, abs=1e-3)
    assert found.validation == pytest.approx(on_cpu.validation, abs=1e-3)
    assert found.norms == pytest.approx(on_cpu.norms, rel=1e-3)
    assert min(on_cpu.norms[: STEPS // 2]) > RUN["train"]["clip_norm"]
    assert found.tables.keys() == on_cpu.tables.keys()
    assert len(found.tables) == 4  # two, and the state of each
    for name, values in on_cpu.tables.items():
        # Plain PyTorch, which sums in another order, comes within 3e-7 on the CPU.
        assert (found.tables[name] - values).norm() < 1e-5 * values.norm(), name


def test_bfloat16(on_cpu: Found, output: Values, data_uri: str, tmp_path: Path) -> None:
    """A product's operands are rounded by 2⁻⁹ of their values at most. Were all logits larger by
    twice that share, a loss would be larger by no more than that. Roundings go to both sides: on
    the CPU the losses of 20 steps were off by less than 5e-4 of themselves.
    """
    found = run(DEVICE, data_uri, tmp_path, output, {"train": {"precision": "bf16"}})
    assert found.losses == pytest.approx(on_cpu.losses, rel=2**-8)
    assert found.validation == pytest.approx(on_cpu.validation, rel=2**-8)
    assert found.losses != on_cpu.losses
