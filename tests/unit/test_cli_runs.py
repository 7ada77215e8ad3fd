"""The commands on runs, in this process, with workers that give a fixed result."""

from __future__ import annotations

import io
import json
import math
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import yaml

from dist_embed.cli.lines import lines_from
from dist_embed.cli.main import main
from dist_embed.cluster.feed import Feed
from dist_embed.errors import RunFailed, RunStopped, StoreUnavailable, UserError
from dist_embed.run.metrics import MetricsLog
from dist_embed.training.results import AgainstExact, Evaluation, TrainResult
from dist_embed.training.tasks import Evaluate, Train, TranslateStream
from tests.unit.full_disk import full_disk
from tests.unit.small_corpus import Prepared
from tests.unit.small_run import small_run, word_tokenizer
from tests.unit.told_runs import told_run, whole_course

WORDS = ["a", "b", "c", "d"]
QUALITY = Evaluation(
    data_folder="there", split="test", step=5, loss=1.25, training_loss=None, perplexity=3.4903,
    bleu=12.345, chrf=45.678, bleu_signature="nrefs:1|tok:13a", against_exact=None, sentences=2,
    sentences_per_second=7.25, translations=["ein", "zwei"], scored=["ein", "zwei"],
)  # fmt: skip
TOLD = """\
test, checkpoint of step 5: loss 1.2500, perplexity 3.49
BLEU 12.35  chrF 45.68  (2 sentences, 7.2 sentences/s)
BLEU is nrefs:1|tok:13a
"""
Calls = list[tuple[Any, Any, dict[str, Any]]]
Launched = Callable[[Any], Calls]


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Launched:
    """Workers answer with what is given; what was asked of them comes back."""
    monkeypatch.setattr("dist_embed.observe.quiet.quiet_screen", lambda: None)

    def answering(answer: Any) -> Calls:
        calls: Calls = []

        def launch(task: Any, config: Any, **how: Any) -> Any:
            how.pop("on_event")({"kind": "line", "text": f"{type(task).__name__} begins"})
            if feed := how.pop("feed", None):
                asking(feed, how)
            calls.append((task, config, how))
            if isinstance(answer, BaseException):
                raise answer
            return answer[type(task)] if isinstance(answer, dict) else answer

        monkeypatch.setattr("dist_embed.cluster.launch.launch", launch)
        monkeypatch.setattr(
            "dist_embed.cluster.fork_server.start_ahead",
            lambda device: calls.append(("ahead", device, {})),
        )
        return calls

    return answering


def told() -> None:
    """Workers have told a translation; for tests to wait in."""


def asking(feed: Feed, how: dict[str, Any]) -> None:
    """As workers do that translate `a` into `A`; the lines are noted."""
    take, how["lines"] = feed.taking(print), []
    for number in count():
        take({"kind": "wanted", "number": number, "most": 2})
        while (answer := feed.answer()) is None:
            time.sleep(0.01)
        if not answer["lines"]:
            return
        how["lines"] += answer["lines"]
        cut = [
            number for number, line in enumerate(answer["lines"], answer["first"]) if "!" in line
        ]
        take({"kind": "translated", "lines": [x.upper() for x in answer["lines"]], "cut": cut})
        told()


@pytest.fixture
def run_uri(tmp_path: Path) -> str:
    tokenizer = word_tokenizer(WORDS)
    vectors = {"shared": torch.zeros(tokenizer.size, 4)}
    settings = {"cluster": {"num_workers": 3}}
    return small_run(
        tmp_path, {"source": tokenizer, "target": tokenizer}, vectors, share="all",
        settings=settings,
    )  # fmt: skip


