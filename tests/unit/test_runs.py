from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from omegaconf import OmegaConf

from dist_embed.cli.trained_run import run_config
from dist_embed.config.checks import check
from dist_embed.config.load import config_from_dict, config_to_yaml, differences, load_config
from dist_embed.config.schema import Config
from dist_embed.data.languages.inflected import InflectedLanguage
from dist_embed.data.lexicon import Lexicon
from dist_embed.data.lexicon_learning import ensure_lexicon
from dist_embed.data.preparation import ensure_data
from dist_embed.data.prepared_folder import prepared_folder
from dist_embed.data.token_shards import PreparedData
from dist_embed.errors import ConfigError, UserError
from dist_embed.run.folder import (
    OtherVocabulary,
    check_run_folder,
    check_vocabularies,
    fingerprint,
    only_training,
    read_run_config,
    write_run_folder,
)
from dist_embed.section import MAY_CHANGE, keys_marked
from dist_embed.storage import uri as storage
from tests.unit.small_corpus import Prepared, one_is_this_process

# Options of a command that uses a run, by one worker and otherwise as it was trained.
UNCHANGED = dict.fromkeys(
    ("beam", "candidates", "replace_unknown", "max_source_tokens", "too_long")
) | {"workers": 1}

BASE = """
data:
  num_processes: 1
  synthetic: {sentences: 30, held_out: 4, nouns: 6, verbs: 3, adjectives: 3}
train: {max_steps: 5}
"""


@pytest.fixture(autouse=True)
def no_process_prepares() -> Iterator[None]:
    with one_is_this_process(1):
        yield


def test_one_training_at_a_time_in_a_local_folder(tmp_path: Path) -> None:
    uri = str(tmp_path / "run")
    with (
        only_training(uri),
        only_training(str(tmp_path / "other")),
        pytest.raises(UserError, match=f"another process is training in {uri}"),
        only_training(uri),
    ):
        pass
    with only_training(uri), only_training("memory://run"), only_training("memory://run"):
        pass


def test_the_name_of_a_run_s_folder_is_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    monkeypatch.setattr(storage, "sync_folder", lambda folder: synced.append(folder.name))
    with only_training(str(tmp_path / "runs" / "first")):
        assert synced == [tmp_path.name, "runs"]
    with only_training(str(tmp_path / "runs" / "first")):
        assert len(synced) == 2
    storage.write_bytes(str(tmp_path / "other" / "x"), b"1")
    assert synced[2:] == [tmp_path.name, "other"]
    with pytest.raises(FileExistsError), only_training(str(tmp_path / "other" / "x")):
        pass


def test_a_run_with_what_is_refused_by_now_can_still_be_used(tmp_path: Path) -> None:
    uri = str(tmp_path / "run")
    values = {
        "run": {"uri": uri}, "train": {"max_steps": 5, "translate_every": 2},
        "data": {"uri": f"{uri}/data", "train": {"pairs": "a.tsv"}, "lexicon_translations": 10},
        "search": {"candidates": 2},
    }  # fmt: skip
    storage.write_text(f"{uri}/config.yaml", yaml.safe_dump(values))
    assert read_run_config(uri).train.translate_every == 2
    options = Namespace(**UNCHANGED)
    with pytest.raises(UserError, match=r"search.candidates: 2 is not allowed"):
        run_config(uri, options)
    options.candidates = 0
    assert run_config(uri, options).search.candidates == 0
    options.candidates = "auto"
    assert run_config(uri, options).search.candidates == "auto"
    options.candidates = 0
    options.beam, options.replace_unknown = 7, "copy"
    changed = run_config(uri, options).search
    assert (changed.candidates, changed.beam, changed.replace_unknown) == (0, 7, "copy")


