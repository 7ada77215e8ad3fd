"""The page of the notebook shows the notebook as it is."""

from __future__ import annotations

import re
from pathlib import Path

import jupytext

EXAMPLES = Path(__file__).parents[2] / "docs/examples"
PAGE = EXAMPLES / "translate_notebook.md"


def test_the_page_has_the_notebook_s_cells_and_small_pictures() -> None:
    notebook = jupytext.read(EXAMPLES / "translate_notebook.py")
    page = PAGE.read_text()
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    assert re.findall(r"^```python\n(.*?)\n```$", page, re.DOTALL | re.MULTILINE) == code
    place = 0
    for cell in notebook.cells:  # one behind the other
        place = page.index(cell.source, place) + len(cell.source)
    assert page.count("%|") == 1  # the bar's last state alone
    pictures = re.findall(r"^!\[.*?\]\((.*?)\)$", page, re.MULTILINE)
    assert len(pictures) == 2
    for name in pictures:
        assert 0 < (EXAMPLES / name).stat().st_size < 60_000
    assert sorted(
        path.name for path in (EXAMPLES / "translate_notebook_files").iterdir()
    ) == sorted(Path(name).name for name in pictures)
