from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import jsonschema
import pytest
import yaml
from omegaconf import OmegaConf
from pydantic import BaseModel

from dist_embed.api.trained_run import open_run
from dist_embed.cli.main import main
from dist_embed.config.load import (
    config_from_dict,
    config_to_yaml,
    differences,
    json_schema,
    load_config,
)
from dist_embed.config.reference import configuration_page
from dist_embed.config.renamed import say_once
from dist_embed.config.schema import Config
from dist_embed.data.settings import CorpusSection, DataSection, SyntheticSection
from dist_embed.errors import ConfigError, UserError
from dist_embed.model.settings import SearchSection
from dist_embed.run.settings import RunSection
from dist_embed.section import MAY_CHANGE, keys_marked, known_keys
from dist_embed.training.settings import TrainSection
from dist_embed.vectors.settings import PretrainedSection

ROOT = Path(__file__).parents[2]
# Those of runs; a study is another kind of file (test_study.py).
# All but studies, which have a base.
CONFIGS = sorted(
    path
    for path in (ROOT / "configs").rglob("*.yaml")
    if "base" not in yaml.safe_load(path.read_text())
)
SMALLEST = """
run: {uri: runs/x}
data: {synthetic: {sentences: 10}}
train: {max_steps: 5}
"""
LEAST: dict[str, Any] = yaml.safe_load(SMALLEST)


def loaded(folder: Path, text: str, *overrides: str) -> Config:
    (folder / "c.yaml").write_text(text)
    return load_config(str(folder / "c.yaml"), list(overrides))


def refused(folder: Path, text: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        loaded(folder, text, *overrides)
    return str(caught.value)


def smallest(folder: Path, *overrides: str) -> Config:
    return loaded(folder, SMALLEST, *overrides)


def test_defaults_fill_what_is_not_given(tmp_path: Path) -> None:
    config = smallest(tmp_path)
    assert config.run.uri == "runs/x"
    assert config.data.uri == "runs/x/data"
    assert config.data.synthetic is not None
    assert (config.data.synthetic.sentences, config.data.synthetic.held_out) == (10, 500)
    assert config.cluster.launcher == "auto"


def test_unknown_key_names_value_nearest_and_valid_keys(tmp_path: Path) -> None:
    message = refused(tmp_path, SMALLEST, "train.max_stps=7")
    assert "train.max_stps: unknown key (value 7)" in message
    assert "did you mean 'train.max_steps'?" in message
    assert "batch_tokens" in message
    assert "\n" not in message
    assert str(tmp_path / "c.yaml") in message


def test_unknown_section_names_the_sections(tmp_path: Path) -> None:
    message = refused(tmp_path, SMALLEST + "tokeniser: {kind: bpe}\n")
    assert "tokeniser: unknown key (value {'kind': 'bpe'})" in message
    assert "did you mean 'tokenizer'?" in message
    assert "embedding" in message


@pytest.mark.parametrize("key", ["strategy", "list[x]", "data.strategy", "train.strides"])
def test_unknown_keys_of_any_name_are_named(tmp_path: Path, key: str) -> None:
    *sections, last = key.split(".")
    text = (
        SMALLEST.replace(f"{sections[0]}: {{", f"{sections[0]}: {{{last}: 1, ")
        if sections
        else (f"{SMALLEST}{last!r}: 1\n")
    )
    assert f"{key}: unknown key (value 1)" in refused(tmp_path, text)


def test_a_name_like_nothing_gets_no_guess(tmp_path: Path) -> None:
    assert "did you mean" not in refused(tmp_path, SMALLEST, "train.qqqq=1")


def test_unknown_key_in_a_corpus_names_its_keys(tmp_path: Path) -> None:
    message = refused(tmp_path, SMALLEST, "data.train.sauce=x")
    assert "data.train.sauce: unknown key (value 'x')" in message
    assert "did you mean 'data.train.source'?" in message
    assert "valid here: source, target, pairs" in message


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("train.max_steps=many", ["train.max_steps: 'many'", "valid integer", "Optimizer steps"]),
        ("train.max_steps=1.5", ["train.max_steps: 1.5", "valid integer"]),
        ("train.max_steps=true", ["train.max_steps: True", "valid integer"]),
        ("train.max_steps=0", ["train.max_steps: 0", "greater than 0"]),
        ("model.dropout=1.0", ["model.dropout: 1.0", "less than 1"]),
        ("run.seed=-1", ["run.seed: -1", "greater than or equal to 0"]),
        ("run.uri=''", ["run.uri: ''", "at least 1 character"]),
        ("tokenizer.kind=wrd", ["tokenizer.kind: 'wrd'", "'word', 'bpe' or 'unigram'"]),
        ("tokenizer.shared=1", ["tokenizer.shared: 1", "valid boolean"]),
        ("train.learning_rate=.inf", ["train.learning_rate: inf", "finite"]),
        ("train.label_smoothing=.nan", ["train.label_smoothing: nan"]),
        ("cluster.address=5", ["cluster.address: 5", "valid string", "RAY_ADDRESS"]),
        ("data=[a]", ["data: ['a']", "a mapping of keys"]),
        ("data.train.source=5", ["data.train.source: 5", "valid string", "valid list"]),
        ("data.train.source=[a,5]", ["data.train.source.1: 5", "valid string"]),
    ],
)  # fmt: skip
def test_a_wrong_value_names_key_value_and_what_is_allowed(
    tmp_path: Path, override: str, parts: list[str]
) -> None:
    message = refused(tmp_path, SMALLEST, override)
    assert [part for part in parts if part not in message] == []


