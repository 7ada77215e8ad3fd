"""What the documentation speaks of is there: links, files of the code, settings, commands."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel

from dist_embed.cli.main import build_parser
from dist_embed.config.schema import Config

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / ".github").rglob("*.md")]
)
# Of what was: their links are followed, the files that they name may be gone.
HISTORY = (ROOT / "CHANGELOG.md", ROOT / "docs" / "decisions")
LINK = re.compile(r"\]\(([^)\s]+)\)")
NO_LINKS = re.compile(r"```.*?```|`[^`]*`|<!--.*?-->", re.DOTALL)
FILE = re.compile(r"`([\w./-]+\.(?:py|sh|toml))(?::\w+)?`")
SETTING = re.compile(
    rf"`((?:{'|'.join(Config.model_fields)})(?:\.(?!json|py)[a-z_]+)+)(?:[=:] ?[^`]*)?`"
)
# Numbers to be put in, and those that were measured with what is refused by now.
PLACEHOLDERS = {"--step N": "--step 1", "--steps 15": "--steps 20"}
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


def missing_files(page: Path, text: str) -> list[str]:
    """Of those named in backticks, by their path beside the page, in the project or the package."""
    places = (page.parent, ROOT, ROOT / "dist_embed")
    return [
        name
        for name in FILE.findall(text)
        if "/" in name
        and name not in THEIRS
        and not any((place / name).exists() for place in places)
    ]


def has_setting(model: type[BaseModel], names: list[str]) -> bool:
    """Whether there is such a key, or section, below ``model``."""
    name, *rest = names
    if name not in model.model_fields:
        return False
    types = [model.model_fields[name].annotation]
    types += get_args(types[0])
    sections = [t for t in types if isinstance(t, type) and issubclass(t, BaseModel)]
    return not rest or any(has_setting(section, rest) for section in sections)


def missing_settings(text: str) -> list[str]:
    """Of those named in backticks, as `section.key` or `section.key=value`."""
    return [name for name in SETTING.findall(text) if not has_setting(Config, name.split("."))]


def refused_commands(text: str) -> list[str]:
    """Those of ``bash`` blocks that `dist-embed` has no such arguments for."""
    parser, refused = build_parser(), []
    blocks = "\n".join(re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    for written in blocks.replace("\\\n", " ").splitlines():
        line = written
        for placeholder, number in PLACEHOLDERS.items():
            line = line.replace(placeholder, number)
        called = re.search(r"(?:^|[|;&-] )(?:bash launch/run\.sh|dist-embed) (.*)", line)
        words = shlex.split(called[1], comments=True) if called else []
        if not words:
            continue
        words = words[: next((i for i, w in enumerate(words) if w[0] in "|>;&"), len(words))]
        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            try:
                _, rest = parser.parse_known_args(words)
            except SystemExit:
                refused.append(f"{line.strip()}: {said.getvalue().splitlines()[-1]}")
                continue
        if any("=" not in word for word in rest):
            refused.append(f"{line.strip()}: {rest}")
    return refused


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_what_a_page_points_to_is_there(page: Path) -> None:
    text = page.read_text()
    assert broken_links(page, text) == []
    assert refused_commands(text) == []
    if not any(page == old or old in page.parents for old in HISTORY):
        assert missing_files(page, text) == []
    if page.parent in (ROOT, ROOT / "docs") and page not in HISTORY:  # others say what was measured
        assert missing_settings(text) == []


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
    assert missing_files(page, names) == ["model/gone.py", "of/torch.py"]
    keys = (
        "`train.max_steps` `run.uri=x` `model.output: exact` `embedding.tables.source` `data.json`"
    )
    assert missing_settings(keys) == []
    assert missing_settings("`train.gone` `run.uri.x=1` `runs.uri` `data.train.file`") == [
        "train.gone",
        "run.uri.x",
        "data.train.file",
    ]
    commands = (
        "```bash\nbash launch/run.sh train x.yaml train.max_steps=1 --launcher local  # local\n"
        "bash launch/run.sh\ndist-embed neighbors RUN one \\\n    two --gone 3\n"
        "echo x | dist-embed gone\nls\n```\n```\ndist-embed nothing [like] this …\n```\n"
    )
    found = refused_commands(commands)
    assert len(found) == 2
    assert "--gone" in found[0]
    assert "invalid choice: 'gone'" in found[1]


def test_decisions_are_called_by_their_numbers() -> None:
    called = re.compile(r"\[decision\s+(\d+)\]\([^)]*?(\d{4})-[^)]*\)")
    found = [(page.name, *pair) for page in PAGES for pair in called.findall(page.read_text())]
    assert len(found) > 50
    assert [one for one in found if int(one[1]) != int(one[2])] == []
