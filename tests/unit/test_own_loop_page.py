"""The program of docs/own_loop.md runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

from dist_embed.checkpoint.catalogue import list_steps

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