def test_missing_sections_and_keys_are_told_apart(tmp_path: Path) -> None:
    message = refused(tmp_path, "run: {uri: x}\ndata: {synthetic: {}}\n")
    assert "train: missing" in message
    message = refused(tmp_path, "run: {uri: x}\ndata: {synthetic: {}}\ntrain: {}\n")
    assert "train.max_steps: missing; Optimizer steps of the whole run." in message


@pytest.mark.parametrize(
    "text",
    ["", "# nothing\n", "train: {max_steps: 1}\n", "run: {seed: 1}\ntrain: {max_steps: 1}\n"],
)
def test_a_missing_run_uri_is_named_as_such(tmp_path: Path, text: str) -> None:
    assert "run.uri" in refused(tmp_path, text)


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    lines = refused(
        tmp_path, SMALLEST, "train.max_stps=7", "model.width=wide", "data.uri=d", "run.seed=-1"
    ).split("\n")
    assert len(lines) == 3
    assert all(line.startswith(str(tmp_path / "c.yaml")) for line in lines)
    combinations = refused(
        tmp_path, SMALLEST, "model.heads=3", "model.share_embeddings=all", "tokenizer.shared=false"
    ).split("\n")
    assert [line.split(":")[0] for line in combinations] == [
        "model.heads",
        "model.share_embeddings",
    ]


def test_interpolation_follows_keys_and_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIST_EMBED_TEST_DIR", "/corpora")
    config = loaded(
        tmp_path,
        "run: {uri: '${oc.env:DIST_EMBED_TEST_DIR}/run'}\ntrain: {max_steps: 5}\n"
        "data: {train: {source: '${run.uri}/a', target: '${run.uri}/b'}}\n"
        "embedding: {width: '${model.width}'}\nmodel: {width: 64}\n",
        "model.width=32",
    )
    assert config.run.uri == "/corpora/run"
    assert config.data.uri == "/corpora/run/data"
    assert config.data.train is not None
    assert config.data.train.source == "/corpora/run/a"
    assert config.embedding.width == 32


