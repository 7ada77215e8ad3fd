"""Whether the files that a study's figures rest on are still what they were made from."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any

from dist_embed.api.data import prepare
from dist_embed.config.schema import Config
from dist_embed.data.corpus import ParallelText
from dist_embed.data.inputs import Inputs, compare_inputs, record_inputs
from dist_embed.data.token_shards import INDEX_NAME
from dist_embed.errors import UserError
from dist_embed.observe.events import Event
from dist_embed.storage import uri as storage

Say = Callable[[str], None]
_PART = "files"


def check_corpora(configs: Iterable[Config], say: Say) -> None:
    """Look whether the corpora are what the study's data were prepared from.

    Raises:
        UserError: they have changed; old figures would stand beside new ones.
    """

    def show(event: Event) -> None:
        if event["kind"] == "line":
            say(event["text"])

    for config in {config.data.uri: config for config in configs}.values():
        if storage.exists(storage.join(config.data.uri, INDEX_NAME)):
            prepare(config, renew=False, on_event=show)


def record(files: list[str], say: Say) -> dict[str, Any]:
    """What files are known by, as plain values. Raises CorpusError where one cannot be read."""
    found = record_inputs({_PART: ParallelText(source=tuple(files))}, say) if files else {}
    return {part: [asdict(file) for file in there] for part, there in found.items()}


def check(recorded: Inputs | None, files: list[str], what: str, say: Say) -> None:
    """Look whether ``files`` are still those of which `record` gave ``recorded``, see `read_files`.

    What was made before there were records, or of a file that is gone, is believed.

    Raises:
        UserError: one has changed; ``what`` was made from it.
    """
    if not recorded:
        return
    found = compare_inputs(recorded, {_PART: ParallelText(source=tuple(files))}, say)
    if found.changed:
        raise UserError(
            f"{what} was made from files that have changed since:\n  "
            + "\n  ".join(found.changed)
            + "\nPut them back, or give the study another folder"
        )
    if found.absent:
        say(f"whether the files of {what} have changed is not known: {'; '.join(found.absent)}")
