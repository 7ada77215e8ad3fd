from __future__ import annotations

import json
import os
import re
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file
from scipy.stats import spearmanr
from torch import Tensor

from dist_embed.checkpoint import catalogue
from dist_embed.checkpoint.catalogue import name_of_choice
from dist_embed.checkpoint.manifest import CheckpointDamaged, CheckpointError, ManifestName
from dist_embed.cli.export import _checkpoint
from dist_embed.cli.main import build_parser, main
from dist_embed.data.proof import FileInfo, NotReached
from dist_embed.data.token_shards import PreparedData, Split
from dist_embed.data.tokenizer import SPACE, Tokenizer
from dist_embed.data.tokenizer_files import tokenizer_name
from dist_embed.errors import StoreUnavailable, UserError
from dist_embed.explore import flat_map as flat_map_module
from dist_embed.explore import occurrences as occurrences_module
from dist_embed.explore import table as table_module
from dist_embed.explore.flat_map import Method, draw_map, flat_map
from dist_embed.explore.map_page import map_page
from dist_embed.explore.nearest import analogy, neighbors
from dist_embed.explore.similarity import similarity_agreement
from dist_embed.explore.table import RunTable
from dist_embed.export import embeddings as export_module
from dist_embed.export.embeddings import EXPORT_FORMATS, export_embeddings, word_counts
from dist_embed.export.projector import projector_files
from dist_embed.run.folder import check_tokenizer, read_run_config
from dist_embed.storage.parquet import read_parquet
from dist_embed.vectors.file import VectorFile
from dist_embed.vectors.formats import open_vectors
from dist_embed.vectors.write import Block, write_vectors
from tests.unit.full_disk import full_disk
from tests.unit.printed_tables import cells
from tests.unit.small_run import small_run, word_tokenizer
from tests.unit.vector_entries import read

SOURCE = [f"s{n}" for n in range(150)] + ["naïve", "東京", "a<b>", "</script>"]
TARGET = [f"t{n}" for n in range(40)]
WIDTH = 8
HASHED = 7


@pytest.fixture(scope="module")
def vectors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return {
        "source": torch.randn(len(SOURCE) + 4 + HASHED, WIDTH, generator=generator),
        "decoder": torch.randn(len(TARGET) + 4, WIDTH, generator=generator),
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, vectors: dict[str, Tensor]) -> str:
    tokenizers = {"source": word_tokenizer(SOURCE), "target": word_tokenizer(TARGET)}
    return small_run(tmp_path_factory.mktemp("explore"), tokenizers, vectors)


@pytest.fixture(params=[10, 100_000])
def strip_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_module, "STRIP_BYTES", request.param)
    monkeypatch.setattr(export_module, "_BLOCK_BYTES", 7 * request.param)  # blocks of two words


def cosines(by_id: Tensor, query: Tensor) -> Tensor:
    return torch.nn.functional.cosine_similarity(by_id, query.unsqueeze(0))


@pytest.mark.usefixtures("strip_bytes")
@pytest.mark.parametrize("count", [1, 10, 1000])
def test_neighbors_are_those_of_a_whole_table(
    run: str, vectors: dict[str, Tensor], count: int
) -> None:
    for role, words in (("source", SOURCE), ("target", TARGET), ("output", TARGET)):
        table = RunTable(run, role)  # type: ignore[arg-type]
        by_id = vectors["source" if role == "source" else "decoder"][: len(words) + 4]
        asked = [words[0], words[17]]
        found = neighbors(table, asked, count)
        for word in asked:
            own = words.index(word)
            values = cosines(by_id, by_id[own + 4])[4:]
            order = [i for i in values.argsort(descending=True).tolist() if i != own][:count]
            assert [other for other, _ in found[word]] == [words[i] for i in order]
            np.testing.assert_allclose(
                [cosine for _, cosine in found[word]], values[order], rtol=1e-5, atol=1e-6
            )


@pytest.mark.usefixtures("strip_bytes")
def test_an_analogy_is_completed_by_another_word(tmp_path: Path) -> None:
    words = ["man", "woman", "king", "queen", "tree"]
    by_id = torch.zeros(9, 4)
    by_id[4:] = torch.tensor(
        [[1.0, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 1.1, 0], [0, 0, 0, 1]]
    )
    tokenizer = word_tokenizer(words)
    run = small_run(tmp_path, dict.fromkeys(("source", "target"), tokenizer), {"shared": by_id},
                    share="all")  # fmt: skip
    found = analogy(RunTable(run, "target"), "man", "woman", "king", 3)
    assert found[0][0] == "queen"
    assert [word for word, _ in found] == ["queen", "tree"]  # special tokens are zero here


@pytest.mark.usefixtures("strip_bytes")
@pytest.mark.parametrize("count", [5, 300])
def test_rows_come_as_they_are_asked_for_also_twice(
    run: str, vectors: dict[str, Tensor], count: int
) -> None:
    ids = np.random.default_rng(0).integers(0, len(SOURCE) + 4, count).tolist()
    ids[-1] = ids[0]
    assert torch.equal(RunTable(run, "source").rows_of(ids), vectors["source"][ids])