def choices(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every key that is one of some words, with each of them."""
    for name, field in model.model_fields.items():
        for option in (field.annotation, *get_args(field.annotation)):
            if isinstance(option, type) and issubclass(option, BaseModel):
                yield from choices(option, f"{prefix}{name}.")
        if get_origin(field.annotation) is Literal:
            yield from ((f"{prefix}{name}", value) for value in get_args(field.annotation))


def test_the_configuration_in_the_readme_is_sound(tmp_path: Path) -> None:
    (block,) = (ROOT / "README.md").read_text().split("```yaml\n")[1:]
    config = loaded(tmp_path, block.split("```")[0])
    assert config.model.output == "sampled"


@pytest.mark.parametrize(("key", "value"), list(choices(Config)))
def test_every_word_that_a_key_allows_can_be_written_plainly(
    tmp_path: Path, key: str, value: str
) -> None:
    override = f"{key}={value}"
    found: Any
    try:
        found = smallest(tmp_path, override)
    except ConfigError as exc:
        found = str(exc)
    if isinstance(found, str):
        # It does not go with this configuration's other values, but was read as the word it is.
        assert "input should be" not in found
        return
    for part in key.split("."):
        found = getattr(found, part)
    assert found == value


@pytest.mark.parametrize("override", ["run.uri=${oc.env:NOT_SET_AT_ALL}/x", "run.uri=${no.such}"])
def test_an_interpolation_without_value_names_key_and_reason(tmp_path: Path, override: str) -> None:
    message = refused(tmp_path, SMALLEST, override)
    assert "run.uri" in message
    assert "NOT_SET_AT_ALL" in message or "no.such" in message


@pytest.mark.parametrize("section", ["data", "train"])
def test_a_section_that_cannot_be_interpolated_is_named(tmp_path: Path, section: str) -> None:
    message = refused(tmp_path, SMALLEST, f"{section}=${{oc.env:NOT_SET_AT_ALL}}")
    assert section in message
    assert "NOT_SET_AT_ALL" in message


def test_overrides_are_read_as_yaml(tmp_path: Path) -> None:
    config = smallest(
        tmp_path, "train.learning_rate=1e-3", "train.max_steps=7", "data.synthetic=null",
        "data.train.source=[a.txt, b.txt]", "data.train.target=[c.txt,d.txt]",
        "tokenizer.lowercase=true", "cluster.address=ray://h:1", "run.uri=s3://b/x?y=1",
    )  # fmt: skip
    assert config.train.learning_rate == 1e-3
    assert config.train.max_steps == 7
    assert config.data.synthetic is None
    assert config.data.train is not None
    assert config.data.train.source == ["a.txt", "b.txt"]
    assert config.tokenizer.lowercase is True
    assert config.cluster.address == "ray://h:1"
    assert config.run.uri == "s3://b/x?y=1"


def test_an_override_replaces_a_whole_section(tmp_path: Path) -> None:
    config = smallest(tmp_path, "data.synthetic={sentences: 3}")
    assert config.data.synthetic is not None
    assert config.data.synthetic.sentences == 3


def test_the_last_override_counts(tmp_path: Path) -> None:
    assert smallest(tmp_path, "run.seed=2", "run.seed=3").run.seed == 3


@pytest.mark.parametrize(
    "override", ["train.max_steps", "=5", "train.max_steps:5", "a=[1,", "x=${"]
)
def test_a_malformed_override_is_quoted(tmp_path: Path, override: str) -> None:
    assert repr(override) in refused(tmp_path, SMALLEST, override)


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["model.heads=3"], ["model.heads: 3", "model.width=128"]),
        (["model.width=9", "model.heads=3"], ["model.width: 9", "even"]),
        (["embedding.width=0"], ["embedding.width", "0"]),
        (["model.share_embeddings=all", "tokenizer.shared=false"],
         ["model.share_embeddings: 'all'", "tokenizer.shared=false"]),
        (["model.logits_block_mib=large"], ["model.logits_block_mib", "auto"]),
        (["model.logits_block_mib=0"], ["model.logits_block_mib", "0"]),
        (["embedding.width=2052", "cluster.device=cuda"],
         ["embedding.width: 2052", "on a GPU", "2048 or less", "cluster.device=cpu"]),
        (["embedding.optimizer=adam", "cluster.device=cpu"],
         ["embedding.optimizer: 'adam'", "cluster.device=cpu", "rowwise_adagrad"]),
        (["model.batch_negatives=true"],
         ["model.batch_negatives: true is not allowed with model.output=exact"]),
        (["embedding.memory=uvm", "cluster.device=cpu"],
         ["embedding.memory: 'uvm'", "cluster.device=cpu", "use auto or device"]),
        (["embedding.memory=uvm_caching", "cluster.device=cpu"], ["memory: 'uvm_caching'"]),
        (["embedding.weights=fp16", "cluster.device=cpu"],
         ["embedding.weights: 'fp16'", "cluster.device=cpu", "use fp32"]),
        (["embedding.exchange=bf16", "cluster.device=cpu"],
         ["embedding.exchange: 'bf16'", "cluster.device=cpu", "use fp32"]),
        (["embedding.weights=bf16"], ["embedding.weights: 'bf16'", "'fp32' or 'fp16'", "FBGEMM"]),
        (["data.synthetic=null"], ["data.train: missing", "data.synthetic"]),
        (["data.train.pairs=x.tsv"], ["data.train", "data.synthetic"]),
        (["data.inflected={}"], ["data.inflected: not allowed beside data.synthetic"]),
        (["data.synthetic=null", "data.inflected={}", "data.test.pairs=x.tsv"],
         ["data.test: not allowed beside data.inflected"]),
        (["data.synthetic.exponent=1.0"], ["data.synthetic.exponent: unknown key"]),
        (["data.synthetic=null", "data.train.pairs=a", "data.train.source=b"],
         ["data.train", "`pairs`", "not both"]),
        (["data.synthetic=null", "data.train.source=b"], ["data.train.target: missing"]),
        (["data.synthetic=null", "data.train.pairs=a", "data.test.target=b"],
         ["data.test.source: missing"]),
        (["data.synthetic=null", "data.train.pairs=[]"], ["data.train.pairs: []", "one file"]),
        (["data.synthetic=null", "data.train.source=[]", "data.train.target=b"],
         ["data.train.source: []", "one file"]),
        (["data.synthetic=null", "data.train.pairs=a", "train.translate_every=10"],
         ["train.translate_every: 10", "data.validation"]),
        (["cluster.num_workers={min: 1, max: 2}", "cluster.replace_seconds=600"],
         ["cluster.replace_seconds: 600", "cluster.timeout_seconds=600", "less than that"]),
        (["train.neighbors_of=[the]"], ["train.neighbors_of: ['the']", "train.translate_every"]),
        (["search.candidates=3", "data.lexicon_translations=10"],
         ["search.candidates: 3", "at least 4"]),
        (["search.candidates=-1"], ["search.candidates: -1"]),
        (["search.candidates=few"], ["search.candidates: 'few'", "`auto`"]),
        (["search.candidates=1", "data.lexicon_translations=10"], ["search.candidates: 1"]),
        (["search.candidates=9"],
         ["search.candidate_translations: 10", "data.lexicon_translations=0", "10 or more"]),
        (["search.candidates=9", "data.lexicon_translations=9"],
         ["search.candidate_translations: 10", "data.lexicon_translations=9"]),
        (["tokenizer.oov_buckets=1", "tokenizer.kind=bpe"],
         ["tokenizer.oov_buckets: 1", "tokenizer.kind=bpe", "kind to word"]),
        (["tokenizer.oov_buckets=7", "model.share_embeddings=all"],
         ["tokenizer.oov_buckets: 7", "model.share_embeddings=all", "decoder or none"]),
        (["search.replace_unknown=copy", "tokenizer.kind=unigram"],
         ["search.replace_unknown: 'copy'", "tokenizer.kind=unigram", "set it to no"]),
        (["search.replace_unknown=lexicon"],
         ["search.replace_unknown: 'lexicon'", "data.lexicon_translations=0", "1 or more"]),
        (["embedding.tables.source={freeze: true, freeze_until_step: 3}"],
         ["embedding.tables.source.freeze_until_step: 3", "tables.source.freeze=true"]),
        (["embedding.tables.target={freeze: true}", "embedding.tables.output={freeze: false}"],
         ["embedding.tables.output: not allowed beside embedding.tables.target",
          "share_embeddings=decoder"]),
        (["model.share_embeddings=all", "embedding.tables.source={learning_rate: 0.5}",
          "embedding.tables.output={learning_rate: 0.25}"],
         ["embedding.tables.output: not allowed beside embedding.tables.source",
          "share_embeddings=all"]),
        (["embedding.tables.output.pretrained={uri: a, format: npy}"],
         ["embedding.tables.output.pretrained.words: missing; npy holds no words"]),
        (["embedding.tables.source.pretrained={uri: a, format: safetensors}"],
         ["pretrained.words: missing; safetensors"]),
        (["embedding.tables.source.pretrained={uri: a, format: tsv}"],
         ["pretrained.words: missing; tsv holds no words"]),
        (["embedding.tables.source.pretrained={uri: a, format: glove, words: w.txt}"],
         ["pretrained.words: 'w.txt'", "format=glove", "holds the words"]),
        (["embedding.tables.source.pretrained={uri: a, format: npy, words: b, tensor: t}"],
         ["pretrained.tensor: 't'", "format=npy", "safetensors"]),
        (["embedding.tables.source.pretrained={uri: a, format: word2vec, missing: subword}"],
         ["pretrained.missing: 'subword'", "format=word2vec", "fasttext-bin"]),
        (["embedding.tables.source.pretrained={uri: a, match: [nfc, nfc]}"],
         ["pretrained.match: ['nfc', 'nfc']", "at most once"]),
    ],
)  # fmt: skip
def test_impossible_combinations_name_both_sides(
    tmp_path: Path, overrides: list[str], parts: list[str]
) -> None:
    message = refused(tmp_path, SMALLEST, *overrides)
    assert [part for part in parts if part not in message] == []
    assert "\n" not in message


@pytest.mark.parametrize(
    "overrides",
    [
        ["model.heads=8"],
        ["embedding.width=32"],
        ["model.share_embeddings=decoder", "tokenizer.shared=false"],
        ["embedding.optimizer=adam", "cluster.device=cuda"],
        ["embedding.memory=device", "cluster.device=cpu"],
        ["embedding.memory=uvm_caching", "embedding.weights=fp16", "embedding.exchange=fp16"],
        ["data.synthetic=null", "data.train.pairs=a.tsv"],
        ["data.synthetic=null", "data.inflected.exponent=1.0"],
        [
            "data.synthetic=null",
            "data.train.pairs=a",
            "data.validation.pairs=b",
            "train.translate_every=10",
        ],
        ["train.translate_every=10"],
        ["search.candidates=4", "data.lexicon_translations=10"],
        ["search.candidates=0", "search.candidate_translations=11"],
        ["search.candidates=auto", "search.candidate_translations=11"],
        ["search.replace_unknown=lexicon", "data.lexicon_translations=1"],
        ["search.replace_unknown=copy"],
        ["tokenizer.oov_buckets=1", "model.share_embeddings=decoder"],
        ["embedding.tables.source={freeze: true}", "embedding.tables.output={freeze: false}"],
        ["embedding.tables.target={freeze: true}", "embedding.tables.output={freeze: true}"],
        [
            "model.share_embeddings=none",
            "embedding.tables.target={freeze: true}",
            "embedding.tables.output={freeze: false}",
        ],
        ["embedding.tables.source.pretrained={uri: a, match: [nfc, digits, lowercase]}"],
        ["embedding.tables.source.pretrained={uri: a, format: glove}"],
        ["embedding.tables.source.pretrained={uri: a, format: npy, words: b}"],
        ["embedding.tables.source.pretrained={uri: a, format: tsv, words: b}"],
        ["embedding.tables.source.pretrained={uri: a, words: b, tensor: c, missing: subword}"],
        ["embedding.tables.source.pretrained={uri: a, format: safetensors, words: b, tensor: c}"],
        ["embedding.tables.source.pretrained={uri: a, format: fasttext-bin, missing: subword}"],
        ["embedding.tables.source={freeze: true}", "embedding.tables.target={freeze: true}"],
        ["embedding.tables.source={freeze_until_step: 3}"],
    ],
)
def test_possible_neighbours_of_impossible_combinations_load(
    tmp_path: Path, overrides: list[str]
) -> None:
    smallest(tmp_path, *overrides)


@pytest.mark.parametrize(
    ("text", "part"),
    [("- a\n- b\n", "mapping"), ("a: [\n", "not valid YAML"), ("5\n", "mapping"),
     ("run: {uri: a}\nrun: {uri: b}\n", "the key 'run' is there twice"),
     ("5: 1\n" + SMALLEST, "5")],
)  # fmt: skip
def test_a_file_that_is_no_configuration_is_named(tmp_path: Path, text: str, part: str) -> None:
    message = refused(tmp_path, text)
    assert str(tmp_path / "c.yaml") in message
    assert part in message


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"run: {uri: \xff}")
    for path in (
        str(tmp_path / "none.yaml"),
        str(tmp_path),
        str(tmp_path / "latin.yaml"),
        "no://x",
    ):
        with pytest.raises(ConfigError, match="cannot read configuration") as caught:
            load_config(path)
        assert path in str(caught.value)


def test_a_configuration_can_lie_at_a_url() -> None:
    from dist_embed.storage import uri as storage

    storage.write_text("memory://test-config/c.yaml", SMALLEST)
    assert load_config("memory://test-config/c.yaml").train.max_steps == 5


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_the_stored_configurations_load(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MULTI30K_DIR", str(tmp_path))
    config = load_config(str(path))
    stored = config_from_dict(yaml.safe_load(config_to_yaml(config)))
    assert stored == config
    assert differences(config, stored) == []


def test_yaml_spells_out_every_default(tmp_path: Path) -> None:
    values = yaml.safe_load(config_to_yaml(smallest(tmp_path)))
    assert values["search"]["beam"] == 5
    assert values["data"]["uri"] == "runs/x/data"
    assert set(values) == set(Config.model_fields)


@pytest.mark.parametrize("name", ["grün", "a: b", "'quoted'", "null", "true", "12", "1e5", "# x"])
def test_any_name_survives_the_stored_yaml(tmp_path: Path, name: str) -> None:
    config = config_from_dict(
        {"run": {"uri": name}, "data": {"synthetic": {}}, "train": {"max_steps": 1}}
    )
    assert config_from_dict(yaml.safe_load(config_to_yaml(config))) == config
    assert loaded(tmp_path, config_to_yaml(config)) == config  # `train RUN/config.yaml` reads so


def test_small_numbers_survive_the_stored_yaml(tmp_path: Path) -> None:
    config = smallest(tmp_path, "embedding.eps=1e-12", "train.learning_rate=3e-05")
    stored = config_from_dict(yaml.safe_load(config_to_yaml(config)))
    assert (stored.embedding.eps, stored.train.learning_rate) == (1e-12, 3e-05)


def test_plain_values_are_taken_as_they_are_and_references_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only of what it would give back as it is OmegaConf, which takes long, is not asked."""
    config = smallest(tmp_path)
    plain = config.model_dump()
    asked: list[Any] = []
    create = OmegaConf.create
    monkeypatch.setattr(OmegaConf, "create", lambda values: asked.append(values) or create(values))
    assert config_from_dict(plain) == config
    assert asked == []
    train = {"source": ["a", "${run.uri}"], "target": ["b", "c"]}
    refers = [
        plain | {"data": {"uri": "runs/x/data", "train": train}},
        plain | {"data": plain["data"] | {"uri": "${run.uri}/data"}},
        LEAST,  # the data's place is that of the run
    ]
    found = [config_from_dict(values).data for values in refers]
    assert len(asked) == 3
    assert [data.uri for data in found] == ["runs/x/data"] * 3
    assert found[0].train is not None
    assert found[0].train.source == ["a", "runs/x"]


def test_differences_name_key_and_both_values(tmp_path: Path) -> None:
    old = smallest(tmp_path)
    new = smallest(tmp_path, "train.learning_rate=0.5", "data.synthetic.sentences=11")
    assert differences(old, old) == []
    assert differences(old, new) == [
        "data.synthetic.sentences: 10 there, 11 here",
        "train.learning_rate: 0.001 there, 0.5 here",
    ]


def test_differences_tell_sections_that_are_only_on_one_side(tmp_path: Path) -> None:
    old = smallest(tmp_path)
    new = smallest(tmp_path, "data.synthetic=null", "data.train.pairs=a.tsv")
    lines = differences(old, new)
    assert "data.synthetic.sentences: 10 there, None here" in lines
    assert "data.train.pairs: None there, 'a.tsv' here" in lines


def test_a_loaded_configuration_cannot_be_changed(tmp_path: Path) -> None:
    config = smallest(tmp_path)
    with pytest.raises(ValueError, match="frozen"):
        config.train.max_steps = 7


def test_the_schema_file_is_up_to_date() -> None:
    path = ROOT / "configs" / "schema.json"
    command = "dist-embed config schema > configs/schema.json"
    assert path.exists(), f"write it: {command}"
    assert path.read_text() == json_schema(), f"write it again: {command}"


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json_schema())
    jsonschema.Draft202012Validator.check_schema(found)
    return found


