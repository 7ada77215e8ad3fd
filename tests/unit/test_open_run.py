"""A run opened by `dist_embed.open_run` gives what `explore` finds."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dist_embed.api.trained_run import CheckpointInfo, open_run
from dist_embed.checkpoint.catalogue import open_checkpoints
from dist_embed.config.load import config_from_dict
from dist_embed.errors import UserError
from dist_embed.explore.nearest import analogy, neighbors
from dist_embed.explore.table import RunTable
from dist_embed.run.folder import read_run_config
from dist_embed.run.metrics import MetricsLog
from dist_embed.training.results import Translations
from dist_embed.training.tasks import Translate
from tests.unit.small_run import small_run, word_tokenizer

WORDS = [f"w{number}" for number in range(30)]


@pytest.fixture
def vectors() -> Tensor:
    torch.manual_seed(3)
    return torch.randn(34, 8)


@pytest.fixture
def run(tmp_path: Path, vectors: Tensor) -> str:
    tokenizer = word_tokenizer(WORDS)
    return small_run(
        tmp_path, {"source": tokenizer, "target": tokenizer}, {"shared": vectors}, share="all",
        settings={"cluster": {"num_workers": 3}},
    )  # fmt: skip


def test_where_there_is_no_run_it_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run in"):
        open_run(str(tmp_path))


def test_its_configuration_metrics_and_checkpoints(
    run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with MetricsLog(run, 0) as log:
        log.write(2, loss=1.5, epoch=1)
        log.write(2, validation_loss=1.25)
        log.write(4, loss=1, epoch=1, scored_by="how")
    monkeypatch.chdir(tmp_path)
    opened = open_run("run")
    assert opened.uri == run
    assert repr(opened) == f"open_run({run!r})"
    assert opened.config == read_run_config(run)
    table = opened.metrics()
    assert table.column_names == ["step", "time", "loss", "epoch", "validation_loss", "scored_by"]
    assert table["step"].to_pylist() == [2, 2, 4]
    assert table["loss"].to_pylist() == [1.5, None, 1.0]
    assert table["validation_loss"].to_pylist() == [None, 1.25, None]
    assert table["scored_by"].to_pylist() == [None, None, "how"]
    assert list(table.to_pandas()["step"]) == [2, 2, 4]
    (found,) = opened.checkpoints()
    assert isinstance(found, CheckpointInfo)
    assert (found.step, found.validation_loss) == (5, None)
    assert found.size_bytes > 34 * 8 * 4


def test_a_run_that_has_saved_and_measured_nothing_yet(run: str) -> None:
    store = open_checkpoints(run)
    for name in store.names("manifests"):
        (Path(run) / "checkpoints" / "manifests" / name.split("/")[-1]).unlink()
    assert open_run(run).checkpoints() == []
    assert open_run(run).metrics().num_rows == 0


def test_metrics_that_no_run_writes_are_damage(run: str) -> None:
    for odd in ('"text"', "[1]", "1" * 30):
        lines = f'{{"step": 1, "loss": 1.5}}\n{{"step": 2, "loss": {odd}}}\n'
        (Path(run) / "metrics.jsonl").write_text(lines)
        with pytest.raises(UserError, match=r"metrics.jsonl is damaged: 'loss' has no column"):
            open_run(run).metrics()


def test_its_words_and_vectors(run: str, vectors: Tensor, tmp_path: Path) -> None:
    words = open_run(run).table("target", step=5)
    table = RunTable(run, "target", 5)
    assert (len(words), words.width, words.step) == (34, 8, 5)
    assert repr(words) == "34 target words × 8 of step 5"
    assert "w3" in words
    assert "x" not in words
    assert 3 not in words
    assert words.neighbors("w3", 4) == neighbors(table, ["w3"], 4)["w3"]
    assert len(words.neighbors("w3")) == 10
    assert words.analogy("w1", "w2", "w3", 2) == analogy(table, "w1", "w2", "w3", 2)
    found = words.vectors(["w7", "w3", "w7"])
    assert found.dtype == np.float32
    ids = [table.id_of(word) for word in ("w7", "w3", "w7")]
    np.testing.assert_array_equal(found, vectors[ids].numpy())
    assert words.frequent_words(0) == []
    assert words.frequent_words(3) == [table.word(i) for i in table.frequent_ids(3)]
    with pytest.raises(UserError, match="'x' is not in the target vocabulary"):
        words.vectors(["x"])
    (file,) = words.export(str(tmp_path / "v.txt"), "word2vec")
    assert Path(file).read_text().startswith("34 8\n")


def test_wrong_arguments_get_one_message(run: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("")
    words = open_run(Path(run)).table()
    calls: list[tuple[Callable[[], Any], str]] = [
        (lambda: open_run(""), "run: '' is not allowed: a path or URL"),
        (lambda: open_run(None), "run: None is not allowed: a path or URL"),  # type: ignore[arg-type]
        (lambda: open_run("a\0b"), r"run: 'a\x00b' is not allowed: no path holds such characters"),
        (lambda: open_run("a\ud800"), r"run: 'a\ud800' is not allowed: no path holds"),
        *(
            (lambda step=step: open_run(run).table(step=step),
             f"step: {step!r} is not allowed: a whole number, at least 1")
            for step in ("10", 1.5, True, 0)
        ),
        *(
            (call, f"word: {word!r} is not allowed: {why}")
            for word, why in (
                ("", "there is nothing in it"), (" ", "there is nothing in it"),
                ("<unk>", "a special token"),
            )
            for call in (
                lambda word=word: words.neighbors(word),
                lambda word=word: words.analogy("w1", "w2", word),
                lambda word=word: words.vectors(["w1", word]),
            )
        ),
        (lambda: words.neighbors("\ud800"), r"word: '\ud800' is not allowed: it has half of a"),
        (lambda: words.analogy("\ud800", "w1", "w2"), r"word: '\ud800' is not allowed: it has"),
        (lambda: words.vectors(["\ud800"]), r"words[0]: '\ud800' is not allowed: it has half of a"),
        (lambda: words.neighbors("w3\0"), r"'w3\x00' is not in the source vocabulary"),
        (lambda: open_run(tmp_path / "README.md"), "that is a file, and a run is a folder"),
        (lambda: open_run(run).table("decoder"),  # type: ignore[arg-type]
         "role: 'decoder' is not allowed: one of source, target, output"),
        (lambda: words.vectors("w3"), "words: 'w3' is not allowed: a list of str: put it"),
        (lambda: words.vectors([3]), "words[0]: 3 is not allowed: str"),  # type: ignore[list-item]
        (lambda: words.neighbors(["w3"]), "word: ['w3'] is not allowed: one word"),  # type: ignore[arg-type]
        (lambda: words.neighbors("w3", -1), "count: -1 is not allowed: a whole number, at least 1"),
        (lambda: words.neighbors("w3", 2.5), "count: 2.5 is not allowed"),  # type: ignore[arg-type]
        (lambda: words.analogy("w1", 5, "w2"), "b: 5 is not allowed: one word"),  # type: ignore[arg-type]
        (lambda: words.analogy("w1", "w2", "w3", 0), "count: 0 is not allowed"),
        (lambda: words.frequent_words(-1), "count: -1 is not allowed: a whole number, at least 0"),
    ]  # fmt: skip
    for call, said in calls:
        with pytest.raises(UserError, match=re.escape(said)):
            call()
    assert not {"", "<unk>", "\ud800"} & {word for word in ("", "<unk>", "\ud800") if word in words}
    assert open_run(run).table(step=np.int64(5)).step == 5  # type: ignore[arg-type]
    assert words.frequent_words(0) == []
    assert words.neighbors("w3", np.int64(2)) == words.neighbors("w3", 2)  # type: ignore[arg-type]


def test_a_file_that_cannot_be_written_is_refused_before_the_work(
    run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = open_run(run).table()
    (tmp_path / "file").write_text("kept")
    os.mkfifo(tmp_path / "fifo")
    with monkeypatch.context() as without:
        without.setattr(words._table, "strips", lambda: pytest.fail("read"))
        for output, said in (
            (tmp_path, "that is a folder"),
            (tmp_path / "none" / "v.txt", f"the folder {tmp_path}/none does not exist"),
            (tmp_path / "file" / "v.txt", f"the folder {tmp_path}/file does not exist"),
            (tmp_path / "fifo", "not a regular file"),
            (Path("/proc/v.txt"), "nothing can be written there"),
        ):
            with pytest.raises(
                UserError, match=re.escape(f"output: {str(output)!r} is not allowed: {said}")
            ):
                words.export(output, "word2vec")
        with pytest.raises(
            UserError, match=r"^format: 'word3vec' is not allowed: one of word2vec, word2vec-"
        ):
            words.export(tmp_path / "v", "word3vec")  # type: ignore[arg-type]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fifo", "file", "run"]
    words.export(tmp_path / "file", "word2vec")  # is replaced
    assert (tmp_path / "file").read_text().startswith("34 8\n")


def test_it_is_read_from_a_url(run: str) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.put(run, "/bucket/run", recursive=True)
    try:
        words = open_run("memory://bucket/run").table()
        assert words.neighbors("w3") == open_run(run).table().neighbors("w3")
    finally:
        memory.rm("/bucket", recursive=True)


def test_it_translates_as_the_command_does(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    events: list[Any] = []

    def launch(task: Any, config: Any, **how: Any) -> Translations:
        how["on_event"]("an event")
        asked.append((task, config, how))
        return Translations(5, ["x"])

    monkeypatch.setattr("dist_embed.cluster.launch.launch", launch)
    monkeypatch.setattr("dist_embed.cluster.fork_server.start_ahead", lambda device: None)
    opened = open_run(run)
    found = opened.translate(
        ["a"], step=5, workers=1, beam=7, max_source_tokens=9, too_long="refuse",
        on_event=events.append,
    )  # fmt: skip
    assert (list(found), len(found), found.step) == (["x"], 1, 5)
    ((task, config, how),) = asked
    assert task == Translate(["a"], 5)
    assert (config.cluster.num_workers, config.search.beam) == (1, 7)
    assert (config.search.max_source_tokens, config.search.too_long) == (9, "refuse")
    assert (how["launcher"], how["vocabulary_size"]) == ("local", {"source": 34, "target": 34})
    assert events == ["an event"]
    assert isinstance(found, Sequence)
    assert (found[0], found[-1:], found.index("x"), "x" in found) == ("x", ["x"], 0, True)
    assert opened.translate([]) == Translations(None, [])
    with pytest.raises(UserError, match=r"^beam: 1000000000 is not allowed: .* in 1 … 1,000$"):
        opened.translate(["a"], beam=10**9)
    assert len(asked) == 1
    assert config_from_dict(opened.config.model_dump()).cluster.num_workers == 3
