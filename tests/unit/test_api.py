"""The functions behind commands and scripts, with workers that give a fixed result."""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

from dist_embed.api.data import prepare
from dist_embed.api.given import profile_given
from dist_embed.api.inference import config_to_use, evaluate, translate
from dist_embed.api.trained_run import open_run
from dist_embed.api.training import train
from dist_embed.config.load import config_from_dict, load_config
from dist_embed.config.schema import Config
from dist_embed.data.settings import DataSection, SyntheticSection
from dist_embed.errors import RunFailed, UserError
from dist_embed.observe.events import Reporter
from dist_embed.run.folder import read_run_config
from dist_embed.run.metrics import MetricsLog
from dist_embed.training.results import TrainingStopped, TrainResult
from dist_embed.training.tasks import Evaluate, Train
from tests.unit.clock import Clock
from tests.unit.small_corpus import Prepared
from tests.unit.small_run import small_run, word_tokenizer


class Workers:
    """In the place of `launch`: what was asked, and what is answered."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[tuple[Any, Config, dict[str, Any]]] = []
        self.ahead: list[str] = []
        self.answer: Any = None
        self.starts: list[tuple[int, int]] = []  # the steps that workers went on from, and skipped
        monkeypatch.setattr("dist_embed.cluster.launch.launch", self.launch)
        monkeypatch.setattr("dist_embed.cluster.fork_server.start_ahead", self.ahead.append)
        monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def launch(self, task: Any, config: Config, **how: Any) -> Any:
        on_event = how.pop("on_event")
        on_event({"kind": "line", "text": "working"})
        for start in self.starts:
            Reporter(on_event).begins(*start)
        self.asked.append((task, config, how))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> Workers:
    return Workers(monkeypatch)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prepared: Prepared) -> Config:
    """Of a run, named by a relative path, whose data are prepared."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "dist_embed.data.preparation.ensure_data",
        lambda config, say, *, executor_at, watch, **how: (
            say(f"preparing {config.data.uri} {how}") or prepared.data
        ),
    )
    return config_from_dict(
        {"run": {"uri": "run"}, "data": {"synthetic": {}, "uri": "data"}, "train": {"max_steps": 9},
         "cluster": {"device": "cpu", "launcher": "ray"}}
    )  # fmt: skip


def result(run_uri: Path, **changes: Any) -> TrainResult:
    return replace(TrainResult(str(run_uri), "there", 9, 4, False, 0, 7), **changes)


def test_a_training_prints_and_gives_what_it_has_done(
    workers: Workers, config: Config, prepared: Prepared, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    with MetricsLog(str(tmp_path / "run"), 0) as log:
        log.write(3, tokens_per_second=1000.0)
        log.write(6, tokens_per_second=10.0)
    workers.answer = result(tmp_path / "run")
    assert train(config, launcher="local") == result(tmp_path / "run", tokens_per_second=10.0)
    ((task, used, how),) = workers.asked
    assert task == Train(prepared.uri, sentences=prepared.data.splits["train"].sentences)
    assert (used.run.uri, used.data.uri) == (str(tmp_path / "run"), str(tmp_path / "data"))
    assert how == {
        "vocabulary_size": prepared.data.vocabulary_size, "launcher": "local",
        "word_tables": prepared.data.word_tables, "stop_seconds": 180.0,
    }  # fmt: skip
    assert workers.ahead == ["cpu"]
    said = capsys.readouterr()
    assert said.out == f"preparing {tmp_path}/data {{}}\nworking\n"
    assert said.err == ""
    train(config)
    assert workers.asked[-1][2]["launcher"] is None
    assert len(workers.ahead) == 1  # with Ray nothing is forked here


def test_of_workers_that_were_started_again_the_first_start_counts(
    workers: Workers, config: Config, tmp_path: Path
) -> None:
    """What a command has trained is more than what its last workers have."""
    with MetricsLog(str(tmp_path / "run"), 0) as log:
        for step, speed in ((2, 1.0), (3, 1000.0), (4, 1000.0), (6, 10.0)):
            log.write(step, tokens_per_second=speed)
    workers.answer = result(tmp_path / "run", skipped_steps=1)
    workers.starts = [(2, 5), (4, 7)]
    done = train(config, on_event=lambda event: None)
    assert (done.resumed_at, done.skipped_steps, done.tokens_per_second) == (2, 3, 1000.0)
    workers.starts = []  # a worker of torchrun that is told nothing
    done = train(config, on_event=lambda event: None)
    assert (done.resumed_at, done.skipped_steps, done.tokens_per_second) == (4, 1, 10.0)


def test_a_training_that_was_asked_to_stop_raises_and_tells_what_it_has_done(
    workers: Workers, config: Config, tmp_path: Path
) -> None:
    workers.answer = result(tmp_path / "run", steps=5, stopped=True)
    with pytest.raises(
        TrainingStopped, match="stopped as asked after step 5; started again, the run goes on"
    ) as caught:
        train(config, on_event=lambda event: None)
    assert caught.value.result == workers.answer
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.result) == (str(caught.value), workers.answer)
    workers.answer = RunFailed("worker 0 failed")
    with pytest.raises(RunFailed, match="worker 0 failed"):
        train(config, on_event=lambda event: None)
    workers.answer = result(tmp_path / "run")
    train(config, on_event=lambda event: None)  # the run's folder is free again


