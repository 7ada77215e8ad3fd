"""What a job of Ray is sent: its command, its environment, what it is known by.

docs/decisions/0044-jobs-of-ray.md says why so.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Collection
from typing import Any

from fsspec.utils import glob_translate

from dist_embed.config.paths import (
    corpora,
    is_of_one_process,
    path_of,
    places,
    run_name,
    with_absolute_paths,
)
from dist_embed.config.schema import Config
from dist_embed.data.preparation import find_data
from dist_embed.errors import StorageError, UserError
from dist_embed.installed import own_version
from dist_embed.jobs.arrived import CONFIG, SENT_BY
from dist_embed.jobs.configuration import configuration, whole_stop_seconds

# Of the shell that Ray calls nothing stays: ended by a stop, it would leave the run to the node's
# first process, and where that buries nobody, as in many containers, Ray waits for a dead run.
COMMAND = "exec dist-embed run-job"
RUN_URI, OURS = "run_uri", "dist_embed"  # keys of a job's metadata
# A variable may have 128 KiB (Linux), and Ray hands all of them on in one, as JSON.
_CONFIG_BYTES = 100_000
_NAME_LETTERS = 60


def request(config: Config, *, ships_folder: bool) -> dict[str, Any]:
    """The arguments of `JobSubmissionClient.submit_job` for a run, but for the submission id.

    Args:
        config: the run's.
        ships_folder: whether the job starts in a folder that is sent with it: then
            `check_corpora` is for who has packed it.

    Raises UserError where a path means nothing on the cluster, or the configuration is too long.
    """
    config = with_absolute_paths(config, on_cluster=True)
    if not ships_folder:
        check_corpora(config)
    text = configuration(config, target="Ray", most_bytes=_CONFIG_BYTES, launcher="ray")
    return {
        "entrypoint": COMMAND,
        "runtime_env": {
            "env_vars": {
                CONFIG: text,
                SENT_BY: own_version(),
                "RAY_JOB_STOP_WAIT_TIME_S": str(whole_stop_seconds(config)),
                "RAY_USAGE_STATS_ENABLED": "0",
            }
        },
        "metadata": {
            "job_name": run_name(config.run.uri),
            RUN_URI: config.run.uri,
            OURS: own_version(),
        },
    }


def new_id(request: dict[str, Any]) -> str:
    """A submission id that can be read, and is no other job's."""
    return f"{request['metadata']['job_name'][:_NAME_LETTERS]}-{secrets.token_hex(3)}"


def local_paths(config: Config) -> list[str]:
    """The keys whose files are at paths: which the nodes must have in common."""
    named = [*places(config), *corpora(config)]
    return list(dict.fromkeys(key for key, uri in named if os.path.isabs(path_of(uri) or "")))


def check_corpora(config: Config, sent: Collection[str] = ()) -> None:
    """Refuse corpora that the job does not find: that lie in this process, or at a relative path
    which no file has that is ``sent`` with it. None is needed where their prepared data are.

    Args:
        config: the run's.
        sent: files by their paths in the folder in which the job starts.

    Raises UserError for these, and for prepared data that the run would refuse.
    """
    for key, uri in corpora(config):
        path = path_of(uri)
        if path is None:
            is_there = not is_of_one_process(uri)
        else:
            wanted = re.compile(glob_translate(os.path.normpath(path)))
            is_there = os.path.isabs(path) or any(map(wanted.match, sent))
        if not is_there:
            if _is_prepared(config):
                return
            raise UserError(
                f"{key}: {uri!r} is not allowed in a job: a URL (s3://…), the absolute path of a "
                "shared folder, or a file that --working-dir sends (docs/clusters.md says what "
                "stays behind); none is needed where the data are prepared already"
            )


def _is_prepared(config: Config) -> bool:
    try:
        return find_data(config, lambda line: None) is not None
    except (StorageError, OSError):  # a store or folder that is not for this machine
        return False
