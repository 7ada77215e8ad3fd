"""The products of narrow operands, on the CPU and as they are called on CUDA."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from dist_embed.model import logit_blocks
from dist_embed.model.logit_blocks import Picked, add_product, multiply

ROWS, TOKENS, WIDTH = 37, 11, 8


def operands(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(TOKENS, WIDTH, generator=generator)
    return hidden.to(dtype), torch.randn(ROWS, WIDTH, generator=generator).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("product_rows", [5, 1000])
def test_products_are_float32(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, product_rows: int
) -> None:
    monkeypatch.setattr(logit_blocks, "PRODUCT_ROWS", product_rows)
    hidden, weight = operands(dtype)
    out, total = torch.empty(TOKENS, ROWS), torch.ones(ROWS, WIDTH)
    expected = hidden.double() @ weight.double().t()
    precision = {"rtol": 1e-2, "atol": 2e-2} if dtype == torch.bfloat16 else {"rtol": 1e-5}
    assert multiply(hidden, weight.t(), out) is out
    torch.testing.assert_close(out.double(), expected, **{"atol": 1e-5, **precision})
    add_product(out.to(dtype).t(), hidden, total, 0.5)
    whole = 1 + 0.5 * out.to(dtype).double().t() @ hidden.double()
    torch.testing.assert_close(total.double(), whole, **{"atol": 1e-5, **precision})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_calls_on_cuda_are_such_as_pytorch_has(dtype: torch.dtype) -> None:
    """Without their values: those are for tests/gpu."""
    with FakeTensorMode():
        hidden = torch.empty(TOKENS, WIDTH, dtype=dtype, device="cuda")
        weight = torch.empty(WIDTH, ROWS, dtype=dtype, device="cuda")
        assert multiply(hidden, weight, torch.empty(TOKENS, ROWS, device="cuda")).is_cuda
    assert "dtype_out" in torch.ops.aten.addmm.overloads()  # of `add_product`


def test_picked_logits() -> None:
    logits = torch.arange(12.0).view(4, 3)
    picked = Picked(torch.tensor([2, -1, 3, 0]), 3)
    assert picked.read(logits).tolist() == [2, 0, 0, 9]
    picked.add(logits, -5.0)
    changed = torch.arange(12.0).view(4, 3)
    changed[0, 2], changed[3, 0] = -3, 4
    assert torch.equal(logits, changed)
    picked.put(logits, torch.tensor([5.0, 6.0, 7.0, 8.0]))
    changed[0, 2], changed[3, 0] = 5, 8
    assert torch.equal(logits, changed)
    picked.put(logits, torch.tensor(1.0))
    changed[0, 2], changed[3, 0] = 1, 1
    assert torch.equal(logits, changed)
    nothing = Picked(torch.tensor([-1, 5]), 0)
    assert nothing.read(torch.empty(2, 0)).tolist() == [0, 0]
    nothing.add(torch.empty(2, 0), 1.0)