def test_evaluate(
    launched: Launched, run_uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = launched(QUALITY)
    out = tmp_path / "out.txt"
    options = ["--split", "validation", "--step", "5", "--output", str(out), "--beam", "7"]
    assert main(["evaluate", run_uri, *options]) == 0
    assert out.read_text() == "ein\nzwei\n"
    said = capsys.readouterr()
    assert said.out == TOLD
    assert said.err == "Evaluate begins\n"
    ahead, (task, config, how) = calls
    assert ahead[:2] == ("ahead", "auto")
    assert task == Evaluate("validation", 5, against_exact=True)
    sizes = {"source": 8, "target": 8}
    assert how == {"launcher": "local", "vocabulary_size": sizes, "word_tables": False}
    assert (config.search.beam, config.cluster.num_workers) == (7, 3)
    assert config.embedding.optimizer == "sgd"

    with full_disk():
        assert main(["evaluate", run_uri, *options]) != 0
    assert f"No space left on device: '{out}'" in capsys.readouterr().err
    assert out.read_text() == "ein\nzwei\n"

    compared = AgainstExact(sentences=100, bleu=10.125, exact_bleu=10.5, same=97)
    calls = launched(replace(QUALITY, against_exact=compared))
    assert main(["evaluate", run_uri, "--workers", "1", "--launcher", "ray"]) == 0
    ((task, config, how),) = calls
    assert task == Evaluate("test", against_exact=True)
    assert capsys.readouterr().out == TOLD + (
        "candidate lists against all words, on 100 of the sentences: BLEU 10.12 against 10.50, 97 "
        "translations are the same\n"
    )
    assert (how["launcher"], config.cluster.num_workers, config.search.beam) == ("ray", 1, 5)


def test_translate(
    launched: Launched,
    run_uri: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = launched(5)
    texts = tmp_path / "in.txt"
    texts.write_text("ä b\nc!\n")
    out = tmp_path / "out.txt"
    assert main(["translate", run_uri, "--input", str(texts), "--output", str(out)]) == 0
    assert out.read_text(encoding="utf-8") == "Ä B\nC!\n"
    assert calls[-1][0] == TranslateStream()
    assert calls[-1][2]["lines"] == ["ä b", "c!"]
    told = "lines with more than 7 source tokens (search.max_source_tokens): 2, the first is line 3"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"x\n\ny!\nz!\n")))
    capsys.readouterr()
    options = ["--max-source-tokens", "7", "--too-long", "cut"]
    assert main(["translate", run_uri, "--step", "5", *options]) == 0
    assert calls[-1][0] == TranslateStream(5)
    assert (calls[-1][1].search.max_source_tokens, calls[-1][1].search.too_long) == (7, "cut")
    shown = capsys.readouterr()
    assert shown.out == "X\n\nY!\nZ!\n"
    assert told in shown.err
    assert main(["translate", run_uri, "--too-long", "refuse", "--input", str(texts)]) == 0
    assert calls[-1][1].search.too_long == "refuse"
    texts.write_text(f"{'a' * 128}\n{'b' * 999_999}\n")  # as much as workers look at, and a sign
    options = ["--max-source-tokens", "2", "--input", str(texts)]
    assert main(["translate", run_uri, *options]) == 0
    assert calls[-1][2]["lines"] == ["a" * 128, "b" * 129]
    capsys.readouterr()
    texts.write_text("a\x1b[2j\n")
    for is_terminal, said in ((False, "A\x1b[2J\n"), (True, "A\\x1b[2J\n")):
        monkeypatch.setattr(sys.stdout, "isatty", lambda found=is_terminal: found)
        assert main(["translate", run_uri, "--input", str(texts)]) == 0
        assert capsys.readouterr().out == said
    before = len(calls)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    assert main(["translate", run_uri]) == 0
    assert len(calls) == before
    assert capsys.readouterr().out == ""
    for command in ("evaluate", "translate"):  # before any worker is started
        assert main([command, run_uri, "--output", str(tmp_path / "gone" / "x")]) == 2
        assert "gone does not exist" in capsys.readouterr().err
    assert main(["translate", run_uri, "--input", str(tmp_path / "gone")]) == 2
    assert "gone: no such file" in capsys.readouterr().err
    assert len(calls) == before


def test_a_translation_that_fails_leaves_its_file_as_it_was(
    launched: Launched, run_uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    launched(5)
    texts, out = tmp_path / "in.txt", tmp_path / "out.txt"
    texts.write_bytes(b"a\nb\nc \xff\n")
    out.write_text("before\n")
    assert main(["translate", run_uri, "--input", str(texts), "--output", str(out)]) == 2
    assert f"{texts}, line 3: not valid UTF-8" in capsys.readouterr().err
    assert out.read_text() == "before\n"
    assert {path.name for path in tmp_path.iterdir() if "out" in path.name} == {"out.txt"}
    # On standard output all before it is there.
    assert main(["translate", run_uri, "--input", str(texts)]) == 2
    assert capsys.readouterr().out == "A\nB\n"


@pytest.mark.parametrize("of", ["a file", "a pipe", "standard input"])
@pytest.mark.parametrize("first", ["<!DOCTYPE html>", "<?xml version='1.0'?>"])
def test_a_page_is_translated_line_by_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str, of: str
) -> None:
    content = f"{first}\n<p>\n".encode()
    (tmp_path / "in.html").write_bytes(content)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    reading, writing = os.pipe()
    os.write(writing, content)
    os.close(writing)
    name = {"a file": f"{tmp_path}/in.html", "a pipe": f"/dev/fd/{reading}"}.get(of, "-")
    try:
        assert list(lines_from(name)) == [first, "<p>"]
    finally:
        os.close(reading)


