"""The program of docs/own_loop.md runs as it stands there; its table has the lines of a module."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from dist_embed.checkpoint.catalogue import list_steps
from dist_embed.embedding.sharded_tables import ShardedTables
from dist_embed.embedding.table import Table
from dist_embed.errors import UserError
from dist_embed.model import output_layer
from dist_embed.parallel.group import Group

PAGE = Path(__file__).parents[2] / "docs/own_loop.md"


def programs() -> list[str]:
    """The page's: a loop, and a validation."""
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.mark.parametrize("trained_whole", [False, True])
def test_the_validation_loss_of_the_page_is_exact(alone: Group, trained_whole: bool) -> None:
    tables = ShardedTables(
        {"read": Table(9, 4), "next": Table(7, 4, trained_whole=trained_whole)}, alone
    )
    found: dict[str, Any] = {"torch": torch}
    exec(compile(programs()[1], str(PAGE), "exec"), found)
    exact = found["ExactSoftmax"](tables, "next")
    words, targets = torch.tensor([8, 0, 3]), torch.tensor([6, 0, 6])
    loss = found["validation_loss"](tables, exact, words, targets, [3])
    read, following = (
        tables.weight(name)[order.rows_of(torch.arange(order.num_rows))]
        for name, order in tables.orders.items()
    )
    expected = functional.cross_entropy(read[words] @ following.t(), targets)
    assert loss == pytest.approx(float(expected), rel=1e-5)
    with pytest.raises(UserError, match="table 'next': 7 is no id"):
        found["validation_loss"](tables, exact, words, targets + 1, [3])


def test_the_loop_of_the_page_trains_saves_and_goes_on(tmp_path: Path) -> None:
    program, _ = programs()
    found: dict[str, object] = {"__name__": "own_loop"}
    exec(compile(program, str(PAGE), "exec"), found)
    main = found["main"]
    assert callable(main)
    main(str(tmp_path), 2)
    main(str(tmp_path), 5)
    assert list_steps(str(tmp_path)) == [2, 5]


def test_the_lines_of_an_output_layer_are_those_its_module_begins_with() -> None:
    """`tests/gpu/test_output_layer_lines.py` runs them."""
    _, _, table = PAGE.read_text().partition("| line | what it does |\n| --- | --- |\n")
    lines = re.findall(r"^\| `(.*?)` \|", table, re.MULTILINE)
    assert output_layer.__doc__
    program = re.findall(r"^    (.*)$", output_layer.__doc__, re.MULTILINE)
    left = [line for line in program if not line.startswith("hidden = ")]
    assert len(lines) == len(left) == 10
    for line, there in zip(lines, left, strict=True):
        assert line in there
