"""An S3 server in a process of its own; before it a gate that refuses on demand, or a bucket that counts and fails."""

import asyncio
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import httpx2

_START_S = 60.0
_REFUSAL = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"


def variables(address: str) -> dict[str, str]:
    """The environment in which `s3://` addresses are those of the server at an address."""
    return {
        "AWS_ENDPOINT_URL": address, "AWS_ALLOW_HTTP": "true", "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing", "AWS_REGION": "us-east-1",
    }  # fmt: skip


@contextmanager
def server(host: str = "127.0.0.1") -> Iterator[str]:
    """Address of an S3 server that lives as long as the block."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-c", f"from moto.server import main; main(['-H', '{host}', '-p', '{port}'])"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://{host}:{port}"
    try:
        _wait_for(process, f"{address}/moto-api/")
        yield address
    finally:
        process.terminate()
        process.wait(10)


def _wait_for(process: subprocess.Popen[bytes], url: str) -> None:
    end = time.monotonic() + _START_S
    while True:
        try:
            httpx2.get(url, timeout=1)
        except httpx2.TransportError as error:
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"The S3 server did not come up: {process.poll()}") from error
            time.sleep(0.1)
        else:
            return


class Gate:
    """Passes requests to an S3 server on loopback, one per connection; while `is_shut`, each is answered with 503."""

    def __init__(self, upstream: str) -> None:
        host, _, port = upstream.removeprefix("http://").partition(":")
        self._upstream = host, int(port)
        self._server: asyncio.Server | None = None
        self._serving: set[asyncio.Task[None]] = set()
        self._refused = asyncio.Condition()
        self.is_shut = False
        self.refusals = 0
        self.address = ""

    async def open(self) -> None:
        """Listen on a port of loopback."""
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.address = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def close(self) -> None:
        """Listen no more; what is under way is broken off."""
        if self._server is not None:
            self._server.close()
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    async def refuse(self, count: int) -> None:
        """Be shut until so many requests were refused."""
        self.is_shut, goal = True, self.refusals + count
        async with self._refused:
            await self._refused.wait_for(lambda: self.refusals >= goal)
        self.is_shut = False

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer), suppress(ConnectionError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            lines = head.decode("latin-1").split("\r\n")[:-2]
            sent = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
            body = await reader.readexactly(int(sent.get("content-length", 0)))
            if self.is_shut:
                await self._refuse(writer)
            else:
                kept = [line for line in lines if not line.lower().startswith("connection:")]
                await self._pass_on("\r\n".join([*kept, "connection: close", "", ""]).encode("latin-1") + body, writer)

    async def _refuse(self, writer: asyncio.StreamWriter) -> None:
        size = f"content-length: {len(_REFUSAL)}\r\ncontent-type: application/xml"
        writer.write(f"HTTP/1.1 503 Slow Down\r\n{size}\r\nconnection: close\r\n\r\n".encode() + _REFUSAL)
        await writer.drain()
        async with self._refused:
            self.refusals += 1
            self._refused.notify_all()

    async def _pass_on(self, request: bytes, writer: asyncio.StreamWriter) -> None:
        answers, asks = await asyncio.open_connection(*self._upstream)
        asks.write(request)
        try:
            while data := await answers.read(1 << 16):
                writer.write(data)
                await writer.drain()
        finally:
            asks.close()


class Bucket:
    """A bucket on loopback, reached through a proxy that counts what is asked and fails when it is told to."""

    def __init__(self, upstream: str) -> None:
        self.asked: list[tuple[str, str, str | None]] = []
        self.faults: list[int] = []
        bucket = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *arguments: object) -> None:
                pass

            def answer(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = self.rfile.read(length) if length else None
                bucket.asked.append((self.command, self.path, self.headers.get("Range")))
                if bucket.faults and self.command == "GET" and "list-type" not in self.path:
                    self.reply(bucket.faults.pop(0), {}, b"<Error><Code>SlowDown</Code></Error>")
                    return
                headers = {name: value for name, value in self.headers.items() if name.lower() != "connection"}
                found = httpx2.request(self.command, upstream + self.path, headers=headers, content=body, timeout=60)
                kept = {
                    name: value for name, value in found.headers.items()
                    if name.lower() not in {"connection", "transfer-encoding", "content-encoding"}
                }  # fmt: skip
                self.reply(found.status_code, kept, found.content)

            do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer  # noqa: N815

            def reply(self, status: int, headers: dict[str, str], body: bytes) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    if name.lower() != "content-length" or self.command == "HEAD":
                        self.send_header(name, value)
                if self.command != "HEAD":
                    self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        Thread(target=self._server.serve_forever, daemon=True).start()

    def put(self, name: str, data: bytes) -> str:
        """An object of the bucket; where it is."""
        httpx2.put(f"{self.url}/rasters/{name}", content=data, timeout=60).raise_for_status()
        self.asked.clear()
        return f"s3://rasters/{name}"

    def ranges(self) -> list[str]:
        return [span for method, _, span in self.asked if method == "GET" and span]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
