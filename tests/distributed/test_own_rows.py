from __future__ import annotations

import pytest
import torch

from dist_embed.config.load import config_from_dict
from dist_embed.parallel.group import Group
from dist_embed.train.assemble import build_translator
from tests.distributed.own_rows_case import trained_twice
from tests.distributed.pool import WorkerPool


@pytest.mark.parametrize("num_workers", [1, 2, 3])
@pytest.mark.parametrize("optimizer", ["rowwise_adagrad", "adagrad", "sgd"])
def test_a_table_trained_whole_is_as_if_all_rows_were_looked_up(
    workers: WorkerPool, num_workers: int, optimizer: str
) -> None:
    for before, whole, looked_up in workers.run(num_workers, trained_twice, optimizer):
        assert whole.keys() == looked_up.keys() == before.keys()
        for name, value in whole.items():
            torch.testing.assert_close(value, looked_up[name], rtol=0, atol=5e-6)
            assert not torch.equal(value, before[name])


def held_for_reading(group: Group) -> tuple[list[int], list[int], bool]:
    """How many states a table's optimizer has, in training and in evaluation; whether a lookup in
    an evaluation has made room for a gradient.
    """
    config = config_from_dict(
        {"run": {"uri": "/nowhere"}, "data": {"synthetic": {}}, "train": {"max_steps": 1},
         "embedding": {"optimizer": "adagrad", "width": 8}, "model": {"width": 8, "heads": 2}}
    )  # fmt: skip
    translators = [
        build_translator(config, {"source": 9, "target": 9}, group, training=training)
        for training in (True, False)
    ]
    trained, read = (
        [len(translator.lookup.optimizer_state(table)) for table in translator.lookup.specs]
        for translator in translators
    )
    lookup = translators[1].lookup
    with torch.no_grad():
        assert lookup.lookup({"source": [torch.tensor([1])]}).own_output is None
    assert lookup._own is not None
    return trained, read, lookup._own._values is not None


def test_who_only_reads_has_no_optimizers_state_and_no_gradient(workers: WorkerPool) -> None:
    ((trained, read, has_gradient),) = workers.run(1, held_for_reading)
    assert set(trained) == {1}
    assert set(read) == {0}
    assert not has_gradient