def test_the_schema_describes_every_setting(schema: dict[str, Any]) -> None:
    for section, definition in schema["$defs"].items():
        for name, setting in definition["properties"].items():
            assert setting.get("description"), f"{section}.{name} has no description"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_the_schema_accepts_the_stored_configurations(path: Path, schema: dict[str, Any]) -> None:
    values = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    jsonschema.Draft202012Validator(schema).validate(values)


@pytest.mark.parametrize(
    ("key", "value", "accepted"),
    [("max_steps", 5, True), ("max_steps", "${oc.env:STEPS}", True), ("max_steps", "five", False),
     ("max_steps", 0, False), ("learning_rate", 1e-3, True), ("learning_rate", -1.0, False),
     ("schedule", "cosine", True), ("schedule", "cosinus", False), ("max_stps", 1, False),
     ("schedule", "${embedding.schedule}", True)],
)  # fmt: skip
def test_the_schema_judges_like_the_loader(
    key: str, value: object, accepted: bool, schema: dict[str, Any]
) -> None:
    values = {"run": {"uri": "x"}, "train": {"max_steps": 1} | {key: value}}
    assert jsonschema.Draft202012Validator(schema).is_valid(values) == accepted


def test_non_finite_numbers_never_reach_a_run() -> None:
    for section, key in (("train", "clip_norm"), ("train", "beta1"), ("embedding", "eps")):
        values = {"run": {"uri": "x"}, "data": {"synthetic": {}}, "train": {"max_steps": 1}}
        values.setdefault(section, {})[key] = math.nan  # type: ignore[assignment]
        with pytest.raises(ConfigError, match=f"{section}.{key}: nan"):
            config_from_dict(values)


