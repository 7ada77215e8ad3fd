"""Runs with the sampled output layer."""

from __future__ import annotations

from pathlib import Path

from tests.integration.conftest import Command
from tests.integration.test_commands import metrics


def test_a_sampled_run_trains_resumes_and_is_evaluated_exactly(
    config: str, dist_embed: Command, tmp_path: Path
) -> None:
    sampled = ["model.output=sampled", "model.num_samples=30", "model.sampler=unigram",
               f"data.uri={tmp_path / 'data'}", "train.label_smoothing=0.1"]  # fmt: skip
    whole = dist_embed("train", config, *sampled, f"run.uri={tmp_path / 'whole'}")
    assert "output: sampled softmax, 30 unigram negatives a step of 146 words" in whole.stdout
    dist_embed("train", config, *sampled, "train.max_steps=4")
    resumed = dist_embed("train", config, *sampled, "cluster.num_workers=1")
    assert "resuming from the checkpoint of step 4" in resumed.stdout
    one, two = metrics(tmp_path / "run"), metrics(tmp_path / "whole")
    assert one.keys() == two.keys()
    # Dropout differs with the number of workers; the negatives do not.
    assert abs(one[8] - two[8]) < 0.2
    losses = metrics(tmp_path / "whole", "validation_loss")
    assert losses[8] < losses[4]
    assert "BLEU" in dist_embed("evaluate", str(tmp_path / "whole")).stdout


def test_as_many_samples_as_words_are_refused(config: str, dist_embed: Command) -> None:
    refused = dist_embed("train", config, "model.output=sampled", "model.num_samples=146", code=2)
    assert refused.stderr.count("\n") == 1
    assert "model.num_samples: 146 is not allowed: the vocabulary has 146 words" in refused.stderr
