"""The program of docs/own_loop.md runs as it stands there; its table has the lines of a module."""

from __future__ import annotations

import re
from pathlib import Path

from dist_embed.checkpoint.catalogue import list_steps
from dist_embed.model import output_layer

PAGE = Path(__file__).parents[2] / "docs/own_loop.md"


def test_the_loop_of_the_page_trains_saves_and_goes_on(tmp_path: Path) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
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