def test_the_page_of_keys_is_that_of_the_schema() -> None:
    path = ROOT / "docs" / "configuration.md"
    command = "dist-embed config reference > docs/configuration.md"
    assert path.read_text() == configuration_page(), f"write it again: {command}"


def test_the_page_names_every_key_that_may_change_when_a_run_is_resumed() -> None:
    head = configuration_page().split("\n## ")[0]
    marked = keys_marked(Config, MAY_CHANGE)
    whole = {key for key in marked if "." not in key}
    assert whole == {"search", "checkpoint", "cluster"}
    named = {key for key in marked if key.partition(".")[0] not in whole} | whole
    told = head.split("may change:")[1].split("For all")[0]
    assert named == set(re.findall(r"`([\w.]+)`", told))


def test_the_page_tells_what_experts_need_behind_the_rest() -> None:
    sections = configuration_page().split("\n## ")[1:]
    told = {key for part in sections for key in re.findall(r"^\| `(\w+)` ", part, re.M)}
    assert told == {key.rpartition(".")[2] for key in known_keys(Config) if "." in key}
    train = next(part for part in sections if part.startswith("`train`"))
    first, then = train.split("Seldom needed:")
    assert ("`max_steps`" in first, "`beta1`" in first) == (True, False)
    assert ("`max_steps`" in then, "`beta1`" in then) == (False, True)


