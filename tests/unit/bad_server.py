"""A web server on this machine that does to a download whatever a bad server or network would.

with BadServer({"/a": Resource(data, break_after=[100, 2000])}) as server:
    fetch([server.url("/a")], place)
assert server.requests == [...]
"""

from __future__ import annotations

import contextlib
import http.server
import os
import re
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any
from unittest import mock


@dataclass
class Resource:
    """A file and how it is served; by default well."""

    data: bytes = b""
    status: list[int] = field(default_factory=list)
    """of the first answers; then 200"""
    headers: dict[str, str] = field(default_factory=dict)
    """in place of, or beside, the usual ones; an empty value leaves one out"""
    break_after: list[int] = field(default_factory=list)
    """bytes of a body after which the first answers end"""
    reset: bool = False
    """so that what was under way is lost too"""
    ranges: bool = True
    respects_if_range: bool = True
    length: int | None = None
    """a Content-Length that is not so; -1 for none at all"""
    chunked: bool = False
    lost_end: bool = False
    """chunked, without the chunk that ends it"""
    pause_s: float = 0.0
    """before each `step` bytes"""
    step: int = 1 << 16
    hang_after: int | None = None
    """bytes of each body after which nothing comes any more"""
    redirect: str = ""
    redirect_status: int = 302
    redirect_length: int = 0
    """of its body, in place of a short one"""
    etag: str = '"v1"'
    modified: str = "Mon, 06 Jul 2026 10:00:00 GMT"
    kind: str = "application/octet-stream"
    before: Callable[[Resource, int], None] | None = None
    """called with the number of the request, before its answer"""


@dataclass
class Request:
    """What was asked, and what was sent."""

    path: str
    headers: dict[str, str]
    status: int = 0
    sent: int = 0


class BadServer:
    """Serves resources until the end of a `with`."""

    def __init__(self, resources: dict[str, Resource]) -> None:
        self.resources, self.requests = resources, list[Request]()
        self.closing = threading.Event()
        self.environment = mock.patch.dict(os.environ, NO_PROXY="127.0.0.1,localhost")
        outer = self

        class Handler(_Handler):
            owner = outer

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = False
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.02,))

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.http.server_port}{path}"

    def __enter__(self) -> BadServer:
        # a proxy of this machine's user has no part in this
        self.environment.start()
        self.thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.environment.stop()
        self.closing.set()
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    owner: BadServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        request = Request(self.path, dict(self.headers))
        self.owner.requests.append(request)
        self.close_connection = True
        resource = self.owner.resources.get(self.path)
        if resource is None:
            return self._empty(request, 404)
        if resource.before:
            resource.before(resource, len(self.owner.requests))
        if resource.redirect:
            headers = {"Location": resource.redirect}
            if resource.redirect_length:
                headers["Content-Length"] = str(resource.redirect_length)
            self._empty(request, resource.redirect_status, headers)
            return self._endless(resource.redirect_length)
        if resource.status and (status := resource.status.pop(0)) != 200:
            return self._empty(request, status, resource.headers)
        # the client may have had enough
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._serve(request, resource)

    def _empty(self, request: Request, status: int, headers: dict[str, str] | None = None) -> None:
        request.status = status
        body = b"<html>sorry</html>"
        usual = {"Content-Type": "text/html", "Content-Length": str(len(body))}
        self.send_response(status)
        for name, value in (usual | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _endless(self, n_bytes: int) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(0, n_bytes, 1 << 16):
                self.wfile.write(bytes(1 << 16))

    def _serve(self, request: Request, resource: Resource) -> None:
        data, start = resource.data, 0
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        same = self.headers.get("If-Range", resource.etag) in (resource.etag, resource.modified)
        request.status = 200
        headers = {
            "Content-Type": resource.kind,
            "ETag": resource.etag,
            "Last-Modified": resource.modified,
        }
        if asked and resource.ranges and (same or not resource.respects_if_range):
            start = int(asked[1])
            if start >= len(data):
                headers = {"Content-Range": f"bytes */{len(data)}"} | resource.headers
                return self._empty(request, 416, headers)
            request.status = 206
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        if resource.chunked:
            headers["Transfer-Encoding"] = "chunked"
        elif resource.length != -1:
            length = len(data) if resource.length is None else resource.length
            headers["Content-Length"] = str(length - start)
        self.send_response(request.status)
        for name, value in (headers | resource.headers).items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        self._body(request, resource, data[start:])

    def _body(self, request: Request, resource: Resource, body: bytes) -> None:
        broken = resource.break_after.pop(0) if resource.break_after else None
        stop = len(body) if broken is None else min(broken, len(body))
        if resource.hang_after is not None:
            stop = min(stop, resource.hang_after)
        while request.sent < stop:
            if resource.pause_s and self.owner.closing.wait(resource.pause_s):
                return
            block = body[request.sent : min(stop, request.sent + resource.step)]
            self.wfile.write(b"%x\r\n%s\r\n" % (len(block), block) if resource.chunked else block)
            request.sent += len(block)
        if resource.hang_after is not None:
            self.owner.closing.wait(20)
        elif broken is not None and resource.reset:
            self._reset()
        elif broken is None and resource.chunked and not resource.lost_end:
            self.wfile.write(b"0\r\n\r\n")

    def _reset(self) -> None:
        """End the connection as a lost network does."""
        # some of what was sent should arrive
        time.sleep(0.01)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
