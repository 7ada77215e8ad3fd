"""Whether a Ray answers at an address: Ray itself would ask for minutes, loudly."""

from __future__ import annotations

import socket

CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 10.0


def why_no_answer(address: str) -> str | None:
    """What is wrong with the Ray at ``host:port``; None where it answers.

    Of an address in another form (``auto``, ``local``, ``ray://…``) Ray is the judge, but for a
    port where nobody listens.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return None
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except OSError:
        return f"nothing listens there within {CONNECT_SECONDS:.0f} s"
    return None if address.startswith("ray://") else _why_no_head(address)


def _why_no_head(address: str) -> str | None:
    """Asks for the cluster's number, as `ray.init` does first; private names of Ray 2.60."""
    import grpc  # type: ignore[import-untyped]
    from ray._private.grpc_utils import init_grpc_channel
    from ray.core.generated.gcs_service_pb2 import GetClusterIdRequest
    from ray.core.generated.gcs_service_pb2_grpc import NodeInfoGcsServiceStub
    from ray.exceptions import AuthenticationError

    try:
        with init_grpc_channel(address) as channel:
            ask = NodeInfoGcsServiceStub(channel).GetClusterId
            ask(GetClusterIdRequest(), timeout=ANSWER_SECONDS, wait_for_ready=True)
    except AuthenticationError as exc:
        return str(exc)
    except grpc.RpcError as exc:
        if exc.code() == grpc.StatusCode.UNAUTHENTICATED:
            return exc.details()
        return (
            f"what listens there is no head of a Ray cluster, or did not answer within "
            f"{ANSWER_SECONDS:.0f} s ({exc.code().name.lower()})"
        )
    return None
