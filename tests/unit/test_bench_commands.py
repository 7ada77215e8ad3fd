"""``dist-embed bench`` in this process: what is asked of a measurement, and how it is told."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from dist_embed.bench import balance, run_memory
from dist_embed.bench.balance import asked_of_shards, expected_of_shards
from dist_embed.bench.batch_balance import LognormalBlocks
from dist_embed.bench.export import EngineFigures
from dist_embed.bench.report import machine
from dist_embed.bench.run_memory import RunPeaks
from dist_embed.bench.tasks import Baseline, PhaseCost, ProfileSteps
from dist_embed.bench.vocabulary import Report
from dist_embed.bench.vocabulary_cases import FULL, SAMPLED, SPARSE, Case
from dist_embed.bench.workers import Say
from dist_embed.cli.main import build_parser, main
from dist_embed.cli.table import print_table
from dist_embed.data.proof import FileInfo
from dist_embed.data.token_shards import PreparedData, ShardInfo, Split, write_shard
from dist_embed.observe.plot import plot_into
from dist_embed.training.results import Evaluation
from dist_embed.training.tasks import Evaluate
from tests.unit.printed_tables import cells
from tests.unit.small_corpus import Prepared
from tests.unit.small_run import small_run, word_tokenizer

GIB = 2**30
Asked = list[tuple[tuple[Any, ...], dict[str, Any]]]
Instead = Callable[[str, Any], Asked]


@pytest.fixture
def instead(monkeypatch: pytest.MonkeyPatch) -> Instead:
    """Puts a fixed answer in a function's place; what it was asked comes back."""
    monkeypatch.setattr("dist_embed.observe.quiet.quiet_screen", lambda: None)

    def put(name: str, answer: Any) -> Asked:
        asked: Asked = []

        def answering(*given: Any, **options: Any) -> Any:
            asked.append((given, options))
            return answer

        monkeypatch.setattr(f"dist_embed.{name}", answering)
        return asked

    return put


@pytest.fixture
def config(tmp_path: Path, instead: Instead, prepared: Prepared) -> str:
    """A configuration whose data are prepared."""
    path = tmp_path / "c.yaml"
    values = {
        "run": {"uri": str(tmp_path / "run")}, "train": {"max_steps": 9},
        "data": {"synthetic": {}, "uri": prepared.uri}, "cluster": {"device": "cpu"},
    }  # fmt: skip
    path.write_text(yaml.safe_dump(values))
    instead("data.preparation.ensure_data", prepared.data)
    return str(path)


def written(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text())
    assert set(content) == {"command", "machine", "figures"}
    return content


def given_to(command: str) -> dict[str, Any]:
    values = vars(build_parser().parse_args(["bench", *command.split()]))
    return {name: value for name, value in values.items()
            if name not in ("command", "kind", "call", "output")}  # fmt: skip


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("baseline c.yaml", {"config": "c.yaml", "overrides": [], "rounds": 5, "steps": 20,
                             "compile": False}),
        ("baseline c.yaml --rounds 1 --compile", {
            "config": "c.yaml", "overrides": [], "rounds": 1, "steps": 20, "compile": True}),
        ("launchers c.yaml", {"config": "c.yaml", "overrides": [], "rounds": 3, "steps": 100}),
        ("launchers c.yaml --rounds 1 --steps 20",
         {"config": "c.yaml", "overrides": [], "rounds": 1, "steps": 20}),
        ("vocabulary", {
            "words": [100_000, 10_000_000], "widths": [64, 128], "against": 1_000_000,
            "tokens": 2048, "full_tokens": 256, "samples": 8192, "workers": None, "rounds": 3,
            "device": "auto", "steps": 20, "largest": False}),
        ("vocabulary --words 2 3 --widths 1 2 --against 0 --tokens 1 --full-tokens 0 --samples 1 "
         "--workers 1 --rounds 1 --steps 1 --largest --device cuda", {
            "words": [2, 3], "widths": [1, 2], "against": 0, "tokens": 1, "full_tokens": 0,
            "samples": 1, "workers": 1, "rounds": 1, "steps": 1, "largest": True,
            "device": "cuda"}),
        ("step c.yaml --profile f", {"config": "c.yaml", "overrides": [], "steps": 10,
                                     "profile": "f"}),
        ("balance", {"rows": [1_000_000, 10_000_000], "shards": [2, 8, 64, 1024], "tokens": 8192,
                     "steps": 20, "plot": None, "batches": None,
                     "workers": [1, 2, 8, 64, 512], "batch_tokens": 4096}),
        ("balance --rows 1 --shards 1 --tokens 1 --steps 1 --plot x.png --batches a --workers 3 "
         "--batch-tokens 7", {
            "rows": [1], "shards": [1], "tokens": 1, "steps": 1, "plot": "x.png",
            "batches": "a", "workers": [3], "batch_tokens": 7}),
        ("checkpoint a b", {"uris": ["a", "b"], "rows": 10_000_000, "width": 64,
                            "device": "auto", "workers": None, "rounds": 3}),
        ("checkpoint a --rows 1 --width 1 --device cpu --workers 1 --rounds 1", {
            "uris": ["a"], "rows": 1, "width": 1, "device": "cpu", "workers": 1, "rounds": 1}),
        ("pretrained", {"words": 1_000_000, "width": 300, "format": "glove", "folder": None,
                        "workers": 2, "rounds": 3}),
        ("pretrained --words 1 --width 1 --format word2vec-bin --folder f --workers 1 --rounds 1", {
            "words": 1, "width": 1, "format": "word2vec-bin", "folder": "f", "workers": 1,
            "rounds": 1}),
        ("table-export", {"rows": 2_000_000, "width": 128, "parts": 8, "folder": None,
                          "rounds": 3}),
        ("table-export --rows 1 --width 1 --parts 1 --folder f --rounds 1", {
            "rows": 1, "width": 1, "parts": 1, "folder": "f", "rounds": 1}),
        ("export r", {"run": "r", "split": "test", "step": None, "workers": None,
                      "launcher": "local", "beam": None, "candidates": None,
                      "replace_unknown": None, "max_source_tokens": None, "too_long": None}),
    ],
)  # fmt: skip
def test_options_and_their_defaults(command: str, options: dict[str, Any]) -> None:
    assert given_to(command) == options


