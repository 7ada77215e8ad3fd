from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from dist_embed.model.attention import SelfAttention
from dist_embed.model.dropout import Dropout
from dist_embed.model.transformer import Transformer, positions


def small(embedding_width: int = 16, **changes: float) -> Transformer:
    torch.manual_seed(3)
    sizes = {
        "width": 16, "feed_forward": 20, "heads": 2, "encoder_layers": 2, "decoder_layers": 2,
        "dropout": 0.0, "attention_dropout": 0.0,
    }  # fmt: skip
    return Transformer(embedding_width=embedding_width, **(sizes | changes)).eval()  # type: ignore[arg-type]


def inputs(width: int = 16) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(4)
    return torch.randn(3, 5, width), torch.tensor([5, 2, 4]), torch.randn(3, 6, width)


@pytest.mark.parametrize("embedding_width", [16, 8])
def test_stepping_equals_the_whole_sequence(embedding_width: int) -> None:
    model = small(embedding_width)
    source, lengths, target = inputs(embedding_width)
    whole = model(source, lengths, target, torch.arange(18)).view(3, 6, -1)
    state = model.start(source, lengths)
    for place in range(6):
        hidden = model.step(target[:, place], state)
        torch.testing.assert_close(hidden, whole[:, place], rtol=1e-5, atol=1e-5)
    assert whole.shape[-1] == embedding_width


def test_a_later_word_changes_nothing_before_it() -> None:
    model = small()
    source, lengths, target = inputs()
    before = model(source, lengths, target, torch.arange(18)).view(3, 6, -1)
    target[:, 4] *= -1
    after = model(source, lengths, target, torch.arange(18)).view(3, 6, -1)
    assert torch.equal(before[:, :4], after[:, :4])
    assert not torch.equal(before[:, 4], after[:, 4])


def test_padding_of_the_source_is_not_seen() -> None:
    model = small()
    source, lengths, target = inputs()
    before = model(source, lengths, target, torch.arange(18)).view(3, 6, -1)
    changed = source.clone()
    changed[1, 2:] *= -1
    after = model(changed, lengths, target, torch.arange(18)).view(3, 6, -1)
    torch.testing.assert_close(before, after)
    changed[1, 1] *= -1
    seen = model(changed, lengths, target, torch.arange(18)).view(3, 6, -1)
    assert not torch.allclose(before[1], seen[1])


def test_selected_states_go_on_as_their_rows() -> None:
    model = small()
    source, lengths, target = inputs()
    state = model.start(source, lengths)
    model.step(target[:, 0], state)
    index = torch.tensor([2, 0])
    chosen = state.select(index)
    expected = model.step(target[:, 1], state)[index]
    torch.testing.assert_close(model.step(target[index, 1], chosen), expected)


@pytest.mark.parametrize("embedding_width", [16, 8])
def test_rectangles_one_behind_the_other_equal_each_by_itself(embedding_width: int) -> None:
    """Hidden states and gradients; among them one without sentences."""
    model = small(embedding_width)
    torch.manual_seed(5)
    rectangles = [(2, 5, 3), (0, 0, 0), (3, 2, 6), (1, 7, 1)]
    lengths = [torch.tensor([5, 2]), torch.zeros(0, dtype=torch.int64), torch.tensor([1, 2, 2]),
               torch.tensor([7])]  # fmt: skip
    sources = [torch.randn(b, s, embedding_width) for b, s, _ in rectangles]
    targets = [torch.randn(b, t, embedding_width) for b, _, t in rectangles]
    apart = [
        model(source, length, target, torch.arange(target.shape[0] * target.shape[1]))
        for source, length, target in zip(sources, lengths, targets, strict=True)
    ]
    places = torch.tensor([0, 1, 3, 4, 7, 11, 23, 24])
    expected = torch.cat(apart)[places]
    flat = [torch.cat([x.flatten(0, 1) for x in side]) for side in (sources, targets)]
    found = model(flat[0], torch.cat(lengths), flat[1], places, rectangles)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    weights = torch.randn_like(found)
    parameters = list(model.parameters())
    wanted = torch.autograd.grad((expected * weights).sum(), parameters)
    gradients = torch.autograd.grad((found * weights).sum(), parameters)
    torch.testing.assert_close(gradients, wanted, rtol=1e-4, atol=1e-5)


def test_an_empty_batch_has_zero_gradients() -> None:
    model = small(8, dropout=0.5).train()
    empty = torch.empty(0, 0, 8)
    hidden = model(
        empty, torch.empty(0, dtype=torch.int64), empty, torch.empty(0, dtype=torch.int64)
    )
    assert hidden.shape == (0, 8)
    hidden.sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad.any()


def test_self_attention_equals_the_formula() -> None:
    torch.manual_seed(0)
    layer = SelfAttention(8, 2, 0.0)
    x = torch.randn(2, 5, 8)
    query, key, value = (part.view(2, 5, 2, 4).transpose(1, 2) for part in
                         layer.query_key_value(x).chunk(3, -1))  # fmt: skip
    weights = functional.softmax(query @ key.transpose(-1, -2) / 4**0.5, -1)
    expected = layer.out((weights @ value).transpose(1, 2).reshape(2, 5, 8))
    torch.testing.assert_close(layer(x), expected)


def test_positions_are_sines_and_cosines() -> None:
    table = positions(2, 3, 8, torch.device("cpu"))
    assert table.shape == (3, 8)
    assert table[0, 0].item() == pytest.approx(torch.tensor(2.0).sin().item())
    assert table[1, 4].item() == pytest.approx(torch.tensor(3.0).cos().item())


@pytest.mark.parametrize("p", [1 / 256, 0.1, 0.3, 0.9, 0.999])
def test_dropout_keeps_the_expectation_and_the_rate(p: float) -> None:
    torch.manual_seed(0)
    layer = Dropout(p).train()
    x = torch.ones(400, 500, requires_grad=True)
    y = layer(x)
    # 200,000 draws: six standard deviations of the rate.
    assert (y == 0).float().mean().item() == pytest.approx(p, abs=1 / 512 + 6 * 0.5 / 200_000**0.5)
    scale = 256 / (256 - layer.threshold)
    assert y.unique().tolist() == pytest.approx([0.0, scale])
    y.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, y.detach())


def test_dropout_follows_the_seed_and_stops_in_evaluation() -> None:
    layer, x = Dropout(0.5).train(), torch.ones(33)
    torch.manual_seed(5)
    first = layer(x)
    torch.manual_seed(5)
    assert torch.equal(first, layer(x))
    assert not torch.equal(first, layer(x))
    assert layer.eval()(x) is x


@pytest.mark.parametrize("p", [-0.1, 1.0])
def test_dropout_outside_its_range_is_refused(p: float) -> None:
    with pytest.raises(ValueError, match="dropout"):
        Dropout(p)
