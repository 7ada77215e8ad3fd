"""A run's folder: its configuration and tokenizers, and whether a configuration may go on in it."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import yaml

from dist_embed.checkpoint.catalogue import list_steps
from dist_embed.config.load import config_from_dict, config_to_yaml, differences
from dist_embed.config.schema import Config
from dist_embed.config.written import escaped, look_through
from dist_embed.data.lexicon import Lexicon
from dist_embed.data.token_shards import SIDES, PreparedData
from dist_embed.data.tokenizer import Tokenizer
from dist_embed.data.tokenizer_files import (
    copy_tokenizers,
    json_digest_of,
    read_tokenizer,
    tokenizer_name,
    without_words,
)
from dist_embed.errors import UserError
from dist_embed.section import CORPUS_FILES, MAY_CHANGE, keys_marked, known_keys
from dist_embed.storage import uri as storage

CONFIG_NAME = "config.yaml"
# Its last line, with the digest of those above it.
_SEAL = "# SHA-256 of the lines above, as the run wrote them: "
# Both build plain values alone. That of C, where it is there, takes a sixth of the time.
_YAML = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@contextmanager
def only_training(run_uri: str) -> Iterator[None]:
    """Refuse a second training in a local run's folder for the length of a ``with`` block.

    Checkpoints of two stay apart, but of the metrics one would overwrite the other's. The system
    gives the folder free when this process ends, however it ends. Where there are no locks (a URL,
    some network file systems) nothing is held. Not collective: for the launching process.

    Raises:
        UserError: another process trains there.
    """
    if not storage.is_local(run_uri):
        yield
        return
    folder = storage.local_path(run_uri)
    storage.make_folder(folder)
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            if exc.errno == errno.EWOULDBLOCK:
                raise UserError(
                    f"another process is training in {run_uri}; wait for it or stop it, or give "
                    "run.uri another folder"
                ) from None
        yield
    finally:
        os.close(handle)


def check_run_folder(config: Config, data: PreparedData, *, force: bool) -> None:
    """Refuse to go on in a run's folder with what would not be the same run. Writes nothing.

    Raises:
        UserError: the folder holds checkpoints of a run with another configuration (unless
            ``force``), or with another vocabulary than the prepared data (always: its rows would
            belong to other words).
    """
    run_uri = config.run.uri
    if not list_steps(run_uri):
        return
    check_vocabularies(run_uri, data)
    if force or not storage.exists(storage.join(run_uri, CONFIG_NAME)):
        return
    # By what is in corpora, not by their names, the prepared data are known.
    may_differ = keys_marked(Config, MAY_CHANGE) | keys_marked(Config, CORPUS_FILES)
    different = differences(read_run_config(run_uri), config, but=may_differ)
    if different:
        raise UserError(
            f"{run_uri} holds a run with another configuration:\n  "
            + "\n  ".join(different)
            + "\nGive run.uri another folder, or go on from its newest checkpoint with the "
            "new values: --force, in a script force=True"
        )


class OtherVocabulary(UserError):
    """Prepared data, or a tokenizer, whose ids are not those of a run."""


def check_vocabularies(run_uri: str, data: PreparedData) -> None:
    """Refuse prepared data whose ids are not those of the run in a folder.

    Raises:
        OtherVocabulary: they have another vocabulary; the run's rows would belong to other words.
        UserError: the data's tokenizer is not the one that was written.
    """
    data_uri = data.folder_uri
    for side in SIDES:
        ours = storage.join(run_uri, tokenizer_name(side))
        if not storage.exists(ours):
            continue
        own, theirs = storage.read_bytes(ours), read_tokenizer(data_uri, side, data)
        if own != theirs and not _same_tokenizer(own, theirs):
            raise OtherVocabulary(
                f"the run in {run_uri} was trained with another {side} vocabulary than that of "
                f"{data_uri}: its rows belong to other words{_other_form(own, theirs)}. Give "
                "run.uri another folder, or data.uri the data it was trained on"
            )


def _same_tokenizer(own: bytes, theirs: bytes) -> bool:
    try:
        return json_digest_of(own) == json_digest_of(theirs)
    except ValueError:  # damaged
        return False


def _other_form(own: bytes, theirs: bytes) -> str:
    try:
        before, now = (without_words(content).form for content in (own, theirs))
    except Exception:  # the library's errors have no type of their own; one is no tokenizer
        return ""
    return "" if before == now else f" (tokenizer.normalize: {before} there, {now} in these data)"


def tokenizer_digests(side: str, tokenizer: Tokenizer) -> dict[str, Callable[[], str]]:
    """What checkpoints know a tokenizer by, under which names: its file, and its tokens.

    Both take seconds for a large vocabulary, where nobody wrote them down.
    """
    return {
        f"{side} tokenizer": lambda: tokenizer.json_digest,
        f"{side} vocabulary": lambda: tokenizer.digest,
    }


def check_tokenizer(
    side: str, tokenizer: Tokenizer, scalars: Mapping[str, Any], run_uri: str
) -> None:
    """Refuse a run's tokenizer that is not the one of a checkpoint with these scalars.

    Older checkpoints know its tokens alone, or nothing.

    Raises:
        OtherVocabulary: it is another one.
    """
    for name, digest in tokenizer_digests(side, tokenizer).items():
        if name not in scalars:
            continue
        if digest() != scalars[name]:
            raise OtherVocabulary(
                f"{storage.join(run_uri, tokenizer_name(side))} is not the {side} tokenizer that "
                f"the run's checkpoint was trained with (SHA-256 {str(scalars[name])[:16]}… "
                f"expected, {digest()[:16]}… found): its rows belong to other words. "
                "Put back the file as it was; the run's data have it too"
            )
        return


def fingerprint(config: Config) -> str:
    """SHA-256 of the settings that decide what a step does, in hex."""
    values = {
        f"{section}.{key}": value
        for section, settings in _deciding(config.model_dump()).items()
        for key, value in settings.items()
    }
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _deciding(values: dict[str, Any], section: str = "") -> dict[str, Any]:
    """Without what may change, and without keys that came later where all is as it was before."""
    kept = {}
    for name, value in values.items():
        known = known_keys(Config)[f"{section}{name}"]
        if MAY_CHANGE not in known.marks and not known.as_before(value):
            nested = isinstance(value, dict)
            kept[name] = _deciding(value, f"{section}{name}.") if nested else value
    return kept


def write_run_folder(config: Config, data: PreparedData) -> None:
    """Write configuration, and tokenizers and lexicon of the prepared data, into the run's folder.

    Called by worker 0 once a checkpoint, if there is one, has been loaded: a configuration that
    does not fit it is not written. Not collective.
    """
    copy_tokenizers(data, config.run.uri)
    if wanted := config.data.lexicon_translations:
        lexicon = Lexicon(data.folder_uri)
        if lexicon.index.translations != wanted:
            raise UserError(
                f"the lexicon in {data.folder_uri} was learned again meanwhile, with "
                f"{lexicon.index.translations} translations a word instead of {wanted}: give runs "
                "with other values of data.lexicon_translations a data.uri each"
            )
        lexicon.copy_to(config.run.uri)
    storage.write_text(storage.join(config.run.uri, CONFIG_NAME), _sealed(config_to_yaml(config)))


class RunFolder:
    """A run's folder while it is trained there, by which it is known again. On worker 0."""

    def __init__(self, run_uri: str) -> None:
        self._uri = run_uri
        self._is_local = storage.is_local(run_uri)
        self._known = self._look()

    def check(self) -> None:
        """Look whether a local folder is still the same one, so that a run does not train for days
        towards nothing, or into another one's folder. Not collective.

        Raises:
            UserError: it was removed, moved away or replaced.
        """
        if self._look() != self._known:
            raise UserError(
                f"{self._uri} was removed, moved or replaced while the run trained in it: its "
                "checkpoints, metrics and configuration are gone from there. Move it back and "
                "start the run again, which goes on then and else begins anew"
            )

    def check_end(self, step: int) -> None:
        """Look whether what a run is to end with lies there: ``step``'s checkpoint, if it is not 0.

        Not collective.

        Raises:
            UserError: it does not.
        """
        self.check()
        gone = [CONFIG_NAME] if not storage.exists(storage.join(self._uri, CONFIG_NAME)) else []
        if step and step not in list_steps(self._uri):
            gone.append(f"the checkpoint of step {step}")
        if gone:
            raise UserError(
                f"{self._uri} lacks {' and '.join(gone)}, written by this run and removed since "
                "by something else"
            )

    def _look(self) -> tuple[int, int] | None:
        if not self._is_local:
            return None
        try:
            found = os.stat(storage.local_path(self._uri))
        except FileNotFoundError:
            return (0, 0)
        return found.st_dev, found.st_ino


