"""What the softmaxes over a table are given: the right value, or one error that names it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from dist_embed.embedding.sharded_tables import ShardedTables
from dist_embed.embedding.step_rows import StepRows
from dist_embed.embedding.table import Table
from dist_embed.errors import UserError
from dist_embed.model.output_layer import ExactSoftmax, OutputLayer, SampledSoftmax
from dist_embed.model.sampler import LogUniformSampler, Negatives
from dist_embed.model.step_loss import StepLoss
from dist_embed.parallel.group import Group

WORDS, WIDTH, N = 9, 4, 3
LAYERS = ["exact", "sampled"]
TARGETS = torch.tensor([1, 8, 1])
HIDDEN = torch.randn(N, WIDTH, generator=torch.Generator().manual_seed(1))


class Case:
    """A layer over a table; with all words drawn the sampled one is exact."""

    def __init__(self, alone: Group, layer: str) -> None:
        whole = layer == "exact"
        named = {"w": Table(WORDS, WIDTH, trained_whole=whole), "v": Table(WORDS, WIDTH)}
        self.tables = ShardedTables(named, alone, optimizer="sgd", learning_rate=0.5, seed=1)
        self.output: OutputLayer = ExactSoftmax(self.tables, "w")
        if not whole:
            self.output = SampledSoftmax(self.tables, "w", LogUniformSampler(WORDS, WORDS))

    def start(
        self, targets: Tensor = TARGETS, micro_batches: int = 1
    ) -> tuple[StepRows, StepLoss, Negatives | None]:
        pieces = [targets] * micro_batches
        negatives = self.output.draw(1, pieces)
        rows = self.tables.lookup({"w": self.output.words(pieces, negatives)})
        return rows, self.output.start(rows, negatives, micro_batches, 1 / N), negatives

    def logits(self, hidden: Tensor) -> Tensor:
        weight = self.tables.weight("w")
        return hidden.float() @ weight[self.tables.orders["w"].rows_of(torch.arange(WORDS))].t()


@pytest.fixture(params=LAYERS)
def case(alone: Group, request: pytest.FixtureRequest) -> Case:
    return Case(alone, request.param)


def said(call: Callable[[], Any]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    return str(caught.value)


GIVEN: list[tuple[dict[str, Any], str]] = [
    ({"hidden": torch.ones(1, N, WIDTH)}, "hidden: [1, 3, 4] is not allowed: [n, 4], a row"),
    ({"hidden": torch.ones(N, 8)}, "hidden: [3, 8] is not allowed: [n, 4]"),
    ({"hidden": torch.ones(N, WIDTH).long()}, "hidden: torch.int64 is not allowed"),
    ({"hidden": torch.ones(N, WIDTH, device="meta")}, "hidden: on meta is not allowed: on cpu"),
    ({"hidden": None}, "hidden: None is not allowed: a tensor [n, 4]"),
    ({"targets": TARGETS.float()}, "targets: ids are whole numbers, not torch.float32"),
    ({"targets": TARGETS.bool()}, "targets: ids are whole numbers, not torch.bool"),
    ({"targets": torch.tensor([1, -100, 2])}, "targets: -100 is no id; allowed are 0 to 8"),
    ({"targets": torch.tensor([1, 9, 2])}, "targets: 9 is no id; allowed are 0 to 8"),
    ({"targets": TARGETS[:2]}, "targets: [2] is not allowed: [3], one for each row of `hidden`"),
    ({"targets": TARGETS.unsqueeze(0)}, "targets: [1, 3] is not allowed: [3]"),
    ({"targets": [1, 2, 3]}, "targets: [1, 2, 3] is not allowed: ids are a tensor"),
    ({"tokens_of_worker": [2]}, "tokens_of_worker: [2] is not allowed: how many tokens each of 1"),
    ({"tokens_of_worker": [3, 3]}, "tokens_of_worker: [3, 3] is not allowed"),
    ({"tokens_of_worker": 3}, "tokens_of_worker: 3 is not allowed: a list"),
    ({"tokens_of_worker": [3.5]}, "tokens_of_worker[0]: 3.5 is not allowed: a whole number"),
    ({"micro": 1}, "micro: 1 is not allowed: each of a step's 1 micro-batches once"),
    ({"label_smoothing": 1.5}, "label_smoothing: 1.5 is not allowed: a number, at least"),
    ({"label_smoothing": float("nan")}, "label_smoothing: nan is not allowed"),
]  # fmt: skip


@pytest.mark.parametrize(("wrong", "expected"), GIVEN)
def test_what_a_loss_cannot_be_of_is_named(
    case: Case, wrong: dict[str, Any], expected: str
) -> None:
    right = {"hidden": HIDDEN, "micro": 0, "targets": TARGETS, "tokens_of_worker": [N]}
    _, step_loss, _ = case.start()
    assert said(lambda: step_loss.of(**{**right, **wrong})).startswith(expected)
    step_loss.of(**right)  # the error has left it as it was


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("autocast", [False, True])
def test_hidden_states_of_other_types_are_computed_with_in_float32(
    case: Case, dtype: torch.dtype, autocast: bool
) -> None:
    hidden = HIDDEN.to(dtype).requires_grad_()
    logits = case.logits(hidden)
    expected = functional.cross_entropy(logits, TARGETS, reduction="sum")
    (gradient,) = torch.autograd.grad(expected, hidden)
    _, step_loss, _ = case.start()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss, _ = step_loss.of(hidden, 0, TARGETS, [N])
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    assert hidden.grad is not None
    torch.testing.assert_close(hidden.grad, gradient)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.uint64, torch.int16])
def test_targets_are_of_any_type_of_whole_numbers(case: Case, dtype: torch.dtype) -> None:
    _, step_loss, _ = case.start(TARGETS.to(dtype))
    loss, _ = step_loss.of(HIDDEN.clone().requires_grad_(), 0, TARGETS.to(dtype), [N])
    expected = functional.cross_entropy(case.logits(HIDDEN), TARGETS, reduction="sum")
    torch.testing.assert_close(loss.detach(), expected, rtol=1e-5, atol=1e-5)
    _, step_loss, _ = case.start()
    again, _ = step_loss.of(HIDDEN, 0, TARGETS.numpy().astype(np.uint16), [N])  # type: ignore[arg-type]
    torch.testing.assert_close(again, loss.detach())


def test_a_lone_tensor_of_targets_is_that_of_one_micro_batch(case: Case) -> None:
    lone: Any = TARGETS
    negatives = case.output.draw(1, lone)
    words = case.output.words(lone, negatives)
    assert [w.tolist() for w in words] == [
        w.tolist() for w in case.output.words([TARGETS], negatives)
    ]
    wrong: Any = [TARGETS.float()]
    assert said(lambda: case.output.words(wrong, negatives)).startswith("targets: ids are whole")


@pytest.mark.parametrize("block", [torch.no_grad, torch.inference_mode])
def test_a_loss_without_a_gradient_changes_nothing(
    case: Case, block: Callable[[], AbstractContextManager[None]]
) -> None:
    expected = functional.cross_entropy(case.logits(HIDDEN), TARGETS, reduction="sum")
    with block():
        rows, step_loss, _ = case.start()
        loss, nll = step_loss.of(HIDDEN, 0, TARGETS, [N])
        step_loss.finish()
    torch.testing.assert_close(torch.stack([loss, nll]), expected.expand(2), rtol=1e-5, atol=1e-5)
    assert "looked up without a gradient" in said(rows.backward)


def test_a_validation_may_come_between_the_halves_of_a_step(case: Case) -> None:
    before = case.tables.weight("w").clone()
    rows, step_loss, _ = case.start()
    loss, _ = step_loss.of(HIDDEN.clone().requires_grad_(), 0, TARGETS, [N])
    loss.backward()
    step_loss.finish()
    with torch.no_grad():
        _, validation, _ = case.start()
        validation.of(HIDDEN, 0, TARGETS, [N])
    rows.backward()
    logits = before[case.tables.orders["w"].rows_of(torch.arange(WORDS))].requires_grad_()
    functional.cross_entropy(HIDDEN @ logits.t(), TARGETS, reduction="sum").backward()
    assert logits.grad is not None
    scale = 0.5 / N if isinstance(case.output, ExactSoftmax) else 0.5
    moved = (before - case.tables.weight("w"))[case.tables.orders["w"].rows_of(torch.arange(WORDS))]
    torch.testing.assert_close(moved, scale * logits.grad, rtol=1e-4, atol=1e-6)


def test_a_loss_that_is_only_looked_at_does_not_hold_up_its_step(case: Case) -> None:
    rows, step_loss, negatives = case.start()
    with torch.no_grad():
        looked_at, _ = case.output.start(rows, negatives, 1, 1 / N).of(HIDDEN, 0, TARGETS, [N])
    loss, _ = step_loss.of(HIDDEN.clone().requires_grad_(), 0, TARGETS, [N])
    assert torch.equal(loss.detach(), looked_at)
    loss.backward()
    step_loss.finish()
    rows.backward()


def test_an_exact_loss_is_had_of_any_table_without_a_gradient(alone: Group) -> None:
    tables = Case(alone, "sampled").tables
    output = ExactSoftmax(tables, "v")
    with torch.no_grad():
        loss, _ = output.start(tables.lookup({}), None, 1, 1.0).of(HIDDEN, 0, TARGETS, [N])
    weight = tables.weight("v")[tables.orders["v"].rows_of(torch.arange(WORDS))]
    expected = functional.cross_entropy(HIDDEN @ weight.t(), TARGETS, reduction="sum")
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    assert "is not trained whole, as training an exact softmax needs it" in said(
        lambda: output.start(tables.lookup({}), None, 1, 1.0)
    )


def test_the_end_of_a_step_follows_its_last_backward(alone: Group) -> None:
    rows, step_loss, _ = (case := Case(alone, "sampled")).start(micro_batches=2)
    assert said(step_loss.finish).startswith("finish: 0 of the step's 2 micro-batches have had")
    hidden = HIDDEN.clone().requires_grad_()
    for micro in range(2):
        loss, _ = step_loss.of(hidden, micro, TARGETS, [N])
        assert "call backward() first" in said(step_loss.finish) or not micro
        loss.backward()
    before = case.tables.weight("w").clone()
    assert "call finish() of what its `start` has given first" in said(rows.backward)
    assert torch.equal(before, case.tables.weight("w"))
    step_loss.finish()
    assert "it has been called already" in said(step_loss.finish)
    assert "none is left" in said(lambda: step_loss.of(hidden, 2, TARGETS, [N]))
    rows.backward()
    assert not torch.equal(before, case.tables.weight("w"))


def test_a_softmax_says_what_a_step_has_not_looked_up(alone: Group) -> None:
    case = Case(alone, "sampled")
    negatives = case.output.draw(1, [TARGETS])
    rows = case.tables.lookup({"w": TARGETS})
    assert said(lambda: case.output.start(rows, negatives, 1, 1.0)).startswith(
        "rows: 1 tensors of ids were looked up as 'w'; 2 are needed"
    )
    rows = case.tables.lookup({"w": case.output.words([TARGETS], negatives)})
    others = LogUniformSampler(WORDS, 2).draw(1, 1)
    assert said(lambda: case.output.start(rows, others, 1, 1.0)).startswith("negatives: others")
    step_loss = case.output.start(rows, negatives, 1, 1.0)
    assert said(lambda: step_loss.of(HIDDEN[:2], 0, TARGETS[:2], [2])) == (
        "targets: 2 of micro-batch 0; 3 were looked up"
    )


@pytest.mark.parametrize(
    ("call", "expected"),
    [("ExactSoftmax(3, 'w')", "tables: 3 is not allowed: a ShardedTables"),
     ("ExactSoftmax(tables, ['w'])", "feature ['w']: no table has it; there are w, v"),
     ("ExactSoftmax(tables, 'w', 3)", "shard: 3 is not allowed"),
     ("SampledSoftmax(tables, 'w', None)", "sampler: None is not allowed"),
     ("SampledSoftmax(tables, 'w', sampler, seed=-1)", "seed: -1 is not allowed: a whole number"),
     ("SampledSoftmax(tables, 'w', sampler, shares=3)", "shares: 3 is not allowed"),
     ("output.words([targets], None)", "negatives: None is not allowed: what `draw` has given"),
     ("output.start(3, drawn, 1, 1.0)", "rows: 3 is not allowed"),
     ("output.start(rows, None, 1, 1.0)", "negatives: None is not allowed"),
     ("output.start(rows, drawn, 0, 1.0)", "micro_batches: 0 is not allowed: a whole number"),
     ("output.start(rows, drawn, 1, float('nan'))", "weight_scale: nan is not allowed"),
     ("output.draw('1', [targets])", "step: '1' is not allowed: a whole number, at least 0")],
)  # fmt: skip
def test_what_a_softmax_is_given_is_named(alone: Group, call: str, expected: str) -> None:
    case = Case(alone, "sampled")
    drawn = case.output.draw(1, [TARGETS])
    names = {
        "ExactSoftmax": ExactSoftmax, "SampledSoftmax": SampledSoftmax, "tables": case.tables,
        "sampler": LogUniformSampler(WORDS, 2), "output": case.output, "drawn": drawn,
        "targets": TARGETS, "rows": case.tables.lookup({"w": case.output.words([TARGETS], drawn)}),
    }  # fmt: skip
    assert said(lambda: eval(call, names)).startswith(expected)
