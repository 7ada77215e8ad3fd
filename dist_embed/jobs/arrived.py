"""What a job finds as it begins on a node: its configuration, and who sent it."""

from __future__ import annotations

import os
import sys
from importlib.metadata import version

import yaml

from dist_embed.config.load import config_from_dict
from dist_embed.config.schema import Config
from dist_embed.errors import UserError

CONFIG, SENT_BY = "DIST_EMBED_CONFIG", "DIST_EMBED_SENT_BY"  # variables of a job


def config_of_job() -> Config:
    """The configuration that was sent to this job.

    Raises UserError where this is no job, or where a version sent it that may mean something else:
    a change of the second number may change what is written to disk, one of the third does not.
    """
    if CONFIG not in os.environ:
        raise UserError(
            f"{CONFIG} is not set: `dist-embed submit` sets it in the jobs that it sends"
        )
    here, there = version("dist_embed"), os.environ.get(SENT_BY, "")
    if here.split(".")[:2] != there.split(".")[:2]:
        raise UserError(
            f"this node has dist_embed {here}, but {there or 'another version'} has sent the job: "
            "install the same on both"
        )
    if here != there:
        print(f"dist-embed: {there} has sent this job to {here}", file=sys.stderr, flush=True)
    return config_from_dict(yaml.safe_load(os.environ[CONFIG]), CONFIG)
