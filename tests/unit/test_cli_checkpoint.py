"""``dist-embed checkpoint`` and ``compare`` in this process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dist_embed.checkpoint.catalogue import METRIC, current_names, list_steps, open_checkpoints
from dist_embed.checkpoint.chunk import Rows
from dist_embed.checkpoint.state import LiveTensor
from dist_embed.checkpoint.write import Description, new_attempt, write_rows
from dist_embed.cli.main import build_parser, main
from dist_embed.data.settings import Form
from dist_embed.data.tokenizer import Tokenizer
from dist_embed.data.training_words import count_target_words
from dist_embed.embedding.row_order import RowOrder
from dist_embed.storage import uri as storage
from dist_embed.training.results import Evaluation
from dist_embed.training.tasks import Evaluate
from dist_embed.training.word_recall import recall_by_count
from tests.checkpoints import write_checkpoint
from tests.unit.printed_tables import cells
from tests.unit.small_corpus import Prepared
from tests.unit.small_run import small_run, word_tokenizer

LOSSES = {6: 1.25, 7: 0.5, 8: 0.75}  # step 5 has none


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dist_embed.observe.quiet.quiet_screen", lambda: None)


@pytest.fixture
def run(tmp_path: Path) -> str:
    """A run with checkpoints of steps 5 to 8."""
    tokenizer = word_tokenizer(["a", "b"])
    vectors = {"shared": torch.arange(24.0).reshape(6, 4)}
    uri = small_run(
        tmp_path, {"source": tokenizer, "target": tokenizer}, vectors, share="all",
        settings={"checkpoint": {"keep_last": 2, "keep_best": 0, "leftover_hours": 5.0}},
    )  # fmt: skip
    rows = [Rows("table.shared.weight", 0, torch.zeros(300, 1000))]
    infos = {r.tensor: LiveTensor.whole(r.data).info for r in rows}
    for step, loss in LOSSES.items():
        scalars = json.dumps({METRIC: loss})
        description = Description(step, "abc", infos, {"shared": RowOrder(300).multiplier}, scalars)
        write_checkpoint(open_checkpoints(uri), description, rows)
    return uri


def said(
    capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0, of: str = "checkpoint"
) -> str:
    capsys.readouterr()
    assert main([of, *arguments]) == code
    told = capsys.readouterr()
    return told.err if code else told.out


def damage(run: str, step: int, what: str) -> None:
    """Change a byte of the manifest, or of the rows, of a step."""
    folder = Path(run) / "checkpoints"
    pattern = (
        f"manifests/step-{step:09d}*" if what == "manifest" else f"objects/step-{step:09d}*/chunk*"
    )
    (path,) = folder.glob(pattern)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def test_list(run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage(run, 6, "manifest")
    head, *rows = cells(said(capsys, "list", run))
    assert head == ["step", "saved (UTC)", "workers", "MiB", "validation loss"]
    assert [row[0] for row in rows] == ["5", "6", "7", "8"]
    assert [row[4] for row in rows] == ["", "manifest damaged", "0.5000", "0.7500"]
    assert rows[1][1:4] == ["", "", ""]
    assert rows[2][2:4] == ["1", "1.1"]  # 300,000 values of four bytes
    assert rows[2][1].startswith("20")
    for name in current_names(open_checkpoints(run)):
        (Path(run) / "checkpoints" / name.path).unlink()
    assert said(capsys, "list", run) == f"no complete checkpoint in {run}\n"
    assert f"no complete checkpoint in {run}" in said(capsys, "verify", run, code=2)
    assert "has no complete checkpoint" in said(capsys, "inspect", run, code=2)


def test_verify(
    run: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = said(capsys, "verify", run).splitlines()
    assert [line.split(",")[0] for line in lines] == [f"step {n}: sound" for n in (5, 6, 7, 8)]
    assert lines[1] == "step 6: sound, 1.1 MiB read and proven"
    damage(run, 6, "rows")
    damage(run, 7, "manifest")
    assert main(["checkpoint", "verify", run]) == 2
    told = capsys.readouterr()
    assert "step 6: DAMAGED: " in told.out
    assert "step 7: DAMAGED: " in told.out
    assert told.err.endswith("2 of 4 checkpoints are damaged\n")
    assert said(capsys, "verify", run, "--step", "8") == lines[3] + "\n"
    assert "1 of 1 checkpoints are damaged" in said(capsys, "verify", run, "--step", "6", code=2)

    def pruned(*given: Any) -> Any:
        names = [name for name in current_names(*given) if name.step != 6 or not pruning]
        pruning.append(True)
        return names

    pruning: list[bool] = []
    damage(run, 7, "manifest")  # sound again
    monkeypatch.setattr("dist_embed.checkpoint.catalogue.current_names", pruned)
    assert "step 6: removed meanwhile\n" in said(capsys, "verify", run)


def test_prune(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    store = open_checkpoints(run)
    write_rows(store, new_attempt(9), [Rows("x", 0, torch.zeros(3))], 0)
    dry = said(capsys, "prune", run, "--dry-run").splitlines()
    assert dry == [f"would remove the checkpoint of step {step}" for step in (5, 6)]
    dry = said(capsys, "prune", run, "--dry-run", "--leftover-hours", "0").splitlines()
    assert len(dry) == 3
    assert dry[2].startswith("would remove step-000000009-")
    assert dry[2].endswith(", left behind by an unfinished save")
    assert list_steps(run) == [5, 6, 7, 8]
    best = said(capsys, "prune", run, "--keep-last", "0", "--keep-best", "1", "--keep-every", "3",
                "--dry-run").splitlines()  # fmt: skip
    assert best == [f"would remove the checkpoint of step {step}" for step in (5, 8)]
    assert said(capsys, "prune", run).splitlines() == [
        f"removed the checkpoint of step {step}" for step in (5, 6)
    ]
    assert list_steps(run) == [7, 8]
    assert said(capsys, "prune", run) == "nothing to remove\n"


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--keep-last", "-1"], "--keep-last: -1 is not allowed; at least 0"),
        (["--keep-every", "-1"], "--keep-every: -1 is not allowed; at least 0"),
        (["--leftover-hours", "-0.5"], "--leftover-hours: -0.5 is not allowed; at least 0"),
        (["--leftover-hours", "nan"], "--leftover-hours: nan is not allowed; at least 0"),
        (["--keep-last", "0"], "--keep-last 0 with --keep-best 0 would leave no checkpoint"),
    ],
)
def test_a_prune_that_would_leave_nothing_is_refused(
    run: str, arguments: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert why in said(capsys, "prune", run, *arguments, code=2)
    assert list_steps(run) == [5, 6, 7, 8]


def test_inspect(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    shown = said(capsys, "inspect", run)
    for line in (
        f"manifest     {storage.join(run, 'checkpoints')}/manifests/step-000000008-0.manifest",
        "settings     fingerprint abc", "bytes        1,2", "step         8, saved 20",
        "objects      1 chunks, 1 indexes in step-000000008-", f"values       {{'{METRIC}': 0.75}}",
    ):  # fmt: skip
        assert f"\n{line}" in f"\n{shown}"
    assert " by 1 workers\n" in shown
    assert ", a SHA-256 for every " in shown
    assert cells(shown) == [
        ["tensor", "type and shape", "rows in indexes"],
        ["table.shared.weight", "F32 300 × 1,000", "0–300"],
    ]
    assert "step         5, saved" in said(capsys, "inspect", run, "--step", "5")


def test_export(run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def exported(*asked: str, code: int = 0) -> str:
        return said(capsys, "checkpoint", run, *asked, code=code, of="export")

    out = str(tmp_path / "out.safetensors")
    # Without a step the lowest validation loss.
    told = exported("--output", out)
    assert told.startswith(f"step 7 of {run} → {out}\n  ")
    told = exported("--output", out, "--step", "8", "--table", "shared")
    assert told == f"step 8 of {run} → {out}\n  weight  F32 300 × 1,000\n"
    refused = exported("--output", "s3://x/y.safetensors", code=2)
    assert "'s3://x/y.safetensors' is not allowed: safetensors go to a local path" in refused


@pytest.mark.parametrize("action", ["list", "verify", "prune", "inspect"])
def test_where_there_is_no_run_it_says_so(
    action: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert str(tmp_path) in said(capsys, action, str(tmp_path), code=2)


def test_options_of_compare() -> None:
    values = vars(build_parser().parse_args(["compare", "a", "b"]))
    assert (values["runs"], values["split"], values["output"]) == (["a", "b"], "test", None)
    assert (values["workers"], values["launcher"], values["beam"]) == (None, "local", None)


@pytest.mark.parametrize(("lowercase", "form"), [(False, "none"), (True, "nfc")])
def test_compare(
    lowercase: bool, form: Form, prepared: Prepared, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    runs = []
    for name, words in (("first", ["a"]), ("second", ["a", "b"])):
        tokenizer = word_tokenizer(words, form=form if name == "second" else "none")
        (tmp_path / name).mkdir()
        settings = {"data": {"synthetic": {}, "uri": prepared.uri},
                    "tokenizer": {"lowercase": lowercase and name == "second"}}  # fmt: skip
        runs.append(
            small_run(
                tmp_path / name, {"source": tokenizer, "target": tokenizer},
                {"shared": torch.zeros(tokenizer.size, 4)}, share="all", settings=settings,
            )
        )  # fmt: skip
    references = [pair[1] for pair in prepared.pairs["test"]]
    answers = {runs[0]: [text.upper() for text in references], runs[1]: ["no"] * len(references)}
    mark = "" if form == "none" else "\ufeff"
    signatures = dict.fromkeys(runs, "tok:13a")
    if lowercase:
        signatures[runs[1]] = "tok:13a|case:lc"
    asked: list[Any] = []

    def launch(task: Any, config: Any, **how: Any) -> Evaluation:
        asked.append((task, config.run.uri, how["launcher"]))
        return Evaluation(
            data_folder=prepared.uri, split="test", step=1234, loss=0.852, training_loss=None,
            perplexity=2.345, bleu=12.345, chrf=45.678,
            bleu_signature=signatures[config.run.uri], against_exact=None, sentences=130,
            sentences_per_second=7.0, translations=references,
            scored=[mark + text for text in answers[config.run.uri]],
        )  # fmt: skip

    shares = iter([0.25, 0.125])
    monkeypatch.setattr("dist_embed.cluster.launch.launch", launch)
    monkeypatch.setattr("dist_embed.cluster.fork_server.start_ahead", lambda device: None)
    monkeypatch.setattr(
        "dist_embed.data.training_words.unknown_share", lambda uri: next(shares)
    )  # fmt: skip
    out = tmp_path / "out.json"
    assert main(["compare", *runs, "--output", str(out)]) == 0
    asked_for = Evaluate("test", data_folder=prepared.uri)
    assert asked == [(asked_for, run, "local") for run in runs]
    told = capsys.readouterr()
    assert told.err == "".join(f"translating with {run}\n" for run in runs)
    counts = count_target_words(prepared.uri, lowercase=lowercase, form="none")
    right = [text.lower() for text in references] if lowercase else references
    given = [text.lower() for text in answers[runs[0]]] if lowercase else answers[runs[0]]
    bins = recall_by_count(given, right, counts)
    head, *rows = cells(told.out)
    assert head == ["", "words", *runs]
    assert rows[:6] == [
        ["checkpoint of step", "", "1,234", "1,234"], ["tokenizer", "", "word", "word"],
        ["target vocabulary", "", "5", "6"], ["perplexity", "", "2.35", "2.35"],
        ["BLEU", "", "12.35", "12.35"], ["chrF", "", "45.68", "45.68"],
    ]  # fmt: skip
    spans = ["0", "1–2", "3–5", "6–20", "21–100", "101–1,000", "> 1,000"]
    for row, span, one in zip(rows[6:], spans, bins, strict=True):
        share = "" if one.share is None else f"{one.share:.1%}"
        none = "" if one.share is None else "0.0%"
        assert row == [f"recall of words seen {span}", f"{one.words:,}", share, none]
    assert "\ntest: 130 sentences. " in told.out
    assert (", all in lowercase, in the form nfc.\n" in told.out) is lowercase
    assert f"training text of {runs[1]}; what its vocabulary lacks (12.50% of its" in told.out
    if lowercase:
        assert told.out.endswith(
            "BLEU and chrF were computed in different ways and cannot be compared:\n"
            f"BLEU of {runs[0]} is tok:13a\nBLEU of {runs[1]} is tok:13a|case:lc\n"
        )
    else:
        assert told.out.endswith(" times.\nBLEU is tok:13a\n")
    figures = json.loads(out.read_text())["figures"]
    assert (figures["counted_in"], figures["unknown_share"]) == (runs[1], 0.125)
    assert (figures["lowercase"], figures["form"]) == (lowercase, form)
    found = figures["runs"][runs[0]]
    assert set(found) == {
        "tokenizer", "target_vocabulary", "data_folder", "split", "step", "loss", "training_loss",
        "perplexity", "bleu", "chrf", "bleu_signature", "against_exact", "sentences",
        "sentences_per_second", "recall",
    }  # fmt: skip
    assert (found["bleu"], found["target_vocabulary"], found["tokenizer"]) == (12.345, 5, "word")
    assert [one["found"] for one in found["recall"]] == [one.found for one in bins]


def test_pieces_and_words_cannot_be_compared(
    prepared: Prepared, tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    runs = []
    for name, path in (("plain", {}), ("cut", {"pieces": "subword-nmt"})):
        tokenizer = Tokenizer.from_words(
            ["a"],
            lowercase=False,
            split_punctuation=False,
            **path,  # type: ignore[arg-type]
        )
        (tmp_path / name).mkdir()
        runs.append(
            small_run(
                tmp_path / name, {"source": tokenizer, "target": tokenizer},
                {"shared": torch.zeros(tokenizer.size, 4)}, share="all",
                settings={"data": {"synthetic": {}, "uri": prepared.uri}},
            )
        )  # fmt: skip
    assert main(["compare", *runs]) == 2
    assert (
        "put together in different ways cannot be compared: tokenizer.pieces=none in "
        f"{runs[0]}; tokenizer.pieces=subword-nmt in {runs[1]}"
    ) in capsys.readouterr().err


def test_other_sentences_cannot_be_compared(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    tokenizer = word_tokenizer(["a"])
    run = small_run(
        tmp_path, {"source": tokenizer, "target": tokenizer},
        {"shared": torch.zeros(tokenizer.size, 4)}, share="all",
        settings={"data": {"synthetic": {}, "uri": prepared.uri}},
    )  # fmt: skip
    texts = iter([(["a"], ["b"]), (["c"], ["b"])])
    monkeypatch.setattr("dist_embed.data.token_shards.read_texts", lambda *given: next(texts))
    assert main(["compare", run, f"{run}/"]) == 2
    assert "cannot be compared: their test sentences are not the same (1 and 1 pairs" in (
        capsys.readouterr().err
    )
    assert main(["compare", run, "--output", str(tmp_path / "gone" / "x")]) == 2
    assert "gone does not exist" in capsys.readouterr().err
