"""Fetching from addresses that callers name, without becoming their way into our network.

The check sits where the socket is opened: the name is resolved, every address it has must be a public one, and the
connection goes to an address that was checked, under the original host name. So a name that answers differently the
second time gains nothing, and a redirect is checked like a first address. An operator can list private stores
(`EOROUTER_REMOTE_HOSTS`); everything else fails closed.
"""

import asyncio
import ipaddress
import re
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit, urlunsplit

import httpcore2
import httpx2
import msgspec
import stamina

from eorouter.errors import SourceRefused

PORTS = frozenset((80, 443))
REDIRECTS_MAX = 3
HREF_MAX = 2048
CHUNK_BYTES = 1 << 20

T = TypeVar("T")
Resolver = Callable[[str, int], Awaitable[Sequence[str]]]
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# The IANA special-purpose registries, where Python 3.11's `is_global` has no or another opinion, and two addresses
# inside public space at which clouds answer their tenants' machines.
_FORBIDDEN = tuple(
    ipaddress.ip_network(text)
    for text in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
        "192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.168.0.0/16", "192.175.48.0/24",
        "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
        "168.63.129.16/32",  # Azure's platform
        "100.100.100.200/32",  # Alibaba's metadata
        "2001::/23", "2001:db8::/32", "2620:4f:8000::/48", "3fff::/20",
    )
)  # fmt: skip
_IPV6_PUBLIC = ipaddress.ip_network("2000::/3")  # all that IANA has ever allotted for use
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_6TO4 = ipaddress.ip_network("2002::/16")
_FORBIDDEN_NAMES = (
    "localhost", "local", "internal", "localdomain", "home.arpa", "lan", "corp", "home", "intranet", "private", "onion",
)  # fmt: skip
_NUMBER = re.compile(r"^(0x[0-9a-f]*|[0-9]+)$", re.IGNORECASE)
_TRANSIENT_STATUS = frozenset((408, 425, 429, 500, 502, 503, 504))


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """How long and how often; seconds."""

    connect_s: float = 10.0
    idle_s: float = 30.0
    total_s: float = 3600.0
    attempts: int = 4
    wait_first_s: float = 0.2


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """An answer as it begins: what to call it in messages, its size if stated, and its bytes."""

    name: str
    size_bytes: int | None
    chunks: AsyncIterator[bytes]


class _Transient(Exception):
    """Worth another try."""


def allowed_hosts(text: str) -> frozenset[tuple[str, int]]:
    """The hosts and ports of `settings.remote_hosts`.

    Raises:
        ValueError: an entry is not host:port.
    """
    found = set()
    for entry in filter(None, (part.strip() for part in text.split(","))):
        host, colon, port = entry.rpartition(":")
        if not colon or not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
            raise ValueError(f"{entry!r} in EOROUTER_REMOTE_HOSTS is not host:port. Example: minio.lan:9000")
        found.add((_folded(host.strip("[]")), int(port)))
    return frozenset(found)


def display(href: str) -> str:
    """An address fit for messages and provenance: no user, no query, which is where signatures are."""
    try:
        parts = urlsplit(href)
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname or ""
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return "(an address that cannot be parsed)"
    return urlunsplit((parts.scheme, host + port, parts.path, "", ""))[:300]


def filename(href: str) -> str:
    """The file name an address ends with, for people: decoded, one line, at most 255 characters; `file` if none."""
    text = unquote(urlsplit(href).path.rstrip("/").rpartition("/")[2], errors="replace")
    return "".join(sign for sign in text if sign.isprintable())[-255:] or "file"


def refusal(address: Address) -> str | None:
    """Why a connection to `address` is not made; None for a public one."""
    inner = _embedded(address)
    if inner is not None:
        return refusal(inner)
    if isinstance(address, ipaddress.IPv6Address) and address not in _IPV6_PUBLIC:
        return f"{address} is not a public address"
    if any(address in network for network in _FORBIDDEN if network.version == address.version):
        return f"{address} is not a public address"
    return None


def _embedded(address: Address) -> Address | None:
    """The IPv4 address that an IPv6 address leads to."""
    if isinstance(address, ipaddress.IPv4Address):
        return None
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    if address in _6TO4:
        return ipaddress.IPv4Address((int(address) >> 80) & 0xFFFFFFFF)
    return None


