"""The files that a configuration names, and their paths as workers need them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from dist_embed.config.schema import Config
from dist_embed.errors import UserError
from dist_embed.storage import uri as storage


def places(config: Config) -> Iterator[tuple[str, str]]:
    """Keys and URIs of what the workers read and write: the run, prepared data, vectors."""
    yield "run.uri", config.run.uri
    yield "data.uri", config.data.uri
    for side, table in config.embedding.tables:
        if table and table.pretrained:
            for name in ("uri", "words"):
                if uri := getattr(table.pretrained, name):
                    yield f"embedding.tables.{side}.pretrained.{name}", uri


def corpora(config: Config) -> Iterator[tuple[str, str]]:
    """Keys and URIs, or globs, of what is read to prepare the data: each file of each list."""
    for split in ("train", "validation", "test"):
        if corpus := getattr(config.data, split):
            for name in ("source", "target", "pairs"):
                files = getattr(corpus, name) or []
                for uri in [files] if isinstance(files, str) else files:
                    yield f"data.{split}.{name}", uri


def path_of(uri: str) -> str | None:
    """The path of a ``uri`` on a file system, by its form: a store's client may be missing here.
    None: it is a store's.
    """
    uri = storage.archive_of(uri)
    scheme, separator, path = uri.partition("://")
    if not separator:
        return uri
    return path if scheme in ("file", "local") else None


def run_name(run_uri: str) -> str:
    """What a cluster calls a run, by the end of its address: one word of any listing, which may
    also be the name of a folder.
    """
    last = run_uri.rstrip("/").rpartition("/")[2]
    return re.sub(r"[^\w.-]+", "_", last, flags=re.ASCII).strip(".") or "run"


def is_of_one_process(uri: str) -> bool:
    """Whether nobody but the process that writes there ever sees it."""
    return uri.startswith("memory://")


def with_absolute_paths(config: Config, *, on_cluster: bool) -> Config:
    """The configuration with local paths made absolute: workers run in folders of their own.

    Raises:
        UserError: what is to be used on a cluster is a relative path, of which every node has
            another one, or lies in this process.
    """
    for key, uri in places(config):
        path = path_of(uri)
        is_relative = path is not None and not os.path.isabs(path)
        if on_cluster and (is_relative or is_of_one_process(uri)):
            raise UserError(
                f"{key}: {uri!r} is not allowed on a Ray cluster: its nodes have no such folder in "
                "common; give a URL (s3://…) or the absolute path of a shared folder"
            )
    values = config.model_dump()
    values["run"]["uri"] = storage.absolute(config.run.uri)
    values["data"]["uri"] = storage.absolute(config.data.uri)
    for table in values["embedding"]["tables"].values():
        if file := table and table["pretrained"]:
            for key in ("uri", "words"):
                file[key] = file[key] and storage.absolute(file[key])
    return Config.model_validate(values)
