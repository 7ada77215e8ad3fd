"""The commands as a user gives them, on a tiny run with the local launcher."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.launcher.api import LaunchConfig
from torch.distributed.run import config_from_args, get_args_parser

from dist_embed.checkpoint.catalogue import list_steps
from dist_embed.data.prepared_folder import prepared_folder
from dist_embed.run.folder import only_training
from tests.integration.conftest import Command
from tests.integration.run_metrics import metrics
from tests.integration.several_commands import in_one_process
from tests.left_behind import living


def test_the_whole_path(config: str, dist_embed: Command, tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    dist_embed("prepare", config)
    text = Path(prepared_folder(f"{run}/data")) / "text" / "test.source.txt"
    done = in_one_process(["train", config], ["translate", run, "--input", str(text)])
    last_of_training = r"trained 8 steps at .* target tokens/s; peak memory of worker 0: .* GiB\n"
    trained, translated = re.split(last_of_training, done.stdout)
    assert "starting from scratch" in trained
    assert "step 8/8" in trained
    for noise in ("TBE", "Warning", "INFO", "torchrec"):
        assert noise not in done.stdout + done.stderr
    names = {path.name for path in Path(run).iterdir()}
    assert {"config.yaml", "tokenizer.source.json", "checkpoints", "metrics.jsonl", "tensorboard",
            "logs", "data"} <= names  # fmt: skip
    assert "TBE" in (Path(run) / "logs" / "worker-1.log").read_text()

    listed = dist_embed("checkpoint", "list", run).stdout.splitlines()
    assert [line.split()[1] for line in listed[2:]] == ["4", "8"]

    evaluated = dist_embed("evaluate", run, "--output", str(tmp_path / "out.txt"))
    assert "BLEU" in evaluated.stdout
    assert "chrF" in evaluated.stdout
    assert len((tmp_path / "out.txt").read_text().splitlines()) == 20

    assert translated == (tmp_path / "out.txt").read_text()
    alone = dist_embed("translate", run, "--workers", "1", text=text.read_text())
    assert alone.stdout == translated

    again = dist_embed("train", config)
    assert "already trained: 8 steps" in again.stdout

    page = tmp_path / "page.html"
    dist_embed("report", run, "--output", str(page))
    charts = {*re.findall(r'<figure id="([^"]+)"', page.read_text())}
    assert {"loss", "rate", "speed", "phases", "memory", "balance", "time"} <= charts


def test_lines_are_translated_as_they_come(
    config: str, dist_embed: Command, tmp_path: Path
) -> None:
    run, text, out = (str(tmp_path / name) for name in ("run", "text", "out"))
    dist_embed("train", config)
    os.mkfifo(text)
    os.mkfifo(out)
    found: list[str] = []

    def converse() -> None:
        with Path(out).open() as translated, Path(text).open("w") as given:
            for line in ("the mabru nitesa the mostas .\n", "\n", "nitesa\n"):
                given.write(line)
                given.flush()
                found.append(translated.readline())  # before there is a next one
        # Nobody reads any more, and nothing is said of it.

    reader = threading.Thread(target=converse, daemon=True)
    reader.start()
    said = dist_embed(
        "translate", run, "--input", text, "--output", out, "--max-source-tokens", "3"
    )
    reader.join(60)
    assert [line.endswith("\n") for line in found] == [True] * 3
    assert found[1] == "\n"
    assert "(search.max_source_tokens): 1, the first is line 1;" in said.stderr
    assert "Traceback" not in said.stderr


@pytest.mark.heavy
def test_runs_are_compared_by_the_words_they_find(
    config: str, dist_embed: Command, tmp_path: Path
) -> None:
    whole, small, other = (str(tmp_path / name) for name in ("whole", "small", "other"))
    dist_embed("train", config, f"run.uri={whole}", "tokenizer.shared=false",
               "model.share_embeddings=decoder", "train.max_steps=60", "train.evaluate_every=60",
               "checkpoint.every_steps=60", "train.learning_rate=1e-2")  # fmt: skip
    dist_embed("train", config, f"run.uri={small}", "tokenizer.vocab_size=30",
               "cluster.num_workers=1", "train.max_steps=4")  # fmt: skip
    output = tmp_path / "out.json"
    compared = dist_embed("compare", small, whole, "--output", str(output)).stdout
    figures = json.loads(output.read_text())["figures"]

    texts = Path(prepared_folder(str(tmp_path / "whole/data"))) / "text"
    text = (texts / "test.target.txt").read_text()
    trained = Counter((texts / "train.target.txt").read_text().split())
    bins = figures["runs"][whole]["recall"]
    assert sum(one["words"] for one in bins) == len(text.split())
    for one in bins:
        most = math.inf if one["most"] is None else one["most"]
        assert one["words"] == sum(one["least"] <= trained[word] <= most for word in text.split())
    assert [one["words"] for one in figures["runs"][small]["recall"]] == [
        one["words"] for one in bins
    ]
    assert figures["counted_in"] == whole
    assert figures["unknown_share"] == 0
    assert figures["runs"][small]["target_vocabulary"] == 30
    found = figures["runs"][whole]
    told = dist_embed("evaluate", whole, "--output", str(tmp_path / "out.txt")).stdout
    assert f"BLEU {found['bleu']:.2f}  chrF {found['chrf']:.2f}" in told
    assert f"perplexity {found['perplexity']:.2f}" in told
    recalled = sum(
        (Counter(reference.split()) & Counter(translation.split())).total()
        for reference, translation in zip(
            text.splitlines(), (tmp_path / "out.txt").read_text().splitlines(), strict=True
        )
    )
    assert sum(one["found"] for one in found["recall"]) == recalled > 0
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in compared.splitlines()[:15]]
    assert rows[0] == ["", "words", small, whole]
    assert ["target vocabulary", "", "30"] in [row[:3] for row in rows]
    assert [row[0] for row in rows[-7:]] == [
        f"recall of words seen {span}"
        for span in ("0", "1–2", "3–5", "6–20", "21–100", "101–1,000", "> 1,000")
    ]
    assert [row[1] for row in rows[-7:]] == [f"{one['words']:,}" for one in bins]
    assert f"counted in the training text of {whole}" in compared

    dist_embed("prepare", config, f"run.uri={other}", "data.synthetic.seed=2")
    but_data = shutil.ignore_patterns("data")
    shutil.copytree(tmp_path / "small", tmp_path / "other", dirs_exist_ok=True, ignore=but_data)
    refused = dist_embed("compare", whole, other, code=2)
    assert f"{whole} and {other} cannot be compared: their test sentences" in refused.stderr
    assert (
        "'train' is not among the held-out data"
        in dist_embed("compare", whole, "--split", "train", code=2).stderr
    )
    nowhere = str(tmp_path / "nowhere" / "x.json")
    assert "does not exist" in dist_embed("compare", whole, "--output", nowhere, code=2).stderr


def test_a_runs_checkpoints_are_proven_pruned_and_exported(
    config: str, dist_embed: Command, refused: Callable[..., str], tmp_path: Path
) -> None:
    run, exported = tmp_path / "run", tmp_path / "table.safetensors"
    at_each = ("checkpoint.every_steps=2", "checkpoint.saving=waiting")
    dist_embed("train", config, *at_each, "train.log_every=50")
    told, phases = dist_embed("history", str(run)).stdout.split("\n\n")
    assert "dense backward" in phases
    course = [line.split() for line in told.splitlines()[2:]]
    assert [row[1] for row in course] == ["4", "8"]
    assert all(float(row[9].replace(",", "")) > 0 for row in course)  # tokens/s of steps before it
    verified = dist_embed("checkpoint", "verify", str(run)).stdout.splitlines()
    assert [line.split(",")[0] for line in verified] == [
        "step 4: sound", "step 6: sound", "step 8: sound"
    ]  # fmt: skip
    inspected = dist_embed("checkpoint", "inspect", str(run), "--step", "6").stdout
    assert "step         6, saved" in inspected
    assert "by 2 workers" in inspected
    assert "table.shared.weight" in inspected

    told = dist_embed(
        "export", "checkpoint", str(run), "--output", str(exported), "--table", "shared"
    ).stdout
    table = load_file(exported)
    rows, width = table["weight"].shape
    assert f"weight  F32 {rows} × {width}" in told
    embedding = torch.nn.Embedding(rows, width)
    embedding.load_state_dict(table)
    assert embedding.weight.abs().sum() > 0
    assert "has no table 'gone'; it has shared" in refused(
        "export", "checkpoint", str(run), "--output", "x", "--table", "gone"
    )
    assert "go to a local path" in refused(
        "export", "checkpoint", str(run), "--output", "memory://b/x.st"
    )
    locked = tmp_path / "folder"
    locked.mkdir()
    for command in ("evaluate", "translate"):
        assert "that is a folder" in refused(command, str(run), "--output", str(locked))

    newest = max((run / "checkpoints/objects").iterdir())
    chunk = next(newest.glob("chunk-00001-*"))
    data = bytearray(chunk.read_bytes())
    data[-1] ^= 1
    chunk.write_bytes(data)
    damaged = dist_embed("checkpoint", "verify", str(run), code=2)
    assert "step 8: DAMAGED" in damaged.stdout
    assert "1 of 3 checkpoints are damaged" in damaged.stderr
    assert "are not those written" in refused("evaluate", str(run))
    again = dist_embed("train", config, *at_each)
    assert "the checkpoint of step 8 is damaged and not used" in again.stdout
    assert "resuming from the checkpoint of step 6" in again.stdout
    assert "step 8: sound" in dist_embed("checkpoint", "verify", str(run), "--step", "8").stdout

    pruned = dist_embed("checkpoint", "prune", str(run), "--keep-last", "1", "--keep-best", "0")
    assert "removed the checkpoint of step 6" in pruned.stdout
    listed = dist_embed("checkpoint", "list", str(run)).stdout.splitlines()
    assert [line.split()[1] for line in listed[2:]] == ["8"]
    none_left = ("--keep-last", "0", "--keep-best", "0")
    assert "would leave no checkpoint" in refused("checkpoint", "prune", str(run), *none_left)


@pytest.mark.heavy
def test_a_run_goes_on_with_another_number_of_workers(
    config: str, dist_embed: Command, tmp_path: Path
) -> None:
    # Without dropout, whose draws belong to the worker.
    same = (f"data.uri={tmp_path / 'data'}", "model.dropout=0.0")
    dist_embed("train", config, *same, f"run.uri={tmp_path / 'two'}")
    changing = f"run.uri={tmp_path / 'changing'}"
    dist_embed("train", config, *same, changing, "train.max_steps=4")
    dist_embed("train", config, *same, changing, "cluster.num_workers=3")
    two, changed = metrics(tmp_path / "two"), metrics(tmp_path / "changing")
    assert list(changed.values()) == pytest.approx(list(two.values()), rel=1e-3)


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("launcher", "process_name", "complaint"),
    [
        ("local", "forkserver", "was ended from outside"),
        ("ray", "RayTrainWorker", " was lost: "),
    ],
)
@pytest.mark.usefixtures("ray_alone")
@pytest.mark.timeout(400, func_only=True)
def test_a_killed_worker_ends_the_run_and_the_run_resumes(
    config: str,
    dist_embed: Command,
    tmp_path: Path,
    launcher: str,
    process_name: str,
    complaint: str,
) -> None:
    long = (f"data.uri={tmp_path / 'data'}", "train.max_steps=300", "train.evaluate_every=300",
            "checkpoint.every_steps=20")  # fmt: skip
    dist_embed("train", config, *long, f"run.uri={tmp_path / 'whole'}")
    killed = ["train", config, *long, f"run.uri={tmp_path / 'killed'}"]
    with subprocess.Popen(
        [sys.executable, "-m", "dist_embed.cli.main", *killed, "--launcher", launcher],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        deadline = time.monotonic() + 200
        while max(list_steps(str(tmp_path / "killed")), default=0) < 40:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        workers = [
            child
            for child in psutil.Process(process.pid).children(recursive=True)
            if process_name in " ".join(child.cmdline())
        ]
        os.kill(workers[-1].pid, signal.SIGKILL)
        _, said = process.communicate(timeout=200)
    assert process.returncode == 1
    assert complaint in said
    resumed = dist_embed(*killed)
    assert "resuming from the checkpoint of step" in resumed.stdout
    assert metrics(tmp_path / "killed") == metrics(tmp_path / "whole")


@pytest.mark.heavy
def test_a_full_disk_stops_the_run_and_keeps_the_checkpoint(
    config: str, dist_embed: Command, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    dist_embed("train", config, "train.max_steps=4")
    # No file may grow beyond 8 KiB now: what a full disk does to the checkpoint's objects.
    limited = subprocess.run(
        ["bash", "-c", 'ulimit -f 8; exec "$@"', "-", sys.executable, "-m", "dist_embed.cli.main",
         "train", config],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert limited.returncode == 2, limited.stdout + limited.stderr
    assert "the checkpoint of step 8 could not be saved: worker" in limited.stderr
    assert "File too large" in limited.stderr
    assert "Traceback" not in limited.stderr
    listed = dist_embed("checkpoint", "list", str(run)).stdout.splitlines()
    assert [line.split()[1] for line in listed[2:]] == ["4"]
    assert "resuming from the checkpoint of step 4" in dist_embed("train", config).stdout


@pytest.mark.heavy
def test_torchrun_enters_the_same_worker(config: str, dist_embed: Command, tmp_path: Path) -> None:
    data = f"data.uri={tmp_path / 'data'}"
    dist_embed("train", config, data)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
         "-m", "dist_embed.cli.main", "train", config, data, f"run.uri={tmp_path / 'torchrun'}"],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "step 8/8" in done.stdout
    assert done.stdout.count("trained 8 steps") == 1
    assert metrics(tmp_path / "torchrun") == metrics(tmp_path / "run")


@contextmanager
def under_torchrun(config: str, *options: str) -> Iterator[subprocess.Popen[str]]:
    """A run of two workers without an end; ended with the block."""
    with subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
         "--shutdown-timeout=180", *options, "-m", "dist_embed.cli.main", "train", config,
         "train.max_steps=100000", "train.evaluate_every=100000", "checkpoint.every_steps=100000"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            process.kill()


def until_step(step: int, run: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 300
    while not (run / "metrics.jsonl").exists() or max(metrics(run), default=0) < step:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.heavy
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_torchrun_asked_to_stop_ends_with_1_and_the_run_is_saved(
    number: int, config: str, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with under_torchrun(config) as process:
        until_step(5, run, process)
        workers = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(number)
        said, complaint = process.communicate(timeout=200)
    assert process.returncode == 1
    assert "SignalException" in complaint
    steps = list_steps(str(run))
    assert len(steps) == 1
    assert f"the workers stop here: saving step {steps[0]}" in said
    assert f"stopped as asked after step {steps[0]}" in complaint
    assert len(metrics(run)) == steps[0]
    assert living(workers) == []


@pytest.mark.heavy
@pytest.mark.parametrize("restarts", [0, 1])
def test_one_worker_of_torchrun_asked_to_stop_has_all_save_and_torchrun_start_them_again(
    restarts: int, config: str, tmp_path: Path
) -> None:
    """As often as it may: their exit code is that of a failure to it."""
    run = tmp_path / "run"
    with under_torchrun(config, f"--max-restarts={restarts}") as process:
        until_step(5, run, process)
        (worker,) = [
            one for one in psutil.Process(process.pid).children()
            if one.environ().get("RANK") == "1"
        ]  # fmt: skip
        worker.send_signal(signal.SIGTERM)
        if restarts:
            psutil.wait_procs([worker], timeout=200)
            (saved,) = list_steps(str(run))
            until_step(saved + 5, run, process)
            process.send_signal(signal.SIGTERM)
        said, complaint = process.communicate(timeout=200)
    assert process.returncode == 1, complaint
    steps = list_steps(str(run))
    assert len(steps) == 1 + restarts
    assert f"the workers stop here: saving step {steps[0]}" in said
    assert said.count(f"resuming from the checkpoint of step {steps[0]}") == restarts
    assert ("exitcode  : 143" in complaint) == (restarts == 0)


def test_torchrun_gives_workers_as_long_to_save_as_the_documentation_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert LaunchConfig(1, 1, 1).shutdown_timeout == 30
    monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "180")
    assert LaunchConfig(1, 1, 1).shutdown_timeout == 180
    arguments = get_args_parser().parse_args(["--shutdown-timeout", "170", "script"])
    assert config_from_args(arguments)[0].shutdown_timeout == 170


def test_a_run_that_never_is_finite_stops_and_says_why(config: str, dist_embed: Command) -> None:
    failed = dist_embed(
        "train", config, "train.learning_rate=1e12", "embedding.learning_rate=1e12",
        "train.max_skipped_steps=3", code=2,
    )  # fmt: skip
    assert "steps in a row had a non-finite loss or gradient" in failed.stderr
    assert "skipped" in failed.stdout


def test_errors_of_use(config: str, refused: Callable[..., str], tmp_path: Path) -> None:
    assert "did you mean 'train.max_steps'" in refused("train", config, "train.max_stps=3")
    assert "GiB per worker" in refused("train", config, "cluster.num_workers=5000")
    assert "no run in" in refused("evaluate", str(tmp_path / "nothing"))
    assert "cannot read configuration" in refused("train", str(tmp_path / "no.yaml"))
    assert "unrecognized arguments" in refused("checkpoint", "list", "x", "--bogus")


def test_errors_of_use_of_a_run(
    config: str, dist_embed: Command, refused: Callable[..., str], tmp_path: Path
) -> None:
    dist_embed("train", config, "train.max_steps=2")
    different = refused("train", config, "model.feed_forward=24", "train.learning_rate=1e-2")
    assert "model.feed_forward: 16 there, 24 here" in different
    assert "train.learning_rate: 0.001 there, 0.01 here" in different
    assert "--force" in different
    with only_training(str(tmp_path / "run")):
        assert "another process is training in" in refused("train", config)
    forced = dist_embed("train", config, "train.learning_rate=1e-2", "--force")
    assert "resuming from the checkpoint of step 2" in forced.stdout
    # --force takes new values, not another shape of the model.
    shape = refused("train", config, "model.feed_forward=24", "train.max_steps=9", "--force")
    assert "asked for is" in shape
    run = str(tmp_path / "run")
    assert "no complete checkpoint of step 77" in refused("evaluate", run, "--step", "77")
    assert "split 'other' is not among the held-out data" in refused(
        "evaluate", run, "--split", "other"
    )
    assert "workers: 0 is not allowed" in refused("translate", run, "--workers", "0")
    assert "candidates: -1 is not allowed" in refused("translate", run, "--candidates", "-1")
    lexicon = refused("translate", run, "--replace-unknown", "lexicon")
    assert "data.lexicon_translations=0" in lexicon
    assert lexicon.count("\n") == 1
    assert "cannot read" in refused("translate", run, "--input", str(tmp_path / "absent.txt"))
    vocabulary = refused("train", config, "tokenizer.kind=bpe", f"run.uri={tmp_path / 'b'}",
                         f"data.uri={run}/data")  # fmt: skip
    assert "tokenizer.kind: 'word' there, 'bpe' here" in vocabulary


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        (b"a b\nc d\n", b"x\n", "has 2 lines"),
        (b"", b"", "the corpus is empty"),
        (b"ok\n\xff\xfe\n", b"x\ny\n", "line 2: not valid UTF-8"),
        (None, b"x\n", "no such file"),
        (b"a b c d\n", b"x\n", "longer than data.max_tokens=2"),
    ],
)
def test_bad_corpora_leave_nothing_prepared(
    config: str,
    refused: Callable[..., str],
    tmp_path: Path,
    source: bytes | None,
    target: bytes,
    message: str,
) -> None:
    left, right = tmp_path / "train.a", tmp_path / "train.b"
    if source is not None:
        left.write_bytes(source)
    right.write_bytes(target)
    said = refused(
        "train", config, "data.synthetic=null", f"data.train.source={left}",
        f"data.train.target={right}", "data.max_tokens=2",
    )  # fmt: skip
    assert message in said
    assert not (tmp_path / "run" / "data" / "data.json").exists()
    assert not (tmp_path / "run" / "config.yaml").exists()
