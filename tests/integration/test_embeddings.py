"""Vectors in, a run, and vectors and translator out, by the commands."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dist_embed.data.prepared_folder import prepared_folder
from dist_embed.explore.table import RunTable
from tests.integration.conftest import Command

# Of a file, and of tables: zeros fill the rows, and the kernels pad them by one more.
FILE_WIDTH, WIDTH = 14, 15


def vectors_for(folder: Path, words: list[str]) -> tuple[str, dict[str, np.ndarray]]:
    generator = np.random.default_rng(3)
    found = {w: generator.standard_normal(FILE_WIDTH).astype(np.float32) for w in words}
    lines = [f"{word} {' '.join(map(str, row))}" for word, row in found.items()]
    path = folder / "vectors.txt"
    path.write_text("\n".join([f"{len(lines)} {FILE_WIDTH}", *lines]) + "\n")
    return str(path), {word: np.pad(row, (0, WIDTH - FILE_WIDTH)) for word, row in found.items()}


def test_vectors_go_in_stay_frozen_and_come_out(
    config: str, dist_embed: Command, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    dist_embed("prepare", config, "model.share_embeddings=none", "tokenizer.shared=false")
    folder = Path(prepared_folder(str(run / "data")))
    words = (folder / "text/train.source.txt").read_text().split()
    known = sorted({word for word in words if word.isalpha()})[2:]
    uri, vectors = vectors_for(tmp_path, [*known, "unheard"])
    start = "embedding.tables.source.pretrained"
    settings = [
        "model.share_embeddings=none", "tokenizer.shared=false", f"{start}.uri={uri}",
        f"embedding.width={WIDTH}", f"{start}.missing=mean",
        "embedding.tables.source.freeze_until_step=4",
        "embedding.tables.output.learning_rate=0.01",
    ]  # fmt: skip
    said = dist_embed("train", config, *settings, f"{start}.min_coverage=1.0", code=2)
    assert "min_coverage asks for 100.0%" in said.stderr
    assert not (run / "checkpoints").exists()
    trained = dist_embed("train", config, *settings)
    assert f"of their running words start from {uri}" in trained.stdout
    assert "without a vector (mean)" in trained.stdout
    told = json.loads((run / "pretrained.source.json").read_text())
    assert told["found_words"] == {"as written": len(known)}
    assert told["entries"] == len(known) + 1

    at_start, later = RunTable(str(run), "source", 4), RunTable(str(run), "source", 8)
    ids = [at_start.id_of(word) for word in known]
    expected = np.stack([vectors[word] for word in known])
    np.testing.assert_array_equal(at_start.rows_of(ids).numpy(), expected)
    assert not np.array_equal(later.rows_of(ids).numpy(), expected)

    # A run that goes on has its rows in the checkpoint.
    Path(uri).unlink()
    longer = dist_embed("train", config, *settings, "train.max_steps=9", "cluster.num_workers=1")
    assert "resuming from the checkpoint of step 8" in longer.stdout

    near = dist_embed("neighbors", str(run), known[0], "--step", "4", "--count", "2").stdout
    assert len(near.strip().splitlines()) == 7
    dist_embed("export", "embeddings", str(run), "--output", str(tmp_path / "out.vec"), "--format",
               "word2vec", "--step", "4")  # fmt: skip
    lines = (tmp_path / "out.vec").read_text().splitlines()
    written = {line.split(" ")[0]: line.split(" ")[1:] for line in lines[1:]}
    for word in known:
        assert np.array_equal(np.array(written[word], dtype=np.float32), vectors[word])
    model = str(tmp_path / "model")
    dist_embed("export", "translator", str(run), "--output", model, "--quantization", "int8")
    assert (tmp_path / "model/model.bin").stat().st_size > 0
    assert (tmp_path / "model/tokenizer.source.json").is_file()


@pytest.mark.heavy
def test_a_study_trains_its_runs_once(config: str, dist_embed: Command, tmp_path: Path) -> None:
    study = tmp_path / "study.yaml"
    study.write_text(
        f"""
title: Width
question: What does width bring?
folder: {tmp_path}/study
base: {config}
seeds: [1, 2]
set: {{train.max_steps: 4}}
factors:
  - name: width
    levels:
      - {{name: "8", set: {{embedding.width: 8}}, x: 8}}
      - {{name: "16", set: {{embedding.width: 16}}, x: 16}}
measures: [validation_perplexity, bleu, gap, parameters, tokens_per_second]
plot: {{x: width, label: width, measure: validation_perplexity}}
expectations:
  - {{text: Wider is better, measure: validation_perplexity, better: {{width: "16"}},
      worse: {{width: "8"}}}}
"""
    )
    page = tmp_path / "width.md"
    first = dist_embed("study", str(study), "--output", str(page))
    assert "run 4 of 4: 16_seed2" in first.stdout
    assert "nan" not in page.read_text()
    text = page.read_text()
    assert text.count("±") >= 8
    assert (tmp_path / "width.svg").exists()
    assert len(list((tmp_path / "study/results").iterdir())) == 4
    assert len(list((tmp_path / "study/data").iterdir())) == 1
    again = dist_embed("study", str(study), "--output", str(page))
    assert "run 1 of 4" not in again.stdout
    assert page.read_text() == text
    # Other settings are other runs, which begin from scratch.
    study.write_text(study.read_text().replace("train.max_steps: 4", "train.max_steps: 5"))
    longer = dist_embed("study", str(study), "--output", str(page))
    assert longer.stdout.count("starting from scratch") == 4
    assert "`train.max_steps=5`" in page.read_text()