@pytest.mark.parametrize(
    ("before", "now"),
    [({"asynchronous": True}, "behind"), ({"asynchronous": False}, "waiting"),
     ({"low_memory": True}, "in_place"), ({"low_memory": False}, "behind"),
     ({"asynchronous": False, "low_memory": True}, "in_place"),
     ({"asynchronous": False, "low_memory": False}, "waiting"),
     ({"asynchronous": True, "low_memory": False}, "behind")],
)  # fmt: skip
def test_keys_of_before_are_read_and_said_to_be_called_otherwise(
    tmp_path: Path, before: dict[str, bool], now: str
) -> None:
    written = [f"checkpoint.{key}={str(value).lower()}" for key, value in before.items()]
    text = f"{' and '.join(written)}: this is called checkpoint.saving={now} now"
    said: list[str] = []
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(LEAST | {"checkpoint": {"keep_last": 7} | before}))
    config = load_config(str(path), say=said.append)
    assert (config.checkpoint.saving, config.checkpoint.keep_last) == (now, 7)
    assert said == [f"{path}: {text}"]

    path.write_text(yaml.safe_dump(LEAST))
    assert load_config(str(path), written, say=said.append).checkpoint.saving == now
    assert said[1:] == [f"{path}: {text}"]
    # A run's own are not the user's.
    assert config_from_dict(LEAST | {"checkpoint": before}).checkpoint.saving == now


def test_keys_of_before_are_read_from_a_script_too(capsys: pytest.CaptureFixture[str]) -> None:
    say_once.cache_clear()
    for _ in range(2):
        found = Config(**LEAST, checkpoint={"asynchronous": False})
        assert found.checkpoint.saving == "waiting"
    said = "checkpoint.asynchronous=false: this is called checkpoint.saving=waiting now"
    assert capsys.readouterr() == ("", f"configuration: {said}\n")
    with pytest.raises(ConfigError, match=r"checkpoint\.asynchronous: 'yes' is not allowed"):
        Config(**LEAST, checkpoint={"asynchronous": "yes"})


def test_a_renamed_key_is_said_to_the_user_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(LEAST | {"checkpoint": {"low_memory": True}}))
    for _ in range(2):
        load_config(str(path))
    found = capsys.readouterr()
    assert found.err.count("called checkpoint.saving=in_place now\n") == 1
    assert found.out == ""


