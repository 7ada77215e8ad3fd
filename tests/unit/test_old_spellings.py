"""One habit for all commands, and what was spelled in another way before."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from dist_embed.cli import export, main

# What commands read by its place.
READ = {
    "RUN|STUDY",
    "RUN",
    "CONFIG",
    "key.sub=value",
    "WORD",
    "A",
    "B",
    "C",
    "STUDY",
    "PAIRS",
    "URI",
    "JOB",
}


def commands(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """Those that call something."""
    groups = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    if not groups:
        yield parser
    for group in groups:
        for one in dict.fromkeys(group.choices.values()):
            yield from commands(one)


def test_what_is_read_comes_by_its_place_and_what_is_written_by_name() -> None:
    outputs = []
    for command in commands(main.build_parser()):
        for action in command._actions:
            if not action.option_strings:
                assert action.metavar in READ, (command.prog, action.metavar)
            elif "--output" in action.option_strings:
                outputs.append(command.prog.removeprefix("dist-embed "))
            elif action.help != argparse.SUPPRESS:
                assert not {"--json", "--page"} & {*action.option_strings}, command.prog
    benches = [one for one in outputs if one.startswith("bench ")]
    assert {*outputs} - {*benches} == {
        "evaluate", "translate", "compare", "plan", "plot", "report", "study", "export translator",
        "export embeddings", "export projector", "export checkpoint",
    }  # fmt: skip
    assert len(benches) == sum(
        command.prog.startswith("dist-embed bench ") for command in commands(main.build_parser())
    )


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the called commands were given."""
    found: list[dict[str, Any]] = []
    real = main.build_parser

    def noting() -> argparse.ArgumentParser:
        parser = real()
        for command in commands(parser):
            name = command.prog
            command.set_defaults(call=lambda a, n=name: found.append({"of": n, **vars(a)}))
        return parser

    monkeypatch.setattr(main, "build_parser", noting)
    monkeypatch.setattr("dist_embed.observe.quiet.quiet_screen", lambda: None)
    return found


def without_call(given: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in given.items() if key != "call"}


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("embeddings plot r m.html --count 9", "plot r --output m.html --count 9",
         "`embeddings plot RUN OUTPUT` is `plot RUN --output OUTPUT` now"),
        ("embeddings plot --count 9 r --method pca m.html",
         "plot r --output m.html --count 9 --method pca", "`plot RUN --output OUTPUT` now"),
        ("embeddings similarity r f --role target", "similarity r f --role target",
         "`embeddings similarity` is `similarity` now"),
        ("embeddings projector r f", "export projector r --output f",
         "`embeddings projector RUN OUTPUT` is `export projector RUN --output OUTPUT` now"),
        ("embeddings export r f --format glove", "export embeddings r --output f --format glove",
         "`embeddings export RUN OUTPUT` is `export embeddings RUN --output OUTPUT` now"),
        ("checkpoint export r --table t f", "export checkpoint r --output f --table t",
         "`checkpoint export RUN OUTPUT` is `export checkpoint RUN --output OUTPUT` now"),
        ("export r f --quantization int8", "export translator r --output f --quantization int8",
         "`export RUN OUTPUT` is `export translator RUN --output OUTPUT` now"),
        ("export --step 3 r f", "export translator r --output f --step 3",
         "`export translator RUN --output OUTPUT` now"),
        ("study s.yaml --page p.md", "study s.yaml --output p.md", "--page is --output now"),
        ("bench balance --json f", "bench balance --output f", "--json is --output now"),
    ],
)  # fmt: skip
def test_an_earlier_spelling_does_the_same_and_says_the_new_one(
    taken: list[dict[str, Any]], capsys: pytest.CaptureFixture[str], old: str, new: str, said: str
) -> None:
    assert main.main(new.split()) == 0
    assert capsys.readouterr().err == ""
    assert main.main(old.split()) == 0
    told = capsys.readouterr().err
    assert told.startswith("dist-embed: ")
    assert said in told
    assert told.count("\n") == 1
    as_new, as_old = taken
    assert without_call(as_old) == without_call(as_new)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("embeddings plot r", "--output is missing"),
        ("export r", "--output is missing"),
        ("export r --step 3", "--output is missing"),
        ("checkpoint export r f g", "unrecognized arguments: g"),
        ("embeddings plot r --bogus", "--output is missing"),
        ("plot r", "the following arguments are required: --output"),
        ("plot r m.html --output n.html", "unrecognized arguments: m.html"),
        ("plot r m.html", "are required: --output; did you mean --output m.html?\n"),
        ("plot --role target r", "the following arguments are required: --output\n"),
        ("plot r --output=", "the following arguments are required: --output\n"),
        ("plot m.html --bogus r", "are required: --output"),
        (
            "export embeddings r f --format glove",
            "are required: --output; did you mean --output f?",
        ),
        ("export translator r f", "are required: --output; did you mean --output f?"),
    ],
)
def test_what_is_missing_or_too_much_is_told(
    taken: list[dict[str, Any]], capsys: pytest.CaptureFixture[str], given: str, said: str
) -> None:
    with suppress(SystemExit):  # argparse's
        assert main.main(given.split()) == 2
    assert said in capsys.readouterr().err
    assert taken == []


def test_all_that_can_be_exported_is_known_as_the_new_spelling() -> None:
    parser = main.build_parser()
    found = {one.prog.split()[-1] for one in commands(parser) if " export " in one.prog}
    assert found - {"export"} == {*export.KINDS}
