"""How many negatives a step draws, and that a run keeps their number."""

from __future__ import annotations

from typing import Any

import pytest

from dist_embed.config.load import config_from_dict
from dist_embed.config.schema import Config
from dist_embed.run.folder import fingerprint
from dist_embed.training.samples import samples_of_a_step, with_kept_samples


def config_of(tokens: int = 4096, **model: Any) -> Config:
    return config_from_dict(
        {"run": {"uri": "memory://run"}, "data": {"synthetic": {}},
         "train": {"max_steps": 1, "batch_tokens": tokens},
         "model": {"output": "sampled", **model}}
    )  # fmt: skip


@pytest.mark.parametrize(
    ("tokens", "words", "expected"),
    [(1, 10**6, 8192), (4096, 10**6, 8192), (16_384, 10**6, 16_384), (2**21, 10**9, 185_364),
     (4096, 8000, 8000), (2**21, 100_000, 100_000)],
)  # fmt: skip
def test_of_their_own_accord_they_grow_with_the_step(
    tokens: int, words: int, expected: int
) -> None:
    assert samples_of_a_step(config_of(tokens, num_samples="auto"), words) == expected


def test_a_number_is_a_number() -> None:
    assert samples_of_a_step(config_of(2**21), 10**9) == 8192
    assert samples_of_a_step(config_of(num_samples=77), 10) == 77


def test_a_run_keeps_its_number() -> None:
    automatic = config_of(num_samples="auto")
    said: list[str] = []
    scalars: dict[str, Any] = {}
    first = with_kept_samples(automatic, 9000, scalars, said.append)
    assert first.model.num_samples == scalars["num_samples"] == 8192
    assert not said
    again = with_kept_samples(automatic, 9000, {"num_samples": 7000}, said.append)
    assert again.model.num_samples == 7000
    assert said == ["model.num_samples=auto: 7,000 negatives a step, as the run began"]
    for other in (config_of(), config_of(num_samples="auto", output="exact")):
        scalars = {"num_samples": 7000, "position": 3}
        assert with_kept_samples(other, 9000, scalars, said.append) is other
        assert scalars == {"position": 3}
    assert len(said) == 1


def test_what_is_off_is_as_what_is_not_there() -> None:
    """The fingerprint of a run from before there were right answers as negatives."""
    known = "5dd30f8700bc8b3db0898c5586427ba214fe837247690aff0091e861cf244408"
    assert fingerprint(config_of(num_samples=99)) == known
    assert fingerprint(config_of(num_samples=99, batch_negatives=False)) == known
    assert fingerprint(config_of(num_samples=99, batch_negatives=True)) != known