def check(href: str, allowed: frozenset[tuple[str, int]] = frozenset()) -> httpx2.URL:
    """Parse an address and refuse what can be refused without asking anybody.

    Raises:
        SourceRefused: says which part is not acceptable.
    """
    if len(href) > HREF_MAX:
        raise SourceRefused(f"The address has {len(href)} characters; at most {HREF_MAX} are taken.")
    if not href.isprintable() or any(sign in href for sign in ' \\"<>^`{|}'):
        raise SourceRefused("The address has characters that must be percent-encoded in a URL.")
    name = display(href)
    scheme = href.partition(":")[0].lower()
    if scheme in {"s3", "gs", "az", "abfs", "abfss", "ftp", "ftps", "sftp"}:
        raise SourceRefused(
            f"{name}: {scheme}:// is not fetched. Give an https address, for instance one signed by the store."
        )
    if scheme not in {"http", "https"}:
        raise SourceRefused(f"{name or 'The address'}: only http and https addresses are fetched.")
    try:
        url = httpx2.URL(href)
        host = _folded(url.raw_host.decode("ascii"))
    except (httpx2.InvalidURL, UnicodeError, ValueError) as error:
        raise SourceRefused(f"{name} is not a URL: {error}") from error
    if url.userinfo:
        raise SourceRefused(f"{name}: user names and passwords in addresses are not taken.")
    if not host:
        raise SourceRefused(f"{name} names no host.")
    default = 443 if url.scheme == "https" else 80
    fault = _host_fault(host, default if url.port is None else url.port, allowed)
    if fault:
        raise SourceRefused(f"{name} is not fetched: {fault}.")
    return url


def _folded(host: str) -> str:
    return host.strip("[]").rstrip(".").lower()


def _host_fault(host: str, port: int, allowed: frozenset[tuple[str, int]]) -> str | None:
    """Why host and port are refused before any name is resolved."""
    if (host, port) in allowed:
        return None
    if port not in PORTS:
        return f"port {port} is not one of 80 and 443"
    try:
        return refusal(ipaddress.ip_address(host.partition("%")[0]))
    except ValueError:
        pass
    return _name_fault(host)


def _name_fault(host: str) -> str | None:
    if "" in host.split("."):
        return f"{host} is not a host name"
    # What the C library takes for an address in decimal, octal or hex is a disguise; names do not end in a number.
    if _NUMBER.match(host.rpartition(".")[2]):
        return f"{host} is a number and neither a name nor a plain IP address"
    if any(host == name or host.endswith(f".{name}") for name in _FORBIDDEN_NAMES) or "." not in host:
        return f"{host} is a name of a private network"
    return None


async def resolve(host: str, port: int) -> list[str]:
    """Every address of a host, as the system knows them."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class GuardedBackend(httpcore2.AsyncNetworkBackend):
    """Opens sockets to checked addresses only."""

    def __init__(self, allowed: frozenset[tuple[str, int]], resolver: Resolver) -> None:
        self._allowed = allowed
        self._resolver = resolver
        self._inner: Any = httpcore2.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Resolve, check every address, connect to the first that answers."""
        name = _folded(host)
        fault = _host_fault(name, port, self._allowed)
        if fault:
            raise SourceRefused(f"{name} is not connected to: {fault}.")
        addresses = await self._addresses(name, port, timeout)
        for address in addresses:
            why = None if (name, port) in self._allowed else _unsafe(address)
            if why:
                raise SourceRefused(f"{name} is not connected to: {why}.")
        last: Exception = httpcore2.ConnectError(f"{name} has no address.")
        for address in addresses:
            try:
                return await self._inner.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                last = error
        raise last

    async def _addresses(self, name: str, port: int, timeout: float | None) -> Sequence[str]:
        try:
            async with asyncio.timeout(timeout):
                return await self._resolver(name, port)
        except TimeoutError as error:
            raise httpcore2.ConnectTimeout(f"{name} could not be resolved in time.") from error
        except (OSError, UnicodeError) as error:
            raise httpcore2.ConnectError(f"{name} could not be resolved: {error}") from error

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore2.AsyncNetworkStream:
        """Never."""
        raise SourceRefused("Local sockets are not connected to.")

    async def sleep(self, seconds: float) -> None:
        """Between the pool's own retries, of which there are none."""
        await asyncio.sleep(seconds)


def _unsafe(text: str) -> str | None:
    try:
        return refusal(ipaddress.ip_address(text.partition("%")[0]))
    except ValueError:
        return f"{text} is not an IP address"


class _GuardedTransport(httpx2.AsyncHTTPTransport):
    def __init__(self, backend: GuardedBackend, context: ssl.SSLContext) -> None:
        super().__init__(verify=context, trust_env=False)
        self._pool = httpcore2.AsyncConnectionPool(ssl_context=context, network_backend=backend)


