"""What is said of an address where no Ray answers, and what a private Ray leaves of itself."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from concurrent import futures
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path

import grpc
import pytest
from ray._private import ray_constants, services
from ray._raylet import AuthenticationMode, AuthenticationTokenLoader, get_authentication_mode

from dist_embed.cluster import ray_address, ray_train
from dist_embed.cluster.ray_address import why_no_answer
from dist_embed.cluster.ray_private import private_ray
from dist_embed.errors import UserError

NO_HEAD = "what listens there is no head of a Ray cluster"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_address, "ANSWER_SECONDS", 0.3)


@pytest.fixture
def silent() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def http() -> Iterator[int]:
    with HTTPServer(("127.0.0.1", 0), Quiet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.fixture
def other_grpc() -> Iterator[int]:
    """Such as the port for `ray://` clients."""
    with futures.ThreadPoolExecutor(1) as pool:
        server = grpc.server(pool)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield port
        server.stop(None).wait()


@pytest.mark.parametrize("kind", ["silent", "http", "other_grpc"])
def test_what_is_no_head_is_said_soon(kind: str, request: pytest.FixtureRequest) -> None:
    address = f"127.0.0.1:{request.getfixturevalue(kind)}"
    said = why_no_answer(address)
    assert said is not None
    assert said.startswith(NO_HEAD)
    with (
        pytest.raises(UserError, match=f"{address}' .*cluster.address or RAY_ADDRESS.*{NO_HEAD}"),
        ray_train.connected(address, 2),
    ):
        pass


def test_a_port_where_nobody_listens_is_said_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    for address in (f"127.0.0.1:{port}", f"[::1]:{port}", f"ray://127.0.0.1:{port}"):
        assert "nothing listens" in (why_no_answer(address) or "")


@pytest.mark.parametrize("address", ["auto", "local", "ray://127.0.0.1:{silent}", "named"])
def test_of_other_addresses_ray_is_the_judge(address: str, silent: int) -> None:
    assert why_no_answer(address.format(silent=silent)) is None


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("own", [None, "f" * 32])
def test_a_private_ray_leaves_what_was(
    fails: bool, own: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "missing"))
    for name, value in {"RAY_AUTH_TOKEN": own, "RAY_AUTH_MODE": own and "disabled"}.items():
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    before, loader = dict(os.environ), AuthenticationTokenLoader.instance()
    loader.reset_cache()
    tokens = set()
    for _ in range(2):
        try:
            with private_ray():
                tokens.add(os.environ["RAY_AUTH_TOKEN"])
                assert get_authentication_mode() == AuthenticationMode.TOKEN
                header = loader.get_raw_token()
                assert header == os.environ["RAY_AUTH_TOKEN"]
                assert services.get_node_ip_address() == "127.0.0.1"
                # Ray would take an address that others reach.
                assert services.resolve_ip_for_localhost("127.0.0.1") == "127.0.0.1"
                os.environ.pop("RAY_AUTH_MODE")  # as a library may
                if fails:
                    raise ValueError("in the block")
        except ValueError:
            assert fails
        assert dict(os.environ) == before
        assert ray_constants.ENABLE_RAY_CLUSTER
        assert get_authentication_mode() == AuthenticationMode.DISABLED
    assert len(tokens) == 2
    assert all(len(token) == 64 for token in tokens)
    assert not (tmp_path / ".ray").exists()