@pytest.mark.parametrize(
    ("given", "said"),
    [({"asynchronous": True, "low_memory": True}, "low_memory: true copies no table: .*waiting"),
     ({"low_memory": True, "saving": "behind"}, "saving: not allowed beside checkpoint.low_memory"),
     ({"asynchronous": "yes"}, "asynchronous: 'yes' is not allowed: .* behind, waiting or in_pl")],
)  # fmt: skip
def test_keys_of_before_that_cannot_be_read(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=f"checkpoint.{said}"):
        config_from_dict(LEAST | {"checkpoint": given})


def test_a_batch_of_sentences_is_read_as_one_of_tokens(tmp_path: Path) -> None:
    said: list[str] = []
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(LEAST | {"search": {"beam": 3, "batch_sentences": 9}}))
    config = load_config(str(path), say=said.append)
    assert (config.search.batch_tokens, config.search.beam) == (9 * 32, 3)
    (line,) = said
    assert line.startswith(f"{path}: search.batch_sentences=9: ")
    assert line.endswith("read as search.batch_tokens=288")
    default = config_from_dict(LEAST | {"search": {"batch_sentences": 64}})
    assert default.search == SearchSection()
    for given in ({"batch_sentences": 9, "batch_tokens": 9}, *({"batch_sentences": n} for n in
                  (0, -1, True, 1.5, "9", None))):  # fmt: skip
        with pytest.raises(ConfigError, match=r"search\.batch_sentences: .*not allowed.*a batch"):
            config_from_dict(LEAST | {"search": given})


