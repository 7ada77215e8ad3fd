"""Runs with the sampled output layer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from dist_embed.data.prepared_folder import prepared_folder
from dist_embed.data.table_tokenizer import TableTokenizer
from dist_embed.data.tokenizer_files import load_tokenizers, write_tokenizers
from tests.integration.conftest import Command
from tests.integration.run_metrics import metrics


@pytest.mark.heavy
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


LARGE = [
    "tokenizer.vocab_size=30", "tokenizer.shared=false", "tokenizer.oov_buckets=7",
    "model.share_embeddings=decoder", "model.output=sampled", "model.num_samples=15",
    "data.lexicon_translations=5", "search.candidates=10", "search.candidate_translations=5",
    "search.replace_unknown=lexicon", "checkpoint.saving=in_place",
]  # fmt: skip


def test_candidate_lists_hashed_rows_and_replaced_words(
    config: str, dist_embed: Command, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    started = dist_embed("train", config, *LARGE, "train.max_steps=4", "train.translate_every=4")
    assert "learning the lexicon" in started.stdout
    assert "table source: 37 rows" in started.stdout
    assert "table decoder: 30 rows" in started.stdout
    resumed = dist_embed("train", config, *LARGE, "cluster.num_workers=3")
    assert "resuming from the checkpoint of step 4" in resumed.stdout
    assert "learning the lexicon" not in resumed.stdout

    text = (Path(prepared_folder(str(run / "data"))) / "text" / "test.source.txt").read_text()
    answers = dist_embed("translate", str(run), text=text).stdout
    assert len(answers.splitlines()) == len(text.splitlines())
    # `tests.distributed.test_settings` has a model that says nothing but unknown words.
    assert "<unk>" not in answers


def test_another_vocabulary_of_the_same_size_is_refused(
    config: str, dist_embed: Command, refused: Callable[..., str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    dist_embed("train", config, "train.max_steps=2", "checkpoint.every_steps=2")
    # The run's own, beside its checkpoint; and that of the prepared data, whose ids are evaluated.
    prepared = Path(prepared_folder(str(run / "data")))
    for tokenizer, command, said in (
        (run / "tokenizer.target.json", "translate", "trained with another target tokenizer"),
        (prepared / "tokenizer.target.json", "evaluate", "is not the file that was written"),
    ):
        before = tokenizer.read_text()
        words = load_tokenizers(str(tokenizer.parent))["target"].tokens()[4:]
        words[10:12] = words[11:9:-1]
        other = TableTokenizer.write(
            str(tmp_path / "words"), pa.array(words), lowercase=False, split_punctuation=True
        )
        write_tokenizers(str(tokenizer.parent), {"target": other})
        assert said in refused(command, str(run), text="a b\n")
        tokenizer.write_text(before)
