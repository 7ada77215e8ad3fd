"""An HTTP proxy in front of an S3 server that fails as it is told to.

It passes the ``Host`` header on as it came: the client signs the proxy's address.
"""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import urlsplit

CHUNK = 256 * 1024
UPSTREAM_SECONDS = 120.0
# They concern one connection, of which there are two here. `Expect` is answered by the proxy.
HOP_BY_HOP = {"connection", "expect", "keep-alive", "proxy-connection", "te", "transfer-encoding"}
S3_CODES = {403: "AccessDenied", 404: "NoSuchKey", 409: "OperationAborted",
            412: "PreconditionFailed", 500: "InternalError", 503: "SlowDown"}  # fmt: skip


class Request(NamedTuple):
    """What a `Fault.call` gets: ``path`` with its query, as sent, and the headers."""

    method: str
    path: str
    headers: dict[str, str]


class Served(NamedTuple):
    """A line of the log; status 0 says that the client got no reply."""

    method: str
    path: str
    status: int


@dataclass(eq=False)
class Fault:
    """What goes wrong with which requests; of several that fit a request the first added acts.

    ``path`` is a pattern that is searched for in the path with its query, as sent
    (``/bucket/key?uploadId=…``, percent-encoded). ``after`` fitting requests pass, the next
    ``times`` are hit (None: all). More than one thing can go wrong, in the order given here.
    """

    method: str | None = None
    path: str = ""
    _: KW_ONLY
    times: int | None = 1
    after: int = 0
    call: Callable[[Request], object] | None = None  # with the request, before anything is done
    delay: float = 0.0  # seconds
    status: int | None = None  # reply with this error instead of forwarding
    reset_upload: int | None = None  # RST after so many bytes of the body; forwards nothing
    drop_reply: bool = False  # the server does its work; RST instead of its reply
    truncate_reply: int | None = None  # close after so many bytes of the reply's body
    flip_reply: int | None = None  # the lowest bit of this byte of the reply's body
    hits: int = field(default=0, init=False)
    _seen: int = field(default=0, init=False)

    def _due(self, method: str, path: str) -> bool:
        if self.method not in (None, method) or not re.search(self.path, path):
            return False
        if self.times is not None and self.hits >= self.times:
            return False
        self._seen += 1
        if self._seen <= self.after:
            return False
        self.hits += 1
        return True


class _Reset(Exception):
    """Ends the client's connection with a RST."""


class FaultProxy:
    """``with FaultProxy(server.url) as proxy``: the server, at ``proxy.url``, with faults.

    What goes wrong in the proxy itself or in a `Fault.call` is raised on leaving the context.
    """

    def __init__(self, upstream_url: str) -> None:
        upstream = urlsplit(upstream_url)
        assert upstream.scheme == "http", upstream_url
        assert upstream.hostname is not None, upstream_url
        self._upstream = upstream.hostname, upstream.port or 80
        self._lock = threading.Lock()
        self._faults: list[Fault] = []
        self._requests: list[Served] = []
        self._errors: list[BaseException] = []
        self._server = _Server(self)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), name="fault proxy", daemon=True
        )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def requests(self) -> list[Served]:
        """A copy of the log: a request is in it before the client learns how it ended."""
        with self._lock:
            return list(self._requests)

    def add(self, fault: Fault) -> Fault:
        """From now on, counting from 0."""
        with self._lock:
            fault.hits = fault._seen = 0
            self._faults.append(fault)
        return fault

    def remove(self, fault: Fault) -> None:
        with self._lock:
            self._faults.remove(fault)

    def clear(self) -> None:
        """Remove all faults, and the log."""
        with self._lock:
            self._faults.clear()
            self._requests.clear()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._server.hang_up()
        self._thread.join(timeout=30)

    def __enter__(self) -> FaultProxy:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close()
        if self._errors and kind is None:
            raise self._errors[0]

    def _fault_for(self, method: str, path: str) -> Fault:
        with self._lock:
            return next((f for f in self._faults if f._due(method, path)), Fault())

    def _record(self, method: str, path: str, status: int) -> None:
        with self._lock:
            self._requests.append(Served(method, path, status))

    def _failed(self, error: BaseException) -> None:
        with self._lock:
            self._errors.append(error)


class _Server(ThreadingHTTPServer):
    request_queue_size = 128  # clients open many connections at once

    def __init__(self, proxy: FaultProxy) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.proxy = proxy
        self._clients: set[socket.socket] = set()
        self._lock = threading.Lock()

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._clients.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        # Without the shutdown of the base class: its FIN would come before the RST.
        with self._lock:
            self._clients.discard(request)
            self.close_request(request)

    def hang_up(self) -> None:
        """End the connections that clients keep open for later."""
        with self._lock:
            for client in self._clients:
                with contextlib.suppress(OSError):
                    client.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exc_info()[1]
        # A client may go away whenever it likes.
        if error is not None and not isinstance(error, ConnectionError):
            self.proxy._failed(error)


