"""What `dist_embed.embedding.memory` foretells against what workers take: the growth of anonymous
memory over a worker with hardly any table, in a run that starts, saves and goes on from there.
Digests of vocabularies, and how often their words occur, are read as a run reads them.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from dist_embed.checkpoint.catalogue import manifest_names, open_checkpoints
from dist_embed.checkpoint.load import load_checkpoint
from dist_embed.checkpoint.of_tables import live_tensors, row_multipliers
from dist_embed.checkpoint.state import HostBuffers, TrainingState
from dist_embed.config.load import config_from_dict
from dist_embed.config.schema import Config
from dist_embed.data.token_shards import PreparedData
from dist_embed.data.tokenizer_files import load_tokenizers
from dist_embed.data.words_folder import write_words_folder
from dist_embed.embedding.memory import PROCESS_BYTES, OutputNeeds, output_memory
from dist_embed.embedding.plan import TableSpec
from dist_embed.model.output import OutputShard, sharded_cross_entropy
from dist_embed.observe.events import silent_reporter
from dist_embed.parallel.allocator import keep_freed_memory
from dist_embed.parallel.device import resolve_dtype
from dist_embed.parallel.group import Group
from dist_embed.parallel.rendezvous import hosted_store
from dist_embed.run.data import digests_of_data, digests_of_tokenizers, vocabularies
from dist_embed.training.assemble import (
    TranslationModel,
    build_dense_optimizer,
    build_translation_model,
    dense_tensors,
)
from dist_embed.training.needs import host_bytes
from dist_embed.training.resume import build_saver, resume
from dist_embed.training.train import build_train_step, output_of_data
from dist_embed.training.worker import Context
from tests.distributed.tiny import random_pairs, work_for
from tests.forks import forking
from tests.stores.s3_server import MotoServer, moto_missing

pytestmark = [pytest.mark.distributed, pytest.mark.heavy, pytest.mark.timeout(1200)]

WIDTH = 64
OUTPUT_ROWS = 16  # of each worker, where tokens are what counts
LIMIT_SECONDS = 400.0  # of a life; without bf16 of its own a CPU takes long for such products
Sizes = dict[str, int]
Sections = dict[str, dict[str, Any]]
Prepare = Callable[[Sizes], Sections]
# A shard of 300,000 rows × 64 float32 is 73 MiB: with the smallest state 256 MiB in three tables.
LARGE: Sizes = {"source": 350_000, "target": 350_000}
SMALL: Sizes = {"source": 64, "target": 64}
SAVING: dict[str, dict[str, str]] = {
    "behind": {},
    "waiting": {"saving": "waiting"},
    "in_place": {"saving": "in_place"},
}


def configured(
    folder: Path | str, num_workers: int, saving: str, **sections: dict[str, Any]
) -> Config:
    values: dict[str, Any] = {
        "run": {"uri": str(folder)}, "data": {"synthetic": {}},
        "train": {"max_steps": 9, "batch_tokens": 32},  # about as many as `run` makes
        "cluster": {"launcher": "local", "num_workers": num_workers},
        "embedding": {"width": WIDTH},
        "model": {"width": 32, "feed_forward": 32, "heads": 2, "encoder_layers": 1,
                  "decoder_layers": 1, "num_samples": 16},
        "checkpoint": SAVING[saving],
    }  # fmt: skip
    for section, settings in sections.items():
        values[section] = values.get(section, {}) | settings
    return config_from_dict(values)


@pytest.fixture(scope="module")
def prepare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prepare]:
    """Sections of a configuration whose data have vocabularies of given sizes."""
    made: dict[str, str] = {}

    def sections(vocabulary: Sizes) -> Sections:
        key = str(vocabulary)
        if key not in made:
            made[key] = str(tmp_path_factory.mktemp("data"))
            write_words_folder(made[key], vocabulary)
        one = vocabulary["source"] == vocabulary["target"]
        return {"data": {"synthetic": {}, "uri": made[key]}, "tokenizer": {"shared": one}}

    yield sections
    for folder in made.values():
        shutil.rmtree(folder)


@pytest.fixture(autouse=True)
def leaves_nothing(tmp_path: Path) -> Iterator[None]:
    """All cases together would leave 30 GB, which pytest keeps for three runs."""
    yield
    shutil.rmtree(tmp_path)


def joined(rank: int, port: int, config: Config) -> Group:
    # With AMX oneDNN (PyTorch 2.13) keeps kernels for each shape, 190 MiB after a hundred steps.
    # They are the process's: the smallest run has as many as the largest, which peaks before them.
    os.environ["ONEDNN_MAX_CPU_ISA"] = "AVX2"
    torch.set_num_threads(1)
    keep_freed_memory()
    store = dist.TCPStore("127.0.0.1", port, is_master=False)
    num_workers = config.cluster.num_workers
    dist.init_process_group("gloo", store=store, rank=rank, world_size=num_workers)
    pg = dist.group.WORLD
    assert pg is not None
    return Group(rank, num_workers, num_workers, torch.device("cpu"), pg)


@torch.no_grad()
def score(translation_model: TranslationModel) -> None:
    lookup = translation_model.lookup
    weight = lookup.weight(lookup.table_of["output"])
    sharded_cross_entropy(
        torch.randn(300, weight.shape[1]), torch.arange(300) % 60, weight,
        translation_model.shard.in_float32(), [300] * translation_model.group.num_workers,
    )  # fmt: skip


def run(
    rank: int, port: int, values: dict[str, Any], vocabulary: Sizes, environment: dict[str, str]
) -> None:
    """A life: build, load what there is, two steps, a save beside a third, a validation."""
    os.environ.update(environment)
    config = config_from_dict(values)
    group = joined(rank, port, config)
    context = Context(config, group, silent_reporter())
    data = PreparedData.read(config.data.uri)
    vocabularies(partial(digests_of_data, data), group)
    translation_model = build_translation_model(config, vocabulary, group)
    optimizer = build_dense_optimizer(config, translation_model.transformer)
    state = TrainingState(
        group,
        0,
        live_tensors(
            translation_model.lookup, dense_tensors(translation_model.transformer, optimizer)
        ),
        row_multipliers(translation_model.lookup),
        scalars={"skipped_steps": 0},
    )
    checkpoints = open_checkpoints(config.run.uri)
    copy = HostBuffers() if config.checkpoint.saving == "behind" else None
    loaded = resume(context, checkpoints, state, copy)
    output = output_of_data(config, translation_model, data)
    step = build_train_step(config, translation_model, output, optimizer)
    saver = build_saver(context, checkpoints, loaded, copy, None)
    for number in range(loaded.step + 1, loaded.step + 4):
        pairs = random_pairs(8, number, 60, 60)
        step.run(number, work_for(pairs, group, 1))
        state.step = number
        if number == loaded.step + 2:
            saver.save(state)
    saver.wait()
    score(translation_model)
    os._exit(0)


def anonymous_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


def peak_bytes(
    config: Config, vocabulary: Sizes, *, life: Any = run, lives: int = 2, **environment: str
) -> int:
    """The most anonymous memory of a worker, in a run and in one that goes on from it."""
    peak = 0
    for _ in range(lives):
        store = hosted_store()
        processes = [
            forking().Process(
                target=life,
                daemon=True,
                args=(rank, store.port, config.model_dump(), vocabulary, environment),
            )
            for rank in range(config.cluster.num_workers)
        ]
        for process in processes:
            process.start()
        give_up_at = time.monotonic() + LIMIT_SECONDS
        while any(process.is_alive() for process in processes):
            assert time.monotonic() < give_up_at
            for process in processes:
                if process.is_alive() and process.pid is not None:
                    try:
                        peak = max(peak, anonymous_bytes(process.pid))
                    except OSError:  # just ended
                        continue
            time.sleep(0.0005)
        assert [process.exitcode for process in processes] == [0] * len(processes)
    return peak


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, prepare: Prepare) -> int:
    """Of a worker with hardly any table, which reads, writes and scores hardly anything."""
    config = configured(
        tmp_path_factory.mktemp("base"), 1, "behind", model={"logits_block_mib": 0.01},
        **prepare(SMALL),
    )  # fmt: skip
    found = peak_bytes(config, SMALL)
    # Beside it a process holds pages of libraries, which a machine's workers share.
    assert 0.4 * PROCESS_BYTES < found < PROCESS_BYTES
    return found


def told(config: Config, vocabulary: Sizes) -> int:
    needed = host_bytes(
        config, vocabulary, training=True, tier=None,
        narrow_products=config.train.precision == "bf16", word_tables=True,
    )  # fmt: skip
    return needed - PROCESS_BYTES


def check(config: Config, vocabulary: Sizes, base: int, **environment: str) -> None:
    expected = told(config, vocabulary)
    assert expected > 256 * 2**20
    growth = peak_bytes(config, vocabulary, **environment) - base
    print(f"{growth / 2**20:.0f} MiB, foretold {expected / 2**20:.0f}: {expected / growth:.3f}")
    assert growth == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("num_workers", [1, 2])
@pytest.mark.parametrize("saving", SAVING)
@pytest.mark.parametrize("output", ["exact", "sampled"])
@pytest.mark.parametrize("optimizer", ["rowwise_adagrad", "adagrad", "sgd"])
def test_a_worker_takes_what_is_foretold(
    tmp_path: Path, base: int, prepare: Prepare, optimizer: str, output: str, saving: str,
    num_workers: int,
) -> None:  # fmt: skip
    vocabulary = {side: rows * num_workers for side, rows in LARGE.items()}
    config = configured(
        tmp_path, num_workers, saving, embedding={"optimizer": optimizer, "width": WIDTH},
        model={"output": output, "share_embeddings": "none"}, train={"precision": "fp32"},
        **prepare(vocabulary),
    )  # fmt: skip
    check(config, vocabulary, base)


@pytest.mark.parametrize(
    ("vocabulary", "sections"),
    [
        # A small table of the output layer beside a large one.
        ({"source": 1_500_000, "target": 64}, {}),
        # One table for all.
        ({"source": 900_000, "target": 900_000}, {"model": {"share_embeddings": "all"}}),
        # Whole logits of blocks of tokens, and bfloat16 products of them.
        (LARGE, {"model": {"logits_block_mib": 64}}),
        (LARGE, {"model": {"logits_block_mib": 64}, "train": {"precision": "bf16"}}),
        (LARGE, {"train": {"precision": "bf16"}}),
        (LARGE, {"train": {"clip_norm": 0.01}}),
        # Counts of words while the sampler is made of them, which is what takes most here.
        ({"source": 64, "target": 6_000_000},
         {"model": {"output": "sampled", "sampler": "unigram"}, "embedding": {"width": 8}}),
        # A dense model that counts.
        (LARGE, {"model": {"width": 512, "feed_forward": 4096, "encoder_layers": 6}}),
    ],
)  # fmt: skip
def test_so_it_does_with_other_tables_and_products(
    tmp_path: Path, base: int, prepare: Prepare, vocabulary: Sizes, sections: Sections
) -> None:
    given = {"train": {"precision": "fp32"}} | sections | prepare(vocabulary)
    check(configured(tmp_path, 1, "in_place", **given), vocabulary, base)


def train_output(rank: int, port: int, values: dict[str, Any], tokens: Sizes, *_: Any) -> None:
    """A worker's part of the exact output layer, with gradients, of its share of the tokens."""
    config = config_from_dict(values)
    group, width = joined(rank, port, config), config.embedding.width
    own = tokens["target"] // group.num_workers
    counts = [own + (worker == 0) for worker in range(group.num_workers)]
    shard = OutputShard(
        group, rank * OUTPUT_ROWS, OUTPUT_ROWS * group.num_workers,
        int(float(config.model.logits_block_mib) * 2**20), resolve_dtype(
            config.train.precision, group.device
        ),
    )  # fmt: skip
    hidden = torch.randn(counts[rank], width, requires_grad=True)
    targets = torch.zeros(counts[rank], dtype=torch.int64)
    sharded_cross_entropy(hidden, targets, torch.randn(OUTPUT_ROWS, width), shard, counts, 0.1)
    os._exit(0)


