"""Whether a Ray answers at an address: Ray itself would ask for minutes, loudly."""

from __future__ import annotations

import socket

CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 10.0
_TOKEN = (
    "RAY_AUTH_MODE=token, and the cluster's in RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or "
    "~/.ray/auth_token"
)


def why_no_answer(address: str) -> str | None:
    """What is wrong with the Ray at ``host:port``, or that ``auto`` finds; None where it answers,
    and for an address in another form, of which Ray soon says it.
    """
    if address == "auto":
        found = _found()
        why = found and why_no_answer(found)
        return f"{found}: {why}" if why else None
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        return None
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except TimeoutError:
        return f"nothing answers there within {CONNECT_SECONDS:.0f} s"
    except (OSError, OverflowError) as exc:  # the latter of a port
        told = getattr(exc, "strerror", None) or str(exc)
        return f"nothing listens there ({told})"
    return _why_no_ray(address)


def _found() -> str | None:
    """The address that ``auto`` stands for; None: there is none, as Ray says at once."""
    from ray._private.services import get_ray_address_from_environment  # Ray 2.60

    try:
        found: str | None = get_ray_address_from_environment("auto", None)
    except ConnectionError:
        return None
    return found


def _why_no_ray(where: str) -> str | None:
    """Asks a head what `ray.init` does first, the cluster's number; private names of Ray 2.60."""
    import grpc  # type: ignore[import-untyped]
    from ray._private.grpc_utils import init_grpc_channel
    from ray.core.generated.gcs_service_pb2 import GetClusterIdRequest
    from ray.core.generated.gcs_service_pb2_grpc import NodeInfoGcsServiceStub
    from ray.exceptions import AuthenticationError

    try:
        with init_grpc_channel(where) as channel:
            ask = NodeInfoGcsServiceStub(channel).GetClusterId
            ask(GetClusterIdRequest(), timeout=ANSWER_SECONDS, wait_for_ready=True)
    except AuthenticationError as exc:
        return f"{exc.message}: {_TOKEN}"
    except grpc.RpcError as exc:
        if exc.code() == grpc.StatusCode.UNAUTHENTICATED:
            return f"{exc.details()}: {_TOKEN}"
        return (
            "what listens there is no head of a Ray cluster, or did not answer within "
            f"{ANSWER_SECONDS:.0f} s ({exc.code().name.lower()})"
        )
    return None
