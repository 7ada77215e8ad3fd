"""Right answers as negatives: which, of which tokens, and with what correction."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from dist_embed.model.batch_negatives import BatchNegatives, WordShares, with_batch
from dist_embed.model.sampled_output import sampled_cross_entropy
from dist_embed.model.sampler import LogUniformSampler

WORDS, WIDTH = 40, 6
COUNTS = np.array([*(600 // np.arange(1, WORDS)), 0])  # the last word never occurs
LARGE = 10**9  # bytes: all tokens in one block


SHARES = WordShares(COUNTS)


def negatives_of(sentences: list[list[int]], samples: int = 5, step: int = 1) -> BatchNegatives:
    sampler = LogUniformSampler(WORDS, samples)
    return with_batch(
        sampler.draw(3, step), sampler, SHARES,
        [torch.tensor([word for words in sentences for word in words], dtype=torch.int64)],
        [torch.tensor([n for n, words in enumerate(sentences) for _ in words], dtype=torch.int64)],
    )  # fmt: skip


def probability_by_definition(word: int, others: float, samples: int) -> float:
    pi = float(LogUniformSampler(WORDS, samples).probability_of(np.array([word]))[0])
    share = float(SHARES.of(np.array([word]))[0])
    return 1 - (1 - pi) * (1 - share) ** others


def test_the_words_of_a_step_and_how_probable_they_were() -> None:
    found = negatives_of([[30, 7, 30], [31, 7], [32]])
    assert found.ids.numel() == 5
    drawn = found.ids.tolist()
    expected = {30: 0, 7: -1, 31: 1, 32: 2}
    assert not set(expected) & set(drawn)  # else the test looks at less than it says
    assert dict(zip(found.batch_ids.tolist(), found.only_in.tolist(), strict=True)) == expected
    by_definition = [
        probability_by_definition(word, 6 * (1 - 1 / 3), 5)
        for word in drawn + found.batch_ids.tolist()
    ]
    np.testing.assert_allclose(found.log_either.exp(), by_definition, rtol=1e-5)
    assert found.place_of(torch.tensor([[drawn[2], 31], [39, 7]])).tolist() == [
        [2, 5 + 2 if sorted(expected)[2] == 31 else -9], [-1, 5],
    ]  # fmt: skip


def test_words_that_were_drawn_are_there_once() -> None:
    drawn = LogUniformSampler(WORDS, 5).draw(3, 1).ids.tolist()
    found = negatives_of([drawn, [drawn[0], 39]])
    assert found.batch_ids.tolist() == [39]
    assert found.ids.tolist() == drawn


def test_no_tokens_and_a_single_sentence() -> None:
    """Where nobody else has a word, what is drawn counts as without."""
    for sentences in ([], [[30, 31]]):
        found = negatives_of(sentences)
        drawn = LogUniformSampler(WORDS, 5).draw(3, 1)
        torch.testing.assert_close(found.log_either[:5], drawn.log_probability)
        assert found.batch_ids.numel() == len(found.only_in) == sum(map(len, sentences))
        assert bool(found.hidden_from(0, slice(None)).all())


@pytest.mark.parametrize("counts", [[1, 2, 3, 65_504, 10**6, 10**9, 4 * 10**9], [1, 10**12]])
def test_shares(counts: list[int]) -> None:
    shares = WordShares(np.array(counts)).of(np.arange(len(counts)))
    told = np.minimum(counts, 65_504.0**2) / sum(counts)
    np.testing.assert_allclose(shares, told, rtol=1e-3)


def test_shares_of_words_that_are_all_there_is() -> None:
    occurring = WordShares(np.array([5, 0])).occurring(np.array([0, 1]), 3.0)
    np.testing.assert_allclose(occurring, [1.0, 0.0])
    with pytest.raises(ValueError, match="no word occurs"):
        WordShares(np.zeros(3, np.int64))


def problem() -> tuple[Tensor, Tensor, list[list[int]]]:
    generator = torch.Generator().manual_seed(4)
    sentences = [[30, 7, 30], [31, 7], [32], [0, 31, 1, 5]]
    hidden = torch.randn(sum(map(len, sentences)), WIDTH, generator=generator)
    weight = torch.randn(WORDS, WIDTH, generator=generator)
    return hidden.requires_grad_(), weight.requires_grad_(), sentences


def layer(
    hidden: Tensor, weight: Tensor, sentences: list[list[int]], negatives: BatchNegatives,
    smoothing: float = 0.0, block_tokens: int = 1000,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    targets = torch.tensor([word for words in sentences for word in words])
    columns = torch.cat([negatives.ids, negatives.batch_ids])
    return sampled_cross_entropy(
        hidden, weight[targets], weight[columns], targets, negatives, num_words=WORDS,
        block_bytes=4 * len(columns) * block_tokens, label_smoothing=smoothing,
    )  # fmt: skip


def brute_force(
    hidden: Tensor, weight: Tensor, sentences: list[list[int]], drawn: list[int], samples: int,
    smoothing: float,
) -> Tensor:  # fmt: skip
    """The definition, token by token and word by word."""
    tokens = [(n, word) for n, words in enumerate(sentences) for word in words]
    sampler = LogUniformSampler(WORDS, samples)
    total = torch.zeros(())
    for h, (sentence, target) in zip(hidden, tokens, strict=True):
        s_t = h @ weight[target]
        z, sum_of_logits = s_t.exp(), s_t
        elsewhere = {word for other, word in tokens if other != sentence}
        for word in (set(drawn) | elsewhere) - {target}:
            s = h @ weight[word]
            others = len(tokens) * (1 - 1 / len(sentences))
            z = z + s.exp() / probability_by_definition(word, others, samples)
            if word in drawn:
                sum_of_logits = sum_of_logits + s / float(
                    sampler.probability_of(np.array([word]))[0]
                )
        total = total + (1 - smoothing) * (z.log() - s_t)
        total = total + smoothing * (z.log() - sum_of_logits / WORDS)
    return total


@pytest.mark.parametrize("block_tokens", [1, 3, 1000])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("samples", [1, 12])
def test_loss_and_gradients_equal_brute_force(
    block_tokens: int, smoothing: float, samples: int
) -> None:
    hidden, weight, sentences = problem()
    negatives = negatives_of(sentences, samples)
    loss, _ = layer(hidden, weight, sentences, negatives, smoothing, block_tokens)
    loss.backward()
    ours = hidden.grad, weight.grad
    hidden.grad = weight.grad = None
    expected = brute_force(hidden, weight, sentences, negatives.ids.tolist(), samples, smoothing)
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(ours, (hidden.grad, weight.grad), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_with_all_words_drawn_it_is_the_exact_loss(smoothing: float) -> None:
    hidden, weight, sentences = problem()
    negatives = negatives_of(sentences, WORDS)
    loss, _ = layer(hidden, weight, sentences, negatives, smoothing)
    answers = torch.tensor([word for words in sentences for word in words])
    expected = functional.cross_entropy(
        hidden @ weight.t(), answers, reduction="sum", label_smoothing=smoothing
    )
    torch.testing.assert_close(loss, expected)


def test_the_estimate_of_the_normaliser_has_no_bias() -> None:
    """Of a token of a sentence with rare words its mean over 1,500 draws, of samples and of other
    sentences, is Z within 4 standard errors, which are below 2 % of Z. Were the words of its own
    sentence counted too, which are certain to be there, it would be far off.
    """
    own, generator = [30, 38, 35], np.random.default_rng(8)
    hidden, weight, _ = problem()
    with torch.no_grad():
        h, logits = hidden[:1], (hidden[:1] @ weight.t())[0]
        exponentials = logits.exp().numpy().astype(np.float64)
        found, with_own = [], []
        for step in range(1500):
            others = generator.choice(WORDS, (9, 3), p=COUNTS / COUNTS.sum()).tolist()
            negatives = negatives_of([own, *others], 6, step)
            columns = torch.cat([negatives.ids, negatives.batch_ids])
            counted = (columns != 30).numpy()
            terms = exponentials[columns] / negatives.log_either.exp().numpy() * counted
            with_own.append(terms.sum() + exponentials[30])
            terms[6:][negatives.hidden_from(0, slice(1))[0].numpy()] = 0
            found.append(terms.sum() + exponentials[30])
            if step < 3:  # and this is what the layer computes
                nll = sampled_cross_entropy(
                    h, weight[[30]], weight[columns], torch.tensor([30]), negatives,
                    num_words=WORDS, block_bytes=LARGE,
                )[1]  # fmt: skip
                assert float(nll + logits[30]) == pytest.approx(math.log(found[-1]), abs=1e-5)
    z, error = exponentials.sum(), np.std(found) / len(found) ** 0.5
    assert abs(np.mean(found) - z) < 4 * error
    assert error < 0.02 * z
    assert np.mean(with_own) - z > 4 * np.std(with_own) / len(found) ** 0.5