@pytest.mark.parametrize(("num_workers", "block_mib"), [(1, 1.0), (4, 1.0), (4, 0.001)])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_so_it_does_where_tokens_are_what_it_holds(
    tmp_path: Path, num_workers: int, block_mib: float, precision: str
) -> None:
    """By blocks and, where a block has few tokens, by tiles."""
    config = configured(
        tmp_path, num_workers, "in_place", embedding={"width": 512},
        model={"logits_block_mib": block_mib}, train={"precision": precision},
    )  # fmt: skip
    few, many = 400, 120_000
    peaks = [
        peak_bytes(config, {"target": tokens}, life=train_output, lives=1) for tokens in (few, many)
    ]
    output = OutputNeeds(
        TableSpec("t", OUTPUT_ROWS * num_workers, 512), True, int(block_mib * 2**20),
        narrow_products=precision == "bf16", tokens=many,
    )  # fmt: skip
    own = 4 * 512 * many // num_workers  # of the decoder
    expected = output_memory(output, num_workers)["tokens of all workers"] + own
    assert peaks[1] - peaks[0] == pytest.approx(expected, rel=0.1)


def read(rank: int, port: int, values: dict[str, Any], vocabulary: Sizes, *_: Any) -> None:
    """A worker that evaluates: build, load, score."""
    config = config_from_dict(values)
    group = joined(rank, port, config)
    tokenizers = load_tokenizers(config.data.uri)
    vocabularies(partial(digests_of_tokenizers, tokenizers), group)
    translation_model = build_translation_model(config, vocabulary, group, training=False)
    state = TrainingState(
        group,
        0,
        live_tensors(translation_model.lookup, {}, optimizer_state=False),
        row_multipliers(translation_model.lookup),
    )
    (name,) = manifest_names(open_checkpoints(config.run.uri))
    load_checkpoint(
        open_checkpoints(config.run.uri), name, state, partial=True,
        in_place=config.checkpoint.saving == "in_place",
    )  # fmt: skip
    score(translation_model)
    assert tokenizers["target"].size == vocabulary["target"]
    os._exit(0)