async def fetch(
    href: str,
    sink: Callable[[Source], Awaitable[T]],
    *,
    bytes_max: int,
    allowed: frozenset[tuple[str, int]] = frozenset(),
    limits: Limits = Limits(),  # noqa: B008 - frozen
    resolver: Resolver = resolve,
) -> T:
    """Give the bytes at `href` to `sink` and return what it returns.

    A failure that may pass (no connection, a broken stream, 429, 5xx) is tried again from the first byte, with `sink`
    called anew; what `sink` itself raises passes through.

    Raises:
        SourceRefused: the address may not be fetched, or did not give the bytes; names the source without its query.
    """
    check(href, allowed)
    name = display(href)
    context = httpx2.create_ssl_context()
    retries = stamina.retry_context(
        on=_Transient, attempts=limits.attempts, timeout=None,
        wait_initial=limits.wait_first_s, wait_jitter=limits.wait_first_s,
    )  # fmt: skip
    deadline = asyncio.timeout(limits.total_s)
    try:
        async with deadline:
            async for attempt in retries:
                with attempt:
                    async with httpx2.AsyncClient(
                        transport=_GuardedTransport(GuardedBackend(allowed, resolver), context),
                        timeout=httpx2.Timeout(limits.idle_s, connect=limits.connect_s),
                        follow_redirects=False,
                        trust_env=False,
                    ) as client:
                        return await _once(client, href, sink, bytes_max=bytes_max, allowed=allowed)
    except _Transient as error:
        raise SourceRefused(f"{name} did not give its bytes in {limits.attempts} tries: {error}.") from error
    except TimeoutError as error:
        if not deadline.expired():
            raise
        raise SourceRefused(f"{name} did not arrive within {limits.total_s:g} seconds.") from error
    raise AssertionError("a retry ends with a value or an error")


async def _once(
    client: httpx2.AsyncClient,
    href: str,
    sink: Callable[[Source], Awaitable[T]],
    *,
    bytes_max: int,
    allowed: frozenset[tuple[str, int]],
) -> T:
    url = check(href, allowed)
    for _ in range(REDIRECTS_MAX + 1):
        async with _answer(client, url) as response:
            if response.has_redirect_location:
                url = _redirect(response, allowed)
                continue
            return await sink(_source(response, href, bytes_max))
    raise SourceRefused(f"{display(href)} leads through more than {REDIRECTS_MAX} redirects.")


@asynccontextmanager
async def _answer(client: httpx2.AsyncClient, url: httpx2.URL) -> AsyncIterator[httpx2.Response]:
    """An answer to GET, open while the block runs."""
    # Identity: the bytes are a file, and a compressed body could unpack to any size.
    headers = {"Accept": "*/*", "Accept-Encoding": "identity", "User-Agent": "eorouter"}
    try:
        response = await client.send(client.build_request("GET", url, headers=headers), stream=True)
    except httpx2.TransportError as error:
        raise _Transient(_reason(error)) from error
    try:
        yield response
    finally:
        await response.aclose()


def _redirect(response: httpx2.Response, allowed: frozenset[tuple[str, int]]) -> httpx2.URL:
    origin = response.request.url
    try:
        target = origin.join(response.headers["location"])
    except (KeyError, httpx2.InvalidURL, ValueError) as error:
        raise SourceRefused(f"{display(str(origin))} redirects to something that is not an address.") from error
    if origin.scheme == "https" and target.scheme == "http":
        raise SourceRefused(f"{display(str(origin))} redirects from https to http.")
    return check(str(target), allowed)


def _source(response: httpx2.Response, href: str, bytes_max: int) -> Source:
    name = display(href)
    if response.status_code in _TRANSIENT_STATUS:
        raise _Transient(f"status {response.status_code}")
    if response.status_code != 200:
        raise SourceRefused(f"{name} answered {response.status_code}, expected 200.")
    if response.headers.get("content-encoding", "identity").lower() != "identity":
        raise SourceRefused(f"{name} answered with a compressed body although none was asked for.")
    stated = response.headers.get("content-length", "")
    size = int(stated) if stated.isascii() and stated.isdigit() else None
    if size is not None and size > bytes_max:
        raise SourceRefused(f"{name} has {size} bytes; at most {bytes_max} are fetched.")
    return Source(name=name, size_bytes=size, chunks=_chunks(response, name, bytes_max))


async def _chunks(response: httpx2.Response, name: str, bytes_max: int) -> AsyncIterator[bytes]:
    seen = 0
    try:
        async for chunk in response.aiter_raw(CHUNK_BYTES):
            seen += len(chunk)
            if seen > bytes_max:
                raise SourceRefused(f"{name} has more than the {bytes_max} bytes that are fetched.")
            yield chunk
    except httpx2.TransportError as error:
        raise _Transient(f"the stream broke after {seen} bytes ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
