"""A driver hears the end of its node, and nodes say nothing on the screen."""

from __future__ import annotations

import inspect
import logging
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray._private import worker
from ray._private.node import Node as RayNode

from dist_embed.cluster.ray_node import Node, NodeLost, quiet_node


@pytest.fixture
def raylet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    path = str(tmp_path / "raylet")
    monkeypatch.setattr(
        worker, "_global_node", SimpleNamespace(raylet_socket_name=path, node_id="7f")
    )
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        yield listener


def test_a_node_is_lost_when_its_process_has_ended(raylet: socket.socket) -> None:
    node = Node()
    assert node.id == "7f"
    node.check()
    server, _ = raylet.accept()
    node.check()
    server.close()  # as the system does for a process that was killed
    with pytest.raises(NodeLost, match="goes on from the newest checkpoint"):
        node.check()
    assert not node.lives()


def test_what_a_node_says_is_logged_alone(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    data = {"lines": ["Raylet is terminated."], "pid": "raylet", "is_err": False}
    with caplog.at_level(logging.INFO, "ray"), quiet_node():
        worker.print_to_stdstream(data, ignore_prefix=False)
    assert capfd.readouterr() == ("", "")
    assert "raylet: Raylet is terminated." in caplog.text
    worker.print_to_stdstream(data, ignore_prefix=False)
    assert "Raylet is terminated." in capfd.readouterr().out


def test_ray_says_it_by_the_name_that_is_replaced() -> None:
    assert "        print_to_stdstream(" in inspect.getsource(worker.listen_error_messages)
    assert hasattr(worker, "_global_node")
    assert isinstance(RayNode.node_id, property)
