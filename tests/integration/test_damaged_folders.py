"""Whatever has become of a file of a run, or of its data: a command that reads it goes well, or
ends with one line that names the file.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from dist_embed.cli.main import main
from dist_embed.data.proof import sealed
from dist_embed.parallel.rendezvous import LOOPBACK, hosted_store
from tests.integration.conftest import tiny_config
from tests.unit.small_corpus import one_is_this_process

# What has become of the bytes of a file.
BYTES: dict[str, Callable[[bytes], bytes]] = {
    "half": lambda there: there[: len(there) // 2],
    "nothing": lambda there: b"",
    "random bytes": lambda there: random.Random(1).randbytes(len(there) or 10),
    "no UTF-8": lambda there: there[: len(there) // 2] + b"\xe9\xff" + there[len(there) // 2 :],
    "deep lists": lambda there: b"[" * 1500 + b"]" * 1500,
    "deep objects": lambda there: b'{"a":' * 1500 + b"1" + b"}" * 1500,
    "a huge number": lambda there: b"1" * 5000,
    "huge numbers": lambda there: b'{"step": %b, "format": %b}\n{}\n' % (b"1" * 5000, b"1" * 5000),
    "null": lambda there: b"null",
    "a list": lambda there: b"[]",
    "an object": lambda there: b"{}",
    "zeros": lambda there: bytes(len(there)),
}
# What stands in its place.
PLACES: dict[str, Callable[[Path], None]] = {
    "a folder": Path.mkdir,
    "a pipe": lambda path: os.mkfifo(path),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "nothing at all": lambda path: None,
}
DAMAGES = [*BYTES, *PLACES]


class Folders:
    """A run with its data, to be damaged and used in this process, its one worker too."""

    def __init__(self, original: Path, screen: pytest.CaptureFixture[bytes]) -> None:
        self._original, self._screen = original, screen
        self.here = original.with_name("damaged")
        self.run = str(self.here / "run")
        text = next((original / "run/data").glob("prepared-*/text/train.source.txt")).read_text()
        output = str(original.with_name("output"))
        self._commands = {
            "history": [], "checkpoint list": [], "checkpoint verify": [], "checkpoint inspect": [],
            "logs": [], "neighbors": [text.split()[0]],
            "export embeddings": ["--format", "word2vec", "--output", output],
            "export checkpoint": ["--output", output], "report": ["--output", f"{output}.html"],
            "evaluate": ["--workers", "1"], "compare": ["--workers", "1"],
        }  # fmt: skip
        self.files = sorted(
            path.relative_to(original)
            for path in original.rglob("*")
            if path.is_file() and "tensorboard" not in path.parts and "text" not in path.parts
        )

    @property
    def commands(self) -> list[str]:
        return list(self._commands)

    def of(self, file: Path, content: bytes | None = None) -> Path:
        """A fresh copy whose ``file`` has this content; gives where it lies."""
        shutil.rmtree(self.here, ignore_errors=True)
        shutil.copytree(self._original, self.here)
        path = self.here / file
        if content is not None:
            path.write_bytes(content)
        return path

    def damaged(self, file: Path, damage: str) -> Path:
        path = self.of(file)
        if damage in BYTES:
            path.write_bytes(BYTES[damage](path.read_bytes()))
        else:
            path.unlink()
            PLACES[damage](path)
        return path

    def wrong_answer(self, command: str, path: Path, *named: str) -> str | None:
        """How a command does not keep to the rule, with the file at ``path`` damaged; it may as
        well be ``named`` otherwise.
        """
        words = command.split()
        self._screen.readouterr()
        try:
            code: Any = main([*words, self.run, *self._commands[command]])
        except Exception as exc:
            return f"{type(exc).__name__}: {str(exc)[:200]}"
        # A damaged log is shown as it is.
        out, err = (said.decode(errors="replace") for said in self._screen.readouterr())
        if code and not any(name in out + err for name in (path.name, str(path.parent), *named)):
            return f"exit code {code}, and it is not named: {err[:300]}"
        keeps = code in (0, 2) and "Traceback" not in err
        return None if keeps else f"exit code {code}: {err[:300]}"


def in_one_process(patch: pytest.MonkeyPatch) -> None:
    """Commands have one worker, which is this process."""

    def launch(target: Any, args: Any, *, on_event: Any, num_workers: int, **how: Any) -> Any:
        assert num_workers == 1
        store = hosted_store()
        place = {
            "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1",
            "MASTER_ADDR": LOOPBACK, "MASTER_PORT": str(store.port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
        }  # fmt: skip
        with mock.patch.dict(os.environ, place):
            return target(*args, on_event)

    patch.setattr("dist_embed.cluster.local.launch_local", launch)
    patch.setattr("dist_embed.cluster.fork_server._start", lambda: None)
    patch.setattr("dist_embed.training.worker.redirect_output", lambda log: None)
    patch.setattr("dist_embed.training.worker.collector_off", lambda **how: nullcontext())
    patch.setattr("dist_embed.observe.quiet.quiet_screen", lambda: None)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("folders") / "original"
    folder.mkdir()
    config = tiny_config(folder)
    with pytest.MonkeyPatch.context() as patch, one_is_this_process(1):
        in_one_process(patch)
        code = main(
            ["train", config, "cluster.num_workers=1", "tokenizer.kind=word",
             "tokenizer.shared=false", "model.share_embeddings=decoder", "train.max_steps=2",
             "train.evaluate_every=2", "checkpoint.every_steps=1", "data.lexicon_translations=3"]
        )  # fmt: skip
    assert code == 0
    Path(config).unlink()
    (folder / "run/logs").mkdir()
    (folder / "run/logs/worker-0.log").write_text("said\n")
    return folder


@pytest.fixture
def folders(
    original: Path, capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> Folders:
    in_one_process(monkeypatch)
    return Folders(original, capsysbinary)


def test_a_damaged_file_is_named_in_one_line(folders: Folders) -> None:
    """A sample: of each file some damages, each with some of the commands."""
    wrong = []
    quick = [name for name in folders.commands if name not in ("report", "evaluate", "compare")]
    for number, file in enumerate(folders.files):
        in_data = "data" in file.parts or "lexicon" in file.parts
        for turn in range(2):
            damage = DAMAGES[(5 * number + 7 * turn) % len(DAMAGES)]
            path = folders.damaged(file, damage)
            command = quick[(number + turn) % len(quick)]
            if in_data and turn + number % 3 == 0:
                command = "evaluate"
            if answer := folders.wrong_answer(command, path):
                wrong.append((str(file), damage, command, answer))
    assert wrong == []


@pytest.mark.heavy
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("damage", DAMAGES)
def test_every_damaged_file_is_named_by_every_command(folders: Folders, damage: str) -> None:
    wrong = []
    for file in folders.files:
        path = folders.damaged(file, damage)
        for command in folders.commands:
            if "data" in file.parts and command not in ("neighbors", "evaluate", "compare"):
                continue  # it does not look there
            if answer := folders.wrong_answer(command, path):
                wrong.append((str(file), command, answer))
    assert wrong == []


ODD: list[Any] = [None, -1, "text", [], {}, 1.5, True, 10**30, [[1]]]


@pytest.mark.parametrize("pattern", ["data/prepared-*/data.json", "tokenizer.source.json",
                                     "lexicon/lexicon.json"])  # fmt: skip
def test_odd_values_below_a_seal_are_told(folders: Folders, pattern: str) -> None:
    """Whoever can write to a folder can seal anything."""
    folders.of(folders.files[0])
    place = next(Path(folders.run).glob(pattern)).relative_to(folders.here)
    values = json.loads((folders.here / place).read_bytes())
    del values["sha256"]
    wrong = []
    for number, key in enumerate(values):
        odd = ODD[number % len(ODD)]
        path = folders.of(place, sealed(values | {key: odd}).encode())
        if answer := folders.wrong_answer("neighbors", path):
            wrong.append((key, odd, answer))
    assert wrong == []


def forged(content: bytes, change: Callable[[dict[str, Any]], None]) -> bytes:
    """A manifest with other values, and sealed again."""
    values = json.loads(content.partition(b"\n")[0])
    change(values)
    line = json.dumps(values, separators=(",", ":")).encode()
    seal = json.dumps({"sha256": hashlib.sha256(line).hexdigest()}).encode()
    return line + b"\n" + seal + b"\n"


TABLE = "table.source.weight"


@pytest.mark.parametrize("command", ["neighbors", "export checkpoint", "checkpoint list"])
def test_odd_tables_of_a_sealed_manifest_are_told(folders: Folders, command: str) -> None:
    changes: list[Callable[[dict[str, Any]], None]] = [
        *(lambda values, s=shape: values["tensors"][TABLE].update(shape=s)
          for shape in ([], [5], [0, 16], [10**9, 10**9], [50, 16, 1])),
        lambda values: values["tensors"][TABLE].update(dtype="BOOL"),
        lambda values: values["tensors"].pop(TABLE),
        lambda values: values.update(row_multipliers={}),
        *(lambda values, odd=odd: values["scalars"].update(
            {"validation_loss": odd, "source tokenizer": odd}) for odd in ODD[1:7:2]),
    ]  # fmt: skip
    folders.of(folders.files[0])
    (place,) = Path(folders.run).glob("checkpoints/manifests/step-000000002-0.manifest")
    content = place.read_bytes()
    wrong = []
    for number, change in enumerate(changes):
        path = folders.of(place.relative_to(folders.here), forged(content, change))
        if answer := folders.wrong_answer(command, path, "step 2", "/step-", "tokenizer"):
            wrong.append((number, answer))
    assert wrong == []


@pytest.mark.parametrize(
    "scalars", [{"position": 5}, {"position": {"epoch": "one"}}, {"skipped_steps": "none"},
                {"position": {"epoch": -1}}, {"skipped_steps": None}],
)  # fmt: skip
def test_a_training_goes_on_before_a_checkpoint_with_odd_scalars(
    folders: Folders, scalars: dict[str, Any], capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    folders.of(folders.files[0])
    (place,) = Path(folders.run).glob("checkpoints/manifests/step-000000002-0.manifest")
    place.write_bytes(forged(place.read_bytes(), lambda values: values["scalars"].update(scalars)))
    with one_is_this_process(1):
        assert main(["train", f"{folders.run}/config.yaml", f"run.uri={folders.run}"]) == 0
    said = capsysbinary.readouterr().out.decode()
    assert f"the checkpoint of step 2 is damaged and not used: {next(iter(scalars))} is" in said
    assert "resuming from the checkpoint of step 1" in said