def test_a_run_with_values_that_are_out_of_range_now_is_read_and_goes_on(
    prepared: Prepared, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = with_data(prepared, tmp_path)
    run = config.run.uri
    open_run(config, force=False)
    add_checkpoint(run)
    before = {
        "checkpoint.timeout_seconds": 1e7, "checkpoint.retry_seconds": 1e9,
        "cluster.hang_seconds": 1e9, "cluster.timeout_seconds": 0.05,
        "search.length_penalty": 20.0, "search.beam": 2000,
    }  # fmt: skip
    now = {
        "checkpoint.timeout_seconds": 2e6, "checkpoint.retry_seconds": 2e6,
        "cluster.hang_seconds": 2e6, "cluster.timeout_seconds": 0.1,
        "search.length_penalty": 10.0, "search.beam": 1000,
    }  # fmt: skip

    def put(changes: dict[str, float]) -> str:
        values = config.model_dump()
        for key, value in changes.items():
            section, name = key.split(".")
            values[section][name] = value
        text = OmegaConf.to_yaml(OmegaConf.create(values))
        digest = hashlib.sha256(text.encode()).hexdigest()
        seal = f"# SHA-256 of the lines above, as the run wrote them: {digest}\n"
        (tmp_path / "run" / "config.yaml").write_text(text + seal)
        return text + seal

    text = put(before)
    assert "timeout_seconds: 10000000.0" in text
    found = read_run_config(run)
    assert differences(config, found) == differences(config, load_config(
        tmp_path / "c.yaml", {"run.uri": run, "data.uri": prepared.uri} | now
    ))  # fmt: skip
    assert fingerprint(found) == fingerprint(config)
    said = capsys.readouterr().err
    for key, value in before.items():
        assert f"config.yaml: {key}={value} of an earlier version is out of range" in said
    check_run_folder(config, prepared.data, force=False)
    assert storage.read_text(f"{run}/config.yaml") == text
    # What decides a result stays, for the run is known by it.
    put({"embedding.eps": 2.0})
    kept = read_run_config(run)
    assert kept.embedding.eps == 2.0
    assert fingerprint(kept) != fingerprint(config)
    with pytest.raises(UserError, match=r"embedding.eps: 2.0 there, 1e-08 here"):
        check_run_folder(config, prepared.data, force=False)
    put({"search.beam": 2000, "search.too_long": 3})
    with pytest.raises(ConfigError, match=r"search.too_long: 3 is not allowed"):
        read_run_config(run)


def test_a_number_of_workers_that_is_out_of_range_now_is_read(
    prepared: Prepared, tmp_path: Path
) -> None:
    config = with_data(prepared, tmp_path)
    values = config.model_dump()
    values["cluster"]["num_workers"] = {"min": 1, "max": 10**6}
    values["search"]["candidates"] = 10**13
    taken = config_from_dict(values, of_run=True)
    assert (taken.cluster.max_workers, taken.search.candidates) == (100_000, 10**12)
    values["cluster"]["num_workers"] = 10**6
    assert config_from_dict(values, of_run=True).cluster.num_workers == 100_000
    with pytest.raises(ConfigError, match=r"num_workers: 1000000 is not allowed"):
        config_from_dict(values)


def open_run(config: Config, *, force: bool) -> None:
    data = PreparedData.read(prepared_folder(config.data.uri))
    check_run_folder(config, data, force=force)
    write_run_folder(config, data)


def config_of(folder: Path, *overrides: str) -> Config:
    path = folder / "c.yaml"
    path.write_text(BASE)
    return load_config(str(path), [f"run.uri={folder}/run", *overrides])


def with_data(prepared: Prepared, folder: Path, *overrides: str) -> Config:
    """A configuration whose data are there already."""
    return config_of(folder, f"data.uri={prepared.uri}", *overrides)


def add_checkpoint(run_uri: str) -> None:
    storage.write_text(
        storage.join(run_uri, "checkpoints/manifests/step-000000003-0.manifest"), "{}"
    )


def test_a_new_run_holds_configuration_and_tokenizers(prepared: Prepared, tmp_path: Path) -> None:
    config = with_data(prepared, tmp_path)
    open_run(config, force=False)
    assert read_run_config(config.run.uri) == config
    for side in ("source", "target"):
        name = f"tokenizer.{side}.json"
        assert (tmp_path / "run" / name).read_text() == (Path(prepared.uri) / name).read_text()


def test_a_run_trained_on_gpus_is_used_on_any_device(prepared: Prepared, tmp_path: Path) -> None:
    config = with_data(
        prepared, tmp_path, "cluster.device=cuda", "embedding.memory=uvm_caching",
        "embedding.optimizer=adam", "embedding.exchange=bf16",
    )  # fmt: skip
    open_run(config, force=False)
    used = run_config(config.run.uri, Namespace(**UNCHANGED))
    on_cpu = used.cluster.model_copy(update={"device": "cpu"})
    check(used.model_copy(update={"cluster": on_cpu}))
    assert used.embedding.width == config.embedding.width


def test_where_rows_lie_may_change_in_a_run(prepared: Prepared, tmp_path: Path) -> None:
    open_run(with_data(prepared, tmp_path), force=False)
    add_checkpoint(f"{tmp_path}/run")
    check_run_folder(
        with_data(prepared, tmp_path, "embedding.memory=uvm"), prepared.data, force=False
    )
    other = with_data(prepared, tmp_path, "embedding.weights=fp16")
    with pytest.raises(UserError, match=r"embedding.weights: 'fp32' there, 'fp16' here") as refused:
        check_run_folder(other, prepared.data, force=False)
    assert str(refused.value).endswith(": --force, in a script force=True")


def with_lexicon(prepared: Prepared, folder: Path, *, translations: int) -> PreparedData:
    """A copy of prepared data, and their lexicon."""
    shutil.copytree(prepared.uri, folder)
    data = PreparedData.read(str(folder))
    ensure_lexicon(
        str(folder), data, translations=translations, num_processes=1, say=lambda line: None
    )
    return data


def test_a_lexicon_that_was_learned_again_with_other_numbers_is_refused(
    prepared: Prepared, tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    data = with_lexicon(prepared, folder, translations=3)
    config = config_of(tmp_path, f"data.uri={folder}", "data.lexicon_translations=2")
    with pytest.raises(UserError, match="with 3 translations a word instead of 2: give runs"):
        write_run_folder(config, data)
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_another_configuration_is_refused_key_by_key(prepared: Prepared, tmp_path: Path) -> None:
    config = with_data(prepared, tmp_path)
    open_run(config, force=False)
    add_checkpoint(config.run.uri)
    other = with_data(prepared, tmp_path, "model.encoder_layers=2",
                      "train.learning_rate=0.5", "train.max_steps=9")  # fmt: skip
    with pytest.raises(UserError) as caught:
        open_run(other, force=False)
    message = str(caught.value)
    assert config.run.uri in message
    assert "model.encoder_layers: 4 there, 2 here" in message
    assert "train.learning_rate: 0.001 there, 0.5 here" in message
    assert "max_steps" not in message
    assert "--force" in message
    assert read_run_config(config.run.uri) == config


def test_force_goes_on_with_the_new_configuration(prepared: Prepared, tmp_path: Path) -> None:
    open_run(with_data(prepared, tmp_path), force=False)
    add_checkpoint(str(tmp_path / "run"))
    other = with_data(prepared, tmp_path, "train.learning_rate=0.5")
    open_run(other, force=True)
    assert read_run_config(other.run.uri) == other
    assert storage.exists(str(tmp_path / "run/checkpoints/manifests/step-000000003-0.manifest"))


def test_without_a_checkpoint_the_run_starts_anew(prepared: Prepared, tmp_path: Path) -> None:
    open_run(with_data(prepared, tmp_path), force=False)
    other = with_data(prepared, tmp_path, "train.learning_rate=0.5")
    open_run(other, force=False)
    assert read_run_config(other.run.uri) == other


@pytest.mark.parametrize(
    "override",
    ["train.max_steps=9", "train.log_every=3", "cluster.num_workers=1", "cluster.launcher=local",
     "search.beam=2", "checkpoint.keep_last=7", "data.num_processes=2",
     "model.logits_block_mib=2.5"],
)  # fmt: skip
def test_what_decides_nothing_learned_may_change(
    prepared: Prepared, tmp_path: Path, override: str
) -> None:
    open_run(with_data(prepared, tmp_path), force=False)
    add_checkpoint(str(tmp_path / "run"))
    other = with_data(prepared, tmp_path, override)
    open_run(other, force=False)
    assert read_run_config(other.run.uri) == other


def test_corpora_may_have_other_names(prepared: Prepared, tmp_path: Path) -> None:
    files = ("data.synthetic=null", "data.train={source: a, target: [b, c]}", "data.test.pairs=d")
    open_run(with_data(prepared, tmp_path, *files), force=False)
    add_checkpoint(str(tmp_path / "run"))
    moved = ("data.synthetic=null", "data.train={source: e, target: [f, g]}", "data.test.pairs=h")
    open_run(with_data(prepared, tmp_path, *moved), force=False)
    with pytest.raises(UserError, match=r"data\.train\.source_column"):
        open_run(with_data(prepared, tmp_path, *files, "data.train.source_column=x"), force=False)


@pytest.mark.parametrize(
    "override",
    ["run.seed=2", "train.batch_tokens=99", "train.accumulate=2", "tokenizer.lowercase=true",
     "embedding.learning_rate=0.5", "model.dropout=0.2", "data.shard_sentences=7",
     "data.synthetic.seed=2", "train.precision=fp32", "train.schedule=cosine"],
)  # fmt: skip
def test_what_decides_the_result_may_not_change(
    prepared: Prepared, tmp_path: Path, override: str
) -> None:
    open_run(with_data(prepared, tmp_path), force=False)
    add_checkpoint(str(tmp_path / "run"))
    with pytest.raises(UserError, match=override.split("=")[0]):
        open_run(with_data(prepared, tmp_path, override), force=False)


def test_the_fingerprint_is_of_what_a_step_depends_on(tmp_path: Path) -> None:
    before = fingerprint(config_of(tmp_path))
    free = ["run.uri=/elsewhere", "data.uri=/there", "data.num_processes=3",
            "data.lexicon_translations=7", "tokenizer.normalize=nfkc", "tokenizer.pieces=none",
            "embedding.memory=uvm", "model.logits_block_mib=2.5",
            "train.max_steps=9", "train.log_every=3", "train.evaluate_every=3",
            "train.translate_every=3", "train.max_skipped_steps=3", "search.beam=2",
            "search.length_penalty=0.3", "checkpoint.every_steps=7", "checkpoint.keep_last=7",
            "cluster.num_workers=1", "cluster.threads_per_worker=3"]  # fmt: skip
    marked = keys_marked(Config, MAY_CHANGE)
    # The words have no effect by themselves, which is refused.
    single = {key for key in marked if key.partition(".")[0] not in marked} - {"train.neighbors_of"}
    assert {key.split("=")[0] for key in free} >= single
    for override in free:
        assert fingerprint(config_of(tmp_path, override)) == before, override
    both = ["train.translate_every=3", "train.neighbors_of=[a]"]
    assert fingerprint(config_of(tmp_path, *both)) == before
    bound = ["run.seed=2", "train.batch_tokens=99", "train.accumulate=2", "model.dropout=0.2",
             "tokenizer.lowercase=true", "embedding.width=64", "embedding.optimizer=sgd",
             "data.synthetic.seed=2", "train.learning_rate=0.5"]  # fmt: skip
    found = {fingerprint(config_of(tmp_path, override)) for override in bound}
    assert len(found | {before}) == len(bound) + 1


def test_a_moved_run_is_found_where_it_is(prepared: Prepared, tmp_path: Path) -> None:
    config = with_data(prepared, tmp_path)
    open_run(config, force=False)
    shutil.move(tmp_path / "run", tmp_path / "elsewhere")
    moved = read_run_config(str(tmp_path / "elsewhere"))
    assert moved.run.uri == str(tmp_path / "elsewhere")
    assert moved.model_copy(update={"run": config.run}) == config


def test_a_moved_run_finds_the_data_inside_it(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    assert config.data.uri == f"{tmp_path}/run/data"
    ensure_data(config, lambda line: None)
    open_run(config, force=False)
    shutil.move(tmp_path / "run", tmp_path / "elsewhere")
    assert read_run_config(str(tmp_path / "elsewhere")).data.uri == f"{tmp_path}/elsewhere/data"


def test_no_run_is_told_as_such(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"no run in '{tmp_path}'.*config\.yaml"):
        read_run_config(str(tmp_path))


@pytest.mark.parametrize("text", ["", "5\n", "run: [\n", "run: 7\n"])
def test_a_damaged_run_configuration_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=rf"{tmp_path}/config\.yaml"):
        read_run_config(str(tmp_path))


def test_a_runs_configuration_is_never_read_as_another_one(
    prepared: Prepared, tmp_path: Path
) -> None:
    config = with_data(prepared, tmp_path)
    open_run(config, force=False)
    path = tmp_path / "run" / "config.yaml"
    content = path.read_bytes()
    for place in range(0, len(content), 7):
        flipped = bytearray(content)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        try:
            found = read_run_config(config.run.uri)
        except UserError:
            continue
        assert found == config  # the words of the last line
    changed = content.replace(b"beam: 5", b"beam: 3")
    assert changed != content
    path.write_bytes(changed)
    with pytest.raises(UserError, match=rf"{path} is not as the run wrote it.*on purpose, remove"):
        read_run_config(config.run.uri)
    path.write_bytes(changed[: changed.rindex(b"#")])
    assert read_run_config(config.run.uri).search.beam == 3


def test_a_key_this_version_does_not_know_names_the_file(
    prepared: Prepared, tmp_path: Path
) -> None:
    config = with_data(prepared, tmp_path)
    open_run(config, force=False)
    path = tmp_path / "run" / "config.yaml"
    values = yaml.safe_load(path.read_text())
    values["train"]["of_the_future"] = 1
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(UserError, match=r"train\.of_the_future") as caught:
        read_run_config(config.run.uri)
    assert str(path) in str(caught.value)


def test_inflected_data_are_generated_and_known_by_their_settings(tmp_path: Path) -> None:
    few = "{sentences: 30, held_out: 4, nouns: 9, verbs: 3, adjectives: 3, exponent: 1.0, seed: 2}"
    chosen = ("data.synthetic=null", f"data.inflected={few}", "tokenizer.shared=false",
              "model.share_embeddings=none")  # fmt: skip
    data = ensure_data(config_of(tmp_path, *chosen), lambda line: None)
    assert {name: split.sentences for name, split in data.splits.items()} == {
        "train": 30, "validation": 4, "test": 4
    }  # fmt: skip
    language = InflectedLanguage(9, 3, 3, exponent=1.0, seed=2)
    folder = Path(prepared_folder(str(tmp_path / "run" / "data")))
    for split, count in (("train", 30), ("test", 4)):
        for place, side in enumerate(("source", "target")):
            text = (folder / "text" / f"{split}.{side}.txt").read_text()
            assert text.splitlines() == [pair[place] for pair in language.pairs(count, split, 2)]
    with pytest.raises(UserError, match=r"data\.inflected\.exponent: 1.0 there, 0.5 here"):
        ensure_data(config_of(tmp_path, *chosen, "data.inflected.exponent=0.5"), lambda line: None)


def test_data_are_prepared_once_and_again_when_forced(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    said: list[str] = []
    first = ensure_data(config, said.append)
    assert first.splits["train"].sentences == 30
    assert any(line.startswith("train: 30 pairs") for line in said)
    said.clear()
    assert ensure_data(config, said.append) == first
    assert ensure_data(config_of(tmp_path, "data.num_processes=2"), said.append) == first
    assert said == []

    other = config_of(tmp_path, "tokenizer.min_count=2", "data.max_tokens=12")
    with pytest.raises(UserError) as caught:
        ensure_data(other, said.append)
    message = str(caught.value)
    assert f"{tmp_path}/run/data" in message
    assert "tokenizer.min_count: 1 there, 2 here" in message
    assert "data.max_tokens: 256 there, 12 here" in message
    assert "--force" in message

    said.clear()
    forced = ensure_data(other, said.append, force=True)
    assert forced.splits["train"].dropped_long > 0
    assert any("dropped as longer than 12 tokens" in line for line in said)
    assert ensure_data(other, said.append) == forced


def test_a_run_whose_tokenizers_are_gone_is_known_by_its_configuration(
    prepared: Prepared, tmp_path: Path
) -> None:
    config = with_data(prepared, tmp_path)
    open_run(config, force=False)
    (tmp_path / "run" / "tokenizer.source.json").unlink()
    check_vocabularies(config.run.uri, prepared.data)
    (tmp_path / "run" / "tokenizer.target.json").write_text("{}")
    with pytest.raises(OtherVocabulary, match=rf"{config.run.uri} was trained with another target"):
        check_vocabularies(config.run.uri, prepared.data)
    # Rows of other words are refused whatever is forced.
    add_checkpoint(config.run.uri)
    with pytest.raises(OtherVocabulary):
        check_run_folder(config, prepared.data, force=True)
    (tmp_path / "run" / "tokenizer.target.json").unlink()
    (tmp_path / "run" / "config.yaml").unlink()
    check_run_folder(with_data(prepared, tmp_path, "run.seed=2"), prepared.data, force=False)


def test_a_run_keeps_a_lexicon_of_its_own(prepared: Prepared, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    data = with_lexicon(prepared, folder, translations=2)
    config = config_of(tmp_path, f"data.uri={folder}", "data.lexicon_translations=2")
    write_run_folder(config, data)
    shutil.rmtree(folder / "lexicon")
    words = np.arange(9)
    assert Lexicon(config.run.uri).translations(words, 2)
    # A run without one takes none.
    write_run_folder(config_of(tmp_path, f"data.uri={folder}", f"run.uri={tmp_path}/two"), data)
    assert not (tmp_path / "two" / "lexicon").exists()


@pytest.mark.parametrize(
    ("data", "found"),
    [("{run}/data", "{moved}/data"), ("{run}-data", "{run}-data"), ("{run}", "{run}"),
     ("/else/where", "/else/where"), ("{run}/a/b", "{moved}/a/b")],
)  # fmt: skip
def test_only_data_below_a_moved_run_have_moved_with_it(
    tmp_path: Path, data: str, found: str
) -> None:
    run, moved = f"{tmp_path}/run", f"{tmp_path}/moved"
    names = {"run": run, "moved": moved}
    config = config_of(tmp_path, f"data.uri={data.format(**names)}")
    storage.write_text(f"{moved}/config.yaml", config_to_yaml(config))
    assert read_run_config(f"{moved}/").data.uri == found.format(**names)


def test_where_there_are_no_locks_two_may_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(handle: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    before = len(os.listdir("/proc/self/fd"))
    with only_training(str(tmp_path)), only_training(str(tmp_path)):
        pass
    assert len(os.listdir("/proc/self/fd")) == before
