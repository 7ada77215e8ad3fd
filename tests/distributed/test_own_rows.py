from __future__ import annotations

import pytest
import torch

from dist_embed.config.load import config_from_dict
from dist_embed.embedding.sharded_tables import ShardedTables
from dist_embed.embedding.table import Table
from dist_embed.optim.gradient_norm import table_gradient_square_sum
from dist_embed.parallel.group import Group
from dist_embed.training.assemble import build_translation_model
from tests.distributed.own_rows_case import trained_twice
from tests.distributed.pool import WorkerPool


@pytest.mark.parametrize("num_workers", [1, 2, 3])
@pytest.mark.parametrize("optimizer", ["rowwise_adagrad", "adagrad", "sgd"])
def test_a_table_trained_whole_is_as_if_all_rows_were_looked_up(
    workers: WorkerPool, num_workers: int, optimizer: str
) -> None:
    asked = (optimizer, "device", "fp32", True, 7)  # a width that the kernels pad
    for before, whole, looked_up in workers.run(num_workers, trained_twice, *asked):
        assert whole.keys() == looked_up.keys() == before.keys()
        for name, value in whole.items():
            torch.testing.assert_close(value, looked_up[name], rtol=0, atol=5e-6)
            assert not torch.equal(value, before[name])


def held_for_reading(group: Group) -> tuple[list[int], list[int]]:
    """How many states a table's optimizer has, in training and in evaluation."""
    config = config_from_dict(
        {"run": {"uri": "/nowhere"}, "data": {"synthetic": {}}, "train": {"max_steps": 1},
         "embedding": {"optimizer": "adagrad", "width": 8}, "model": {"width": 8, "heads": 2}}
    )  # fmt: skip
    translators = [
        build_translation_model(config, {"source": 9, "target": 9}, group, training=training)
        for training in (True, False)
    ]
    trained, read = (
        [
            len(translation_model.lookup.optimizer_state(table))
            for table in translation_model.lookup.specs
        ]
        for translation_model in translators
    )
    for translation_model in translators:
        with torch.no_grad():
            assert not translation_model.lookup.lookup({"source": [torch.tensor([1])]}).own
    (trains, reads) = (translation_model.lookup._kernels.own for translation_model in translators)
    assert reads == {}
    (kernel,) = trains.values()
    assert kernel._values is None  # no room for a gradient before the first step that trains
    translators[0].lookup.set_step(7)
    assert kernel.step == 7
    return trained, read


def test_who_only_reads_has_no_optimizers_state_and_no_gradient(workers: WorkerPool) -> None:
    ((trained, read),) = workers.run(1, held_for_reading)
    assert set(trained) == {1}
    assert set(read) == {0}


def norm_of_many_rows(group: Group) -> tuple[float, float]:
    rows = 300_000
    lookup = ShardedTables(
        {"few": Table(9, 64), "whole": Table(rows, 64, trained_whole=True)}, group, optimizer="sgd"
    )
    fetched = lookup.lookup({})
    gradient = fetched.own["whole"].gradient
    assert gradient is not None
    values = gradient.begin_adding()
    values.normal_(generator=torch.Generator().manual_seed(1))
    return float(table_gradient_square_sum(fetched, lookup)), float(values.double().square().sum())


def test_the_norm_of_a_large_shard_is_that_of_float64(workers: WorkerPool) -> None:
    """Summed up naively in float32 it would be off by 2 in a thousand."""
    ((found, expected),) = workers.run(1, norm_of_many_rows)
    assert found == pytest.approx(expected, rel=1e-5)
