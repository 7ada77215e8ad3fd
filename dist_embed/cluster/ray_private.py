"""What Ray reads from the environment, by which it is private: a Ray that nobody else reaches, on
loopback alone, and with a token that is in no file.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

from ray._private import ray_constants
from ray._private.authentication.authentication_token_setup import AUTH_MODE_ENV_VAR
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

from dist_embed.observe.quiet import environment_kept

# Makes Ray take loopback for a machine's own address. It is there for systems whose firewall asks
# about every port; anywhere else Ray replaces 127.0.0.1 by the address that others reach, and most
# of its processes then listen on all addresses (2.60, services.py:get_node_ip_address).
_LOOPBACK = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR


@contextmanager
def private_ray() -> Iterator[None]:
    """A Ray that is started in such a block, and connections to it from there, are private.

    Whatever token a user has, in the environment or a file, is neither used nor changed.
    """
    private = {
        _LOOPBACK: "0",
        AUTH_MODE_ENV_VAR: "token",
        # Comes before RAY_AUTH_TOKEN_PATH and ~/.ray/auth_token, which Ray would write, for all to
        # read (2.60, authentication_token_setup.py:generate_and_save_token).
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }
    several_nodes = ray_constants.ENABLE_RAY_CLUSTER
    with ray_settings(private):
        try:
            ray_constants.ENABLE_RAY_CLUSTER = False
            yield
        finally:
            ray_constants.ENABLE_RAY_CLUSTER = several_nodes


@contextmanager
def ray_settings(values: dict[str, str]) -> Iterator[None]:
    """Variables of the environment as Ray has them in this process and what starts in the block."""
    try:
        with environment_kept(values):
            os.environ.update(values)
            _read_anew()
            yield
    finally:
        _read_anew()


def _read_anew() -> None:
    """Ray reads the environment when it is imported, and the token once (2.60)."""
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()