def test_under_torchrun_a_translation_is_refused(
    launched: Launched, run_uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    calls, out = launched(5), tmp_path / "out.txt"
    out.write_text("before\n")
    for name, value in (("TORCHELASTIC_RUN_ID", "x"), ("LOCAL_RANK", "1"), ("RANK", "1")):
        monkeypatch.setenv(name, value)
    assert main(["translate", run_uri, "--input", str(out), "--output", str(out)]) == 2
    assert "call it without torchrun" in capsys.readouterr().err
    assert (out.read_text(), calls) == ("before\n", [])


def test_a_reader_that_has_seen_enough_ends_a_translation_quietly(
    launched: Launched, run_uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    launched(5)
    texts, out = tmp_path / "in.txt", tmp_path / "out"
    texts.write_text("a\n" * 20)
    os.mkfifo(out)
    read: list[str] = []

    def first() -> None:
        with out.open() as file:
            read.append(file.readline())

    reader = threading.Thread(target=first)
    reader.start()
    with patch("tests.unit.test_cli_runs.told", lambda: reader.join(30)):
        assert main(["translate", run_uri, "--input", str(texts), "--output", str(out)]) == 0
    assert read == ["A\n"]
    assert "Traceback" not in capsys.readouterr().err


def test_history(run_uri: str, launched: Launched, capsys: pytest.CaptureFixture[str]) -> None:
    launched(None)
    with MetricsLog(run_uri, 0) as log:
        log.write(1000, tokens_per_second=1234.6, step_seconds=0.06, epoch=2)
        log.write(1000, validation_loss=1.0, validation_perplexity=math.e)
        log.write(1000, validation_bleu=21.555, validation_chrf=1.0, scored_by="tok:13a")
        log.write(2000, validation_loss=1.0, validation_perplexity=2.0)
    assert main(["history", run_uri]) == 0
    *table, last = capsys.readouterr().out.splitlines()
    assert last == "BLEU is tok:13a"
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table]
    assert rows[0] == [
        "step", "epoch", "minutes in steps", "wall minutes", "tokens/s", "perplexity", "BLEU"
    ]  # fmt: skip
    assert rows[2] == ["1,000", "2", "1.0", "1.0", "1,235", "2.72", "21.55"]
    assert rows[3][:3] + rows[3][4:] == ["2,000", "2", "1.0", "nan", "2.00", ""]


def test_history_says_where_the_time_of_steps_went(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["history", told_run(tmp_path / "run", whole_course())]) == 0
    phases = capsys.readouterr().out.split("\n\n")[1].splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in phases]
    assert rows[2] == ["agreement", "10.0", "3.2%"]
    assert ["encoder", "100.0", "32.3%"] in rows
    assert rows[-1] == ["rest", "30.0", "9.7%"]
    assert main(["history", str(tmp_path / "run"), "--machine", "cpu"]) == 0
    *beside, machine = capsys.readouterr().out.split("\n\n")[1].splitlines()
    assert machine.startswith("planned for cpu (")
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in beside]
    assert [row[:3] for row in cells] == [
        row if set(row[0]) != {"-"} else cells[1][:3] for row in rows
    ]
    assert cells[0][3] == "planned, ms"
    (output,) = [row for row in cells if row[0] == "output"]  # of which the run has told nothing
    assert float(output[3]) > float(output[1]) == 0


