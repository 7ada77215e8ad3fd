"""The prepared data and vocabularies of a run: which all its workers read, and what its checkpoints
know them by.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable

from dist_embed.checkpoint.state import Fixed
from dist_embed.config.schema import Config
from dist_embed.data.prepared_folder import prepared_folder
from dist_embed.data.token_blocks import open_blocks
from dist_embed.data.token_shards import SIDES, PreparedData
from dist_embed.data.tokenizer import Tokenizer
from dist_embed.data.tokenizer_files import load_tokenizers
from dist_embed.errors import UserError
from dist_embed.parallel.collectives import same_text_from_first
from dist_embed.parallel.errors import all_or_none
from dist_embed.parallel.group import Group
from dist_embed.run.folder import tokenizer_digests

_KNOWN_BY = ("tokenizer", "vocabulary")
_NO_POSITION = (
    "its position in the data would mean nothing. Give data.uri the data it was trained on, in "
    "whatever folder, or run.uri another folder"
)


def data_of_all(config: Config, group: Group, looked_into: str | None) -> PreparedData:
    """The prepared data that all workers read. Collective.

    Of the folder that the launching process has looked into, or else that worker 0 finds: others
    may be prepared by the time another worker looks.
    """
    folder = ""
    with all_or_none(group):
        if group.is_first:
            folder = looked_into or prepared_folder(config.data.uri)
    folder = same_text_from_first(folder, group)
    with all_or_none(group):
        try:
            return PreparedData.read(folder)
        except FileNotFoundError:
            raise UserError(
                f"worker {group.rank} finds no prepared data in {folder}"
                + (
                    ": they were removed, moved, or prepared again meanwhile, which the same "
                    "command would use"
                    if group.is_first
                    else ": data.uri has to be one folder for all workers, a URL or a shared one, "
                    "or the same copy on each machine"
                )
            ) from None


def digests_of_data(data: PreparedData) -> dict[str, str]:
    """What checkpoints know the tokenizers of prepared data by. Reads them only where the data do
    not say, of before. Not collective.
    """
    if not data.digests:
        return digests_of_tokenizers(load_tokenizers(data.folder_uri, data))
    return {f"{side} {what}": data.digests[side][what] for side in SIDES for what in _KNOWN_BY}


def digests_of_tokenizers(tokenizers: dict[str, Tokenizer]) -> dict[str, str]:
    """What checkpoints know tokenizers by. Not collective."""
    named = [item for side in SIDES for item in tokenizer_digests(side, tokenizers[side]).items()]
    return {name: digest() for name, digest in named}


def vocabularies(digests: Callable[[], dict[str, str]], group: Group) -> dict[str, Fixed]:
    """What tells the vocabularies and tokenizers from others, for the checkpoints. Collective.

    ``digests``: worker 0 asks; it may take seconds, and memory, to look at a large vocabulary.
    """
    found = ""
    with all_or_none(group):
        if group.is_first:
            found = json.dumps(digests())
    found = same_text_from_first(found, group)

    def fixed(name: str, digest: str) -> Fixed:
        why = (
            "than the run has now: its rows belong to other words. Put back the tokenizer that the "
            "run's folder had, or give data.uri the data it was trained on"
        )
        return Fixed(digest, lambda there: f"was trained with another {name} {why}")

    return {name: fixed(name, digest) for name, digest in json.loads(found).items()}


def training_blocks(data_uri: str, data: PreparedData, group: Group) -> dict[str, Fixed]:
    """What tells into which blocks the training data are cut, for the checkpoints: steps are made
    of blocks, so that a position means the same sentences only where these are the same.

    Worker 0 looks: each fetches the index once, when it trains. Raises UserError where it is not
    the one that was written. Collective.
    """
    value = ""
    with all_or_none(group):
        if group.is_first:
            sentences = open_blocks(data, "train").sentences
            digest = hashlib.sha256(sentences.astype("<i8").tobytes()).hexdigest()
            value = f"{len(sentences):,} blocks ({digest[:16]})"
    value = same_text_from_first(value, group)
    return {
        "training blocks": Fixed(
            value,
            lambda there: (
                f"was trained on sentences that lie in {there}, and those of {data_uri} in "
                f"{value}: {_NO_POSITION}"
            ),
        )
    }


def training_data(data_uri: str, data: PreparedData) -> dict[str, Fixed]:
    """What tells the training data from others, for the checkpoints. Not collective."""
    train = data.splits["train"]
    numbers, content = train.identity(), train.content()
    fixed = {
        "training data": Fixed(
            numbers,
            lambda there: f"was trained on {there}, and {data_uri} holds {numbers}: {_NO_POSITION}",
        )
    }
    if content is not None:  # data prepared before does not say
        fixed["training sentences"] = Fixed(
            content,
            lambda there: (
                f"was trained on other sentences (SHA-256 {there[:16]}…) than the {numbers} that "
                f"{data_uri} holds ({content[:16]}…): {_NO_POSITION}"
            ),
        )
    return fixed
