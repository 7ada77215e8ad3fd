"""A run goes on with the training data that it was trained on, wherever they lie."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from dist_embed.config.load import config_from_dict
from dist_embed.data.token_shards import PreparedData, ShardInfo, Split, content_digest
from dist_embed.observe.events import silent_reporter
from dist_embed.parallel.group import Group
from dist_embed.training import resume, worker
from dist_embed.training.tasks import Train
from dist_embed.training.train import train_task
from tests.distributed.pool import RemoteError, WorkerPool
from tests.unit.small_corpus import prepare, synthetic_corpora


def train(
    group: Group,
    run: str,
    data: str,
    steps: int,
    data_folder: str | None = None,
    *,
    says_its_data: bool = True,
) -> int:
    """Train to so many steps; returns where it was resumed."""
    config = config_from_dict(
        {
            "run": {"uri": run},
            "data": {"synthetic": {}, "uri": data},
            "model": {"width": 8, "feed_forward": 8, "heads": 1, "encoder_layers": 1,
                      "decoder_layers": 1},
            "embedding": {"width": 8},
            "train": {"max_steps": steps, "batch_tokens": 60},
        }
    )  # fmt: skip
    told = resume.training_data
    try:
        if not says_its_data:  # as runs of before
            resume.training_data = lambda *_: {}  # type: ignore[assignment]
        context = worker.Context(config, group, silent_reporter())
        result = train_task(context, Train(data_folder))
    finally:
        resume.training_data = told
    return result.resumed_at


def test_other_training_data_are_refused_and_moved_ones_are_not(
    workers: WorkerPool, tmp_path: Path
) -> None:
    corpora, _ = synthetic_corpora(tmp_path / "text")
    few = {"train": corpora["train"], "validation": corpora["test"]}
    run, here, other, moved = (str(tmp_path / name) for name in ("run", "a", "b", "moved"))
    prepare(Path(here), {**few, "validation": corpora["validation"]})
    prepare(Path(other), few, shard_sentences=100)
    for name in ("tokenizer.source.json", "tokenizer.target.json"):
        assert (Path(here) / name).read_text() == (Path(other) / name).read_text()

    def resumed_at(data: str, steps: int, num_workers: int = 1) -> int:
        return workers.run(num_workers, train, run, data, steps)[0]

    # A checkpoint that does not say which data it was trained on goes on, and the next one says.
    assert workers.run(1, train_without_saying, run, here, 1) == [0]
    assert resumed_at(here, 2) == 1
    with pytest.raises(RemoteError) as caught:
        resumed_at(other, 3, num_workers=2)
    told = str(caught.value)
    assert "was trained on 290 pairs in 5 shards (" in told
    assert f"{other} holds 290 pairs in 3 shards (" in told
    assert "Give data.uri the data it was trained on" in told
    assert told.count("CheckpointError") >= 2
    # Prepared again elsewhere, with other held-out data.
    prepare(Path(moved), few)
    shutil.rmtree(here)
    assert resumed_at(moved, 3) == 2
    # As many sentences, tokens and words: two lines of the text have changed places.
    (source, target) = (
        Path(text[0]) for text in (corpora["train"].source, corpora["train"].target)
    )
    for side in (source, target):
        lines = side.read_text().splitlines(keepends=True)
        side.write_text("".join([lines[1], lines[0], *lines[2:]]))
    prepare(Path(here), few)
    with pytest.raises(RemoteError, match="was trained on other sentences"):
        resumed_at(here, 4)
    # Data prepared before say nothing of their sentences, and are believed.
    index = PreparedData.read(moved)
    for split in index.splits.values():
        split.shards[:] = [replace(shard, content=None) for shard in split.shards]
    (Path(moved) / "data.json").write_text(index.to_json())
    assert resumed_at(moved, 4) == 3
    # Nor does what they were trained on with them.
    assert resumed_at(here, 5) == 4


def test_workers_read_the_folder_that_was_looked_into(workers: WorkerPool, tmp_path: Path) -> None:
    """Whatever ``data.uri`` names by the time that they start."""
    corpora, _ = synthetic_corpora(tmp_path / "text")
    data = prepare(tmp_path / "data", corpora)
    gone, run = str(tmp_path / "gone"), str(tmp_path / "run")
    assert workers.run(1, train_in, run, gone, data.folder_uri) == [0]
    with pytest.raises(RemoteError) as told:
        workers.run(2, train_in, str(tmp_path / "other"), data.folder_uri, gone)
    reasons = ("they were removed, moved, or prepared again", "data.uri has to be one folder")
    for rank, reason in enumerate(reasons):
        where = f"UserError: worker {rank} finds no prepared data in {gone}: {reason}"
        assert where in str(told.value)


def train_in(group: Group, run: str, data: str, folder: str) -> int:
    return train(group, run, data, 1, data_folder=folder)


def train_without_saying(group: Group, run: str, data: str, steps: int) -> int:
    return train(group, run, data, steps, says_its_data=False)


def test_sentences_are_known_by_their_ids_and_lengths_on_both_sides() -> None:
    def of(source: list[list[int]], target: list[list[int]]) -> str:
        ids = pa.list_(pa.int32())
        return content_digest(pa.array(source, ids), pa.array(target, ids))

    some = [[4, 5], [], [6]]
    lengths, ids = np.array([2, 0, 1], "<i4"), np.array([4, 5, 6], "<i4")
    once = lengths.tobytes() + ids.tobytes()
    assert of(some, some) == hashlib.sha256(2 * once).hexdigest()
    longer = pa.array([[9], *some, [7]], pa.list_(pa.int32()))
    assert content_digest(longer.slice(1, 3), longer.slice(1, 3)) == of(some, some)
    others = [[[4, 5], [6], []], [[4], [5], [6]], [[5, 4], [], [6]], [[6], [], [4, 5]], some[:2]]
    assert (
        len({of(some, some), *(of(some, o) for o in others), *(of(o, some) for o in others)}) == 11
    )


def test_a_split_s_content_is_that_of_all_its_shards_in_order() -> None:
    shards = [ShardInfo("a", 1, 1, 1, content="00"), ShardInfo("b", 1, 1, 1, content="11")]
    known = Split(shards).content()
    assert known == Split([replace(one, name="c", file=None) for one in shards]).content()
    assert known not in (Split(shards[::-1]).content(), Split(shards[:1]).content(), None)
    assert Split([shards[0], ShardInfo("b", 1, 1, 1)]).content() is None


def test_what_tells_training_data_apart() -> None:
    shards = [ShardInfo("train/a", 3, 7, 8), ShardInfo("train/b", 2, 4, 5)]
    same = Split(shards, dropped_empty=4).identity()
    assert same == Split(list(shards), cut=1).identity()
    assert same.startswith("5 pairs in 2 shards (")
    changed = [
        replace(shards[1], **change)
        for change in ({"name": "train/c"}, {"sentences": 3}, {"source_tokens": 3},
                       {"target_tokens": 6})
    ]  # fmt: skip
    others = [[shards[0], shard] for shard in changed] + [shards[::-1], shards[:1]]
    found = {Split(other).identity() for other in others}
    assert len(found | {same}) == 1 + len(others)