def test_history_says_why_there_is_no_plan_beside_it(
    run_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["history", run_uri]) == 0
    assert "plan" not in capsys.readouterr().out
    assert main(["history", run_uri, "--machine", "cpu"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == (
        "no plan beside it: the run has told nothing of the phases of its steps"
    )


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prepared: Prepared) -> str:
    """A configuration whose run lies beside it and whose data are prepared already."""
    path = tmp_path / "c.yaml"
    values = {
        "run": {"uri": str(tmp_path / "trained")}, "train": {"max_steps": 9},
        "data": {"synthetic": {}, "uri": prepared.uri},
        "checkpoint": {"drain_seconds": 5.0}, "cluster": {"device": "cpu"},
    }  # fmt: skip
    path.write_text(yaml.safe_dump(values))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def ensure_data(
        config: Any, say: Callable[[str], None], *, executor_at: None, watch: Any,
        force: bool = False, renew: bool = False,
    ) -> Any:  # fmt: skip
        say(f"preparing {config.data.uri}, forced: {force}, renewed: {renew}")
        return prepared.data

    monkeypatch.setattr("dist_embed.data.preparation.ensure_data", ensure_data)
    return str(path)


def result(config: str, **changes: Any) -> TrainResult:
    found = TrainResult(
        run_uri=str(Path(config).parent / "trained"), data_folder="there", steps=9, resumed_at=0,
        stopped=False, skipped_steps=0, peak_memory_bytes=3 * 2**29,
    )  # fmt: skip
    return replace(found, **changes)


def test_train(
    launched: Launched, config: str, prepared: Prepared, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    checked: list[Any] = []
    monkeypatch.setattr(
        "dist_embed.run.folder.check_run_folder",
        lambda config, data, *, force: checked.append((config.run.uri, data, force)),
    )
    calls = launched(result(config))
    assert main(["train", config, "train.max_steps=7", "--launcher", "local", "--force",
                 "--profile", "3..5", "model.heads=2"]) == 0  # fmt: skip
    ahead, (task, configured, how) = calls
    assert ahead[:2] == ("ahead", "cpu")
    assert task == Train(
        prepared.uri, sentences=prepared.data.splits["train"].sentences, profile=(3, 5)
    )
    assert (configured.train.max_steps, configured.model.heads) == (7, 2)
    assert how == {
        "launcher": "local", "stop_seconds": 2 * 5.0 + 60.0,
        "vocabulary_size": prepared.data.vocabulary_size,
        "word_tables": prepared.data.word_tables,
    }  # fmt: skip
    assert checked == [(str(tmp_path / "trained"), prepared.data, True)]
    said = capsys.readouterr().out.splitlines()
    assert said == [
        f"preparing {prepared.uri}, forced: False, renewed: False", "Train begins",
        "trained 9 steps; peak memory of worker 0: 1.50 GiB",
    ]  # fmt: skip

    calls = launched(result(config))
    assert main(["train", config, "cluster.launcher=ray"]) == 0
    assert [call[0] for call in calls] == [
        Train(prepared.uri, sentences=prepared.data.splits["train"].sentences)
    ]  # nothing is forked here
    assert calls[0][2]["launcher"] is None
    assert checked[-1][-1] is False


@pytest.mark.parametrize("given", ["5", "5-7", "..7", "3..x", "-1..4"])
def test_steps_in_another_form_are_refused(
    config: str, given: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["train", config, f"--profile={given}"])
    assert ended.value.code == 2
    assert f"{given!r} is not allowed: two numbers, as 100..104" in capsys.readouterr().err


def test_what_a_training_has_done_is_told(
    launched: Launched, config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def told(answer: Any, code: int = 0) -> tuple[str, str]:
        launched(answer)
        capsys.readouterr()
        assert main(["train", config]) == code
        said = capsys.readouterr()
        return said.out.splitlines()[-1], said.err

    with MetricsLog(str(tmp_path / "trained"), 0) as log:
        for step, speed in ((3, 1000.0), (4, 10.0), (5, 30.4), (9, 20.0)):
            log.write(step, tokens_per_second=speed)
        log.write(9, validation_loss=1.0)
    assert told(result(config, resumed_at=3, skipped_steps=2))[0] == (
        "trained 6 steps at 20 target tokens/s, 2 skipped as not finite; "
        "peak memory of worker 0: 1.50 GiB"
    )
    line, _ = told(result(config, resumed_at=9))
    assert line == f"already trained: 9 steps in {tmp_path}/trained"
    line, complaint = told(result(config, steps=4, stopped=True), 143)
    assert line.startswith("trained 4 steps at 25 ")
    assert "stopped as asked after step 4; started again, the run goes on from there" in complaint
    line, _ = told(result(config, steps=4, resumed_at=4, stopped=True), 143)
    assert line == "Train begins"


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UserError("no such thing"), 2, "dist-embed: no such thing\n"),
        (StoreUnavailable("no answer"), 2, "dist-embed: no answer\n"),
        (FileNotFoundError(2, "No such file", "x"), 2, "No such file: 'x'"),
        (RunFailed("worker 1 failed"), 1, "dist-embed: worker 1 failed\n"),
        (RunStopped("stopped"), 143, "dist-embed: stopped\n"),
    ],
)
def test_errors_become_exit_codes(
    launched: Launched, run_uri: str, capsys: pytest.CaptureFixture[str],
    error: BaseException, code: int, said: str,
) -> None:  # fmt: skip
    launched(error)
    assert main(["evaluate", run_uri]) == code
    assert said in capsys.readouterr().err


