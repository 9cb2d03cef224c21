import asyncio
import datetime as dt
import ipaddress
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from eorouter import remote
from eorouter.errors import SourceRefused

FAST = remote.Limits(connect_s=2, idle_s=0.5, total_s=20, attempts=3, wait_first_s=0.01)
BODY = bytes(range(256)) * 5000


class Request:
    """What the server saw."""

    def __init__(self, path: str, headers: dict[str, str]) -> None:
        self.path = path
        self.headers = headers


Answer = Callable[[Request, int, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def serving(answer: Answer, context: ssl.SSLContext | None = None) -> AsyncIterator[tuple[int, list[Request]]]:
    """A real HTTP server on loopback; `answer` gets the request and its number and writes what it likes."""
    seen: list[Request] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
            seen.append(Request(head[0].split()[1], headers))
            await answer(seen[-1], len(seen), writer)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1], seen
    finally:
        server.close()
        await server.wait_closed()


def response(status: int, body: bytes = b"", **headers: str | int) -> bytes:
    lines = [f"HTTP/1.1 {status} X", "connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    if "content_length" not in headers and "transfer_encoding" not in headers:
        lines.append(f"content-length: {len(body)}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def always(raw: bytes) -> Answer:
    async def answer(request: Request, number: int, writer: asyncio.StreamWriter) -> None:
        writer.write(raw)

    return answer


async def collect(source: remote.Source) -> bytes:
    return b"".join([chunk async for chunk in source.chunks])


async def fetch(href: str, port: int, **options) -> bytes:
    options = {"bytes_max": 1 << 30, "limits": FAST, "allowed": frozenset({("127.0.0.1", port)})} | options
    return await remote.fetch(href, collect, **options)


def never_asked(host: str, port: int) -> Awaitable[list[str]]:
    raise AssertionError(f"{host}:{port} was resolved")


class TestCheck:
    @pytest.mark.parametrize(
        "href",
        [
            # Loopback and private ranges, written plainly.
            "http://127.0.0.1/", "http://127.1.2.3/", "http://10.0.0.1/", "http://172.16.0.1/", "http://192.168.1.1/",
            "http://169.254.169.254/latest/meta-data/", "http://100.64.0.1/", "http://100.100.100.200/", "http://0.0.0.0/",
            "http://168.63.129.16/", "http://192.0.0.192/", "http://224.0.0.1/", "http://255.255.255.255/",
            "http://198.18.0.1/", "http://203.0.113.7/", "http://240.0.0.1/",
            # The same in disguise.
            "http://2130706433/", "http://0x7f000001/", "http://017700000001/", "http://0177.0.0.1/", "http://0x7f.1/",
            "http://127.1/", "http://127.0.1/", "http://127.0.0.1./", "http://0/", "http://１２７.0.0.1/", "http://127。0。0。1/",
            "http://3232235777/", "http://192.168.257/", "http://134744072/", "http://08.8.8.8/",
            # IPv6 and what hides in it.
            "http://[::1]/", "http://[::]/", "http://[::ffff:127.0.0.1]/", "http://[::ffff:7f00:1]/",
            "http://[::127.0.0.1]/", "http://[64:ff9b::7f00:1]/", "http://[64:ff9b:1::1]/", "http://[2002:7f00:1::]/",
            "http://[2001::1]/", "http://[fe80::1]/", "http://[fe80::1%25eth0]/", "http://[fc00::1]/", "http://[fd00:ec2::254]/",
            "http://[fec0::1]/", "http://[ff02::1]/", "http://[2001:db8::1]/", "http://[3fff::1]/", "http://[5f00::1]/",
            "http://[::ffff:0:127.0.0.1]/",
            # Names of the inside.
            "http://localhost/", "http://LOCALHOST/", "http://a.localhost/", "http://metadata.google.internal/",
            "http://metadata/", "http://instance-data/", "http://printer.local/", "http://db/", "http://x.internal./",
            # Ports.
            "http://data.example:22/", "http://data.example:6379/", "https://data.example:8080/", "http://data.example:0/",
            # Not HTTP, not a URL, or not one to be taken.
            "file:///etc/passwd", "ftp://data.example/x", "s3://bucket/key", "gs://bucket/key", "az://c/k", "gopher://x.example/",
            "data:text/plain,hi", "javascript:alert(1)", "", "/etc/passwd", "C:\\x", "//data.example/x", "http://", "https:///x",
            "http:///etc/passwd", "/vsicurl/http://data.example/x.tif", "http://user@data.example/", "https://u:p@data.example/",
            "http://data.example\\@127.0.0.1/", "http://data.example /", "http://data.example/a\nb", "http://data.example/\x00",
            "http://127.0.0.1#@data.example/", "http://127.0.0.1?@data.example/", "http://[data.example]/", "http://data.example:x/",
            "https://data.example/" + "a" * 2048, "http://.example/", "http://data..example/",
        ],
    )  # fmt: skip
    async def test_check_of_hostile_address_refuses_before_anything_is_asked(self, href):
        with pytest.raises(SourceRefused) as caught:
            await remote.fetch(href, collect, bytes_max=1, limits=FAST, resolver=never_asked)
        assert caught.value.status == 422

    @pytest.mark.parametrize(
        "href",
        [
            "https://data.example/scene/B04.tif", "http://data.example:80/x", "https://data.example:443/x?sig=a%2Fb",
            "https://8.8.8.8/x", "https://[2606:4700::1111]/x", "https://bücher.example/x", "https://DATA.example./x",
            "https://sentinel-cogs.s3.us-west-2.amazonaws.com/a/b.tif",
        ],
    )  # fmt: skip
    def test_check_of_public_address_passes(self, href):
        assert remote.check(href).scheme in {"http", "https"}

    def test_check_of_listed_host_passes_on_its_port_only(self):
        allowed = remote.allowed_hosts("minio.lan:9000, 10.0.0.5:80,[fd00::5]:9000")
        remote.check("http://minio.lan:9000/b/k", allowed)
        remote.check("http://10.0.0.5/b/k", allowed)
        remote.check("http://[fd00::5]:9000/b/k", allowed)
        for href in ("http://minio.lan/b", "http://minio.lan:9001/b", "http://10.0.0.5:9000/", "http://10.0.0.6/"):
            with pytest.raises(SourceRefused):
                remote.check(href, allowed)

    @pytest.mark.parametrize("text", ["minio.lan", "minio.lan:", ":80", "a:0", "a:70000", "a:x", "a:80,b"])
    def test_allowed_hosts_of_wrong_form_are_refused(self, text):
        with pytest.raises(ValueError, match="host:port"):
            remote.allowed_hosts(text)

    def test_allowed_hosts_of_nothing_is_empty(self):
        assert remote.allowed_hosts(" , ") == frozenset()

    def test_display_leaves_secrets_out(self):
        text = remote.display("https://user:pw@data.example:443/a/b.tif?X-Amz-Signature=secret#frag")
        assert text == "https://data.example:443/a/b.tif"

    @pytest.mark.parametrize(
        ("href", "name"),
        [
            ("https://d.example/a/B04.tif?x=1", "B04.tif"),
            ("https://d.example/a/", "a"), ("https://d.example", "file"),
            ("https://d.example/%2e%2e%2f%2e%2e%2fetc", "../../etc"), ("https://d.example/a%00%0Ab.tif", "ab.tif"),
            ("https://d.example/%ff.tif", "\ufffd.tif"),
        ],
    )  # fmt: skip
    def test_filename_is_one_line(self, href, name):
        assert remote.filename(href) == name


class TestGuard:
    @pytest.mark.parametrize(
        "addresses",
        [
            ["127.0.0.1"], ["10.1.2.3"], ["169.254.169.254"], ["93.184.215.14", "127.0.0.1"], ["::1"],
            ["2606:4700::1111", "fd00::1"], ["::ffff:10.0.0.1"], ["64:ff9b::a00:1"], ["fe80::1%eth0"],
            ["not an address"],
        ],
    )  # fmt: skip
    async def test_name_with_any_private_address_is_not_connected_to(self, addresses, monkeypatch):
        async def resolver(host: str, port: int) -> list[str]:
            return addresses

        monkeypatch.setattr(remote.httpcore2.AnyIOBackend, "connect_tcp", never_asked)
        with pytest.raises(SourceRefused, match=r"rebind\.example"):
            await remote.fetch("http://rebind.example/x", collect, bytes_max=1, limits=FAST, resolver=resolver)

    async def test_connection_goes_to_the_address_that_was_checked(self, monkeypatch):
        asked, connected = [], []

        async def resolver(host: str, port: int) -> list[str]:
            asked.append((host, port))
            return ["93.184.215.14"] if len(asked) == 1 else ["127.0.0.1"]

        async def connect(self, host, port, *_options):
            connected.append((host, port))
            raise remote.httpcore2.ConnectError("no network in tests")

        monkeypatch.setattr(remote.httpcore2.AnyIOBackend, "connect_tcp", connect)
        with pytest.raises(SourceRefused):
            await remote.fetch("https://rebind.example/x", collect, bytes_max=1, limits=FAST, resolver=resolver)
        assert connected == [("93.184.215.14", 443)]  # the second try resolved anew, and was refused
        assert len(asked) == 2

    async def test_host_header_and_certificate_are_those_of_the_name(self, tmp_path: Path, monkeypatch):
        context = certified(tmp_path, "data.example")
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))

        async def resolver(host: str, port: int) -> list[str]:
            return ["127.0.0.1"]

        names: list[str | None] = []
        context.sni_callback = lambda _socket, name, _context: names.append(name)
        async with serving(always(response(200, BODY)), context) as (port, seen):
            for host, works in (("data.example", True), ("other.example", False)):
                allowed = frozenset({(host, port)})
                call = remote.fetch(
                    f"https://{host}:{port}/x",
                    collect,
                    bytes_max=1 << 30,
                    limits=FAST,
                    allowed=allowed,
                    resolver=resolver,
                )
                if works:
                    assert await call == BODY
                else:
                    with pytest.raises(SourceRefused, match=r"[cC]ertificate"):
                        await call
        assert seen[0].headers["host"] == f"data.example:{port}"
        assert names[0] == "data.example"

    async def test_environment_proxy_is_not_used(self, monkeypatch):
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, "http://127.0.0.1:9")
        async with serving(always(response(200, BODY))) as (port, _):
            assert await fetch(f"http://127.0.0.1:{port}/x", port) == BODY