def test_a_file_is_named_by_text_or_path(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(SMALLEST)
    assert load_config(tmp_path / "c.yaml") == load_config(str(tmp_path / "c.yaml"))
    for wrong in ("", None, 3):
        with pytest.raises(ConfigError, match=rf"^path: {wrong!r} is not allowed: a path or URL"):
            load_config(wrong)  # type: ignore[arg-type]


def test_overrides_are_several_or_a_mapping(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(SMALLEST)
    file = str(tmp_path / "c.yaml")
    values = {"train.max_steps": 3, "run.uri": Path("/x"), "data.uri": "${run.uri}/d"}
    found = load_config(file, values)
    assert (found.train.max_steps, found.run.uri, found.data.uri) == (3, "/x", "/x/d")
    assert load_config(file, ("train.max_steps=3",)).train.max_steps == 3
    with pytest.raises(
        ConfigError, match=r"^overrides: 'train\.max_steps=3' is not allowed: a list"
    ):
        load_config(file, "train.max_steps=3")
    with pytest.raises(ConfigError, match=r"^overrides: 3 is not allowed: a list"):
        load_config(file, 3)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"^overrides: key 3 is not allowed"):
        load_config(file, {3: 4})  # type: ignore[dict-item]
    with pytest.raises(ConfigError, match=r"^override 3 is not of the form"):
        load_config(file, [3])  # type: ignore[list-item]
    with pytest.raises(ConfigError, match=r"train\.max_steps: 'x' is not allowed"):
        load_config(file, {"train.max_steps": "x"})
    with pytest.raises(ConfigError, match=r"train\.max_stepz: unknown key"):
        load_config(file, {"train.max_stepz": 3})
    with pytest.raises(ConfigError, match=r"^override 'run\.uri=<object"):
        load_config(file, {"run.uri": object()})


def test_a_configuration_from_dictionaries_is_that_of_a_file(tmp_path: Path) -> None:
    assert Config(**LEAST) == smallest(tmp_path)
    sections = {name: getattr(Config(**LEAST), name) for name in ("run", "train")}
    data = DataSection(synthetic=SyntheticSection(sentences=10))
    assert Config(**sections, data=data) == smallest(tmp_path)
    elsewhere = {"synthetic": {"sentences": 10}, "uri": "there"}
    assert Config(**{**LEAST, "data": elsewhere}).data.uri == "there"
    assert Config(**{**LEAST, "data": DataSection(**elsewhere)}).data.uri == "there"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, ["run: missing; Where a run lives and what makes it reproducible.",
              "train: missing; Optimisation of the dense part, and when things happen."]),
        ({"run": {}, "train": {"max_steps": 1}}, ["run.uri: missing; Folder or fsspec URL"]),
        ({"run": 3, "train": {"max_steps": 1}}, ["run: 3 is not allowed: input should be a"]),
        ({**LEAST, "train": {"max_steps": 0}}, ["train.max_steps: 0 is not allowed: input "]),
        ({**LEAST, "modell": {}}, ["modell: unknown key (value {}); did you mean 'model'? "]),
    ],
)  # fmt: skip
def test_wrong_dictionaries_are_refused_as_a_file_is(
    given: dict[str, Any], said: list[str]
) -> None:
    with pytest.raises(ConfigError, match=r"^configuration: 5 is not allowed: input should be a"):
        Config.model_validate(5)
    for refused_by in (Config, lambda **values: Config.model_validate(values)):
        with pytest.raises(ConfigError) as caught:
            refused_by(**given)
        lines = str(caught.value).splitlines()
        assert len(lines) == len(said)
        for line, start in zip(lines, said, strict=True):
            assert line.startswith(f"configuration: {start}")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: TrainSection(max_steps=0), ["TrainSection: max_steps: 0 is not allowed: input "]),
        (lambda: TrainSection(max_step=1),  # type: ignore[call-arg]
         ["TrainSection: max_steps: missing; ",
          "TrainSection: max_step: unknown key (value 1); did you mean 'max_steps'?"]),
        (lambda: DataSection(synthetic={"sentences": "x"}),  # type: ignore[arg-type]
         ["DataSection: synthetic.sentences: 'x' is not allowed: "]),
        # The outermost tells of all.
        (lambda: Config(run={"uri": 1}, train={"max_steps": 0}),
         ["configuration: run.uri: 1 is not", "configuration: train.max_steps: 0 is not"]),
    ],
)  # fmt: skip
def test_wrong_sections_are_refused_as_a_file_is(make: Callable[[], Any], said: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    lines = str(caught.value).splitlines()
    assert len(lines) == len(said)
    for line, start in zip(lines, said, strict=True):
        assert line.startswith(start)


def test_paths_may_be_paths(tmp_path: Path) -> None:
    class Own:
        def __fspath__(self) -> str:
            return "runs/x"

    file = tmp_path / "c.yaml"
    file.write_text("train: {max_steps: 5}")
    for run in (Path("runs/x"), Own()):
        data: dict[str, Any] = {"train": {"source": [Path("a"), "b"], "target": Path("c")}}
        made = Config(run={"uri": run}, data=data, train={"max_steps": 5})
        assert (made.run.uri, made.data.uri) == ("runs/x", "runs/x/data")
        assert made.data.train == CorpusSection(source=["a", "b"], target="c")
        changed = {"run.uri": run, "data": {**data, "uri": Path("d")}}
        loaded = load_config(file, changed)
        assert (loaded.run, loaded.data.train) == (made.run, made.data.train)
        assert loaded.data.uri == "d"
    start = PretrainedSection(uri=Path("v.npy"), words=Path("w"))  # type: ignore[arg-type]
    assert (start.uri, start.words) == ("v.npy", "w")
    with pytest.raises(ConfigError, match=r"^RunSection: uri: b'x' is not allowed"):
        RunSection(uri=b"x")  # type: ignore[arg-type]


class OfBytes(os.PathLike[bytes]):
    def __fspath__(self) -> bytes:
        return b"x"


def test_a_path_of_bytes_is_refused(tmp_path: Path) -> None:
    for call in (lambda: RunSection(uri=OfBytes()), lambda: open_run(OfBytes())):  # type: ignore
        with pytest.raises(UserError, match=r"OfBytes.* is not allowed: a path as str or pathlib"):
            call()


def test_a_path_that_was_a_url_is_refused(tmp_path: Path) -> None:
    """pathlib makes one slash of two: what is meant for a store would lie on this machine."""
    file = tmp_path / "c.yaml"
    file.write_text(SMALLEST)
    run = Path("s3://bucket/run")
    calls: list[Callable[[], Any]] = [
        lambda: RunSection(uri=run),  # type: ignore[arg-type]
        lambda: load_config(file, {"run.uri": run}),
        lambda: open_run(run),
    ]
    for call in calls:
        with pytest.raises(UserError, match=r"s3:/bucket/run.*a URL is given as text, not as a"):
            call()


def test_a_password_in_a_url_is_refused_and_not_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(SMALLEST)
    for key in ("run.uri", "data.uri"):
        with pytest.raises(ConfigError) as caught:
            load_config(file, {key: "sftp://me:secret@host/run"})
        assert str(caught.value).startswith(f"{key}: 'sftp://me:***@host/run' is not allowed: ")
        assert "FSSPEC_SFTP_PASSWORD" in str(caught.value)
    for overrides in (["run.uri=sftp://me:secret@host/run"], ["sftp://me:secret@host/run"]):
        assert main(["config", "show", str(file), *overrides]) == 2
    assert main(["evaluate", "sftp://me:secret@host/run"]) == 2
    with pytest.raises(UserError, match=r"sftp:/me:\*\*\*@host/run"):
        open_run(Path("sftp://me:secret@host/run"))
    with pytest.raises(SystemExit):  # argparse repeats it
        main(["sftp://me:secret@host/run"])
    long = "a" * 80
    assert main(["config", "show", str(file), f"sftp://me:{long}secret@host/run=1"]) == 2
    said = "".join(capsys.readouterr())
    assert said.count("me:***@host") >= 5
    assert long not in said
    assert "secret" not in said


def test_what_no_folder_can_be_called_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(SMALLEST)
    with pytest.raises(ConfigError) as caught:
        load_config(file, {"run.uri": "a\0b"})
    assert str(caught.value) == r"run.uri: 'a\x00b' is not allowed: it has a NUL"
    with pytest.raises(ConfigError, match=r"run\.uri: 'a\\ud800' is not allowed: "):
        load_config(file, {"run.uri": "a\ud800"})
