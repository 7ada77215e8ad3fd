"""What a job finds as it begins on a node: its configuration, and who sent it."""

from __future__ import annotations

import os
import sys

import yaml

from dist_embed.config.load import config_from_dict
from dist_embed.config.schema import Config
from dist_embed.errors import UserError
from dist_embed.installed import check_version, own_version
from dist_embed.parallel.torchrun import is_first_process

CONFIG, SENT_BY = "DIST_EMBED_CONFIG", "DIST_EMBED_SENT_BY"  # variables of a job


def config_of_job() -> Config:
    """The configuration that was sent to this job.

    Raises UserError where this is no job, and as `check_sender`.
    """
    if CONFIG not in os.environ:
        raise UserError(
            f"{CONFIG} is not set: `dist-embed submit` sets it in the jobs that it sends"
        )
    _check(os.environ.get(SENT_BY, ""))
    return config_from_dict(yaml.safe_load(os.environ[CONFIG]), CONFIG)


def check_sender() -> None:
    """Raise UserError in a job that another version has sent, see `installed.check_version`.

    A difference that may be has a line, from worker 0. Does nothing where this is no job.
    """
    if (there := os.environ.get(SENT_BY)) is not None:
        _check(there)


def _check(there: str) -> None:
    check_version(there, "who sent the job has")
    if (here := own_version()) != there and is_first_process():
        print(f"dist-embed: {there} has sent this job to {here}", file=sys.stderr, flush=True)
