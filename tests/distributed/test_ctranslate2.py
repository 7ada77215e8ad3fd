"""The exported translator against ours, sentence by sentence."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dist_embed.data.tokenizer import END, PAD, SPACE, START, Tokenizer
from dist_embed.errors import UserError
from dist_embed.explore.table import RunTable
from dist_embed.export import ctranslate2_model
from dist_embed.export.ctranslate2_model import export_ctranslate2
from dist_embed.model.transformer import Transformer
from dist_embed.observe.events import silent_reporter
from dist_embed.parallel.group import Group
from dist_embed.run.folder import read_run_config
from dist_embed.training.inference import translate_task
from dist_embed.training.tasks import Translate
from dist_embed.training.worker import Context
from tests.distributed.pool import WorkerPool
from tests.unit.small_run import small_run, word_tokenizer

ctranslate2 = pytest.importorskip("ctranslate2")
SOURCE = [f"s{n}" for n in range(40)]
TARGET = [f"t{n}" for n in range(30)]
MODEL = {"feed_forward": 24, "heads": 2, "encoder_layers": 2, "decoder_layers": 3, "dropout": 0.0}


def tokenizers(share: str) -> dict[str, Tokenizer]:
    if share == "all":
        return dict.fromkeys(("source", "target"), word_tokenizer(SOURCE))
    return {"source": word_tokenizer(SOURCE), "target": word_tokenizer(TARGET)}


def make_run(
    folder: Path, share: Any, width: int, embedding_width: int, **more: dict[str, Any]
) -> str:
    """A model with random parameters, so strong ones that the best translation is clear."""
    torch.manual_seed(4)
    model = Transformer(
        embedding_width=embedding_width, width=width, attention_dropout=0.0, **MODEL,  # type: ignore[arg-type]
    )  # fmt: skip
    dense = {name: p.detach() + 0.05 * torch.randn_like(p) for name, p in model.named_parameters()}
    sizes = {side: tokenizer.size for side, tokenizer in tokenizers(share).items()}
    rows = {"none": {"source": sizes["source"], "target": sizes["target"],
                     "output": sizes["target"]},
            "decoder": {"source": sizes["source"], "decoder": sizes["target"]},
            "all": {"shared": sizes["source"]}}[share]  # fmt: skip
    vectors = {table: torch.randn(count, embedding_width) for table, count in rows.items()}
    return small_run(
        folder, tokenizers(share), vectors, share=share, dense=dense,
        settings={"model": {"width": width, **MODEL}, "tokenizer": {"shared": share == "all"},
                  "search": {"beam": 1}, "cluster": {"device": "cpu", "num_workers": 1}}
                 | ({"data": {"synthetic": {}, "uri": f"{folder}/run/data", **more.pop("data")}}
                    if "data" in more else {}) | more,
    )  # fmt: skip


def ours(group: Group, run: str, texts: list[str]) -> list[str]:
    context = Context(read_run_config(run), group, silent_reporter())
    return translate_task(context, Translate(texts)).lines


def theirs(
    folder: Path, texts: list[str], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> list[str]:  # fmt: skip
    """What the code prints that docs/embeddings.md gives, for an export at ``folder`` / model."""
    page = (Path(__file__).parents[2] / "docs/embeddings.md").read_text()
    code = page.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(folder)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # the engine's four wait for each other
    found = []
    for text in texts:
        capsys.readouterr()
        exec(code.replace("a man on a bicycle .", text), {})
        found.append(capsys.readouterr().out.removesuffix("\n"))
    return found


SHAPES = [("none", 16, 16), ("decoder", 16, 8), ("all", 16, 16), ("none", 16, 24)]


@pytest.mark.parametrize(("share", "width", "embedding_width"), SHAPES)
def test_the_engine_gives_every_token_the_probability_that_we_do(
    tmp_path: Path, share: Any, width: int, embedding_width: int
) -> None:
    run = make_run(tmp_path, share, width, embedding_width)
    export_ctranslate2(run, tmp_path / "model", step=None, quantization=None)
    assert not list(tmp_path.glob(".model*"))
    tables = {role: RunTable(run, role) for role in ("source", "target", "output")}  # type: ignore[arg-type]
    rows = {role: table.rows_of(range(table.num_words)) for role, table in tables.items()}
    model = Transformer(
        embedding_width=embedding_width, width=width, attention_dropout=0.0, **MODEL,  # type: ignore[arg-type]
    ).eval()  # fmt: skip
    model.load_state_dict(
        {name: tables["source"].parameter(f"model.{name}") for name, _ in model.named_parameters()}
    )
    translator = ctranslate2.Translator(str(tmp_path / "model"), device="cpu", intra_threads=1)
    generator = np.random.default_rng(0)
    for length in (1, 3, 12, 50):
        source = generator.integers(4, tables["source"].num_words, length).tolist()
        target = generator.integers(4, tables["output"].num_words, length + 1).tolist()
        with torch.no_grad():
            hidden = model(
                rows["source"][torch.tensor([[*source, END]])], torch.tensor([length + 1]),
                rows["target"][torch.tensor([[START, *target]])], torch.arange(length + 2),
            )  # fmt: skip
            logits = hidden @ rows["output"].T
        logits[:, [PAD, START]] = float("-inf")  # as neither search ever writes them
        expected = logits.log_softmax(1)[torch.arange(length + 2), [*target, END]]
        tokens = [[tables["source"].tokenizer.token(i) for i in source]]
        answers = [[tables["output"].tokenizer.token(i) for i in target]]
        found = translator.score_batch(tokens, answers)[0].log_probs
        np.testing.assert_allclose(found, expected.numpy(), atol=2e-4)


@pytest.mark.parametrize(
    ("share", "width", "embedding_width"),
    [SHAPES[0], *(pytest.param(*shape, marks=pytest.mark.heavy) for shape in SHAPES[1:3])],
)
def test_the_engine_reads_texts_as_we_do(
    workers: WorkerPool, tmp_path: Path, share: str, width: int, embedding_width: int,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    run = make_run(tmp_path, share, width, embedding_width)
    generator = np.random.default_rng(0)
    texts = [
        " ".join(generator.choice([*SOURCE, "unheard", "</s>"], generator.integers(3, 20)))
        for _ in range(20)
    ]
    export_ctranslate2(run, tmp_path / "model", step=None, quantization=None)
    expected = workers.run(1, ours, run, texts)[0]
    found = theirs(tmp_path, texts, monkeypatch, capsys)
    # Ours ends sooner by its limit, which follows from the source's length. Of two nearly equal
    # words rounding may choose either.
    same = [other.split()[: len(one.split())] == one.split()
            for one, other in zip(expected, found, strict=True)]  # fmt: skip
    assert sum(same) >= 18
    assert len(set(expected)) > 3


@pytest.mark.parametrize(
    ("quantization", "agreement"),
    # A CPU without products of int16 reads those as int8.
    [("int8", 0.9995), ("int16", 0.95), ("float16", 0.9999), ("bfloat16", 0.999)],
)
def test_narrow_weights_make_a_smaller_model_of_nearly_the_same_probabilities(
    tmp_path: Path, quantization: Any, agreement: float
) -> None:
    run = make_run(tmp_path, "decoder", 16, 16)
    generator = np.random.default_rng(0)
    sources, targets = (
        [generator.choice(words, 12).tolist() for _ in range(8)]
        for words in ([SPACE + word for word in SOURCE], [SPACE + word for word in TARGET])
    )
    found = {}
    for name, kind in (("whole", None), ("narrow", quantization)):
        export_ctranslate2(run, tmp_path / name, step=None, quantization=kind)
        translator = ctranslate2.Translator(str(tmp_path / name), device="cpu", intra_threads=1)
        scores = translator.score_batch(sources, targets)
        found[name] = np.array([score.log_probs for score in scores])
    together = np.stack([values.ravel() for values in found.values()])
    assert np.corrcoef(together)[0, 1] > agreement
    np.testing.assert_allclose(together[1].mean(), together[0].mean(), rtol=0.05)
    sizes = [(tmp_path / name / "model.bin").stat().st_size for name in ("whole", "narrow")]
    assert sizes[1] < sizes[0]


def test_int8_rows_are_the_nearest_of_values_whose_products_fit_into_16_bits() -> None:
    generator = np.random.default_rng(0)
    matrix = generator.standard_normal((200, 64)).astype(np.float32)
    matrix *= 10.0 ** generator.integers(-6, 6, (200, 1))
    matrix[7] = 0.0
    rows, scale = ctranslate2_model._int8(matrix)
    assert (rows.dtype, scale.dtype) == (np.int8, np.float32)
    # Activations are bytes from 0 to 255; two products are added before the sum gets 32 bits.
    assert 2 * 255 * int(np.abs(rows).max()) < 2**15
    np.testing.assert_array_equal(np.abs(rows).max(axis=1), np.where(np.arange(200) == 7, 0, 64))
    highest = np.abs(matrix).max(axis=1, keepdims=True)
    assert (np.abs(rows / scale[:, None] - matrix) <= highest / 128 * 1.001).all()


@pytest.mark.parametrize("quantization", [None, "int8"])
def test_a_table_that_roles_share_is_stored_once(tmp_path: Path, quantization: Any) -> None:
    run = make_run(tmp_path, "all", 16, 16)
    export_ctranslate2(run, tmp_path / "model", step=None, quantization=quantization)
    stored = (tmp_path / "model/model.bin").read_bytes()
    first = RunTable(run, "source")
    matrix = first.rows_of(range(first.num_words)).numpy()
    if quantization:
        matrix, _ = ctranslate2_model._int8(matrix)
    assert stored.count(matrix.tobytes()) == 1


def test_an_export_says_how_the_run_searches(tmp_path: Path) -> None:
    run = make_run(
        tmp_path, "decoder", 16, 8,
        data={"max_tokens": 70}, search={"beam": 3, "length_penalty": 0.7, "max_length_ratio": 1.3},
    )  # fmt: skip
    umask = os.umask(0o027)
    try:
        found = export_ctranslate2(run, tmp_path / "model", step=5, quantization=None)
    finally:
        os.umask(umask)
    assert (found.role, found.step) == ("output", 5)
    folder = tmp_path / "model"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    assert folder.stat().st_mode & 0o777 == 0o750
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o640}
    assert json.loads((folder / "translation.json").read_text()) == {
        "beam_size": 3, "length_penalty": 0.7, "max_input_length": 1024, "max_decoding_length": 101,
    }  # fmt: skip
    about = json.loads((folder / "config.json").read_text())
    assert about == about | {
        "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "add_source_eos": True,
        "decoder_start_token": "<s>", "layer_norm_epsilon": 1e-5,
    }  # fmt: skip
    for side, tokenizer in tokenizers("decoder").items():
        assert (folder / f"tokenizer.{side}.json").read_text() == tokenizer.to_json()
        words = json.loads((folder / f"{side}_vocabulary.json").read_text())
        assert words == tokenizer.tokens()
    longest = make_run(tmp_path / "longest", "decoder", 16, 8, data={"max_tokens": 5000})
    export_ctranslate2(longest, tmp_path / "other", step=None, quantization=None)
    settings = json.loads((tmp_path / "other" / "translation.json").read_text())
    assert settings["max_decoding_length"] == ctranslate2_model.MAX_POSITIONS == 2048


def test_an_export_that_just_fits_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path, "none", 16, 24)
    needed = 2 * 4 * 24 * (44 + 34 + 34)  # every table, and the engine's matrices beside them
    monkeypatch.setattr(ctranslate2_model, "available_bytes", lambda: needed - 1)
    monkeypatch.setattr(ctranslate2_model, "GIB", 10_000)
    told = r"source 44, target 34, output 34 words of width 24 need about 2\.2 GiB .* has 2\.2 GiB"
    with pytest.raises(UserError, match=told):
        export_ctranslate2(run, tmp_path / "model", step=None, quantization=None)
    monkeypatch.setattr(ctranslate2_model, "available_bytes", lambda: needed)
    export_ctranslate2(run, tmp_path / "model", step=None, quantization=None)
    with pytest.raises(UserError, match=r"the folder .*none does not exist"):
        export_ctranslate2(run, tmp_path / "none" / "model", step=None, quantization=None)


def test_what_cannot_be_exported_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path, "none", 16, 16)
    there = tmp_path / "there"
    there.mkdir()
    with pytest.raises(UserError, match="is there already"):
        export_ctranslate2(run, there, step=None, quantization=None)
    monkeypatch.setattr(ctranslate2_model, "available_bytes", lambda: 1000)
    with pytest.raises(UserError, match=r"source 44.*GiB to export.*search.candidates"):
        export_ctranslate2(run, tmp_path / "model", step=None, quantization=None)
    text = (tmp_path / "run" / "config.yaml").read_text()
    (tmp_path / "run" / "config.yaml").write_text(text.replace("oov_buckets: 0", "oov_buckets: 9"))
    with pytest.raises(UserError, match="hashed to 9 rows"):
        export_ctranslate2(run, tmp_path / "model", step=None, quantization=None)
    assert not (tmp_path / "model").exists()
