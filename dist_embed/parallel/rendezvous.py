"""Where workers meet: a store that one process hosts, and the interface that gloo listens on."""

from __future__ import annotations

import fcntl
import ipaddress
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]

LOOPBACK = "127.0.0.1"
_SIOCGIFADDR = 0x8915  # Linux, ioctls.h
_OUTSIDE = "192.0.2.1"  # nobody's address (RFC 5737)


def hosted_store(address: str = LOOPBACK) -> TCPStore:
    """A store for workers to meet at, hosted by this process, on this address of its own alone.

    Its port is free and stays taken. Raises OSError for an address that is not this machine's.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    # torch would listen on all addresses (2.13). It closes the socket with the store.
    listener = socket.create_server((address, 0), family=family)
    port = listener.getsockname()[1]
    return TCPStore(
        address, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach()
    )


@contextmanager
def gloo_listening(*, alone: bool) -> Iterator[None]:
    """In such a block gloo listens where this worker's peers are, and not elsewhere.

    By itself it listens on the address that this machine's own name resolves to (torch 2.13,
    ProcessGroupGloo.cpp: createDefaultDevice). For workers of one machine that is often one which
    other machines reach; for those of several it is loopback on Debian, which no peer reaches. Here
    it is loopback for workers of one machine, and else the interface by which MASTER_ADDR is
    reached. What the user has set (GLOO_SOCKET_IFNAME) stands; and all is left as it is where
    somebody else has made the group, or no launcher has said how many workers there are.

    Args:
        alone: without peers, whatever the environment says.
    """
    if "GLOO_SOCKET_IFNAME" in os.environ or (name := _interface(alone)) is None:
        yield
        return
    os.environ["GLOO_SOCKET_IFNAME"] = name
    try:
        yield
    finally:
        del os.environ["GLOO_SOCKET_IFNAME"]


def _interface(alone: bool) -> str | None:
    if alone:
        return interface_of(LOOPBACK)
    workers, here = os.environ.get("WORLD_SIZE"), os.environ.get("LOCAL_WORLD_SIZE")
    if workers is None or dist.is_initialized():
        return None
    host = os.environ.get("MASTER_ADDR", "localhost")
    if workers == here or host == "localhost" or _is_loopback(host):
        return interface_of(LOOPBACK)
    return interface_towards(host)


def interface_towards(host: str) -> str | None:
    """By which interface another machine is reached, or this one by others, where it is the host.

    None where that cannot be told: no route, several interfaces of which none is the usual one, or
    no address of version 4.
    """
    own = _own_address(host)
    if own is None or _is_loopback(own):
        # The first machine is known to itself by loopback.
        own = _own_address(_OUTSIDE) or _only_address()
    return own and interface_of(own)


def interface_of(address: str) -> str | None:
    """The name of this machine's interface whose first address of version 4 is this one."""
    return {found: name for name, found in _addresses().items()}.get(address)


def _own_address(host: str) -> str | None:
    """This machine's address on the way to another; nothing is sent."""
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        asker.connect((host, 9))
        own: str = asker.getsockname()[0]
        return own
    return None


def _only_address() -> str | None:
    """This machine's address, where it has but one beside loopback."""
    found = [one for one in _addresses().values() if not _is_loopback(one)]
    return found[0] if len(found) == 1 else None


def _is_loopback(host: str) -> bool:
    """Whether this is an address, not a name, and one of this machine's own to itself."""
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False


def _addresses() -> dict[str, str]:
    """By interface its first address of version 4, which is the one that gloo takes."""
    found = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # it has none
                answer = fcntl.ioctl(asker, _SIOCGIFADDR, struct.pack("256s", name.encode()))
                found[name] = socket.inet_ntoa(answer[20:24])
    return found
