"""What is said of an address where no Ray answers, and what a private Ray leaves of itself."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager, nullcontext
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

import grpc
import pytest
import ray
from ray._private import ray_constants, services
from ray._raylet import AuthenticationMode, AuthenticationTokenLoader, get_authentication_mode

from dist_embed.cluster import ray_address, ray_connection, ray_private
from dist_embed.cluster.ray_address import why_no_answer
from dist_embed.cluster.ray_private import private_ray
from dist_embed.errors import RunFailed, UserError

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


@contextmanager
def serving(*handlers: Any) -> Iterator[int]:
    """A gRPC server for the length of a block; gives its port."""
    with futures.ThreadPoolExecutor(1) as pool:
        server = grpc.server(pool, handlers)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield port
        server.stop(None).wait()


@pytest.fixture
def other_grpc() -> Iterator[int]:
    with serving() as port:
        yield port


@pytest.mark.parametrize("kind", ["silent", "http", "other_grpc"])
def test_what_is_no_ray_is_said_soon(kind: str, request: pytest.FixtureRequest) -> None:
    address = f"127.0.0.1:{request.getfixturevalue(kind)}"
    with (
        pytest.raises(
            UserError, match=f"{address}' .*cluster.address or RAY_ADDRESS.*{NO_HEAD}"
        ) as told,
        ray_connection.connected(address, 2),
    ):
        pass
    assert len(str(told.value).splitlines()) == 1


class WrongToken(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Answers as Ray does where a token is asked for (2.60)."""

    def service(self, call: Any) -> Any:
        def refuse(question: Any, context: Any) -> None:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken: missing or incorrect")

        return grpc.unary_unary_rpc_method_handler(refuse)


def test_a_token_that_is_not_taken_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_address, "ANSWER_SECONDS", 10.0)
    with serving(WrongToken()) as port:
        said = why_no_answer(f"127.0.0.1:{port}")
    assert said == f"InvalidAuthToken: missing or incorrect: {ray_address._TOKEN}"


def test_a_token_that_is_asked_for_and_is_nowhere_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, other_grpc: int
) -> None:
    monkeypatch.setattr(ray_address, "ANSWER_SECONDS", 10.0)
    with monkeypatch.context() as environment:
        environment.setenv("RAY_AUTH_MODE", "token")
        environment.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
        environment.delenv("RAY_AUTH_TOKEN", raising=False)
        ray_private._read_anew()
        said = why_no_answer(f"127.0.0.1:{other_grpc}")
    ray_private._read_anew()
    assert said is not None
    assert said.endswith(ray_address._TOKEN)
    assert len(said.splitlines()) == 1


def test_a_port_where_nobody_listens_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    for address in (f"127.0.0.1:{port}", f"[::1]:{port}"):
        assert "nothing listens there (" in (why_no_answer(address) or "")
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    assert why_no_answer("auto") == (
        f"127.0.0.1:{port}: nothing listens there (Connection refused)"
    )


def test_why_nobody_listens_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "nothing listens there (" in (why_no_answer("no-such-host.invalid:6379") or "")
    assert "nothing listens there (" in (why_no_answer("127.0.0.1:66000") or "")

    def connect(*_: object, **__: object) -> None:
        raise TimeoutError("timed out")

    monkeypatch.setattr(socket, "create_connection", connect)
    assert why_no_answer("10.0.0.1:6379") == "nothing answers there within 5 s"


@pytest.mark.parametrize("address", ["auto", "local", "named"])
def test_of_other_addresses_ray_is_the_judge(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(services, "find_gcs_addresses", set)
    monkeypatch.setattr(services, "find_bootstrap_address", lambda folder: None)
    assert why_no_answer(address) is None


MISMATCH = (
    "Version mismatch: The cluster was started with:\n    Ray: 2.55.0\n    Python: 3.11.7\n"
    "This process on 10.0.0.2 was started with:\n    Ray: 2.60.0\n    Python: 3.11.7\n"
)


@pytest.mark.parametrize(
    ("address", "error", "kind", "told"),
    [
        ("there:6379", RuntimeError(MISMATCH), UserError,
         r"^the Ray cluster at there:6379 is of another version: .* Ray: 2\.55\.0 .* 2\.60\.0 "),
        ("there:6379", ConnectionError("refused"), UserError, "^no Ray cluster answers at there"),
        (None, ConnectionError("refused"), RunFailed, "^the Ray that was started on this machine"),
        ("there:6379", KeyError("a mistake of ours"), KeyError, "a mistake of ours"),
    ],
)  # fmt: skip
def test_why_no_connection_is_made_is_told_as_what_it_is(
    monkeypatch: pytest.MonkeyPatch, address: str | None, error: Exception,
    kind: type[Exception], told: str,
) -> None:  # fmt: skip
    def init(**_: object) -> None:
        raise error

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray_connection, "why_no_answer", lambda address: None)
    monkeypatch.setattr(ray_connection, "own_ray", lambda cores: nullcontext("127.0.0.1:1"))
    with pytest.raises(kind, match=told) as caught, ray_connection.connected(address, 2):
        pass
    assert len(str(caught.value).splitlines()) == 1
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    with (
        pytest.raises(UserError, match=r"connected to a Ray already.*ray\.shutdown\(\) first"),
        ray_connection.connected(address, 2),
    ):
        pass


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