@pytest.mark.parametrize(
    "refused",
    [
        "baseline c --rounds 0", "baseline c --steps 19", "launchers c --rounds 0",
        "launchers c --steps 19", "vocabulary --words 1", "vocabulary --widths 0",
        "vocabulary --widths", "vocabulary --tokens 0", "vocabulary --full-tokens -1",
        "vocabulary --samples 0", "vocabulary --workers 0", "vocabulary --rounds 0",
        "vocabulary --steps 0", "balance --rows 0",
        "balance --workers 0", "balance --batch-tokens 0", "balance --shards 0",
        "balance --tokens 0",
        "balance --steps 0", "step c", "step c --profile f --steps 0",
        "checkpoint", "checkpoint a --rows 0", "checkpoint a --width 0",
        "checkpoint a --workers 0", "checkpoint a --rounds 0", "pretrained --words 0",
        "pretrained --width 0", "pretrained --workers 0", "pretrained --rounds 0", "export",
        "table-export --rows 0", "table-export --width 0", "table-export --parts 0",
        "table-export --rounds 0",
    ],
)  # fmt: skip
def test_what_cannot_be_measured_is_refused(
    refused: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        given_to(refused)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert any(why in said for why in ("allowed: at least", "expected at least", "required"))


def test_a_table_is_as_wide_as_its_cells(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["a", "long", ""], [["bcd", "e", ""], ["f", "g", "hi"]])
    assert capsys.readouterr().out == (
        "| a   | long |    |\n|-----|------|----|\n| bcd | e    |    |\n| f   | g    | hi |\n"
    )


def test_figures_stand_beside_machine_and_versions(
    tmp_path: Path, instead: Instead, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = tmp_path / "found.json"
    arguments = ["bench", "balance", "--rows", "9", "--shards", "2", "--tokens", "4", "--steps",
                 "1", "--output", str(out)]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["whatever", *arguments[:-1], "a b.json"])
    instead("parallel.device.device_name", "a processor")
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {3, 5, 7} if pid == 0 else set())
    sizes = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 2**20}
    monkeypatch.setattr("os.sysconf", lambda name: sizes[name])
    assert main(arguments) == 0
    content = written(out)
    assert content["command"] == (
        "dist-embed bench balance --rows 9 --shards 2 --tokens 4 --steps 1 --output 'a b.json'"
    )
    found = content["machine"]
    assert (found["device"], found["cores"], found["memory_gib"]) == ("a processor", 3, 4.0)
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert "Linux" in found["platform"]
    assert {"torch", "torchrec", "ray", "numpy"} <= set(found["versions"])
    assert found["versions"]["numpy"] == np.__version__
    assert None not in found["versions"].values()  # of what is not installed nothing is said
    assert found == machine("a processor")
    before = set(tmp_path.iterdir())
    assert main(arguments[:-2]) == 0
    assert set(tmp_path.iterdir()) == before
    assert cells(capsys.readouterr().out)[0][0] == "rows"