def test_where_a_run_cannot_be_written_nothing_is_prepared(
    workers: Workers, config: Config, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def refuse(uri: str, data: bytes) -> None:
        raise PermissionError("Access Denied")  # all that a store's client says

    monkeypatch.setattr("dist_embed.storage.uri.write_bytes", refuse)
    with pytest.raises(UserError, match=r"^run\.uri: '.*/run' .* written there: Access Denied$"):
        train(config)
    assert capsys.readouterr().out == ""
    assert workers.asked == []


def test_a_store_that_is_away_from_the_start_is_waited_for_as_is_said(
    workers: Workers, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr("dist_embed.storage.retry.time", clock)

    def away(*_: Any, **__: Any) -> None:
        raise ConnectionError("away")

    checkpoint = config.checkpoint.model_copy(update={"retry_seconds": 7.0})
    run = config.run.model_copy(update={"uri": "memory://away/run"})
    impatient = config.model_copy(update={"checkpoint": checkpoint, "run": run})
    for call, said in (
        ("pipe_file", r"^run\.uri: .* within 7 s; the last .*: away$"),
        ("ls", "^could not list manifests in .* within 7 s"),
    ):
        clock.now = 0.0
        with monkeypatch.context() as patched:
            patched.setattr(MemoryFileSystem, call, away)
            with pytest.raises(UserError, match=said):
                train(impatient)
        assert 0 < clock.now < 10


def test_vectors_that_cannot_be_read_are_told_before_anything_is_prepared(
    workers: Workers, config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    workers.answer = result(tmp_path / "run")
    values = config.model_dump()
    values["embedding"]["tables"] = {"source": {"pretrained": {"uri": "v.txt"}}}
    (tmp_path / "v.txt").write_text("no vectors\n")
    with pytest.raises(UserError, match=r"/v\.txt: expected lines of a word and numbers"):
        train(Config.model_validate(values))
    assert capsys.readouterr().out == ""
    assert workers.asked == []
    # What goes on has its rows in the checkpoint.
    monkeypatch.setattr("dist_embed.checkpoint.catalogue.list_steps", lambda uri: [2])
    train(Config.model_validate(values), on_event=lambda event: None)
    assert len(workers.asked) == 1


def test_steps_to_be_recorded_are_given_to_the_workers(
    workers: Workers, config: Config, prepared: Prepared, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    workers.answer = result(tmp_path / "run")
    monkeypatch.setattr("dist_embed.checkpoint.catalogue.list_steps", lambda uri: [2, 4])
    train(config, profile=(5, 9), on_event=lambda event: None)
    assert workers.asked[0][0] == Train(
        prepared.uri, sentences=prepared.data.splits["train"].sentences, profile=(5, 9)
    )
    with pytest.raises(UserError, match=r"steps 4 to 6 cannot be .*has a checkpoint of step 4, "):
        train(config, profile=(4, 6), on_event=lambda event: None)


@pytest.mark.parametrize(
    ("given", "said"),
    [((0, 3), "the first step: 0 is not allowed: a whole number in 1 … 9"),
     ((5, 4), "the last step: 4 is not allowed: a whole number in 5 … 9"),
     ((3, 10), "the last step: 10 is not allowed: a whole number in 3 … 9"),
     ((1.5, 2), "the first step: 1.5 is not"), ("3..4", "'3..4' is not allowed: the first and")],
)  # fmt: skip
def test_steps_that_cannot_be_recorded_are_refused(
    workers: Workers, config: Config, given: Any, said: str
) -> None:
    with pytest.raises(UserError, match=f"^profile: {re.escape(said)}"):
        train(config, profile=given)
    assert workers.asked == workers.ahead == []


def test_no_more_steps_are_recorded_than_memory_holds() -> None:
    assert profile_given([7, 106], 1000) == (7, 106)
    with pytest.raises(UserError, match=r"the last step: 107 .* in 7 … 106"):
        profile_given((7, 107), 1000)


@pytest.mark.parametrize("rank", [0, 1])
def test_under_torchrun_one_process_prepares_and_each_is_a_worker(
    workers: Workers, config: Config, prepared: Prepared, monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path, rank: int,
) -> None:  # fmt: skip
    for name, value in (("TORCHELASTIC_RUN_ID", "x"), ("LOCAL_RANK", "0"), ("RANK", str(rank))):
        monkeypatch.setenv(name, value)
    workers.answer = result(tmp_path / "run")
    lines: list[str] = []
    found = train(config, launcher="local", on_event=lambda event: lines.append(event["text"]))
    ((task, _, how),) = workers.asked
    assert task == (
        Train() if rank else Train(prepared.uri, sentences=prepared.data.splits["train"].sentences)
    )
    assert how["vocabulary_size"] == ({} if rank else prepared.data.vocabulary_size)
    before = [] if rank else [f"preparing {tmp_path}/data {{}}"]
    assert lines == [*before, "working"]
    assert found == workers.answer
    assert workers.ahead == []


def test_data_are_prepared_as_asked(
    config: Config, prepared: Prepared, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare(config) is prepared.data
    prepare(config, force=True, renew=False)
    assert capsys.readouterr().out == "".join(
        f"preparing {tmp_path}/data {how}\n"
        for how in ({"force": False, "renew": True}, {"force": True, "renew": False})
    )


def test_a_run_is_used_by_its_folder_or_by_a_configuration_as_it_is(
    workers: Workers, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    tokenizer = word_tokenizer(["a", "b"])
    run = small_run(
        tmp_path, {"source": tokenizer, "target": tokenizer}, {"shared": torch.zeros(6, 4)},
        share="all", settings={"cluster": {"num_workers": 3, "device": "cpu", "launcher": "ray"}},
    )  # fmt: skip
    trained = read_run_config(run)
    evaluate(run, split="validation", step=5, against_exact=True)
    evaluate(trained, training_tokens=7, data_folder=Path("there"))
    (first, by_folder, local), (second, as_it_is, how) = workers.asked
    assert first == Evaluate("validation", 5, None, True)
    assert second == Evaluate("test", None, 7, False, str(Path("there").absolute()))
    sizes = {"source": 6, "target": 6}
    given = {"vocabulary_size": sizes, "word_tables": False, "feed": None}
    assert local == given | {"launcher": "local"}
    assert how == given | {"launcher": None}
    # On this machine, whatever has trained it, without an optimizer's states.
    assert (by_folder.cluster.device, by_folder.embedding.optimizer) == ("auto", "sgd")
    assert as_it_is == trained
    assert workers.ahead == ["auto"]
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "working\nworking\n")
    monkeypatch.chdir(tmp_path)
    evaluate(trained.model_copy(update={"run": trained.run.model_copy(update={"uri": "run"})}))
    assert workers.asked[-1][1] == trained


def test_another_launcher_is_refused_before_anything_is_done(
    workers: Workers, config: Config, tmp_path: Path
) -> None:
    run = one_word_run(tmp_path / "other")
    calls: list[Callable[[Any], Any]] = [
        lambda launcher: train(config, launcher=launcher),
        lambda launcher: evaluate(config, launcher=launcher),
        lambda launcher: evaluate(run, launcher=launcher),
        lambda launcher: translate(run, ["a"], launcher=launcher),
    ]
    for call in calls:
        with pytest.raises(
            UserError, match=r"^launcher: 'spark' is not allowed: one of auto, local, ray$"
        ):
            call("spark")
    assert (workers.asked, workers.ahead) == ([], [])
    assert not (tmp_path / "run").exists()


def test_what_cannot_be_called_or_is_no_step_is_refused_before_anything_is_done(
    workers: Workers, config: Config, tmp_path: Path
) -> None:
    run = one_word_run(tmp_path / "other")
    opened: Any = open_run(run)
    some: Any = evaluate
    lines: Any = translate
    calls: list[Callable[[Any], Any]] = [
        lambda f: train(config, on_event=f), lambda f: prepare(config, on_event=f),
        lambda f: evaluate(run, on_event=f), lambda f: translate(run, ["a"], on_event=f),
        lambda f: translate(run, [], on_event=f), lambda f: opened.translate(["a"], on_event=f),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(UserError, match=r"^on_event: 'print' is not allowed: a function$"):
            call("print")
    with pytest.raises(UserError, match=r"^say: 3 is not allowed: a function$"):
        load_config(tmp_path / "none.yaml", say=3)  # type: ignore[arg-type]
    for step in ("10", 1.5, True, 0):
        said = f"^step: {step!r} is not allowed: a whole number, at least 1$"
        for ask in (lambda step: some(run, step=step), lambda step: lines(run, ["a"], step=step),
                    lambda step: opened.translate(["a"], step=step)):  # fmt: skip
            with pytest.raises(UserError, match=said):
                ask(step)
    assert (workers.asked, workers.ahead) == ([], [])
    assert not (tmp_path / "run").exists()
    some(run, step=np.int64(5))
    assert workers.asked[-1][0].step == 5


def test_the_caller_s_environment_is_as_before(
    workers: Workers, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    before, seen = os.environ.copy(), []

    def look(event: Any) -> None:
        seen.append(os.environ["TOKENIZERS_PARALLELISM"])

    workers.answer = result(tmp_path / "run")
    train(config, on_event=look)
    evaluate(one_word_run(tmp_path / "other"), on_event=look)
    workers.answer = RunFailed("worker 0 failed")
    with pytest.raises(RunFailed):
        train(config, on_event=look)
    assert set(seen) == {"true"}
    assert os.environ == before


def test_a_working_directory_that_was_removed_is_told(
    workers: Workers, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = one_word_run(tmp_path / "other")
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    calls: list[Callable[[], Any]] = [
        lambda: train(config), lambda: prepare(config), lambda: evaluate(run),
        lambda: translate(run, ["a"]), lambda: open_run("run"),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(UserError, match=r"^the working directory has been removed: go to"):
            call()
    assert workers.asked == []
    monkeypatch.chdir(tmp_path)


def test_what_is_no_configuration_is_refused(workers: Workers) -> None:
    for call in (train, prepare):
        for wrong in ("c.yaml", Path("c.yaml"), None, {"train": {}}):
            with pytest.raises(
                UserError, match=r"^config: .* is not allowed: a dist_embed\.Config"
            ):
                call(wrong)  # type: ignore[arg-type, operator]
    with pytest.raises(UserError, match=r"'c\.yaml' .*: dist_embed\.load_config reads a file$"):
        train("c.yaml")  # type: ignore[arg-type]
    assert workers.asked == []


def test_settings_that_cannot_work_together_are_refused(workers: Workers) -> None:
    made = Config(run={"uri": "run"}, train={"max_steps": 9})
    calls: list[Callable[[Config], Any]] = [train, prepare, evaluate, lambda c: translate(c, ["a"])]
    for call in calls:
        with pytest.raises(UserError, match=r"^data\.train: missing; "):
            call(made)
    made = Config(
        run={"uri": "run"}, data={"train": {"pairs": "a.tsv"}},
        train={"max_steps": 9, "translate_every": 2},
    )  # fmt: skip
    for call in (train, prepare):
        with pytest.raises(UserError, match=r"^train\.translate_every: 2 is not allowed without"):
            call(made)
    with pytest.raises(UserError, match="has no tokenizer"):  # as a run that there is may have it
        evaluate(made)
    assert not workers.asked


def test_a_changed_configuration_is_checked_as_a_file_is(
    workers: Workers, config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[Callable[[Config], Any]] = [train, prepare, evaluate, lambda c: translate(c, ["a"])]
    steps = config.train.model_copy(update={"max_steps": 0})
    for changed, said in (
        (
            {"model": {"widht": 64}},
            "model.widht: unknown key (value 64); did you mean 'model.width'?",
        ),
        ({"modell": {}}, "modell: unknown key (value {}); did you mean 'model'?"),
        ({"train": steps}, "train.max_steps: 0 is not allowed: input should be"),
        ({"train": None}, "train.max_steps: missing"),
    ):
        for call in calls:
            with pytest.raises(UserError, match=f"^config: {re.escape(said)}"):
                call(config.model_copy(update=changed))
    reference = DataSection(synthetic=SyntheticSection(), uri="${run.uri}/there")
    for call in calls:
        with pytest.raises(UserError, match=r"^data\.uri: '\$\{run\.uri\}/there' is not allowed"):
            call(config.model_copy(update={"data": reference}))
    assert not workers.asked
    # Data lie in the run's folder, as a file would have it, and a section may be a dictionary.
    changes: dict[str, Any] = {
        "data": DataSection(synthetic=SyntheticSection()), "model": {"width": 64},
    }  # fmt: skip
    workers.answer = result(tmp_path / "run")
    train(config.model_copy(update=changes))
    used = workers.asked[-1][1]
    assert (used.data.uri, used.model.width) == (str(tmp_path / "run" / "data"), 64)
    assert f"preparing {tmp_path}/run/data" in capsys.readouterr().out


def test_a_run_may_be_given_as_a_path_or_opened(workers: Workers, tmp_path: Path) -> None:
    run = one_word_run(tmp_path)
    for given in (run, Path(run), open_run(run)):
        evaluate(given)
        assert workers.asked.pop()[1].run.uri == run
    for wrong in (None, 3, "", b"run", [run]):
        with pytest.raises(UserError, match=r"^run: .* is not allowed: a path or URL"):
            evaluate(wrong)  # type: ignore[arg-type]
    assert workers.asked == []


def test_lines_are_several_and_text(workers: Workers, tmp_path: Path) -> None:
    run = one_word_run(tmp_path)
    translate(run, (line for line in ["a", "a a"]))
    assert workers.asked.pop()[0].lines == ["a", "a a"]
    for lone in ("the mabru", ""):
        with pytest.raises(UserError, match=f"^lines: '{lone}' is not allowed: a list of str: put"):
            translate(run, lone)
    for wrong in (None, 3, b"a", np.array("a")):
        with pytest.raises(UserError, match=r"^lines: .* is not allowed: a list of str$"):
            translate(run, wrong)  # type: ignore[arg-type]
    with pytest.raises(
        UserError, match=r"^lines\[1\]: .* is not allowed: it has half of a character$"
    ):
        translate(run, ["a", "\ud800"])
    with pytest.raises(UserError, match=r"^lines\[1\]: 2 is not allowed: str$"):
        translate(run, ["a", 2])  # type: ignore[list-item]
    assert workers.asked == []


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"workers": 0}, "workers: 0 is not allowed: a whole number in 1 … 100,000"),
     ({"workers": "2"}, "workers: '2' is not allowed: a whole number in 1 … 100,000"),
     ({"workers": 10**8}, "workers: 100000000 is not allowed: a whole number in 1 … 100,000"),
     ({"beam": 0}, "beam: 0 is not allowed: a whole number in 1 … 1,000"),
     ({"beam": True}, "beam: True is not allowed: a whole number in 1 … 1,000"),
     ({"beam": 10**9}, "beam: 1000000000 is not allowed: a whole number in 1 … 1,000"),
     ({"beam": "auto"}, "beam: 'auto' is not allowed: a whole number in 1 … 1,000"),
     ({"candidates": -1},
      "candidates: -1 is not allowed: a whole number in 0 … 1,000,000,000,000"),
     ({"max_source_tokens": 10**13},
      "max_source_tokens: 10000000000000 is not allowed: a whole number in 1 … 1,000,000,000,000"),
     ({"replace_unknown": "foo"},
      "replace_unknown: 'foo' is not allowed: one of no, copy, lexicon")],
)  # fmt: skip
def test_settings_of_the_search_are_called_as_a_script_calls_them(
    tmp_path: Path, settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=f"^{said}$"):
        config_to_use(one_word_run(tmp_path), **settings)


def test_a_run_of_a_range_of_workers_may_be_used_by_any_of_them(tmp_path: Path) -> None:
    run = one_word_run(tmp_path, cluster={"num_workers": {"min": 2, "max": 8}})
    cluster = config_to_use(run).cluster
    assert (cluster.min_workers, cluster.max_workers) == (2, 8)
    assert config_to_use(run, workers=3).cluster.num_workers == 3


def one_word_run(folder: Path, **settings: Any) -> str:
    tokenizer = word_tokenizer(["a"])
    both = {"source": tokenizer, "target": tokenizer}
    return small_run(folder, both, {"shared": torch.zeros(5, 4)}, share="all", settings=settings)


def test_a_run_without_tokenizer_cannot_be_used(
    workers: Workers, config: Config, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=f"the run {tmp_path}/run has no tokenizer: "):
        translate(config, ["a"])
    assert workers.asked == []