def _sealed(text: str) -> str:
    return f"{text}{_SEAL}{hashlib.sha256(text.encode()).hexdigest()}\n"


def _check_seal(text: str, uri: str) -> None:
    """Earlier versions wrote no such line: what they wrote is believed."""
    body, there, digest = text.rpartition(_SEAL)
    if there and hashlib.sha256(body.encode()).hexdigest() != digest.strip():
        raise UserError(
            f"{uri} is not as the run wrote it (the SHA-256 in its last line is another): put the "
            "file back, or, if it was changed on purpose, remove that line"
        )


def read_run_config(run_uri: str) -> Config:
    """The configuration of the run in a folder; ``run.uri`` is where it was found.

    Raises:
        UserError: no run lies there, or its configuration is not as the run wrote it.
    """
    uri = storage.join(run_uri, CONFIG_NAME)
    try:
        text = storage.read_text(uri)
        _check_seal(text, uri)
        look_through(text, uri)
        values: Any = _YAML(text).get_single_data()
        # The folder may have been moved or copied, with the data in it.
        below = values["data"]["uri"].removeprefix(values["run"]["uri"])
        if below != values["data"]["uri"] and below.startswith("/"):
            values["data"]["uri"] = escaped(run_uri.rstrip("/")) + below
        values["run"]["uri"] = escaped(run_uri)
    except FileNotFoundError:
        raise UserError(f"no run in {run_uri!r}: {uri} does not exist") from None
    except NotADirectoryError:
        raise UserError(f"no run in {run_uri!r}: that is a file, and a run is a folder") from None
    except (yaml.YAMLError, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise UserError(f"{uri} is not a run's configuration: {exc!r}") from exc
    return config_from_dict(values, uri, of_run=True)