def test_a_quickstart_that_was_asked_to_stop_in_its_last_step_ends_there(
    launched: Launched, config: str, prepared: Prepared, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    calls = launched({Train: result(config)})
    monkeypatch.setattr("dist_embed.cli.run.taken_signal", lambda: 15)
    assert main(["quickstart", config, "cluster.launcher=local"]) == 143
    assert [call[0] for call in calls] == [
        "ahead",
        Train(prepared.uri, sentences=prepared.data.splits["train"].sentences),
    ]
    assert "trained; stopped as asked before the test set" in capsys.readouterr().err


def test_quickstart(
    launched: Launched, config: str, prepared: Prepared, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    translations = [f"x{n}" for n in range(1, 131)]
    found = replace(QUALITY, translations=translations, data_folder=prepared.uri)
    calls = launched({Train: result(config), Evaluate: found})
    with MetricsLog(str(tmp_path / "trained"), 0) as log:
        log.write(9, tokens_per_second=1500.0)
    tokenizer = word_tokenizer(WORDS)
    for side in ("source", "target"):
        (tmp_path / "trained" / f"tokenizer.{side}.json").write_text(tokenizer.to_json())
    assert main(["quickstart", config, "cluster.launcher=local"]) == 0
    assert [call[0] for call in calls] == [
        "ahead", Train(prepared.uri, sentences=prepared.data.splits["train"].sentences),
        "ahead", Evaluate("test"),
    ]  # fmt: skip
    assert calls[-1][2] == {
        "launcher": "local", "vocabulary_size": {"source": 8, "target": 8}, "word_tables": False
    }  # fmt: skip
    said = capsys.readouterr().out
    for place, name in enumerate(("source", "reference")):
        found = [line for line in said.splitlines() if line.startswith(f"  {name} ")]
        assert found == [f"  {name:<12} {pair[place]}" for pair in prepared.pairs["test"][:2]]
    assert [line for line in said.splitlines() if "  translation" in line] == [
        "  translation  x1", "  translation  x2"
    ]  # fmt: skip
    assert TOLD in said
    assert "training: 1,500 target tokens/s\n" in said
    assert f"translate {tmp_path}/trained\n" in said
    assert f"run.uri={tmp_path}/trained-untied\n" in said


def test_config_shows_its_pages(
    config: str, launched: Launched, capsys: pytest.CaptureFixture[str]
) -> None:
    launched(None)
    shown = {}
    for name, arguments in {
        "show": ["show", config, "search.beam=9"], "schema": ["schema"],
        "reference": ["reference"], "keys": ["reference", "--study"],
    }.items():  # fmt: skip
        assert main(["config", *arguments]) == 0
        shown[name] = capsys.readouterr().out
    assert yaml.safe_load(shown["show"])["search"]["beam"] == 9
    assert json.loads(shown["schema"])["title"] == "Config"
    assert shown["reference"].startswith("# Configuration\n")
    assert "word_vectors" in shown["keys"]
    assert "word_vectors" not in shown["reference"]


def test_prepare(
    config: str, launched: Launched, prepared: Prepared, capsys: pytest.CaptureFixture[str]
) -> None:
    launched(None)
    sizes = ", ".join(f"{side} {size}" for side, size in prepared.data.vocabulary_size.items())
    for force in (False, True):
        assert main(["prepare", config, *(["--force"] if force else [])]) == 0
        assert capsys.readouterr().out.splitlines() == [
            f"preparing {prepared.uri}, forced: {force}, renewed: True",
            f"prepared in {prepared.uri}; vocabulary: {sizes}",
        ]


@pytest.mark.parametrize(
    "arguments", [["evaluate", "x", "y=1"], ["train", "c.yaml", "--bogus"], ["prepare"]]
)
def test_what_no_command_takes_is_refused(
    arguments: list[str], launched: Launched, capsys: pytest.CaptureFixture[str]
) -> None:
    launched(None)
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage: dist-embed" in capsys.readouterr().err
