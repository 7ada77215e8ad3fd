"""What the documentation points to is there: links, their anchors, and files of the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / ".github").rglob("*.md")]
)
# Of what was: their links are followed, the files that they name may be gone.
HISTORY = (ROOT / "CHANGELOG.md", ROOT / "docs" / "decisions")
LINK = re.compile(r"\]\(([^)\s]+)\)")
NO_LINKS = re.compile(r"```.*?```|`[^`]*`|<!--.*?-->", re.DOTALL)
FILE = re.compile(r"`([\w./-]+\.(?:py|sh|toml))(?::\w+)?`")
# Of other projects.
THEIRS = ("elastic/agent/server/api.py",)


def anchors(text: str) -> set[str]:
    """Of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: Path, text: str) -> list[str]:
    found = []
    for link in LINK.findall(NO_LINKS.sub("", text)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists():
            found.append(link)
            continue
        if anchor and anchor not in anchors(target.read_text() if path else text):
            found.append(link)
    return found


def missing_files(text: str) -> list[str]:
    """Of those named in backticks, by their path in the project or in the package."""
    return [
        name
        for name in FILE.findall(text)
        if "/" in name
        and name not in THEIRS
        and not any((ROOT / part / name).exists() for part in ("", "dist_embed"))
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_what_a_page_points_to_is_there(page: Path) -> None:
    text = page.read_text()
    assert broken_links(page, text) == []
    if not any(page == old or old in page.parents for old in HISTORY):
        assert missing_files(text) == []


def test_what_is_not_there_is_found(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# One: *two*, `three`\n")
    page = tmp_path / "page.md"
    text = (
        "[a](other.md#one-two-three) [b](https://x.org/y) [c](#here) `[d](nowhere)`\n\n## Here\n\n"
        "[e](gone.md) [f](other.md#two) [g](#there)\n"
    )
    page.write_text(text)
    assert broken_links(page, text) == ["gone.md", "other.md#two", "#there"]
    names = "`data/loader.py` `launch/setup.sh` `model/gone.py:f` `of/torch.py` `loader.py` `x.txt`"
    assert missing_files(names) == ["model/gone.py", "of/torch.py"]
