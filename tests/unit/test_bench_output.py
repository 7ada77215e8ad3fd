"""The output layers' benchmark: what it times, and that it notices a layer that computes less."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional

from dist_embed.bench import output, output_check, output_sides
from dist_embed.bench.output_check import Computed, check, plain_cross_entropy
from dist_embed.bench.output_sides import OutputSizes, exact_sides, plain_bytes, sampled_sides
from dist_embed.bench.passes import WARM_UP, Marks, measured
from dist_embed.cli.main import build_parser, main
from dist_embed.errors import RunFailed
from dist_embed.model.logit_blocks import Picked
from dist_embed.observe import clocks
from dist_embed.observe.quiet import private_log_folder
from dist_embed.parallel.group import Group
from tests.unit.printed_tables import cells

CPU = torch.device("cpu")
# 36 tokens against 300 rows: whole logits are 42 KiB, and blocks of 32 tokens 37.5 KiB.
SIZES = OutputSizes("cpu", "fp32", 36, 8, 300, ["auto", 39 / 1024, 0.001], False, [90, 700], 50, 2)


def test_phases_of_passes_after_the_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(clocks, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    made: list[int] = []

    def one_pass(mark: Marks) -> int:
        made.append(len(made) + 1)
        now[0] += made[-1]
        mark("first")
        now[0] += 10.0
        mark("second")
        return made[-1]

    found = measured(one_pass, CPU, 3)
    assert made == list(range(1, WARM_UP + 4))
    assert found.seconds == {"first": [WARM_UP + n for n in (1.0, 2.0, 3.0)], "second": [10.0] * 3}
    assert found.result == WARM_UP + 3


def test_memory_beyond_what_a_pass_leaves() -> None:
    made: list[int] = []

    def one_pass(mark: Marks) -> Any:
        made.append(0)
        parts = 768 if len(made) == 1 else 256  # of 256 KiB; what is only once does not count
        gone = [torch.ones(2**16) for _ in range(parts)]
        kept = torch.ones(2**22), torch.ones(2**14)  # the small one behind what is freed
        del gone
        mark("all")
        return kept

    assert 56 * 2**20 < measured(one_pass, CPU, 1).beyond_bytes < 72 * 2**20


def words_of(lines: list[output_sides.Side]) -> list[tuple[str, int]]:
    return [(line.name, line.words) for line in lines]


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_every_side_computes_what_plain_float32_does(dtype: Any, alone: Group) -> None:
    sizes = replace(SIZES, dtype=dtype)
    exact = list(exact_sides(sizes, alone))
    assert words_of(exact) == [
        ("exact, auto: blocks of 36 tokens, 8 MiB", 300),
        ("exact, blocks of 33 tokens, 0.0380859 MiB", 300),
        ("exact, tiles, 0.001 MiB", 300),
        ("F.cross_entropy", 300),
    ]
    sampled = list(sampled_sides(sizes, alone))
    assert words_of(sampled) == [("sampled, 50 negatives", 90), ("sampled, 50 negatives", 700)]
    for side in [*exact, *sampled]:
        phases = ["lookup", "layer", "update"] if side in sampled else ["layer", "update"]
        assert list(side.seconds) == (["layer"] if side is exact[3] else phases)
        assert all(len(taken) == 2 and min(taken) > 0 for taken in side.seconds.values())
        assert side.flop == 6 * 36 * 8 * (50 if side in sampled else 300)
        assert (max(side.differences.values()) < 1e-5) == (dtype == "fp32")
        assert side.left_out is None


def test_other_words_are_sampled_in_every_pass_and_the_rows_stay(
    alone: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted: list[tuple[torch.Tensor, ...]] = []
    tables: list[tuple[torch.Tensor, torch.Tensor]] = []
    fill = output_sides._fill

    class Kept(output_sides.ShardedTables):
        def request(self, rows: Any) -> Any:
            answers, negatives = rows.index["output"]
            wanted.append(tuple(rows.rows["output"][place] for place in (answers, negatives)))
            return super().request(rows)

    def filled(weight: torch.Tensor) -> None:
        assert not weight.any()  # none was drawn on the CPU before
        fill(weight)
        tables.append((weight, weight.clone()))

    monkeypatch.setattr(output_sides, "ShardedTables", Kept)
    monkeypatch.setattr(output_sides, "_fill", filled)
    list(sampled_sides(replace(SIZES, sampled_rows=[700]), alone))
    *timed, again = wanted
    assert len(timed) == WARM_UP + 2
    for this, following in pairwise(timed):
        assert not any(torch.equal(a, b) for a, b in zip(this, following, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(again, timed[-1], strict=True))
    ((weight, before),) = tables
    assert torch.equal(weight, before)
    assert float(before.std(1).mean()) == pytest.approx(8**-0.5, rel=0.2)
    assert float(before.mean()) == pytest.approx(8**-0.5, rel=0.2)


def test_the_reference_is_the_same_in_any_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight = torch.randn(7, 4), torch.randn(11, 4)
    rows = torch.tensor([0, 10, 3, 3, 5, 0, 9])
    monkeypatch.setattr(output_check, "_BLOCK_BYTES", 3 * 4 * 11)
    found = plain_cross_entropy(hidden, weight, rows)
    h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    loss = functional.cross_entropy(h @ w.t(), rows)
    loss.backward()
    torch.testing.assert_close(found.loss / 7, loss.detach())
    torch.testing.assert_close(found.hidden, h.grad)
    torch.testing.assert_close(found.rows, w.grad)


ANSWERS = torch.tensor([0, 2, 2])


def computed() -> Computed:
    """That of rows 0 and 2, which are answers, is far larger than that of 1 and 3."""
    rows = torch.tensor([[1.0], [1e-3], [2.0], [1e-3]])
    return Computed(torch.tensor(5.0), torch.tensor([[1.0, -1.0], [2.0, 0.5], [0.1, 0.1]]), rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("what", "wrong"),
    [
        ("loss", {"loss": torch.tensor(5.0 * 1.003)}),
        ("loss", {"loss": torch.tensor(float("nan"))}),
        ("gradient of hidden states", {"hidden": 1.03 * computed().hidden}),
        ("gradient of answers' rows", {"rows": torch.tensor([[1.1], [1e-3], [2.0], [1e-3]])}),
        ("gradient of other rows", {"rows": torch.tensor([[1.0], [1e-3], [2.0], [0.0]])}),
    ],
)
def test_what_is_far_off_is_named(what: str, wrong: dict[str, Any], dtype: torch.dtype) -> None:
    found = replace(computed(), **wrong)
    with pytest.raises(RunFailed, match=f"some side: its {what} differs from plain float32 by"):
        check("some side", found, computed(), ANSWERS, dtype)


def test_differences_are_relative_to_size() -> None:
    found = replace(computed(), loss=torch.tensor(5.005),
                    rows=torch.tensor([[1.0], [1.01e-3], [2.0], [1e-3]]))  # fmt: skip
    differences = check("some side", found, computed(), ANSWERS, torch.bfloat16)
    assert differences == {
        "loss": pytest.approx(0.001, rel=1e-3),
        "gradient of hidden states": 0.0,
        "gradient of answers' rows": 0.0,
        "gradient of other rows": pytest.approx(0.01 / 2**0.5, rel=1e-3),
    }


@pytest.mark.parametrize("sides", [exact_sides, sampled_sides])
def test_a_layer_that_computes_less_has_no_figures(
    sides: Any, alone: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exact layer forgets the right answer, the sampled one the smoothing that it has not."""

    def forgotten(self: Picked, logits: torch.Tensor, value: Any) -> None:
        pass

    monkeypatch.setattr(Picked, "add" if sides is exact_sides else "put", forgotten)
    with pytest.raises(RunFailed, match=r"exact, auto|sampled, 50 negatives"):
        next(sides(SIZES, alone))