def certified(folder: Path, host: str) -> ssl.SSLContext:
    """A server context with a certificate for `host` that is its own authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, host)])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "key.pem").write_bytes(private)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return context


class TestFetch:
    async def test_fetch_streams_the_bytes_and_says_their_size(self):
        async def sink(source: remote.Source) -> tuple[int | None, bytes]:
            return source.size_bytes, await collect(source)

        async with serving(always(response(200, BODY))) as (port, seen):
            size, body = await remote.fetch(
                f"http://127.0.0.1:{port}/x?sig=1", sink, bytes_max=len(BODY), limits=FAST,
                allowed=frozenset({("127.0.0.1", port)}),
            )  # fmt: skip
        assert (size, body) == (len(BODY), BODY)
        assert seen[0].path == "/x?sig=1"
        assert seen[0].headers["accept-encoding"] == "identity"

    async def test_fetch_of_chunked_body_has_no_size(self):
        chunked = b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"
        async with serving(always(response(200, chunked, transfer_encoding="chunked"))) as (port, _):
            assert await fetch(f"http://127.0.0.1:{port}/x", port) == b"hello world"

    @pytest.mark.parametrize("declares", [True, False])
    async def test_fetch_of_too_much_is_refused(self, declares):
        headers = {} if declares else {"transfer_encoding": "chunked"}
        body = BODY if declares else f"{len(BODY):x}\r\n".encode() + BODY + b"\r\n0\r\n\r\n"
        async with serving(always(response(200, body, **headers))) as (port, seen):
            with pytest.raises(SourceRefused, match=str(len(BODY) - 1)):
                await fetch(f"http://127.0.0.1:{port}/x", port, bytes_max=len(BODY) - 1)
        assert len(seen) == 1

    @pytest.mark.parametrize("status", [201, 204, 206, 304, 400, 401, 403, 404, 410, 451])
    async def test_fetch_of_refusal_is_not_repeated(self, status):
        async with serving(always(response(status))) as (port, seen):
            with pytest.raises(SourceRefused, match=f"/x answered {status}"):
                await fetch(f"http://127.0.0.1:{port}/x?secret=1", port)
        assert len(seen) == 1

    @pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
    async def test_fetch_of_passing_failure_is_repeated(self, status):
        async def answer(request: Request, number: int, writer: asyncio.StreamWriter) -> None:
            writer.write(response(status) if number < 3 else response(200, BODY))

        async with serving(answer) as (port, seen):
            assert await fetch(f"http://127.0.0.1:{port}/x", port) == BODY
        assert len(seen) == 3

    async def test_fetch_of_lasting_failure_names_the_source_without_its_query(self):
        async with serving(always(response(503))) as (port, seen):
            with pytest.raises(SourceRefused) as caught:
                await fetch(f"http://127.0.0.1:{port}/scene.tif?token=secret", port)
        assert "/scene.tif" in caught.value.message
        assert "503" in caught.value.message
        assert "secret" not in caught.value.message
        assert len(seen) == FAST.attempts

    async def test_fetch_of_broken_stream_starts_again_from_the_first_byte(self):
        async def answer(request: Request, number: int, writer: asyncio.StreamWriter) -> None:
            raw = response(200, BODY)
            writer.write(raw if number == 2 else raw[:-1000])

        async with serving(answer) as (port, seen):
            assert await fetch(f"http://127.0.0.1:{port}/x", port) == BODY
        assert len(seen) == 2

    async def test_fetch_of_silent_server_gives_up(self):
        async def answer(request: Request, number: int, writer: asyncio.StreamWriter) -> None:
            await asyncio.sleep(1.5)

        async with serving(answer) as (port, _):
            limits = remote.Limits(idle_s=0.1, attempts=2, wait_first_s=0.01)
            with pytest.raises(SourceRefused, match="2 tries"):
                await fetch(f"http://127.0.0.1:{port}/x", port, limits=limits)

    async def test_fetch_that_trickles_for_ever_ends_at_the_total_time(self):
        async def answer(request: Request, number: int, writer: asyncio.StreamWriter) -> None:
            writer.write(response(200, b"", content_length=10**6))
            for _ in range(100):
                writer.write(b"x")
                await writer.drain()
                await asyncio.sleep(0.02)

        async with serving(answer) as (port, _):
            with pytest.raises(SourceRefused, match=r"within 0\.3 seconds"):
                await fetch(f"http://127.0.0.1:{port}/x", port, limits=remote.Limits(total_s=0.3))

    async def test_fetch_of_compressed_body_is_refused(self):
        async with serving(always(response(200, b"x", content_encoding="gzip"))) as (port, _):
            with pytest.raises(SourceRefused, match="compressed"):
                await fetch(f"http://127.0.0.1:{port}/x", port)

    async def test_failure_of_the_sink_passes_through_and_is_not_repeated(self):
        async def sink(source: remote.Source) -> None:
            async for _ in source.chunks:
                raise OSError("disk full")

        async with serving(always(response(200, BODY))) as (port, seen):
            with pytest.raises(OSError, match="disk full"):
                await remote.fetch(
                    f"http://127.0.0.1:{port}/x", sink, bytes_max=1 << 30, limits=FAST,
                    allowed=frozenset({("127.0.0.1", port)}),
                )  # fmt: skip
        assert len(seen) == 1


class TestRedirects:
    @staticmethod
    def chain(length: int) -> Answer:
        async def answer(request: Request, number: int, writer: asyncio.StreamWriter) -> None:
            raw = response(302, location=f"/step{number}") if number <= length else response(200, BODY)
            writer.write(raw)

        return answer

    async def test_three_redirects_are_followed(self):
        async with serving(self.chain(3)) as (port, seen):
            assert await fetch(f"http://127.0.0.1:{port}/x", port) == BODY
        assert [request.path for request in seen] == ["/x", "/step1", "/step2", "/step3"]

    async def test_four_redirects_are_too_many(self):
        async with serving(self.chain(4)) as (port, seen):
            with pytest.raises(SourceRefused, match="more than 3 redirects"):
                await fetch(f"http://127.0.0.1:{port}/x", port)
        assert len(seen) == 4

    @pytest.mark.parametrize(
        "target",
        [
            "http://169.254.169.254/latest/meta-data/", "http://127.0.0.1:1/", "file:///etc/passwd", "http://localhost/",
            "//[::1]/", "http://2130706433/", "gopher://x.example/",
        ],
    )  # fmt: skip
    async def test_redirect_inside_is_refused(self, target):
        async with serving(always(response(302, location=target))) as (port, seen):
            with pytest.raises(SourceRefused):
                await fetch(f"http://127.0.0.1:{port}/x", port)
        assert len(seen) == 1

    async def test_redirect_from_https_to_http_is_refused(self, tmp_path: Path, monkeypatch):
        context = certified(tmp_path, "data.example")
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))

        async def resolver(host: str, port: int) -> list[str]:
            return ["127.0.0.1"]

        async with serving(always(response(302, location="http://data.example/x")), context) as (port, _):
            with pytest.raises(SourceRefused, match="https to http"):
                await remote.fetch(
                    f"https://data.example:{port}/x", collect, bytes_max=1, limits=FAST, resolver=resolver,
                    allowed=frozenset({("data.example", port)}),
                )  # fmt: skip


@pytest.mark.parametrize("text", ["8.8.8.8", "1.1.1.1", "93.184.215.14", "2606:4700::1111", "2a00:1450:4001::200e"])
def test_public_address_is_not_refused(text):
    assert remote.refusal(ipaddress.ip_address(text)) is None
