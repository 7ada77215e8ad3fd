"""Every command that the pages spell is one, as it is spelled now."""

from __future__ import annotations

import re
import shlex
from argparse import ArgumentParser
from pathlib import Path

import pytest

from dist_embed.cli.main import build_parser
from dist_embed.cli.old_spellings import in_new_words

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/**/*.md")])
# Behind a command: two spaces and what it does, options left out, another command.
END = re.compile(r"\s{2,}|\s+#|\s+…|\s+>|\s+\[|\s*\\$")
NUMBERS = {"N", "K", "S"}


def commands(text: str) -> list[list[str]]:
    """What is called in blocks of code: the arguments of each."""
    found = []
    # All blocks, or the end of one of another language would be the start of the next.
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        if language not in ("", "bash"):
            continue
        for call in re.split(r"\n| && | \| ", block):
            if not (line := re.search(r"(?:^|-- )(?:bash launch/run\.sh|dist-embed) (.*)$", call)):
                continue
            end = END.search(line[1])
            found.append(shlex.split(line[1][: end.start()] if end else line[1]))
    return [words for words in found if words]


@pytest.fixture(scope="module")
def parser() -> ArgumentParser:
    return build_parser()


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_commands_are_spelled_as_they_are_now(page: Path, parser: ArgumentParser) -> None:
    for words in commands(page.read_text()):
        assert in_new_words(words)[1] is None, words
        given = ["1" if word in NUMBERS else word for word in words]
        arguments, rest = parser.parse_known_args(given)
        overridden = hasattr(arguments, "overrides")
        assert all(overridden and not word.startswith("-") for word in rest), words
        earlier = {"--json", "--page"} & {word.partition("=")[0] for word in words}
        assert not earlier, words


def test_commands_are_found_and_end_where_they_end() -> None:
    assert commands("```bash\nbash launch/run.sh plot RUN --output a  # b\n```\n") == [
        ["plot", "RUN", "--output", "a"]
    ]
    assert commands("```\necho x | dist-embed translate RUN\ndist-embed a [-x] …   text\n```") == [
        ["translate", "RUN"], ["a"]
    ]  # fmt: skip
    assert commands("`dist-embed a`\n```yaml\ndist-embed b\n```\ndist-embed c\n```\n```\n") == []
    assert sum(len(commands(page.read_text())) for page in PAGES) > 50
