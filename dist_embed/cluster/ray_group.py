"""How workers of Ray Train find each other: by the environment that torchrun gives, and a store
that the first of them hosts.

What starts the workers imports this module too, and should not have to wait for PyTorch.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import ray.train
import ray.util
from ray.train.backend import Backend, BackendConfig

from dist_embed.parallel.collector import collector_off

if TYPE_CHECKING:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

_hosted: list[TCPStore] = []  # by this worker, as long as its process lives


class GroupByEnvironment(BackendConfig):
    """Workers join their group themselves (`joined_group`), as under every other launcher.

    Ray Train's `TorchConfig` would do it for them (2.60, train/torch/config.py), with a store that
    listens on all addresses of a machine, at a port that was free a moment before.
    """

    @property
    def backend_cls(self) -> type[Backend]:
        """What Ray Train asks for."""
        return _Places


class _Places(Backend):
    share_cuda_visible_devices = True  # as in Ray's: LOCAL_RANK is the number of a device

    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
        worker_group.execute(_import_ahead)
        address, port = worker_group.execute_single(0, _host)
        worker_group.execute(_take_place, address, port)


def _import_ahead() -> None:
    """On all at once, before they wait for the first."""
    with collector_off():
        import dist_embed.parallel.rendezvous  # noqa: F401


def _host() -> tuple[str, int]:
    """Host the store at this node's address."""
    from dist_embed.parallel.rendezvous import hosted_store

    address = ray.util.get_node_ip_address()
    _hosted[:] = [hosted_store(address)]
    return address, _hosted[0].port


def _take_place(address: str, port: int) -> None:
    place = ray.train.get_context()
    os.environ.update(
        RANK=str(place.get_world_rank()),
        LOCAL_RANK=str(place.get_local_rank()),
        WORLD_SIZE=str(place.get_world_size()),
        LOCAL_WORLD_SIZE=str(place.get_local_world_size()),
        MASTER_ADDR=address,
        MASTER_PORT=str(port),
        TORCHELASTIC_USE_AGENT_STORE="True",  # the store is hosted already
    )