@pytest.mark.parametrize("saving", ["waiting", "in_place"])
def test_so_it_does_where_a_worker_only_reads(
    tmp_path: Path, base: int, prepare: Prepare, saving: str
) -> None:
    config = configured(
        tmp_path, 1, saving, embedding={"optimizer": "adagrad"},
        model={"share_embeddings": "none"}, train={"precision": "fp32"}, **prepare(LARGE),
    )  # fmt: skip
    peak_bytes(config, LARGE, lives=1)
    expected = host_bytes(
        config, LARGE, training=False, narrow_products=False, tier=None, word_tables=True
    )
    growth = peak_bytes(config, LARGE, life=read, lives=1) - base
    assert growth == pytest.approx(expected - PROCESS_BYTES, rel=0.1)


@pytest.mark.parametrize("saving", SAVING)
def test_so_it_does_at_a_store(
    tmp_path_factory: pytest.TempPathFactory, base: int, prepare: Prepare, saving: str
) -> None:
    vocabulary = {"source": 10**6, "target": 10**6}
    if reason := moto_missing():
        pytest.skip(reason)
    with MotoServer(tmp_path_factory.mktemp("moto")) as server:
        server.make_bucket("bucket")
        config = configured(
            "s3://bucket/run", 2, saving, model={"share_embeddings": "none"},
            train={"precision": "fp32"}, **prepare(vocabulary),
        )  # fmt: skip
        check(config, vocabulary, base, **server.environment)