@pytest.mark.parametrize(
    ("precision", "native", "precisions"),
    [("auto", True, ["fp32", "bf16"]), ("auto", False, ["fp32"]), ("fp32", True, ["fp32"]),
     ("bf16", False, ["bf16"])],
)  # fmt: skip
def test_baseline(
    precision: str, native: bool, precisions: list[str], config: str, instead: Instead,
    prepared: Prepared, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    first = precisions[0]
    figures = {
        "tokens_per_second": {f"dist_embed {first}": 2501.0, f"plain DDP {first}": 2000.0},
        "all_rounds": {f"dist_embed {first}": [2501.0, 2400.0, 12_000.0],
                       f"plain DDP {first}": [2000.0]},
        "left_out": {f"plain DDP {first}, compiled": "there is no compiler"},
        "workers": 2, "threads_per_worker": 3, "device": "a processor",
    }  # fmt: skip
    asked = instead("cluster.launch.launch", figures)
    judged = instead("parallel.device.has_native_bf16", native)
    out = tmp_path / "found.json"
    options = ["--rounds", "3", "--steps", "21", "--output", str(out)]
    monkeypatch.chdir(tmp_path)
    given = [f"train.precision={precision}", "train.max_steps=77", "run.uri=here", "--compile"]
    assert main(["bench", "baseline", config, *given, *options]) == 0
    (((task, configured), how),) = asked
    assert configured.run.uri == str(tmp_path / "here")
    assert configured.train.max_steps == 77
    assert task == Baseline(3, 21, precisions, True, prepared.uri)
    assert judged == ([((torch.device("cpu"),), {})] if precision == "auto" else [])
    said = capsys.readouterr().out
    assert "2 workers × 3 threads on a processor; median of 3 rounds of 21 steps\n" in said
    assert cells(said) == [
        ["", "target tokens/s", "range", f"ratio to plain DDP {first}"],
        [f"dist_embed {first}", "2,501", "2,400 to 12,000", "1.25"],
        [f"plain DDP {first}", "2,000", "2,000 to 2,000", "1.00"],
        [f"plain DDP {first}, compiled", "left out", "", ""],
    ]
    how.pop("on_event")({"kind": "line", "text": "so far"})
    assert capsys.readouterr().out == "so far\n"
    assert how == {"vocabulary_size": prepared.data.vocabulary_size, "launcher": "local"}
    content = written(out)
    assert (content["figures"], content["machine"]["device"]) == (figures, "a processor")


def test_launchers(
    config: str, instead: Instead, prepared: Prepared, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    figures = {"step_seconds": {"local": 0.02, "ray": 0.0205}, "all_rounds": {}}
    asked = instead("bench.launchers.measure_launchers", figures)
    instead("parallel.device.device_name", "a processor")
    out = tmp_path / "found.json"
    monkeypatch.chdir(tmp_path)
    assert main(["bench", "launchers", config, "train.max_steps=77", "run.uri=here", "--rounds",
                 "2", "--steps", "30", "--output", str(out)]) == 0  # fmt: skip
    (((configured, sizes), how),) = asked
    assert configured.run.uri == str(tmp_path / "here")
    assert configured.train.max_steps == 77
    assert sizes == prepared.data.vocabulary_size
    assert not Path(how.pop("folder_uri")).exists()  # a temporary one
    assert how == {"rounds": 2, "steps": 30, "say": print}
    assert cells(capsys.readouterr().out) == [
        ["launcher", "ms per step", "ratio to local"],
        ["local", "20.0", "1.000"],
        ["ray", "20.5", "1.025"],
    ]
    content = written(out)
    assert (content["figures"], content["machine"]["device"]) == (figures, "a processor")


def entry(name: str, calls: float, seconds: float, within: str = "") -> dict[str, Any]:
    return {"name": name, "within": within, "calls": calls, "seconds": seconds}


ON_CPU = {
    "workers": 2, "device": "a processor", "on_cuda": False, "steps": 7, "tokens_per_step": 1234.4,
    "seconds_per_step": 0.01, "seconds_per_step_recorded": 0.02, "device_busy_seconds": None,
    "device_idle_share": None, "on_device": [], "waits": [], "waits_by_place": {},
    "on_host": [entry("aten::mm", 4.0, 0.015)] + [entry(f"aten::{i}", 1.0, 0.0) for i in range(30)],
    "phases": {"lookup": 0.002, "encoder": 0.006, "checkpoint stall": 0.0},
    "own_seconds_per_step": 0.007, "trace": "f/trace.json.gz",
}  # fmt: skip
ON_GPU = ON_CPU | {
    "device": "a GPU", "on_cuda": True, "device_busy_seconds": 0.006, "device_idle_share": 0.4,
    "on_device": [entry("void at::native::(anonymous namespace)::add<" + "x" * 90, 2.0, 0.003)],
    "waits": [entry("cudaStreamSynchronize", 1.0, 0.0005, "## a ## › aten::copy_")],
    "waits_by_place": {"dist_embed/training/step.py:run": 1},
}  # fmt: skip


def test_step(
    config: str, instead: Instead, prepared: Prepared, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    asked = instead("cluster.launch.launch", ON_CPU)
    out = tmp_path / "found.json"
    monkeypatch.chdir(tmp_path)
    given = ["train.max_steps=77", "run.uri=here", "--steps", "7", "--profile", "a/b"]
    assert main(["bench", "step", config, *given, "--output", str(out)]) == 0
    (((task, configured), how),) = asked
    assert configured.train.max_steps == 77
    assert configured.run.uri == str(tmp_path / "here")
    trace = str(tmp_path / "a/b/trace.json.gz")
    assert task == ProfileSteps(7, trace, prepared.uri)
    assert (tmp_path / "a/b").is_dir()
    how.pop("on_event")
    assert how == {
        "vocabulary_size": prepared.data.vocabulary_size, "launcher": "local",
        "word_tables": prepared.data.word_tables,
    }  # fmt: skip
    assert (written(out)["figures"], written(out)["machine"]["device"]) == (ON_CPU, "a processor")
    said = capsys.readouterr().out
    assert "2 workers on a processor; 7 steps of 1,234 target tokens; " in said
    assert "trace of worker 0: f/trace.json.gz\n" in said
    assert cells(said)[:8] == [
        ["", "ms"], ["a step", "10.00"], ["a step that is recorded", "20.00"],
        ["phase", "ms a step", "share"], ["lookup", "2.000", "25.0%"],
        ["encoder", "6.000", "75.0%"],
        ["longest on the host", "ms a step", "share", "calls a step"],
        ["aten::mm", "15.000", "75.0%", "4.0"],
    ]  # fmt: skip
    assert len(cells(said)) == 7 + 15


def test_step_on_a_gpu(
    config: str, instead: Instead, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    instead("cluster.launch.launch", ON_GPU)
    assert main(["bench", "step", config, "--profile", str(tmp_path)]) == 0
    assert cells(capsys.readouterr().out) == [
        ["", "ms"],
        ["a step", "10.00"],
        ["a step that is recorded", "20.00"],
        ["in which the device computes or copies", "6.00"],
        ["the device is idle, of a step that is not recorded", "40.0%"],
        ["phase", "ms a step", "share"],
        ["lookup", "2.000", "25.0%"],
        ["encoder", "6.000", "75.0%"],
        ["longest on the device", "ms a step", "share", "calls a step"],
        ["add<" + "x" * 85 + "…", "3.000", "50.0%", "2.0"],
        ["the host may wait in", "within", "calls a step", "ms a step"],
        ["cudaStreamSynchronize", "## a ## › aten::copy_", "1.0", "0.500"],
        ["the host waits, as PyTorch warns", "times in a step"],
        ["dist_embed/training/step.py:run", "1"],
    ]
    instead("cluster.launch.launch", ON_GPU | {"device_busy_seconds": None})
    assert main(["bench", "step", config, "--profile", str(tmp_path)]) == 2
    said = capsys.readouterr()
    assert "f/trace.json.gz: torch.profiler has recorded nothing of the GPU" in said.err
    assert ["dist_embed/training/step.py:run", "1"] in cells(said.out)


def test_phases(
    config: str, instead: Instead, prepared: Prepared, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = instead("cluster.launch.launch", {
        "workers": 2, "device": "a processor", "steps": 5, "share": 0.0025,
        "seconds_recorded": [0.02, 0.04, 0.03], "seconds_not_recorded": [0.01, 0.05, 0.02],
    })  # fmt: skip
    assert main(["bench", "phases", config, "--steps", "5", "--rounds", "3"]) == 0
    assert asked[0][0][0] == PhaseCost(3, 5, prepared.uri)
    said = capsys.readouterr().out
    assert cells(said) == [
        ["phases", "ms a step, median", "least"], ["recorded", "30.000", "20.000"],
        ["not recorded", "20.000", "10.000"],
    ]  # fmt: skip
    assert "recording takes 0.25% of a step" in said


OURS = Case(SAMPLED, 1_000_000, 8, 64, 50)
THEIRS = Case(SPARSE, 1_000_000, 8, 64, 50)
WHOLE = Case(FULL, 2000, 16, 32, 50)
FOUND = Report(
    2,
    [[(OURS, [0.01, 0.02, 0.06]), (THEIRS, [0.03, 0.03, 0.06])], [(WHOLE, [0.5])]],
    [(OURS, {"built": GIB, "trained": 3 * GIB // 2, "saved": 2 * GIB, "loaded": 9 * GIB // 4}),
     (THEIRS, {"built": GIB, "trained": 4 * GIB}), (WHOLE, None)],
    {SAMPLED: (1_000_000, 1_250_000)},
)  # fmt: skip


def test_vocabulary(instead: Instead, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = instead("bench.vocabulary.vocabulary_report", FOUND)
    out = tmp_path / "found.json"
    assert main(["bench", "vocabulary", "--words", "3", "4", "--widths", "5", "6", "--against",
                 "7", "--tokens", "64", "--full-tokens", "96", "--samples", "2", "--workers", "9",
                 "--rounds", "10", "--steps", "11", "--largest", "--device", "cpu",
                 "--output", str(out)]) == 0  # fmt: skip
    assert asked == [(([3, 4], [5, 6]), {
        "against": 7, "tokens": 64, "full_tokens": 96, "num_samples": 2, "num_workers": 9,
        "rounds": 10, "steps": 11, "find_largest": True, "device": "cpu", "say": print,
    })]  # fmt: skip
    said = capsys.readouterr().out
    assert "\n9 workers on " in said
    for title in ("Time of a whole training step, in turns; ratio to the first line, round by "
                  "round:",
                  "Peak resident memory of the fullest worker, GiB:",
                  "Largest vocabulary of this machine:"):  # fmt: skip
        assert f"\n{title}\n\n|" in said
    head = ["", "words", "width", "tokens per worker", "ms per step", "range", "ratio", "range"]
    assert cells(said) == [
        head,
        [SAMPLED, "1,000,000", "8", "64", "20.0", "10.0 to 60.0", "1.00", "1.00 to 1.00"],
        [SPARSE, "1,000,000", "8", "64", "30.0", "30.0 to 60.0", "1.50", "1.00 to 3.00"],
        head,
        [FULL, "2,000", "16", "32", "500.0", "500.0 to 500.0", "1.00", "1.00 to 1.00"],
        ["", "words", "width", "tokens per worker", "tables / W", "built", "trained", "saved",
         "loaded", "1.1 × tables / W + 1"],
        # Three tables of a million rows, eight values and one of state, on two workers.
        [SAMPLED, "1,000,000", "8", "64", "0.05", "1.00", "1.50", "2.00", "2.25", "1.06"],
        [SPARSE, "1,000,000", "8", "64", "0.05", "1.00", "4.00", "", "", "1.06"],
        [FULL, "2,000", "16", "32", "0.00", *["failed"] * 4, "1.00"],
        ["", "trains", "does not"],
        [SAMPLED, "1,000,000", "1,250,000"],
    ]  # fmt: skip
    case = {"kind": SPARSE, "num_words": 1_000_000, "width": 8, "tokens": 64, "num_samples": 50}
    figures = written(out)["figures"]
    assert (figures["workers"], figures["device"]) == (2, "cpu")
    assert figures["speeds"][0][1] == {
        "case": case, "seconds_per_step": [0.03, 0.03, 0.06], "ratio_to_first": 1.5
    }  # fmt: skip
    assert [len(group) for group in figures["speeds"]] == [2, 1]
    assert figures["memory"][1] == {"case": case, "peaks": {"built": GIB, "trained": 4 * GIB}}
    assert figures["memory"][2]["peaks"] is None
    assert figures["largest"] == {SAMPLED: [1_000_000, 1_250_000]}
    assert WHOLE.table_bytes == 3 * 2000 * 17 * 4


def test_vocabulary_on_a_gpu(
    instead: Instead, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    found = Report(1, [], [(OURS, {"built": GIB, "trained": 3 * GIB // 2})], {}, "cuda")
    asked = instead("bench.vocabulary.vocabulary_report", found)
    instead("parallel.device.device_name", "a GPU")
    out = tmp_path / "found.json"
    assert main(["bench", "vocabulary", "--device", "cuda"]) == 2
    assert "--device='cuda' is not possible here" in capsys.readouterr().err
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for there, given, workers in ((1, [], 1), (3, [], 2), (3, ["--workers", "3"], 3)):
        monkeypatch.setattr(torch.cuda, "device_count", lambda there=there: there)
        assert main(["bench", "vocabulary", *given, "--output", str(out)]) == 0
        assert (asked[-1][1]["device"], asked[-1][1]["num_workers"]) == ("cuda", workers)
    said = capsys.readouterr().out
    assert "\n1 workers on a GPU; float32; median of 3 rounds of 20 steps" in said
    assert "of the fullest GPU for a case, GiB:" in said
    assert cells(said)[:2] == [
        ["", "words", "width", "tokens per worker", "tables / W", "built", "trained"],
        [SAMPLED, "1,000,000", "8", "64", "0.10", "1.00", "1.50"],
    ]
    assert written(out)["machine"]["device"] == "a GPU"
    assert main(["bench", "vocabulary", "--workers", "4"]) == 2
    assert "--workers: 4 is not allowed: each needs a GPU" in capsys.readouterr().err


def test_tables_of_nothing_are_left_out() -> None:
    assert list(Report(2, [], [], {}).tables()) == []


@pytest.mark.parametrize("option", ["--tokens", "--full-tokens"])
def test_only_whole_sentences_are_timed(
    option: str, instead: Instead, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = instead("bench.vocabulary.vocabulary_report", Report(2, [], [], {}))
    assert main(["bench", "vocabulary", option, "33"]) == 2
    assert f"{option}: 33 is not allowed: sentences have 32 tokens" in capsys.readouterr().err
    assert asked == []
    assert main(["bench", "vocabulary", option, "32"]) == 0


def test_balance_of_batches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of prepared data whose only pool can be followed by hand."""
    sides = [[[n] * n] * 9 for n in (4, 5)]
    write_shard(str(tmp_path / "a"), *sides)
    shard = ShardInfo("a", 9, 36, 45, FileInfo(100, "0" * 64))
    shard = replace(shard, file=FileInfo.of((tmp_path / "a").read_bytes()))
    data = PreparedData({}, {"source": 9, "target": 9}, False, {"train": Split([shard])})
    (tmp_path / "data.json").write_text(data.to_json())
    out = tmp_path / "found.json"
    ask = ["bench", "balance", "--batches", str(tmp_path), "--steps", "9", "--output", str(out)]
    assert main([*ask, "--workers", "1", "3", "--batch-tokens", "12"]) == 0
    found = written(out)["figures"]
    assert found["tokens"] == 12
    alone, three = found["batches"]
    # Six tokens a target: two sentences fill a budget of 12, and six, of two units, one of 36.
    assert (alone["workers"], alone["sentences"], alone["steps"]) == (1, 9, 5)
    assert (alone["fill"], alone["skew"], alone["read"]) == (54 / 60, [1.0] * 5, [1.0, 1.0])
    assert (three["workers"], three["steps"], three["fill"]) == (3, 2, 54 / 72)
    assert three["skew"] == [1.0, 1.0]  # of two sentences each, and of one
    assert three["read"] == [3.0, 3.0]  # its one block
    said = capsys.readouterr().out
    assert "3 workers\n" in said
    assert "batches of one pool, 12 tokens a worker" in said
    assert cells(said)[1][:5] == ["1", "9", "5", "0.900", "1.000"]


@pytest.mark.parametrize(
    ("given", "told"),
    [(["nowhere"], "--batches: 'nowhere' is not allowed: `lognormal`, or a folder of prepared"),
     (["lognormal", "--plot", "a.svg"], "--plot: not allowed with --batches")],
)  # fmt: skip
def test_what_no_balance_of_batches_is_of(
    given: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "balance", "--batches", *given]) == 2
    assert told in capsys.readouterr().err


def test_lengths_that_are_drawn_are_those_of_their_blocks() -> None:
    blocks = LognormalBlocks(6_000)
    assert blocks.sentences.tolist() == [2500, 2500, 1000]
    source, target = blocks.lengths([2, 0])
    assert len(source) == 3500
    assert source[:1000].sum() == blocks.source_tokens[2]
    assert target[1000:].sum() == blocks.target_tokens[0]
    assert (source + 1).mean() == pytest.approx(26, abs=1)
    assert ((target + 1) / (source + 1)).mean() == pytest.approx(1.08, abs=0.02)


def test_balance(
    instead: Instead, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    drawn: list[Any] = []

    @contextmanager
    def keeping(path: str) -> Any:
        with plot_into(path) as axes:
            yield axes
            drawn.append(axes)

    monkeypatch.setattr(balance, "plot_into", keeping)
    out, plot = tmp_path / "found.json", tmp_path / "plot.svg"
    ask = ["bench", "balance", "--rows", "90", "1500", "90", "--tokens", "40", "--steps", "3"]
    assert main([*ask, "--shards", "2", "8", "3", "--output", str(out), "--plot", str(plot)]) == 0
    found = written(out)["figures"]
    assert found["tokens"] == 40
    worst: dict[tuple[int, int], tuple[float, float]] = {}
    rows = []
    for one, (size, shards) in zip(
        found["max_by_mean"], [(90, 2), (90, 8), (90, 3), (1500, 2), (1500, 8), (1500, 3)],
        strict=True,
    ):  # fmt: skip
        assert (one["num_rows"], one["num_shards"]) == (size, shards)
        expected = expected_of_shards(size, shards, 40)
        steps = [asked_of_shards(size, shards, 40, seed) for seed in range(3)]
        ratios = [[part.max() / part.mean() for part in step] for step in steps]
        bijection, plain = map(list, zip(*ratios, strict=True))
        assert one["expected"] == pytest.approx(expected.max() / expected.mean())
        assert one["bijection"] == pytest.approx(bijection)
        assert one["row_is_id"] == pytest.approx(plain)
        worst[size, shards] = (max(bijection), max(plain))
        rows.append([
            f"{size:,}", str(shards), "" if shards == 3 else "1.02", f"{one['expected']:.3f}",
            f"{np.mean(bijection):.3f}", f"{max(bijection):.3f}", f"{np.mean(plain):.2f}",
            f"{max(plain):.2f}",
        ])  # fmt: skip
    said = capsys.readouterr().out
    assert "1,500 rows on 8 shards\n" in said
    assert "rows asked of the fullest shard ÷ mean over shards; 40 tokens a worker, 3 steps" in said
    assert cells(said) == [
        ["rows", "shards", "aim", "bijection: expected", "mean step", "worst step",
         "row = id: mean step", "worst step"],
        *rows,
    ]  # fmt: skip
    (axes,) = drawn
    aims, *lines = axes.lines
    assert (list(aims.get_xdata()), list(aims.get_ydata())) == ([2, 8], [1.02, 1.02])
    assert (aims.get_marker(), aims.get_markersize()) == ("_", 18)
    for line, (size, way) in zip(lines, [(90, 0), (90, 1), (1500, 0), (1500, 1)], strict=True):
        assert list(line.get_xdata()) == [2, 3, 8]
        assert list(line.get_ydata()) == pytest.approx([worst[size, n][way] for n in (2, 3, 8)])
        assert line.get_marker() == {90: "o", 1500: "s"}[size]
        assert line.get_color() == (balance.INK, balance.GREY)[way]
    assert (axes.get_xscale(), axes.get_yscale(), axes.get_ylim()[0]) == ("log", "log", 0.8)
    assert list(axes.get_xticks()) == [2, 3, 8]
    assert [text.get_text() for text in axes.texts if "aims" in text.get_text()] == [
        "thin marks: aims, 1.02 here"
    ]
    ends = {
        f"{name}, {size:,} rows: {worst[size, 8][way]:.3g}"
        for size in (90, 1500)
        for way, name in enumerate(("bijection", "row = id"))
    }
    assert ends < {text.get_text() for text in axes.texts}
    assert {text.xy[0] for text in axes.texts} == {8}
    assert axes.get_xlabel() == "shards (as many as workers)"
    assert "worst step" in axes.get_title(loc="left")
    assert main([*ask, "--shards", "3", "--plot", str(plot)]) == 0
    assert not any("aims" in text.get_text() for text in drawn[1].texts)
    capsys.readouterr()
    assert main([*ask, "--shards", "3", "--plot", "x.pdf"]) == 2  # before anything is counted
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_checkpoint(
    device: str, instead: Instead, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    on_gpu = device == "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    seconds = {
        "client put": 2.0, "client get": 1.0, "save": 4.0, "stall, first": 1.0, "stall": 0.5,
        "stall: until written": 3.0, "load": 2.0, "load, first": 0.5, "load by 3 workers": 1.0,
        "DCP save": 8.0, "DCP load": 4.0,
    }  # fmt: skip

    def store(factor: float) -> dict[str, Any]:
        return {
            "seconds": {what: value * factor for what, value in seconds.items()},
            "extra_bytes": {
                kind: {what: (more + place) * GIB / 4 for place, what in enumerate(seconds)}
                for more, kind in enumerate(["resident", "pinned", "device"][: 3 if on_gpu else 1])
            },
            "bytes_read_per_needed": 1.25 * factor,
        }  # fmt: skip

    near = str(tmp_path / "near")
    figures = {"rows": 3000, "width": 8, "workers": 2, "total_bytes": 4 * GIB,
               "shard_bytes": 2 * GIB, "device": "a processor",
               "stores": {near: store(1), "s3://far/x": store(2)}}  # fmt: skip
    asked = instead("bench.checkpoint.measure_checkpoint", figures)
    out = tmp_path / "found.json"
    assert main(["bench", "checkpoint", near, "s3://far/x", "--rows", "3000", "--width", "8",
                 "--workers", "2", "--rounds", "5", "--device", device,
                 "--output", str(out)]) == 0  # fmt: skip
    assert asked == [(([near, "s3://far/x"],), {
        "num_rows": 3000, "width": 8, "num_workers": 2, "rounds": 5, "device": device,
        "say": print,
    })]  # fmt: skip
    said = capsys.readouterr().out
    assert said.startswith(
        "3,000 rows × 8 with optimizer state, 4.00 GiB, 2 workers on a processor; "
        "median of 5 rounds\n"
    )
    if on_gpu:
        assert cells(said)[0][5:] == [
            "extra GiB per worker", "extra pinned GiB", "extra GiB on the GPU"
        ]  # fmt: skip
        assert cells(said)[4][5:] == ["0.75", "1.00", "1.25"]
        return
    assert cells(said)[:12] == [
        ["store", "", "seconds", "GiB/s", "compared", "extra GiB per worker"],
        ["local", "client put", "2.00", "2.00", "", "0.00"],
        ["local", "client get", "1.00", "4.00", "", "0.25"],
        ["local", "save", "4.00", "1.00", "0.50 × the speed of client put", "0.50"],
        ["local", "stall, first", "1.00", "", "25.0% of the time of save", "0.75"],
        ["local", "stall", "0.50", "", "12.5% of the time of save", "1.00"],
        ["local", "stall: until written", "3.00", "", "", "1.25"],
        ["local", "load", "2.00", "2.00", "0.50 × the speed of client get", "1.50"],
        ["local", "load, first", "0.50", "8.00", "2.00 × the speed of client get", "1.75"],
        ["local", "load by 3 workers", "1.00", "4.00", "", "2.00"],
        ["local", "DCP save", "8.00", "0.50", "0.25 × the speed of client put", "2.25"],
        ["local", "DCP load", "4.00", "1.00", "0.25 × the speed of client get", "2.50"],
    ]
    assert cells(said)[12] == ["s3", "client put", "4.00", "1.00", "", "0.00"]
    assert "a worker's shard: 2.00 GiB\n" in said
    assert f"{near}: bytes read / needed by one worker more: 1.2500\n" in said
    assert "s3://far/x: bytes read / needed by one worker more: 2.5000\n" in said
    content = written(out)
    assert (content["figures"], content["machine"]["device"]) == (figures, "a processor")


@pytest.mark.parametrize(("given", "there", "workers"), [
    ([], 0, 2), ([], 1, 1), ([], 4, 2), (["--workers", "1"], 4, 1), (["--workers", "3"], 0, 3),
    (["--workers", "2"], 1, None), (["--device", "cuda"], 0, None),
])  # fmt: skip
def test_a_table_on_gpus_has_one_for_each_worker(
    given: list[str], there: int, workers: int | None, instead: Instead,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: there)
    empty = {"rows": 1, "width": 1, "total_bytes": 1, "workers": 1, "shard_bytes": 1, "stores": {},
             "device": "a processor"}  # fmt: skip
    asked = instead("bench.checkpoint.measure_checkpoint", empty)
    code = main(["bench", "checkpoint", "near", *given])
    if workers is None:
        assert (code, asked) == (2, [])
        said = capsys.readouterr().err
        assert "--device='cuda' is not possible here" in said or (
            "--workers: 2 is not allowed: each needs a GPU, and this machine has 1" in said
        )
        return
    ((_, how),) = asked
    assert (how["num_workers"], how["device"]) == (workers, "cuda" if there else "cpu")


def test_a_folder_here_is_named_in_full(
    instead: Instead, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = {"rows": 1, "width": 1, "total_bytes": 1, "workers": 1, "shard_bytes": 1, "stores": {},
             "device": "a processor"}  # fmt: skip
    asked = instead("bench.checkpoint.measure_checkpoint", empty)
    monkeypatch.chdir(tmp_path)
    assert main(["bench", "checkpoint", "near"]) == 0
    assert asked[0][0] == ([str(tmp_path / "near")],)


@pytest.mark.parametrize("chosen", [True, False])
def test_pretrained(
    chosen: bool, instead: Instead, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = {
        "words": 3000, "width": 8, "format": "word2vec", "workers": 2, "file_bytes": GIB // 2,
        "ways": {"each its part": {"seconds": [3.0, 1.0, 2.0], "extra_bytes": [2**20, 3 * 2**30]},
                 "everyone all": {"seconds": [4.0], "extra_bytes": [0]}},
        "rows_per_second": {"each its part": 1500.4, "everyone all": 750.0},
    }  # fmt: skip
    asked = instead("bench.pretrained.measure_pretrained", figures)
    out = tmp_path / "found.json"
    folder = ["--folder", str(tmp_path)] if chosen else []
    assert main(["bench", "pretrained", "--words", "3000", "--width", "8", "--format", "word2vec",
                 "--workers", "4", "--rounds", "5", *folder,
                 "--output", str(out)]) == 0  # fmt: skip
    (((below,), how),) = asked
    assert how == {"num_words": 3000, "width": 8, "format": "word2vec", "num_workers": 4,
                   "rounds": 5, "say": print}  # fmt: skip
    assert (Path(below).parent == tmp_path) is chosen
    assert not Path(below).exists()
    said = capsys.readouterr().out
    assert said.startswith(
        "3,000 vectors of width 8 as word2vec, 0.50 GiB, 2 workers; median of 5 rounds\n"
    )
    assert cells(said) == [
        ["who reads", "seconds", "rows/s", "MiB per worker beyond its shard"],
        ["each its part", "2.0", "1,500", "3,072"],
        ["everyone all", "4.0", "750", "0"],
    ]
    assert written(out)["figures"] == figures


def test_table_export(instead: Instead, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def way(*seconds: float, written: int = 0, extra: int = 0) -> dict[str, list[float]]:
        return {"seconds": [*seconds], "extra_bytes": [extra, 0], "written_bytes": [0, 0, written]}

    figures = {
        "rows": 2000, "width": 16, "parts": 4, "table_bytes": GIB // 4,
        "ways": {"read and proven": way(1.0, 9.0, 3.0), "written": way(5.0),
                 "export": way(16.0) | {"written_bytes": [GIB // 2]},
                 "part 4 of 4": way(4.0, extra=3 * 2**20)},
    }  # fmt: skip
    asked = instead("bench.table_export.measure_table_export", figures)
    out = tmp_path / "found.json"
    assert main(["bench", "table-export", "--rows", "2000", "--width", "16", "--parts", "4",
                 "--rounds", "3", "--folder", str(tmp_path),
                 "--output", str(out)]) == 0  # fmt: skip
    (((below,), how),) = asked
    assert how == {"num_rows": 2000, "width": 16, "parts": 4, "rounds": 3, "say": print}
    assert Path(below).parent == tmp_path
    assert not Path(below).exists()
    said = capsys.readouterr().out
    assert said.startswith("2,000 rows × 16, 0.25 GiB; median of 3 rounds\n")
    assert cells(said) == [
        ["", "seconds", "of reading and writing", "written / size of the table", "extra MiB"],
        ["read and proven", "3.00", "0.38", "0.00", "0"], ["written", "5.00", "0.62", "0.00", "0"],
        ["export", "16.00", "2.00", "2.00", "0"], ["part 4 of 4", "4.00", "0.50", "0.00", "3"],
    ]  # fmt: skip
    assert written(out)["figures"] == figures


def test_export(
    instead: Instead, prepared: Prepared, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = word_tokenizer(["a", "b"])
    run = small_run(
        tmp_path, {"source": tokenizer, "target": tokenizer},
        {"shared": torch.zeros(tokenizer.size, 4)}, share="all",
        settings={"data": {"synthetic": {}, "uri": prepared.uri}},
    )  # fmt: skip
    pairs = prepared.pairs["test"]
    translations = [f"x{place}" for place in range(len(pairs))]
    instead("cluster.fork_server.start_ahead", None)
    ours = {"step": 5, "bleu": 12.345, "sentences_per_second": 7.25}
    answer = Evaluation(
        data_folder=prepared.uri, split="test", step=5, loss=1.0, training_loss=None,
        perplexity=2.72, bleu=12.345, chrf=1.0, bleu_signature="how", against_exact=None,
        sentences=130, sentences_per_second=7.25, translations=translations, scored=[],
    )  # fmt: skip
    evaluated = instead("cluster.launch.launch", answer)
    found = [EngineFigures("float32", len(pairs), 12.5, 30.04, 3 * 2**20),
             EngineFigures("int8", len(pairs) // 2, 9.25, 50.0, 2**20)]  # fmt: skip
    asked = instead("bench.export.measure_engine", found)
    out = tmp_path / "found.json"
    assert main(["bench", "export", run, "--split", "test", "--step", "5", "--workers", "2",
                 "--beam", "3", "--output", str(out)]) == 0  # fmt: skip
    (((task, config), _),) = evaluated
    assert task == Evaluate("test", 5)
    assert (config.search.beam, config.cluster.num_workers) == (3, 2)
    sources, references = map(list, zip(*pairs, strict=True))
    (((used, step, *texts, kinds), _),) = asked
    assert (used, step, kinds) == (config, 5, [None, "int8"])
    assert texts == [sources, references, translations]
    said = capsys.readouterr().out
    assert f"test of {run}, checkpoint of step 5: 130 sentences, beam 3\n" in said
    assert cells(said) == [
        ["", "translated as by us", "BLEU", "sentences/s", "MiB"],
        ["dist_embed, 2 workers", "", "12.35", "7.2", ""],
        ["CTranslate2 float32", "100.0 %", "12.50", "30.0", "3.0"],
        ["CTranslate2 int8", "50.0 %", "9.25", "50.0", "1.0"],
    ]
    figures = written(out)["figures"]
    assert figures["ours"] == ours
    assert figures["engine"][1] == {"kind": "int8", "same": 65, "bleu": 9.25,
                                    "sentences_per_second": 50.0, "model_bytes": 2**20}  # fmt: skip


def test_bench_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    asked: list[tuple[Any, ...]] = []

    def measured(case: Case, *, num_workers: int, say: Say) -> RunPeaks | None:
        asked.append((case.num_words, case.width, case.tokens, case.num_samples, num_workers))
        return RunPeaks(2**29, 2**30) if case.num_words < 50_000 else None

    monkeypatch.setattr(run_memory, "measure_run", measured)
    out = tmp_path / "out.json"
    given = ["--words", "10000", "20000", "50000", "--widths", "8", "--tokens", "64",
             "--samples", "9", "--workers", "3", "--largest"]  # fmt: skip
    assert main(["bench", "words", *given, "--output", str(out)]) == 0
    said = capsys.readouterr().out
    lines = said.splitlines()
    rows = [" ".join(line.split()) for line in lines if line.startswith(("| 1", "| 2", "| 5"))]
    assert rows == [
        "| 10,000 | 8 | 0.00 | 0.50 | 1.00 |", "| 20,000 | 8 | 0.00 | 0.50 | 1.00 |",
        "| 50,000 | 8 | 0.00 | failed | failed |",
    ]  # fmt: skip
    assert asked[:3] == [(n, 8, 64, 9, 3) for n in (10_000, 20_000, 50_000)]
    # 250,000 do not train, nor 125,000 and 62,500; 31,250 do, then halfway.
    assert [n for n, *_ in asked[3:]] == [250_000, 125_000, 62_500, 31_250, 46_875, 54_687]
    assert "46,875 words train, 54,687 do not" in said
    figures = written(out)["figures"]
    assert figures["runs"][0]["peaks"] == {"started": 2**29, "resumed": 2**30}
    assert (figures["runs"][2]["peaks"], figures["largest"]) == (None, [46_875, 54_687])
    assert main(["bench", "words", "--tokens", "33"]) == 2
    assert "--tokens: 33 is not allowed" in capsys.readouterr().err