def test_what_does_not_fit_or_compile_is_named(
    alone: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = replace(SIZES, compiled=True, blocks=["auto"])
    monkeypatch.setattr(output_sides, "available_bytes", lambda: plain_bytes(sizes) - 1)
    _, plain, compiled = exact_sides(sizes, alone)
    assert words_of([plain, compiled]) == [
        ("F.cross_entropy", 300), ("F.cross_entropy, torch.compile", 300)
    ]  # fmt: skip
    assert plain.left_out == compiled.left_out == "needs 0.0 GiB, 0.0 GiB are free"
    assert plain.seconds == {}
    monkeypatch.setattr(output_sides, "available_bytes", lambda: 3 * 2**29)
    large = replace(sizes, sampled_rows=[90, 2**26])
    small, large_one = sampled_sides(large, alone)
    assert small.left_out is None
    # 2²⁶ rows of eight values and one of state.
    assert large_one.left_out == "needs 2.3 GiB, 1.5 GiB are free"

    def compiling(function: Any) -> Any:
        def failing(*given: Any) -> Any:
            raise AssertionError("no\n compiler here\n" + 200 * "x")

        return failing

    monkeypatch.setattr(torch, "compile", compiling)
    _, plain, compiled = exact_sides(sizes, alone)
    assert (plain.left_out, compiled.left_out) == (None, "no compiler here " + 183 * "x")


def test_what_plain_cross_entropy_takes() -> None:
    sizes = replace(SIZES, tokens=10, width=3, rows=7)
    assert plain_bytes(sizes) == 4 * (3 * 70 + 21)
    assert plain_bytes(replace(sizes, dtype="bf16")) == 4 * (3 * 70 + 21) + 2 * (70 + 2 * 21)


@pytest.fixture
def here(alone: Group, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The worker's task in this process; where it writes comes back."""
    logs: list[Any] = []

    @contextmanager
    def joined(device: str, timeout_seconds: float) -> Iterator[Group]:
        assert (device, timeout_seconds) == ("cpu", 900.0)
        yield alone

    def launch(target: Any, args: Any, **how: Any) -> Any:
        assert how.pop("log_folder") == str(private_log_folder("bench"))
        on_event = how.pop("on_event")
        assert how == {"num_workers": 1, "device": "cpu"}
        return target(*args, on_event)

    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr(output, "joined_group", joined)
    monkeypatch.setattr(output, "launch_local", launch)
    monkeypatch.setattr(output, "redirect_output", logs.append)
    return logs


def test_all_sides_in_a_process_of_their_own(here: list[Any]) -> None:
    said: list[str] = []
    sizes = replace(SIZES, blocks=["auto"], sampled_rows=[90], repeats=1)
    found = output.measure_output(sizes, say=said.append)
    assert here == [private_log_folder("bench") / "worker-0.log"]
    assert [side["name"] for side in found["sides"]] == [
        "exact, auto: blocks of 36 tokens, 8 MiB", "F.cross_entropy", "sampled, 50 negatives"
    ]  # fmt: skip
    assert (found["tokens"], found["device"], found["sampled_rows"]) == (36, "cpu", [90])
    assert found["name"]
    assert len(said) == 3
    assert said[1].startswith("F.cross_entropy, 300 words: layer ")


# The command.


FOUND = {
    "name": "a GPU",
    "sides": [
        {"name": "exact", "words": 256_000, "flop": 6 * 10**12, "beyond_bytes": 3 * 2**29,
         "seconds": {"layer": [0.06, 0.05, 0.4], "update": [0.002, 0.9, 0.001]},
         "differences": {"loss": 1e-5, "gradient of hidden states": 0.0034}, "left_out": None},
        {"name": "plain", "words": 1000, "flop": 0, "beyond_bytes": 0, "seconds": {},
         "differences": {}, "left_out": "needs 3.0 GiB, 1.0 GiB are free"},
        {"name": "sampled", "words": 20_000_000, "flop": 10**9, "beyond_bytes": 2**20,
         "seconds": {"lookup": [0.001], "layer": [0.004], "update": [0.00125]},
         "differences": {"loss": 0.002}, "left_out": None},
    ],
}  # fmt: skip


def test_the_command_asks_for_its_sizes_and_tells_what_was_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Any] = []

    def measuring(sizes: OutputSizes, *, say: Any) -> Any:
        asked.append(sizes)
        return FOUND

    monkeypatch.setattr(output, "measure_output", measuring)
    monkeypatch.setattr("dist_embed.observe.quiet.quiet_screen", lambda: None)
    out = tmp_path / "found.json"
    assert main(["bench", "output", "--device", "cpu"]) == 0
    assert main([
        "bench", "output", "--device", "cpu", "--dtype", "fp32", "--tokens", "7", "--width", "12",
        "--rows", "30", "--logits-block-mib", "0.5", "auto", "--compile", "--sampled-rows", "20",
        "21", "--samples", "19", "--repeats", "2", "--output", str(out),
    ]) == 0  # fmt: skip
    assert asked == [
        OutputSizes("cpu", "bf16", 8192, 2304, 256_000, ["auto", 256.0], False, [], 8192, 10),
        OutputSizes("cpu", "fp32", 7, 12, 30, [0.5, "auto"], True, [20, 21], 19, 2),
    ]
    said = capsys.readouterr().out
    assert "7 tokens, width 12, products in fp32, a GPU; median of 2 passes after 3\n" in said
    assert cells(said)[4:] == [
        ["", "words", "lookup, ms", "loss and gradients, ms", "update, ms", "together, ms",
         "TFLOP/s", "MiB beyond", "largest difference"],
        ["exact", "256,000", "", "60.00", "2.00", "401.00", "100", "1,536", "3.4e-03"],
        ["plain", "1,000", "needs 3.0 GiB, 1.0 GiB are free", *[""] * 6],
        ["sampled", "20,000,000", "1.00", "4.00", "1.25", "6.25", "0.25", "1", "2.0e-03"],
    ]  # fmt: skip
    content = json.loads(out.read_text())
    assert content["figures"] == FOUND
    assert content["machine"]["device"] == "a GPU"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("--width 10", "--width: 10 is not allowed: a multiple of 4"),
        ("--width 2052 --sampled-rows 9000",
         "--width: 2052 is not allowed with --sampled-rows on a GPU, whose tables have at most "
         "2048"),
        ("--width 2048 --sampled-rows 9000 8192",
         "--samples: 8192 is not allowed with --sampled-rows 8192: fewer than words"),
    ],
)  # fmt: skip
def test_sizes_that_cannot_be_measured(
    given: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("dist_embed.observe.quiet.quiet_screen", lambda: None)
    monkeypatch.setattr("dist_embed.parallel.device.resolve_device", lambda wanted, name: "cuda")
    monkeypatch.setattr(output, "measure_output", lambda sizes, say: FOUND)
    assert main(["bench", "output", *given.split()]) == 2
    assert said in capsys.readouterr().err
    assert main(["bench", "output", "--width", "2052"]) == 0  # of the exact layer alone


@pytest.mark.parametrize(
    "given",
    ["--tokens 0", "--width 3", "--rows 1", "--logits-block-mib 0", "--logits-block-mib inf",
     "--logits-block-mib nan", "--logits-block-mib large", "--sampled-rows 1", "--samples 0",
     "--repeats 0"],
)  # fmt: skip
def test_values_that_are_none(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        build_parser().parse_args(["bench", "output", *given.split()])
    assert ended.value.code == 2
    assert "is not allowed: a" in capsys.readouterr().err
