"""Configurations as people type them: what YAML takes for another thing, and what has no end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from pydantic import BaseModel

from dist_embed import Config, UserError, load_config
from dist_embed.config.load import config_from_dict, config_to_yaml
from dist_embed.config.written import escaped, mapping_in
from dist_embed.errors import ConfigError
from dist_embed.planning.machine import Machine, load_machine
from dist_embed.run.folder import CONFIG_NAME, read_run_config
from dist_embed.study.plan import load_study
from dist_embed.study.schema import ScalingStudy, TrainingStudy
from dist_embed.training.settings import TrainSection

LEAST = "run: {uri: runs/x}\ndata:\n  synthetic: {sentences: 10}\ntrain:\n  max_steps: 5\n"


def loaded(folder: Path, *overrides: str, text: str = LEAST) -> Config:
    (folder / "c.yaml").write_bytes(text.encode() if isinstance(text, str) else text)
    return load_config(folder / "c.yaml", overrides)


def refused(folder: Path, *overrides: str, text: Any = LEAST) -> str:
    with pytest.raises(ConfigError) as caught:
        loaded(folder, *overrides, text=text)
    return str(caught.value)


def test_references_reach_defaults_too(tmp_path: Path) -> None:
    config = loaded(
        tmp_path, "train.warmup_steps=${train.evaluate_every}",
        "data.uri=${run.uri}-${model.width}", "model.width=${embedding.width}",
        "data.max_sentences=${data.synthetic.nouns}",
    )  # fmt: skip
    assert (config.train.warmup_steps, config.data.uri) == (500, "runs/x-128")
    assert (config.model.width, config.data.max_sentences) == (128, 120)
    assert loaded(tmp_path, "run.uri=${data.uri}", "data.uri=there").run.uri == "there"
    assert "train.evry" in refused(tmp_path, "train.warmup_steps=${train.evry}")
    # What nobody has written stays a default: a script may still change what follows from it.
    assert loaded(tmp_path).train.model_fields_set == {"max_steps"}


def test_variables_are_what_they_would_be_in_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"STEPS": "37", "RATE": "1e-3", "AUTO": "auto", "SHARED": "false",
                        "JOB": "123"}.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    config = loaded(
        tmp_path, "train.max_steps=${oc.env:STEPS}", "train.learning_rate=${oc.env:RATE}",
        "model.num_samples=${oc.env:AUTO}", "tokenizer.shared=${oc.env:SHARED}",
        "run.uri=${oc.env:JOB}", "train.warmup_steps=${train.max_steps}",
        "model.share_embeddings=none",
    )  # fmt: skip
    assert (config.train.max_steps, config.train.learning_rate) == (37, 1e-3)
    assert (config.model.num_samples, config.tokenizer.shared) == ("auto", False)
    assert (config.run.uri, config.train.warmup_steps) == ("123", 37)
    monkeypatch.setenv("STEPS", "many")
    assert "train.max_steps: 'many' is not allowed" in refused(
        tmp_path, "train.max_steps=${oc.env:STEPS}"
    )
    monkeypatch.setenv("STEPS", "010")
    assert "train.max_steps: '010' is not allowed: YAML takes it for 8" in refused(
        tmp_path, "train.max_steps=${oc.env:STEPS}"
    )


@pytest.mark.parametrize(
    ("value", "parts"),
    [
        ("train.max_steps=010", ["'010'", "for 8 (octal)", "in quotes"]),
        ("train.max_steps=-0_7", ["'-0_7'", "for -7 (octal)"]),
        ("train.max_steps=1:30", ["'1:30'", "for 90 (base 60)"]),
        ("train.learning_rate=1:30.5", ["'1:30.5'", "for 90.5"]),
        ("train.neighbors_of=[a, 010]", ["'010'"]),
        ("run.uri=a #b", ["'#b' would be a comment", "'\"a #b\"'"]),
        ("run.uri=[a] #b", ["'#b' would be a comment"]),
        ("run.uri=123", ["run.uri: 123", "in quotes"]),
        ("run.uri=1e5", ["run.uri: 100000.0", "in quotes"]),
        ("run.uri=no", ["run.uri: False", 'in quotes, "no"']),
        ("run.uri=yes", ["run.uri: True", 'in quotes, "yes"']),
        ("train.max_steps=1e5", ["train.max_steps: 100000.0", "exponent: 100000;"]),
        ("train.max_steps=1e26", ["train.max_steps: 1e+26", "valid integer;"]),
    ],
)  # fmt: skip
def test_what_means_something_else_to_yaml_is_refused_with_the_way_to_write_it(
    tmp_path: Path, value: str, parts: list[str]
) -> None:
    message = refused(tmp_path, value)
    assert [part for part in parts if part not in message] == []


def test_a_mapping_may_take_in_several_others() -> None:
    text = "a: &a {x: 1}\nb: &b {y: 2}\nc: {<<: *a, <<: *b}"
    assert mapping_in(text, "x").c == {"x": 1, "y": 2}


def test_the_ways_to_write_it_are_taken(tmp_path: Path) -> None:
    quoted = [("run.uri='a #b'", "a #b"), ('run.uri="010"', "010"), ('run.uri="123"', "123"),
              ("run.uri='1:30'", "1:30"), ("run.uri=a#b", "a#b")]  # fmt: skip
    for written, meant in quoted:
        assert loaded(tmp_path, written).run.uri == meant
    assert loaded(tmp_path, "train.max_steps=0x10").train.max_steps == 16
    assert loaded(tmp_path, "train.max_steps=1_000").train.max_steps == 1000
    assert loaded(tmp_path, text=f"{LEAST}# 010 and 1:30\n").train.max_steps == 5


def test_a_file_is_told_by_its_line(tmp_path: Path) -> None:
    assert "c.yaml, line 5: '010'" in refused(tmp_path, text=LEAST.replace(": 5", ": 010"))
    columns = "run: {uri: x}\ndata:\n  train:\n    pairs: x.tsv\n    target_column: no\ntrain:\n"
    assert 'in quotes, "no"' in refused(tmp_path, text=columns)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("run: " + "[" * 1500 + "]" * 1500, "nested too deep"),
        ("run: " + "[" * 200_000, "nested too deep"),  # libyaml's own reading ends the process
        ("- " * 300_000 + "a", "nested too deep"),
        (LEAST.replace(": 5", ": " + "9" * 5000), "a number of 5,000 digits"),
        (LEAST.replace(": 5", ": 0x" + "9" * 5000), "a number of 5,002 digits"),
        (f"a0: &a0 [{'x,' * 9}]\n" + "".join(f"a{i}: &a{i} [{f'*a{i - 1},' * 9}]\n"
                                             for i in range(1, 30)), "aliases stand for more"),
        ("a: &a [*a]", "not valid YAML"),
        ("a: 1\nb: 'x", "not valid YAML: line 2, column 6: while scanning a quoted scalar, found"),
        ("a: !!bool x", "none of the kind that its tag"),
        ("a: !!timestamp x", "none of the kind that its tag"),
        ("a: 1\nb: {}\na: 2", "line 3: the key 'a' is there twice"),
        ("b: [{a: 1}, {a: 1, b: {}, a: 3}]", "the key 'a' is there twice"),
        ("a: 1\0", "control characters are not allowed"),
        (b"run: {uri: caf\xe9}\n", "utf-8"),
        (LEAST.encode("utf-16"), "utf-8"),
    ],
)  # fmt: skip
def test_what_no_reader_comes_to_the_end_of_is_refused(
    tmp_path: Path, text: str | bytes, part: str
) -> None:
    message = refused(tmp_path, text=text)
    assert part in message
    assert len(message) < 1000
    assert "\n" not in message
    (tmp_path / "config.yaml").write_bytes(text.encode() if isinstance(text, str) else text)
    for read in (lambda: read_run_config(str(tmp_path)),
                 lambda: load_study(tmp_path / CONFIG_NAME),
                 lambda: load_machine(str(tmp_path / CONFIG_NAME))):  # fmt: skip
        with pytest.raises(UserError, match=CONFIG_NAME):
            read()


@pytest.mark.parametrize("value", ["[1", "{a", "a: b: c", "'a", "!!bool x", "&a [*a]", "a: 1\n-b",
                                   "${", "{a: 1, a: 2}", "!!timestamp x", "!!set {a}"])  # fmt: skip
def test_an_override_that_is_no_yaml_is_told_in_a_line(tmp_path: Path, value: str) -> None:
    message = refused(tmp_path, f"run.uri={value}")
    assert message.startswith(("override 'run.uri=", 'override "run.uri='))
    assert "\n" not in message


def test_aliases_are_taken(tmp_path: Path) -> None:
    text = "run: {uri: &here x}\ndata: {uri: *here, synthetic: &s {}}\ntrain: {max_steps: 1}\n"
    assert loaded(tmp_path, text=text).data.uri == "x"


@pytest.mark.parametrize("digits", [400, 5000])
def test_numbers_of_scripts_that_are_out_of_reach_are_refused(digits: int) -> None:
    for key in ("max_steps", "learning_rate"):
        with pytest.raises(ConfigError, match=f"{key}: .* is not allowed") as caught:
            TrainSection(**{"max_steps": 1, key: 10**digits})
        assert len(str(caught.value)) < 700


def test_sections_whose_lines_are_all_comments_are_as_if_they_were_not_there(
    tmp_path: Path,
) -> None:
    config = loaded(tmp_path, text=f"{LEAST}model:\nembedding:\n  tables:\n")
    assert config == loaded(tmp_path)
    assert Config(**{**_plain(config), "data": None}).data.uri == "runs/x/data"
    message = refused(tmp_path, text=LEAST.replace("  synthetic: {sentences: 10}\n", ""))
    assert message.startswith("data.train: missing")
    for wrong in ("model=[1]", "run=3", "run=[a]"):
        assert "a mapping of keys" in refused(tmp_path, wrong)


def _plain(config: Config) -> dict[str, Any]:
    return {"run": {"uri": config.run.uri}, "train": {"max_steps": config.train.max_steps}}


@pytest.mark.parametrize(
    ("run", "data"),
    [("s3://b/r/", "s3://b/r/data"), ("runs/x//", "runs/x/data"), ("/", "/data"),
     ("memory://", "memory://data")],
)  # fmt: skip
def test_data_lie_below_the_run(tmp_path: Path, run: str, data: str) -> None:
    assert loaded(tmp_path, f"run.uri={run}").data.uri == data
    assert Config(run={"uri": run}, train={"max_steps": 1}).data.uri == data


@given(st.text(alphabet="${}\\ax.:'\" 01#-_\n", min_size=1))
def test_any_text_comes_back_from_its_file(text: str) -> None:
    written = OmegaConf.to_yaml(OmegaConf.create({"a": escaped(text)}))
    assert OmegaConf.to_container(mapping_in(written, "x"), resolve=True) == {"a": text}


def test_a_literal_dollar_survives_file_and_run_folder(tmp_path: Path) -> None:
    folder = tmp_path / "${x}"
    config = loaded(tmp_path, rf"run.uri='{tmp_path}/\${{x}}'")
    assert (config.run.uri, config.data.uri) == (str(folder), f"{folder}/data")
    assert loaded(tmp_path, text=config_to_yaml(config)) == config
    folder.mkdir()
    (folder / CONFIG_NAME).write_text(config_to_yaml(config))
    assert read_run_config(str(folder)) == config
    values = OmegaConf.to_container(OmegaConf.create(config_to_yaml(config)))
    assert config_from_dict(values) == config


def _numbers(node: Any, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(node, dict):
        if node.get("type") in ("integer", "number"):
            yield where, node
        for key, below in node.items():
            yield from _numbers(below, f"{where}.{key}")
    elif isinstance(node, list):
        for below in node:
            yield from _numbers(below, where)


@pytest.mark.parametrize("kind", [Config, TrainingStudy, ScalingStudy, Machine])
def test_every_number_has_a_range(kind: type[BaseModel]) -> None:
    numbers = list(_numbers(kind.model_json_schema(), kind.__name__))
    assert len(numbers) > 5
    unbounded = [
        where
        for where, node in numbers
        if not {"minimum", "exclusiveMinimum"} & node.keys()
        or not {"maximum", "exclusiveMaximum"} & node.keys()
    ]
    assert unbounded == []


@pytest.mark.parametrize(
    ("key", "allowed"),
    [
        ("cluster.timeout_seconds=1e300", "less than or equal to 2000000"),
        ("cluster.timeout_seconds=1e-9", "greater than or equal to 0.1"),
        ("cluster.hang_seconds=1e-9", "greater than or equal to 0.1"),
        ("checkpoint.retry_seconds=1e300", "less than or equal to 2000000"),
        ("model.width=100000000000000000000000000", "less than or equal to 1048576"),
        ("search.beam=1000000000", "less than or equal to 1000"),
        ("search.length_penalty=1e300", "less than or equal to 10"),
        ("cluster.threads_per_worker=100000", "less than or equal to 4096"),
        ("tokenizer.vocab_size=99999999999999999999", "less than or equal to 1000000000000"),
        ("train.learning_rate=1e300", "less than or equal to 1000000000000"),
    ],
)
def test_values_out_of_sense_are_refused(tmp_path: Path, key: str, allowed: str) -> None:
    name, _, value = key.partition("=")
    message = refused(tmp_path, key)
    assert f"{name}: {float(value) if 'e' in value else value} is not allowed" in message
    assert allowed in message
