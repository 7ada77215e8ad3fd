"""What launchers send to workers arrives as it was, and is done by the right function."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from dist_embed.bench.tasks import Baseline, ProfileSteps
from dist_embed.config.load import config_from_dict
from dist_embed.config.schema import Config
from dist_embed.training.tasks import Evaluate, Task, Train, Translate

VECTORS = {"uri": "v.npy", "words": "w.txt", "format": "npy"}
TASKS: list[tuple[Task[Any], str, bool, bool]] = [
    (Train("there"), "training.train.train_task", True, True),
    (Evaluate("test", 5, 20, True, "there"), "training.inference.evaluate_task", False, False),
    (Translate(["a b", ""], 7), "training.inference.translate_task", False, False),
    (Baseline(2, 3, ["fp32"], False, "there"), "bench.baseline.baseline_task", False, True),
    (ProfileSteps(4, "f.json", "there"), "bench.step_profile.step_task", False, True),
]


@pytest.mark.parametrize(("task", "name", "trains", "states"), TASKS)
def test_a_task_arrives_and_is_done_by_its_function(
    task: Task[Any], name: str, trains: bool, states: bool
) -> None:
    arrived = pickle.loads(pickle.dumps(task))
    assert arrived == task
    assert (task.trains, task.keeps_states) == (trains, states)
    done: Any = arrived.function()
    assert f"{done.func.__module__}.{done.func.__name__}" == f"dist_embed.{name}"
    assert done.keywords == {"asked": task}


@pytest.mark.parametrize(
    "sections",
    [{}, {"embedding": {"tables": {"source": {"pretrained": VECTORS}, "target": {"freeze": True}}}},
     {"data": {"train": {"pairs": ["a.tsv", "b.tsv"]}}, "model": {"logits_block_mib": 2.5},
      "search": {"beam": 7, "replace_unknown": False}}],
)  # fmt: skip
def test_a_configuration_arrives_as_the_object_it_is(sections: dict[str, Any]) -> None:
    least: dict[str, Any] = {
        "run": {"uri": "/x"}, "data": {"synthetic": {}}, "train": {"max_steps": 1},
    }  # fmt: skip
    config = config_from_dict(least | sections)
    for sent in (config, config.model_copy(update={"run": config.run})):
        arrived = pickle.loads(pickle.dumps(sent))
        assert isinstance(arrived, Config)
        assert arrived == sent
        assert arrived.model_dump() == sent.model_dump()
        assert arrived.model_fields_set == sent.model_fields_set
        tables = arrived.embedding.tables
        assert [type(table) for table in (tables.source, tables.target, tables.output)] == [
            type(table)
            for table in (
                sent.embedding.tables.source, sent.embedding.tables.target,
                sent.embedding.tables.output,
            )
        ]  # fmt: skip