class _Handler(BaseHTTPRequestHandler):
    """One client connection, in a thread of its own."""

    server: _Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: object) -> None:
        pass

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except _Reset:
            self.close_connection = True
            # Closing now discards what is unsent and sends a RST.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def _reset(self) -> _Reset:
        self.server.proxy._record(self.command, self.path, 0)
        return _Reset()

    def _serve(self) -> None:
        fault = self.server.proxy._fault_for(self.command, self.path)
        if fault.call is not None:
            fault.call(Request(self.command, self.path, dict(self.headers.items())))
        time.sleep(fault.delay)
        body = self._body()
        if fault.reset_upload is not None:
            read = 0
            while read < fault.reset_upload and (chunk := next(body, None)) is not None:
                read += len(chunk)
            raise self._reset()
        if fault.status is not None:
            for _ in body:  # a client that still sends would not see the reply
                pass
            self._reply_error(fault.status)
            return
        upstream = http.client.HTTPConnection(*self.server.proxy._upstream, UPSTREAM_SECONDS)
        try:
            try:
                response = self._forward(upstream, body)
            except (OSError, http.client.HTTPException) as exc:
                raise self._reset() from exc  # as if the server itself were gone
            if fault.drop_reply:
                response.read()
                raise self._reset()
            self._reply(response, fault)
        finally:
            upstream.close()

    do_DELETE = do_GET = do_HEAD = do_POST = do_PUT = _serve

    def _chunked(self) -> bool:
        return "chunked" in self.headers.get("Transfer-Encoding", "").lower()

    def _body(self) -> Iterator[bytes]:
        """The request's body; of a chunked one, what is in the chunks."""
        if not self._chunked():
            yield from self._read(int(self.headers.get("Content-Length", 0)))
            return
        while size := self._chunk_size():
            yield from self._read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():  # trailers, to the empty line
            pass

    def _chunk_size(self) -> int:
        line = self.rfile.readline()
        if not line:
            raise ConnectionResetError("the client left in the middle of its upload")
        return int(line.split(b";")[0], 16)

    def _read(self, size: int) -> Iterator[bytes]:
        while size:
            chunk = self.rfile.read(min(size, CHUNK))
            if not chunk:
                raise ConnectionResetError("the client left in the middle of its upload")
            size -= len(chunk)
            yield chunk

    def _forward(
        self, upstream: http.client.HTTPConnection, body: Iterator[bytes]
    ) -> http.client.HTTPResponse:
        chunked = self._chunked()
        upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in HOP_BY_HOP:
                upstream.putheader(name, value)
        if chunked:
            upstream.putheader("Transfer-Encoding", "chunked")
        upstream.endheaders()
        accepted = True
        for chunk in body:
            # A server that refuses the request may not wait for all of it, but the client has to
            # get rid of it before it reads the reply.
            if accepted:
                try:
                    upstream.send(b"%x\r\n%b\r\n" % (len(chunk), chunk) if chunked else chunk)
                except ConnectionError:
                    accepted = False
        if chunked and accepted:
            upstream.send(b"0\r\n\r\n")
        return upstream.getresponse()

    def _reply(self, response: http.client.HTTPResponse, fault: Fault) -> None:
        self.server.proxy._record(self.command, self.path, response.status)
        length = response.getheader("Content-Length")
        bodiless = self.command == "HEAD" or response.status in (204, 304)
        chunked = length is None and not bodiless
        self.send_response_only(response.status, response.reason)
        for name, value in response.getheaders():
            if name.lower() not in HOP_BY_HOP:
                self.send_header(name, value)
        if chunked:
            self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        if bodiless:
            return
        sent = 0
        for chunk in self._reply_body(response, None if length is None else int(length)):
            if fault.flip_reply is not None and 0 <= fault.flip_reply - sent < len(chunk):
                changed = bytearray(chunk)
                changed[fault.flip_reply - sent] ^= 1
                chunk = bytes(changed)
            cut = fault.truncate_reply
            piece = chunk if cut is None else chunk[: cut - sent]
            if piece:
                self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
            if len(piece) < len(chunk):
                self.close_connection = True
                return
            sent += len(chunk)
        if chunked:
            self.wfile.write(b"0\r\n\r\n")

    def _reply_body(
        self, response: http.client.HTTPResponse, length: int | None
    ) -> Iterator[bytes]:
        read = 0
        try:
            while chunk := response.read(CHUNK):
                read += len(chunk)
                yield chunk
        except (OSError, http.client.HTTPException) as exc:
            raise _Reset from exc
        if length is not None and read < length:  # http.client says nothing
            raise _Reset

    def _reply_error(self, status: int) -> None:
        self.server.proxy._record(self.command, self.path, status)
        code = S3_CODES.get(status, "InternalError")
        body = (
            '<?xml version="1.0" encoding="UTF-8"?>\n'
            f"<Error><Code>{code}</Code><Message>injected</Message></Error>"
        ).encode()
        if self.command == "HEAD":
            body = b""
        self.send_response_only(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
