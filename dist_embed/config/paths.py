"""Paths of a configuration, as workers need them."""

from __future__ import annotations

from dist_embed.config.schema import Config
from dist_embed.errors import UserError
from dist_embed.storage import uri as storage


def with_absolute_paths(config: Config, *, on_cluster: bool) -> Config:
    """The configuration with local paths made absolute: workers run in folders of their own.

    Raises:
        UserError: a relative path is to be used on a cluster, where every node has another one.
    """
    files = {"run.uri": config.run.uri, "data.uri": config.data.uri}
    values = config.model_dump()
    starts = [
        (f"embedding.tables.{side}.pretrained", settings["pretrained"])
        for side, settings in values["embedding"]["tables"].items()
        if settings and settings["pretrained"]
    ]
    files |= {f"{key}.{k}": file[k] for key, file in starts for k in ("uri", "words") if file[k]}
    for key, uri in files.items():
        if on_cluster and storage.absolute(uri) != uri:
            raise UserError(
                f"{key}: {uri!r} is not allowed on a Ray cluster: its nodes have no such folder in "
                "common; give a URL (s3://…) or the absolute path of a shared folder"
            )
    values["run"]["uri"] = storage.absolute(config.run.uri)
    values["data"]["uri"] = storage.absolute(config.data.uri)
    for _, file in starts:
        for key in ("uri", "words"):
            file[key] = file[key] and storage.absolute(file[key])
    return Config.model_validate(values)