def test_a_checkpoint_that_a_training_prunes_meanwhile_is_passed_over(
    run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = list[int | None]()

    def choose(run_uri: str, step: int | None, *args: Any) -> ManifestName:
        chosen.append(step)
        gone = len(chosen) == 1 or step == 77
        return ManifestName(77, 0) if gone else name_of_choice(run_uri, step, *args)

    monkeypatch.setattr(catalogue, "name_of_choice", choose)
    step = RunTable(run, "source").step
    assert chosen == [None, None]
    chosen.clear()
    asked = Namespace(
        run=run, step=None, output=str(tmp_path / "x"), table=None, parts=None, part=None
    )
    _checkpoint(asked)
    assert chosen == [None, None]
    assert safe_open(asked.output, "pt").metadata() == {"step": str(step)}
    # Not one that was asked for; and there is an end.
    for step, choices in ((77, 1), (None, catalogue.LISTINGS)):
        chosen.clear()
        monkeypatch.setattr(
            catalogue, "name_of_choice", lambda *_: chosen.append(0) or ManifestName(77, 0)
        )
        with pytest.raises(CheckpointDamaged, match="does not exist"):
            RunTable(run, "source", step)
        assert len(chosen) == choices


def test_an_unknown_word_is_named_with_what_is_near(run: str) -> None:
    with pytest.raises(UserError, match=r"'naive' is not in the source vocabulary.*near it: naïve"):
        neighbors(RunTable(run, "source"), ["naive"], 3)
    with pytest.raises(UserError, match="step 77"):
        RunTable(run, "source", 77)
    with pytest.raises(UserError, match="no run in"):
        RunTable(run + "x", "source")


@pytest.mark.parametrize("separator", ["\t", ",", " ", "; "])
def test_agreement_with_judgements_is_spearmans(
    run: str, vectors: dict[str, Tensor], tmp_path: Path, separator: str
) -> None:
    generator = np.random.default_rng(1)
    pairs = generator.integers(0, 30, (40, 2))
    judged = np.round(generator.uniform(0, 10, 40), 1)
    lines = ["word1,word2,score", "# a comment"]
    lines += [separator.join([f"s{a}", f"s{b}", str(j)])
              for (a, b), j in zip(pairs, judged, strict=True)]  # fmt: skip
    lines.append(separator.join(["s1", "unheard", "3"]))
    uri = tmp_path / "pairs.txt"
    uri.write_text("\n".join(lines))
    found = similarity_agreement(RunTable(run, "source"), str(uri))
    by_id = vectors["source"][4:]
    ours = [float(cosines(by_id[a : a + 1], by_id[b])) for a, b in pairs]
    assert found.spearman == pytest.approx(spearmanr(ours, judged).statistic, abs=1e-9)
    assert (found.pairs, found.unknown) == (40, 1)
    uri.write_text(
        "word1\tword2\tPOS\tSimLex999\tconc(w1)\n"
        + "".join(f"s{a}\ts{b}\tA\t{value}\t2.5\n"
                  for (a, b), value in zip(pairs, judged, strict=True))
    )  # fmt: skip
    assert similarity_agreement(RunTable(run, "source"), str(uri)).spearman == found.spearman
    # WordSim-353's own headers have numbers, as words and as names of columns.
    for header in ("s1 1,s2 2,Human (mean)", "s1 1,s2 2,Human (mean),1,2,3"):
        uri.write_text(
            f"{header}\n"
            + "".join(f"s{a},s{b},{value},7,8,9\n"
                      for (a, b), value in zip(pairs, judged, strict=True))
        )  # fmt: skip
        again = similarity_agreement(RunTable(run, "source"), str(uri))
        assert (again.spearman, again.pairs, again.unknown) == (found.spearman, 40, 0)
    for form in ("s{}\t\ts{}\t{}\n", "s{} s{}\t{}\n", "s{} s{}, {}\n"):
        uri.write_text(
            "".join(form.format(a, b, value) for (a, b), value in zip(pairs, judged, strict=True))
        )
        again = similarity_agreement(RunTable(run, "source"), str(uri))
        assert (again.spearman, again.pairs, again.unknown) == (found.spearman, 40, 0)
    uri.write_text("s1 s2 3\ns2 s3\n")
    with pytest.raises(UserError, match="line 2: expected two words and a number"):
        similarity_agreement(RunTable(run, "source"), str(uri))
    uri.write_text("s1 unheard 3\n")
    with pytest.raises(UserError, match="knows 0 of its pairs"):
        similarity_agreement(RunTable(run, "source"), str(uri))
    uri.write_text("s1 s2 3\ns2 s3 nan\n")
    with pytest.raises(UserError, match=r"line 2: expected two words and a number.*nan"):
        similarity_agreement(RunTable(run, "source"), str(uri))
    uri.write_text("s1 s2 3\ns2 s3 3\ns1 unheard 4\n")
    with pytest.raises(UserError, match=r"all 2 pairs that the vocabulary knows are judged 3"):
        similarity_agreement(RunTable(run, "source"), str(uri))
    uri.write_text("s1 s2 3\ns2 s1 4\n")
    with pytest.raises(UserError, match="all pairs have the cosine"):
        similarity_agreement(RunTable(run, "source"), str(uri))


def test_a_name_that_promises_compression_is_refused(run: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"v\.vec\.gz' is not allowed: .* without compression"):
        export_embeddings(RunTable(run, "target"), str(tmp_path / "v.vec.gz"), "word2vec")
    assert list(tmp_path.glob("*.gz")) == []


@pytest.mark.usefixtures("strip_bytes")
@pytest.mark.parametrize("format", EXPORT_FORMATS)
def test_what_is_exported_reads_back_to_the_same_values(
    run: str,
    vectors: dict[str, Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    format: Any,
) -> None:
    monkeypatch.setattr(
        export_module, "word_counts", lambda table: 5 * np.arange(table.num_words) + 3
    )
    for role, table_name, words in (("source", "source", SOURCE), ("target", "decoder", TARGET)):
        table = RunTable(run, role)  # type: ignore[arg-type]
        output = str(tmp_path / f"{role}.{format}")
        all_words = ["<pad>", "<unk>", "<s>", "</s>", *words]
        by_id = vectors[table_name][: len(all_words)].numpy()
        if format == "safetensors" and role == "source":
            with pytest.raises(UserError, match="7 hashed rows"):
                export_embeddings(table, output, format)
            continue
        written = export_embeddings(table, output, format)
        assert sorted(path.name for path in tmp_path.glob(".*")) == []
        if format == "parquet":
            columns = read_parquet(output).to_pydict()
            assert columns["word"] == all_words
            assert columns["id"] == list(range(len(all_words)))
            assert columns["count"] == [5 * i + 3 for i in range(len(all_words))]
            np.testing.assert_array_equal(np.array(columns["vector"], dtype=np.float32), by_id)
            continue
        if format == "safetensors":
            np.testing.assert_array_equal(load_file(output)["weight"].numpy(), by_id)
            output, list_of_words = written
            file = open_vectors(output, None, words=list_of_words)
        else:
            file = open_vectors(output, None)
        found_words, found = read(as_file(file))
        assert found_words == all_words
        np.testing.assert_array_equal(found, by_id)


@pytest.mark.usefixtures("strip_bytes")
@pytest.mark.parametrize("format", EXPORT_FORMATS)
def test_parts_of_an_export_are_the_whole(
    run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], format: Any
) -> None:
    step = RunTable(run, "target").step
    asked = ["--role", "target", "--step", str(step), "--format", format]
    whole = str(tmp_path / "whole")
    (all_of_it,) = printed(capsys, "export", "embeddings", run, "--output", whole, *asked)
    counts = []
    for part in (2, 3, 1):  # each by itself
        more = ["--parts", "3", "--part", str(part)]
        (told,) = printed(
            capsys, "export", "embeddings", run, "--output", str(tmp_path / "cut"), *asked, *more
        )
        assert f"cut.part-{part:05d}-of-00003" in told
        counts.append(int(told.split(" words ×")[0].split(": ")[1]))
    assert f": {sum(counts)} words ×" in all_of_it
    assert max(counts) <= min(counts) + 1
    files = sorted(path for path in tmp_path.glob("cut.part-*") if path.suffix != ".txt")
    if format == "parquet":
        parts = [read_parquet(str(file)) for file in files]
        assert pa.concat_tables(parts).equals(read_parquet(whole))
        return
    if format == "safetensors":
        parts = [load_file(file)["weight"] for file in files]
        assert torch.equal(torch.cat(parts), load_file(whole)["weight"])
        files, whole = sorted(tmp_path.glob("cut.*.words.txt")), f"{whole}.words.txt"
    assert len(files) == 3
    assert b"".join(file.read_bytes() for file in files) == Path(whole).read_bytes()


def test_parts_of_a_table_s_rows_are_the_whole(
    run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    step = str(RunTable(run, "source").step)
    command = ["export", "checkpoint", run, "--output", str(tmp_path / "t")]
    printed(capsys, *command, "--table", "source")
    for part in ("1", "2"):
        asked = ["--table", "source", "--step", step, "--parts", "2", "--part", part]
        told = printed(capsys, *command, *asked)
        assert told[0].endswith(f"→ {tmp_path}/t.part-0000{part}-of-00002")
    cut = [load_file(file)["weight"] for file in sorted(tmp_path.glob("t.part*"))]
    assert torch.equal(torch.cat(cut), load_file(tmp_path / "t")["weight"])


@pytest.mark.parametrize(
    ("more", "refused"),
    [
        (["--parts", "2", "--step", "1"], "--parts and --part go together"),
        (["--part", "2", "--step", "1"], "--parts and --part go together"),
        (["--parts", "2", "--part", "1"], "--parts is not allowed without --step"),
        (["--parts", "2", "--part", "3", "--step", "1"], "part 3 of 2 is not allowed"),
    ],
)
def test_parts_that_are_none_are_refused(
    run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], refused: str
) -> None:
    for command in (
        ["export", "embeddings", run, "--output", str(tmp_path / "t"), "--format", "glove"],
        ["export", "checkpoint", run, "--output", str(tmp_path / "t"), "--table", "source"],
    ):
        assert main([*command, *more]) == 2
        assert refused in capsys.readouterr().err
    command = ["export", "checkpoint", run, "--output", str(tmp_path / "t"), "--step", "1"]
    assert main([*command, "--parts", "2", "--part", "1"]) == 2
    assert "--parts is not allowed without --table" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def as_file(file: Any) -> VectorFile:
    found: VectorFile = file
    return found


@pytest.mark.parametrize("format", ["word2vec", "word2vec-bin"])
def test_gensim_reads_what_is_exported(
    run: str, vectors: dict[str, Tensor], tmp_path: Path, format: Any
) -> None:
    keyed = pytest.importorskip("gensim.models").KeyedVectors
    output = str(tmp_path / "out")
    export_embeddings(RunTable(run, "source"), output, format)
    theirs = keyed.load_word2vec_format(output, binary=format.endswith("bin"))
    assert theirs.index_to_key == ["<pad>", "<unk>", "<s>", "</s>", *SOURCE]
    np.testing.assert_array_equal(
        theirs.vectors, vectors["source"][: len(theirs.index_to_key)].numpy()
    )
    nearest = theirs.most_similar("s3", topn=3)
    ours = neighbors(RunTable(run, "source"), ["s3"], 3)["s3"]
    without_marks = [pair for pair in nearest if pair[0] in SOURCE]
    assert [word for word, _ in without_marks] == [word for word, _ in ours][: len(without_marks)]


word = st.text(st.characters(exclude_categories=["Cs", "Cc", "Z"]), min_size=1, max_size=6)
number = st.floats(width=32, allow_nan=False, allow_infinity=False)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_every_written_format_gives_every_float_back(data: Any) -> None:
    import tempfile

    width = data.draw(st.integers(1, 5))
    words = data.draw(st.lists(word, min_size=1, max_size=8, unique=True))
    rows = data.draw(
        st.lists(st.lists(number, min_size=width, max_size=width), min_size=len(words),
                 max_size=len(words))
    )  # fmt: skip
    vectors = np.array(rows, dtype=np.float32)
    format = data.draw(st.sampled_from(["word2vec", "word2vec-bin"]))
    block = Block(words, np.ones(len(words), dtype=np.int64), vectors)
    with tempfile.TemporaryDirectory() as folder:
        uri = f"{folder}/v"
        write_vectors(uri, format, [block], num_words=len(words), width=width)
        found_words, found = read(as_file(open_vectors(uri, format)))
    assert found_words == words
    np.testing.assert_array_equal(found, vectors)
    assert np.signbit(found).tolist() == np.signbit(vectors).tolist()


def run_of(folder: Path, words: list[str], vectors: Tensor, **path: Any) -> str:
    """A run whose only table has ``words`` behind the special tokens."""
    tokenizers = dict.fromkeys(("source", "target"), word_tokenizer(words, **path))
    return small_run(folder, tokenizers, {"shared": vectors}, share="all")


def test_words_whose_vector_is_zero_are_nobodys_neighbours(tmp_path: Path) -> None:
    vectors = torch.eye(9, 4)
    vectors[4:] = torch.tensor(
        [[1.0, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [-1, 0, 0, 0], [0, 9, 0, 0]]
    )
    table = RunTable(run_of(tmp_path, list("abcde"), vectors), "source")
    near = neighbors(table, ["a", "b"], 9)
    assert [word for word, _ in near["a"]] == ["b", "e", "d"]
    assert [cosine for _, cosine in near["a"]] == pytest.approx([0.5**0.5, 0, -1])
    assert {word for word, _ in near["b"]} == {"a", "e", "d"}


def test_a_word_is_looked_for_as_the_run_wrote_its_own(tmp_path: Path) -> None:
    words = ["house", "mouse", "Haus", "grouse"]
    for lowercase in (False, True):
        run = run_of(tmp_path / str(lowercase), words, torch.eye(8, 4), lowercase=lowercase)
        table = RunTable(run, "source")
        assert (table.find("house"), table.find("HOUSE")) == (4, 4 if lowercase else None)
        assert table.find("Haus") == (None if lowercase else 6)
        assert table.find("</s>") == 3  # without the mark of a space
        assert (table.num_words, table.num_rows, table.width, table.itemsize) == (8, 8, 4, 4)
    # Capital Greek, and the letters in parts; of letters each by itself in runs of before.
    lower = [("λόγος", "nfc", True), ("λόγοσ", "none", "letters"), ("ΛΌΓΟΣ", "none", False)]
    for word, form, lowercase in lower:
        greek = run_of(tmp_path / word, [word], torch.eye(5, 4), form=form, lowercase=lowercase)
        assert RunTable(greek, "source").find("ΛΌΓΟΣ") == 4
        parts = RunTable(greek, "source").find("\ufeffΛΟ\u0301ΓΟΣ ")
        assert parts == (4 if form == "nfc" else None)
    # What is near begins with the same letter, of whatever case; marks are no words.
    with pytest.raises(UserError, match=r"source vocabulary of .* \(8 words\); near it: house$"):
        table.id_of("houze")
    with pytest.raises(UserError, match=r"\(8 words\)$"):
        table.id_of("</z>")
    with pytest.raises(UserError, match="near it: mouse"):
        table.id_of("Mouse.")
    strange = RunTable(run_of(tmp_path / "strange", ["a\x1bb"], torch.eye(5, 4)), "source")
    with pytest.raises(UserError, match=r"near it: a\\x1bb$"):
        strange.id_of("a\x1b")


def test_a_table_that_does_not_fit_its_run_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(tmp_path, ["a", "b"], torch.eye(5, 4))
    with pytest.raises(UserError, match=r"source vocabulary has 6 words, table shared 5 rows"):
        RunTable(run, "source")
    run = run_of(tmp_path / "other", ["a", "b", "c", "d", "e", "f"], torch.eye(10, 4))
    monkeypatch.setattr(table_module, "RowOrder", lambda rows: Namespace(multiplier=3))
    with pytest.raises(CheckpointError, match="written with another order of rows"):
        RunTable(run, "source")


@pytest.mark.usefixtures("strip_bytes")
@pytest.mark.parametrize("format", EXPORT_FORMATS)
def test_narrow_rows_are_exported_too(tmp_path: Path, format: Any) -> None:
    vectors = torch.randn(9, 4, generator=torch.Generator().manual_seed(1)).half()
    table = RunTable(run_of(tmp_path, list("abcde"), vectors), "target")
    assert table.itemsize == 2
    output = str(tmp_path / "out")
    written = export_embeddings(table, output, format)
    assert written == [output, *([f"{output}.words.txt"] if format == "safetensors" else [])]
    if format == "parquet":
        columns = read_parquet(output).to_pydict()
        assert columns["count"] == [0] * 9  # the data are gone
        found = np.array(columns["vector"])
    else:
        words = written[1] if format == "safetensors" else None
        found = read(as_file(open_vectors(output, None, words=words)))[1]
    np.testing.assert_array_equal(found, vectors.float().numpy())


def test_counts_are_those_of_the_tables_side(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizers = {"source": word_tokenizer(["a", "b"]), "target": word_tokenizer(["c"])}
    vectors = {"source": torch.eye(6, 4), "decoder": torch.eye(5, 4)}
    run = small_run(tmp_path, tokenizers, vectors)
    assert word_counts(RunTable(run, "source")).tolist() == [0] * 6
    assert "in its training data is not known: they are not in" in capsys.readouterr().err
    counts = {"source": [0, 1, 2, 3, 4, 5], "target": [9, 8, 7, 6, 5]}
    data, prepared = data_of(run, tokenizers, counts, shared=False)
    for role, side in (("source", "source"), ("target", "target"), ("output", "target")):
        assert word_counts(RunTable(run, role)).tolist() == counts[side]  # type: ignore[arg-type]
    assert capsys.readouterr() == ("", "")
    before = replace(prepared, format=1, splits={"train": Split()})
    (data / "data.json").write_text(before.to_json())
    assert word_counts(RunTable(run, "source")).tolist() == counts["source"]
    assert "was prepared before data carried digests" in capsys.readouterr().err
    (data / "vocabulary.source.parquet").write_bytes(b"no table")
    with pytest.raises(UserError, match=r"vocabulary\.source\.parquet cannot be read"):
        word_counts(RunTable(run, "source"))


def data_of(
    run: str, tokenizers: dict[str, Tokenizer], counts: dict[str, list[int]],
    occurrences: dict[str, list[int]] | None = None, *, shared: bool = True,
) -> tuple[Path, PreparedData]:  # fmt: skip
    """What a run's prepared data say of its words; without ``occurrences`` as they did before."""
    data = Path(read_run_config(run).data.uri)
    data.mkdir(exist_ok=True)
    files = {}
    for side, tokenizer in tokenizers.items():
        (data / tokenizer_name(side)).write_text(tokenizer.to_json())
        columns = {"token": tokenizer.tokens(), "count": counts[side]}
        pq.write_table(pa.table(columns), data / f"vocabulary.{side}.parquet")
        if occurrences:
            path = data / f"occurrences.{side}.parquet"
            pq.write_table(pa.table({"count": occurrences[side]}), path)
            files[path.name] = FileInfo.of(path.read_bytes())
    sizes = {side: tokenizer.size for side, tokenizer in tokenizers.items()}
    prepared = PreparedData({}, sizes, shared, {}, files=files)
    (data / "data.json").write_text(prepared.to_json())
    return data, prepared


BOTH = ["he", "she", "er", "sie", "so", "never"]
ON_SIDE = {"source": [0, 3, 0, 0, 5, 6, 0, 0, 1, 0], "target": [0, 2, 0, 0, 0, 0, 9, 7, 8, 0]}
TABLES: dict[str, list[str]] = {
    "none": ["source", "target", "output"], "decoder": ["source", "decoder"], "all": ["shared"],
}  # fmt: skip


def run_of_both(folder: Path, share: str, *, told_apart: bool = True) -> tuple[str, Tensor]:
    """A run with one vocabulary, and the vectors that all its tables have."""
    tokenizers = dict.fromkeys(("source", "target"), word_tokenizer(BOTH))
    vectors = torch.randn(10, 4, generator=torch.Generator().manual_seed(3))
    run = small_run(folder, tokenizers, dict.fromkeys(TABLES[share], vectors), share=share)
    together = np.sum(list(ON_SIDE.values()), 0).tolist()
    counts = dict.fromkeys(("source", "target"), together)
    data_of(run, tokenizers, counts, ON_SIDE if told_apart else None)
    return run, vectors


@pytest.mark.parametrize(
    ("share", "role", "trained", "place"),
    [
        ("decoder", "source", ["she", "he", "so"], "on the source side of"),
        ("decoder", "target", ["er", "so", "sie"], "on the target side of"),
        ("none", "output", ["er", "so", "sie"], "on the target side of"),
        # A table of all roles is trained by both sides; which one is asked about decides the order.
        ("all", "source", ["she", "he", "so", "er", "sie"], "on either side of"),
        ("all", "output", ["er", "so", "sie", "he", "she"], "on either side of"),
    ],
)
def test_words_of_the_other_side_are_not_taken_for_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    share: str, role: Any, trained: list[str], place: str,
) -> None:  # fmt: skip
    monkeypatch.setattr("dist_embed.observe.quiet.quiet_screen", lambda: None)
    monkeypatch.setattr("dist_embed.explore.flat_map.LEAST_WORDS", 3)
    run, vectors = run_of_both(tmp_path, share)
    table, everything = RunTable(run, role), RunTable(run, role, untrained=True)
    assert [table.word(i) for i in table.frequent_ids(99)] == trained
    untrained = next(word for word in reversed(BOTH) if word not in trained)
    refused = f"'{untrained}' never occurs {place} the training data of {run}: its vector in table"
    for call in (
        lambda: neighbors(table, [trained[0], untrained], 9),
        lambda: analogy(table, trained[0], trained[1], untrained, 9),
    ):
        with pytest.raises(UserError, match=re.escape(refused)) as caught:
            call()
        assert "(--untrained takes it all the same, in a script untrained=True)" in str(
            caught.value
        )
    assert {word for word, _ in neighbors(table, trained[:1], 9)[trained[0]]} == {*trained[1:]}
    assert {*dict(neighbors(everything, [untrained], 9)[untrained])} == {*BOTH} - {untrained}

    judged = tmp_path / "pairs.txt"
    pairs = [(trained[0], trained[1]), (trained[0], trained[2]), (trained[0], untrained)]
    judged.write_text("".join(f"{a}\t{b}\t{n}\n" for n, (a, b) in enumerate(pairs)))
    asked = ["--role", role]
    said = printed(capsys, "similarity", run, str(judged), *asked)
    assert said[1].endswith(
        f"over 2 pairs; 0 pairs have a word that the vocabulary lacks, 1 one that never occurs "
        f"{place} the training data"
    )
    said = printed(capsys, "similarity", run, str(judged), *asked, "--untrained")
    assert said[1].endswith("over 3 pairs; 0 pairs have a word that the vocabulary lacks")

    # Files hold the words that are trained, with the counts of the role's side.
    special = ["<pad>", "<unk>", "<s>", "</s>"]
    chosen = [*special, *(word for word in BOTH if word in trained)]
    ids = [(special + BOTH).index(word) for word in chosen]
    side = "source" if role == "source" else "target"
    for format in EXPORT_FORMATS if role == "source" else ["parquet"]:
        output = str(tmp_path / f"v.{format}")
        command = ["export", "embeddings", run, "--output", output, "--format", format, *asked]
        said = printed(capsys, *command)
        assert f"{len(chosen)} words × 4" in said[0]
        assert said[1].startswith(f"left out: {6 - len(trained)} words that never occur {place}")
        if format == "parquet":
            columns = read_parquet(output).to_pydict()
            assert (columns["word"], columns["id"]) == (chosen, ids)
            assert columns["count"] == [ON_SIDE[side][i] for i in ids]
            rows = np.array(columns["vector"], dtype=np.float32)
        else:
            words = f"{tmp_path}/v.words.txt" if format == "safetensors" else None
            found, rows = read(as_file(open_vectors(output, None, words=words)))
            assert found == chosen
        np.testing.assert_array_equal(rows, vectors[ids].numpy())
        again = printed(capsys, *command, "--untrained")
        assert len(again) == 1
        assert "10 words × 4" in again[0]

    folder = str(tmp_path / "projector")

    def drawn(*more: str) -> list[str]:
        printed(capsys, "export", "projector", run, "--output", folder, *asked, *more)
        lines = (tmp_path / "projector" / "metadata.tsv").read_text().splitlines()[1:]
        return [line.split("\t")[0] for line in lines]

    assert drawn("--count", "3") == trained[:3]
    assert len(drawn("--untrained")) == 6
    wanted = tmp_path / "words.txt"
    wanted.write_text("\n".join(["</s>", *BOTH]))
    assert drawn("--words", str(wanted)) == ["</s>", *trained]
    main(["export", "projector", run, "--output", folder, *asked, "--words", str(wanted)])
    told = f"left out: {6 - len(trained)} words of {wanted} that never occur {place} the training"
    assert told in capsys.readouterr().err


def test_data_that_do_not_tell_their_sides_apart_are_used_as_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, vectors = run_of_both(tmp_path, "decoder", told_apart=False)
    table = RunTable(run, "source")
    assert len(neighbors(table, ["er"], 9)["er"]) == 5
    assert table.frequent_ids(99) == [6, 8, 7, 5, 4, 9]
    for count in range(1, 7):
        assert table.frequent_ids(count) == [6, 8, 7, 5, 4, 9][:count]
    export_embeddings(table, str(tmp_path / "v.parquet"), "parquet")
    columns = read_parquet(str(tmp_path / "v.parquet")).to_pydict()
    assert columns["count"] == [0, 5, 0, 0, 5, 6, 9, 7, 9, 0]
    assert len(columns["word"]) == len(vectors)
    told = capsys.readouterr().err.splitlines()  # once
    assert [line.partition(" was ")[2] for line in told] == [
        "prepared before words were counted for each side: it is read, but which words belong to "
        "which side is not known. Prepared again, it is"
    ]

    # What cannot be looked into now need not be there; but then no counts are written.
    def unreachable(uri: str) -> str:
        raise StoreUnavailable(f"{uri} is silent")

    monkeypatch.setattr(occurrences_module, "prepared_folder", unreachable)
    table = RunTable(run, "source")
    assert len(neighbors(table, ["er"], 9)["er"]) == 5
    assert capsys.readouterr().err.endswith(f"cannot be read ({run}/data is silent)\n")
    with pytest.raises(UserError, match=r"is silent.*counts are not known"):
        word_counts(table)

    # Nor where a single file of theirs has been removed just now, or cannot be reached.
    def removed(*asked: Any) -> None:
        raise NotReached("counts were removed")

    monkeypatch.undo()
    monkeypatch.setattr(occurrences_module, "read_occurrences", removed)
    assert len(neighbors(RunTable(run, "source"), ["er"], 9)["er"]) == 5
    assert capsys.readouterr().err.endswith(f"{run}/data cannot be read (counts were removed)\n")
    monkeypatch.undo()
    # A table of both sides needs no more than the counts of both.
    run, _ = run_of_both(tmp_path / "all", "all", told_apart=False)
    assert RunTable(run, "source").trained.tolist() == [True] * 9 + [False]
    assert capsys.readouterr().err == ""


def test_words_are_told_apart_by_the_mark_where_both_are_there(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_words(
        [SPACE + "a", SPACE + ".", ".", SPACE + "b"], lowercase=False, split_punctuation=True
    )
    run = small_run(tmp_path, dict.fromkeys(("source", "target"), tokenizer),
                    {"shared": torch.randn(8, 4)}, share="all")  # fmt: skip
    table = RunTable(run, "source")
    assert [table.word(i) for i in range(4, 8)] == ["a", SPACE + ".", ".", "b"]
    assert table.id_of("a") == 4


@pytest.mark.parametrize("method", get_args(Method))
def test_words_that_are_alike_lie_together(method: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    centres = torch.eye(3, 10) * 10
    groups = torch.arange(60) % 3
    vectors = centres[groups] + torch.randn(60, 10, generator=generator)
    places = flat_map(vectors, method, seed=1)
    assert places.shape == (60, 2)
    again = flat_map(vectors, method, seed=1)
    np.testing.assert_array_equal(places, again)
    distance = np.linalg.norm(places[:, None] - places[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    assert (groups[distance.argmin(1)] == groups).all()


def test_the_page_holds_its_words_as_data_and_nothing_else(tmp_path: Path) -> None:
    words = ["</script><b>", "a&b", '"x"', "東京", "@DATA@"]
    vectors = torch.eye(5, 6)
    page = map_page(np.random.default_rng(0).random((5, 2)), words, vectors, "<t> & @x")
    script = page.split("<script>")[1].split("</script>")[0]
    found = re.search(r"^const data = (.*);$", script, re.MULTILINE)
    assert found
    data = json.loads(found[1])
    assert data["words"] == words
    assert all(0 <= x <= 1 for place in data["places"] for x in place)
    assert all(len(near) == 4 for near in data["near"])
    assert page.count("</script>") == 1
    assert "<title>&lt;t&gt; &amp; @x</title>" in page
    assert not re.search(r"""(src|href)\s*=|https?:|@import|url\(""", page)


def page_data(page: str) -> dict[str, Any]:
    found = re.search(r"^const data = (.*);$", page, re.MULTILINE)
    assert found
    data: dict[str, Any] = json.loads(found[1])
    return data


@pytest.mark.parametrize("count", [3, 9, 12, 1030])  # also of more than one block
def test_the_page_tells_the_nearest_words_of_each(count: int) -> None:
    generator = np.random.default_rng(1)
    vectors = torch.from_numpy(generator.standard_normal((count, 5)))
    places = generator.standard_normal((count, 2)) * [3, 1] + [5, -7]
    words = [f"w{n}" for n in range(count)]
    data = page_data(map_page(places, words, vectors, "t"))
    assert data["words"] == words
    span = np.ptp(places[:, 0])  # the wider of both, so that nothing is stretched
    np.testing.assert_allclose(data["places"], (places - places.min(0)) / span, atol=1e-5)
    for own in {0, 1, count - 1}:
        values = cosines(vectors, vectors[own])
        order = [i for i in values.argsort(descending=True).tolist() if i != own][:8]
        assert [i for i, _ in data["near"][own]] == order
        np.testing.assert_allclose([v for _, v in data["near"][own]], values[order], atol=6e-4)
        assert all(value == round(value, 3) for _, value in data["near"][own])


def test_words_at_one_place_with_one_vector_are_still_a_page() -> None:
    data = page_data(map_page(np.ones((10, 2)), list("abcdefghij"), torch.ones(10, 3), "t"))
    assert data["places"] == [[0, 0]] * 10
    for own, near in enumerate(data["near"]):
        assert len(near) == 8
        assert own not in [i for i, _ in near]


def test_pca_is_that_of_the_directions_of_unit_length() -> None:
    vectors = torch.from_numpy(
        np.random.default_rng(2).standard_normal((40, 6)) * [5, 3, 1, 1, 1, 1]
    )
    unit = (vectors / vectors.norm(dim=1, keepdim=True)).numpy()
    _, _, directions = np.linalg.svd(unit - unit.mean(0))
    expected = (unit - unit.mean(0)) @ directions[:2].T
    for column in expected.T:  # of both signs that with the largest coordinate positive
        column *= np.sign(column[np.abs(column).argmax()])
    np.testing.assert_allclose(flat_map(3 * vectors, "pca", seed=1), expected, atol=1e-12)
    line = flat_map(torch.tensor([[1.0], [-2], [3], [-4]]), "pca", seed=1)
    assert line.tolist() == [[1, 0], [-1, 0], [1, 0], [-1, 0]]


@pytest.mark.parametrize(("count", "perplexity"), [(4, 1.0), (31, 10.0), (91, 30.0), (100, 30.0)])
def test_neighbours_are_sought_from_pca_on(
    monkeypatch: pytest.MonkeyPatch, count: int, perplexity: float
) -> None:
    manifold = pytest.importorskip("sklearn.manifold")
    asked: dict[str, Any] = {}

    class Recorder:
        def __init__(self, **how: Any) -> None:
            asked.update(how)

        def fit_transform(self, unit: Any) -> Any:
            asked["unit"] = unit
            return np.ones((len(unit), 2), np.float32)

    monkeypatch.setattr(manifold, "TSNE", Recorder)
    vectors = torch.from_numpy(np.random.default_rng(2).standard_normal((count, 6)))
    assert flat_map(vectors, "tsne", seed=9).dtype == np.float64
    assert (asked["random_state"], asked["metric"]) == (9, "euclidean")
    assert asked["perplexity"] == pytest.approx(perplexity)
    np.testing.assert_allclose(np.linalg.norm(asked["unit"], axis=1), 1, rtol=1e-6)
    flat = flat_map(vectors, "pca", seed=9)
    np.testing.assert_allclose(asked["init"], 1e-4 * flat / flat[:, 0].std(ddof=1), rtol=1e-4)


def test_labels_overlap_where_their_boxes_do() -> None:
    box = (0.0, 0.0, 4.0, 2.0)
    for other, overlap in [
        ((1, 1, 2, 1.5), True), ((-1, -1, 9, 9), True), ((3, 1, 9, 9), True),
        ((4, 0, 8, 2), False), ((-4, 0, 0, 2), False), ((0, 2, 4, 4), False),
        ((0, -2, 4, 0), False), ((5, 1, 6, 1.5), False), ((1, 3, 2, 4), False),
    ]:  # fmt: skip
        assert flat_map_module._overlap(box, other) == flat_map_module._overlap(other, box)
        assert flat_map_module._overlap(box, other) == overlap


def test_a_full_disk_leaves_what_is_there(
    run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dist_embed.observe.quiet.quiet_screen", lambda: None)
    page, folder = tmp_path / "map.html", tmp_path / "projector"
    folder.mkdir()
    for path in (page, folder / "vectors.tsv"):
        path.write_text("before")
    for command, file in (
        (["plot", run, "--output", str(page), "--method", "pca"], page),
        (["export", "projector", run, "--output", str(folder)], folder / "vectors.tsv"),
    ):
        with full_disk():
            assert main(command) != 0
        assert f"No space left on device: '{file}'" in capsys.readouterr().err
        assert file.read_text() == "before"
    assert [path.name for path in folder.iterdir()] == ["vectors.tsv"]


def test_projector_files_have_a_line_for_each_word() -> None:
    files = projector_files(["a", "b"], np.array([3, 1]), torch.tensor([[1.0, 0.5], [2, 3]]), "x")
    assert files["vectors.tsv"] == "1.0\t0.5\n2.0\t3.0\n"
    assert files["metadata.tsv"] == "word\tcount\na\t3\nb\t1\n"
    assert files["projector_config.pbtxt"] == (
        'embeddings {\n  tensor_name: "x"\n  metadata_path: "metadata.tsv"\n'
        '  tensor_path: "vectors.tsv"\n}\n'
    )


def test_a_map_is_drawn(tmp_path: Path) -> None:
    places = np.random.default_rng(0).random((30, 2))
    words = [f"w{n}$_x$" for n in range(30)]
    for name in ("map.png", "map.svg"):
        draw_map(str(tmp_path / name), places, words, "title")
        assert (tmp_path / name).stat().st_size > 1000
    assert "w0$_x$" in (tmp_path / "map.svg").read_text()
    # Words that lie together leave room for the first of them alone.
    crowd = np.concatenate([places[:29] * 1e-3, [[1.0, 1.0]]])
    draw_map(str(tmp_path / "crowd.svg"), crowd, words, "title")
    text = (tmp_path / "crowd.svg").read_text()
    assert [word for word in words if f">{word}<" in text] == [words[0], words[29]]


def test_counts_of_other_data_are_not_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dist_embed.observe.quiet.quiet_screen", lambda: None)
    tokenizer = word_tokenizer(["a", "b", "c", "d"])
    run = small_run(tmp_path, dict.fromkeys(("source", "target"), tokenizer),
                    {"shared": torch.randn(8, 4)}, share="all")  # fmt: skip
    data = Path(read_run_config(run).data.uri)
    data.mkdir(exist_ok=True)
    (data / "data.json").write_text(PreparedData({}, {}, False, {}).to_json())
    for side in ("source", "target"):
        (data / tokenizer_name(side)).write_text(word_tokenizer(["a", "b"]).to_json())
    for words in (
        ["export", "embeddings", run, "--format", "parquet", "--output", f"{tmp_path}/v.parquet"],
        ["export", "projector", run, "--output", str(tmp_path / "p")],
    ):
        assert main(words) == 2
        assert "holds other data by now than the run" in capsys.readouterr().err
    assert not (tmp_path / "v.parquet").exists()
    words = ["export", "embeddings", run, "--format", "word2vec", "--output", f"{tmp_path}/v.txt"]
    assert main(words) == 0
    assert f"is not known: {data} holds others by now" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["neighbors", "RUN", "s1", "--count", "0"], "--count: 0 is not allowed"),
        (["neighbors", "RUN", "unheard"], "'unheard' is not in the source vocabulary"),
        (["analogy", "RUN", "s1", "s2", "unheard"], "'unheard' is not in"),
        (["plot", "RUN", "--output", "map.pdf"], "ends in .svg or .png or .html"),
        (["plot", "RUN", "--output", "none/map.png"], "none does not exist"),
        (["plot", "RUN", "--output", "map.png", "--count", "3"], "at least 4"),
        (["plot", "RUN", "--output", "RUN/x.html"], "RUN/x.html' is not allowed: that is a folder"),
        (["export", "projector", "RUN", "--output", "RUN/config.yaml/x"], "config.yaml is a file"),
        (
            ["export", "checkpoint", "RUN", "--output", "RUN/config.yaml/x"],
            "RUN/config.yaml/x' is not allowed: the folder RUN/config.yaml does not exist",
        ),
        (["export", "checkpoint", "RUN", "--output", "RUN"], "that is a folder"),
        (["similarity", "RUN", "no.txt"], "cannot read no.txt"),
        (
            ["export", "translator", "RUN", "--output", "none/model"],
            "none does not exist",
        ),
        (
            ["export", "embeddings", "RUN", "--format", "glove", "--output", "none/v.txt"],
            "output: 'none/v.txt' is not allowed: the folder ",
        ),
    ],
)
def test_errors_of_use(
    run: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    arguments: list[str], said: str,
) -> None:  # fmt: skip
    monkeypatch.setattr("dist_embed.observe.quiet.quiet_screen", lambda: None)
    (Path(run) / "x.html").mkdir(exist_ok=True)
    assert main([word.replace("RUN", run) for word in arguments]) == 2
    told = capsys.readouterr().err
    assert said.replace("RUN", run) in told


def test_the_commands_print_what_was_found(
    run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dist_embed.observe.quiet.quiet_screen", lambda: None)
    judged = tmp_path / "pairs.txt"
    judged.write_text("s1 s2 3\ns3 s4 1\ns5 s6 2\n")
    shown = tmp_path / "words.txt"
    shown.write_text("\n".join(SOURCE[:20]))
    glove = ["--format", "glove"]
    # As by every program, what a link leads to is written.
    links = {tmp_path / name: tmp_path / f"to-{Path(name).name}"
             for name in ("m.html", "m.png", "p/vectors.tsv")}  # fmt: skip
    (tmp_path / "p").mkdir()
    for link, target in links.items():
        link.symlink_to(target)
    for arguments, said in (
        (["neighbors", run, "s1", "東京", "--count", "2"], "東京"),
        (["analogy", run, "s1", "s2", "s3", "--role", "source"], "s1 is to s2 as s3 is to"),
        (["similarity", run, str(judged)], "over 3 pairs"),
        (["plot", run, "--output", str(tmp_path / "m.html"), "--words", str(shown)], "20 words"),
        (["plot", run, "--output", str(tmp_path / "m.png"), "--method", "pca"], "154 words"),
        (["export", "projector", run, "--output", str(tmp_path / "p"), "--count", "9"], "9 words"),
        (["export", "embeddings", run, "--output", f"{tmp_path}/v", *glove], "158 words"),
    ):
        assert main(arguments) == 0
        assert said in capsys.readouterr().out
    assert all(link.is_symlink() and target.is_file() for link, target in links.items())
    assert len((tmp_path / "p" / "vectors.tsv").read_text().splitlines()) == 9
    # As a locale without letters has it: bytes that it cannot read.
    assert main(["neighbors", run, os.fsencode("東京").decode("ascii", "surrogateescape")]) == 0
    assert "東京" in capsys.readouterr().out
    shown.write_text("\n".join([*SOURCE[:20], "unheard", "unseen"]))
    assert main(["plot", run, "--output", f"{tmp_path}/m.html", "--words", str(shown)]) == 0
    told = capsys.readouterr()
    assert "20 words" in told.out
    assert f"left out: 2 words of {shown} that the vocabulary lacks" in told.err


def test_the_words_of_another_tokenizer_are_not_written_beside_the_vectors(
    vectors: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("dist_embed.observe.quiet.quiet_screen", lambda: None)
    tokenizers = {"source": word_tokenizer(SOURCE), "target": word_tokenizer(TARGET)}
    run = small_run(tmp_path, tokenizers, vectors)
    judged = tmp_path / "pairs.txt"
    judged.write_text("s1 s2 3\ns3 s4 1\ns5 s6 2\n")
    commands = [
        ["neighbors", run, "s1"], ["analogy", run, "s1", "s2", "s3"],
        ["similarity", run, str(judged)],
        ["plot", run, "--output", str(tmp_path / "map.html"), "--method", "pca"],
        ["export", "projector", run, "--output", str(tmp_path / "projector")],
        ["export", "embeddings", run, "--output", str(tmp_path / "v.txt"), "--format", "glove"],
        ["export", "translator", run, "--output", str(tmp_path / "model")],
    ]  # fmt: skip
    # Another corpus's words, and the same words in a file that treats text in another way.
    others = [word_tokenizer(SOURCE[::-1]), word_tokenizer(SOURCE, split_punctuation=True)]
    for other in others:
        there = Path(run) / tokenizer_name("source")
        there.write_text(other.to_json())
        before = sorted(path.name for path in tmp_path.iterdir())
        for command in commands:
            assert main(command) == 2, command
            told = capsys.readouterr().err
            assert f"{there} is not the source tokenizer that the run's checkpoint was" in told
        assert sorted(path.name for path in tmp_path.iterdir()) == before
        assert main(["neighbors", run, "t1", "--role", "target"]) == 0
    # The export alone reads both sides.
    there.write_text(tokenizers["source"].to_json())
    (Path(run) / tokenizer_name("target")).write_text(word_tokenizer(TARGET[::-1]).to_json())
    assert [main(command) for command in commands[:1] + commands[-1:]] == [0, 2]


def test_older_checkpoints_know_the_words_or_nothing(run: str) -> None:
    ours, other = RunTable(run, "source").tokenizer, word_tokenizer(SOURCE[::-1])
    marks = word_tokenizer(SOURCE, split_punctuation=True)
    words_alone = {"source vocabulary": ours.digest}
    for tokenizer in (ours, marks):
        check_tokenizer("source", tokenizer, words_alone, run)
    with pytest.raises(UserError, match="is not the source tokenizer"):
        check_tokenizer("source", other, words_alone, run)
    check_tokenizer("source", other, {}, run)


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    assert main(list(arguments)) == 0
    return capsys.readouterr().out.splitlines()


def table_of(rows: list[tuple[str, float]]) -> list[list[str]]:
    return [["word", "cosine"], *([word, f"{cosine:.4f}"] for word, cosine in rows)]


def test_the_commands_print_what_is_near_and_of_which_table(
    run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dist_embed.observe.quiet.quiet_screen", lambda: None)
    source, output = RunTable(run, "source"), RunTable(run, "output")  # type: ignore[arg-type]
    lines = printed(capsys, "neighbors", run, "s1", "東京")
    assert lines[0] == f"{run}, source vectors of step 5"
    found = neighbors(source, ["s1", "東京"], 10)
    assert [line for line in lines[1:] if line and "|" not in line] == ["s1", "東京"]
    rows = [*table_of(found["s1"]), *table_of(found["東京"])]
    assert cells("\n".join(lines)) == rows
    lines = printed(capsys, "neighbors", run, "t1", "--role", "output", "--step", "5",
                    "--count", "1")  # fmt: skip
    assert lines[0] == f"{run}, output vectors of step 5"
    assert cells("\n".join(lines)) == table_of(neighbors(output, ["t1"], 1)["t1"])
    lines = printed(capsys, "analogy", run, "s1", "s2", "s3")
    assert lines[:3] == [f"{run}, source vectors of step 5", "", "s1 is to s2 as s3 is to"]
    assert cells("\n".join(lines)) == table_of(analogy(source, "s1", "s2", "s3", 10))
    judged = tmp_path / "pairs.txt"
    judged.write_text("s1 s2 3\ns3 s4 1\ns5 s6 2\ns5 gone 2\n")
    agreed = similarity_agreement(source, str(judged))
    assert printed(capsys, "similarity", run, str(judged)) == [
        f"{run}, source vectors of step 5",
        f"Spearman's rank correlation {agreed.spearman:.4f} over 3 pairs; 1 pairs have a word that "
        "the vocabulary lacks",
    ]
    written = str(tmp_path / "v.txt")
    assert printed(
        capsys, "export", "embeddings", run, "--output", written, "--format", "glove"
    ) == [f"{run}, source vectors of step 5: 158 words × 8 → {written}"]


def test_maps_show_the_most_frequent_words_or_those_of_a_file(
    run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dist_embed.observe.quiet.quiet_screen", lambda: None)
    asked: list[Any] = []

    def flat(vectors: Tensor, method: str, *, seed: int) -> Any:
        asked.append((vectors, method, seed))
        return np.zeros((len(vectors), 2))

    monkeypatch.setattr("dist_embed.explore.flat_map.flat_map", flat)
    table = RunTable(run, "source")
    page, folder = tmp_path / "m.html", tmp_path / "p"
    (line,) = printed(capsys, "plot", run, "--output", str(page), "--count", "9")
    described = f"{run}, source vectors of step 5"
    assert line == f"{described}: 9 words by tsne → {page}"
    vectors, method, seed = asked[-1]
    assert (method, seed) == ("tsne", 1)
    assert torch.equal(vectors, table.rows_of(range(4, 13)))
    assert page.read_text() == map_page(np.zeros((9, 2)), SOURCE[:9], vectors, described)
    lines = printed(capsys, "plot", run, "--output", str(tmp_path / "m.png"), "--method", "pca")
    assert lines[0] == f"{described}: 154 words by pca → {tmp_path}/m.png"
    assert lines[1].startswith("1 of them, '東京' for one, have letters that no font of this")
    assert lines[1].endswith(f"--output {tmp_path}/m.html")
    assert asked[-1][1] == "pca"
    assert len(printed(capsys, "plot", run, "--output", str(tmp_path / "m.svg"))) == 2
    chosen = tmp_path / "words.txt"
    chosen.write_text("s7 \ns2\n\ns7\ns30\ns4\ns5\n")
    (line,) = printed(
        capsys, "export", "projector", run, "--output", str(folder), "--words", str(chosen)
    )  # fmt: skip
    assert line == f"{described}: 5 words → {folder}; tensorboard --logdir {folder}"
    ids = [table.id_of(word) for word in ("s2", "s4", "s5", "s7", "s30")]
    found = [
        [float(value) for value in row.split("\t")]
        for row in (folder / "vectors.tsv").read_text().splitlines()
    ]
    assert torch.tensor(found).allclose(table.rows_of(ids), atol=1e-4)


def test_options_of_the_commands_on_vectors() -> None:
    def given(*arguments: str) -> dict[str, Any]:
        return vars(build_parser().parse_args(list(arguments)))

    near = given("neighbors", "r", "w")
    assert (near["role"], near["step"], near["count"], near["words"]) == ("source", None, 10, ["w"])
    assert given("analogy", "r", "a", "b", "c", "--count", "3")["count"] == 3
    plot = given("plot", "r", "--output", "x.svg")
    assert (plot["count"], plot["words"], plot["method"]) == (1000, None, "tsne")
    model = given(
        "export", "translator", "r", "--output", "f", "--quantization", "int8", "--step", "7"
    )
    assert (model["format"], model["quantization"], model["step"]) == ("ctranslate2", "int8", 7)
    with pytest.raises(SystemExit):
        given("export", "embeddings", "r", "--output", "f")  # the format is to be said


def test_the_translator_is_exported_as_asked(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dist_embed.observe.quiet.quiet_screen", lambda: None)
    asked: list[Any] = []

    def export(run: str, folder: Path, **how: Any) -> Any:
        asked.append((run, folder, how))
        return Namespace(step=12)

    monkeypatch.setattr("dist_embed.export.ctranslate2_model.export_ctranslate2", export)
    assert printed(capsys, "export", "translator", "r", "--output", "f") == [
        "step 12 of r → f (float32)"
    ]
    asked_for = ["r", "--output", "f", "--quantization", "int8", "--step", "12"]
    assert printed(capsys, "export", "translator", *asked_for) == ["step 12 of r → f (int8)"]
    assert asked == [
        ("r", Path("f"), {"step": None, "quantization": None}),
        ("r", Path("f"), {"step": 12, "quantization": "int8"}),
    ]
