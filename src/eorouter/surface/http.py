"""The registry over HTTP: `POST /v1/op/{id}` for every operation, and the idiomatic routes they name.

    envelope ── framework's routing ── authenticate ── scope ── bind ── handler ── JSON, or a stored object
        └───────────────────────── any exception ──► one problem body ─────────┘

The framework routes and nothing else: no validation, no documents, no error bodies of its own.
"""

import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Any, Protocol
from urllib.parse import parse_qsl, quote, urlencode

import msgspec
import structlog
from litestar import Litestar, Request, Response, get, route

from eorouter.errors import (
    BodyTooLarge,
    IdempotencyKeyMissing,
    MalformedBody,
    MissingScope,
    Unauthenticated,
    UnknownOperation,
    UnsupportedMediaType,
)
from eorouter.operation import ANY, PUBLIC, Blob, Context, Operation, Registry, SpendAuthority
from eorouter.operation import Route as IdiomaticRoute
from eorouter.settings import Settings
from eorouter.storage import Stores
from eorouter.surface import binding, blobs, meters, problems, readiness, replay, streams
from eorouter.surface.callers import address_of
from eorouter.surface.envelope import Envelope
from eorouter.surface.faults import did_you_mean
from eorouter.types import ANONYMOUS, Principal, utc_now

_HOST = re.compile(r"^[A-Za-z0-9.-]{1,253}(:\d{1,5})?$|^\[[0-9A-Fa-f:.]{2,45}\](:\d{1,5})?$")
_IDEMPOTENCY_KEY = re.compile(r"^[\x21-\x7e]{1,255}$")
_BODY_METHODS = frozenset({"POST", "PUT", "PATCH"})

AnyRequest = Request[Any, Any, Any]


class Authenticate(Protocol):
    """`identity.authenticate`: who an `Authorization` header stands for; raises `Unauthenticated`."""

    async def __call__(
        self, stores: Stores, settings: Settings, authorization: str | None, *, registry: Registry, now: datetime
    ) -> Principal:
        """The principal, `ANONYMOUS` without a header."""
        ...


def create(
    registry: Registry,
    stores: Stores,
    settings: Settings,
    *,
    authenticate: Authenticate,
    schema_check: readiness.SchemaCheck,
    clock: Callable[[], datetime] = utc_now,
    pages: Sequence[Any] = (),
    lifespan: Sequence[Callable[[Litestar], AbstractAsyncContextManager[None]]] = (),
) -> Litestar:
    """The application for a registry; `pages` are further handlers (documents), `lifespan` opens and closes."""
    service = _Service(registry, stores, settings, authenticate=authenticate, clock=clock)

    @get("/healthz")
    async def healthz(request: AnyRequest) -> Response[bytes]:
        return Response(b'{"state":"alive"}', media_type="application/json")

    @get("/readyz")
    async def readyz(request: AnyRequest) -> Response[bytes]:
        parts = readiness.wanted(request.query_params.get("parts"))
        state = await readiness.probe(stores, schema_check=schema_check, now=clock(), parts=parts)
        status = 200 if state.state == "ready" else 503
        return Response(msgspec.json.encode(state), status_code=status, media_type="application/json")

    counted = meters.ApiMeters()
    app = Litestar(
        [healthz, readyz, meters.handler(settings, counted, stores.db), *service.routes(), *pages],
        openapi_config=None,
        logging_config=None,
        debug=False,
        exception_handlers={Exception: problems.respond},
        lifespan=list(lifespan),
    )
    app.asgi_handler = Envelope(app.asgi_handler, counted)
    return app


class _Service:
    """Everything between a routed request and an operation's handler."""

    def __init__(
        self,
        registry: Registry,
        stores: Stores,
        settings: Settings,
        *,
        authenticate: Authenticate,
        clock: Callable[[], datetime],
    ) -> None:
        self._registry = registry
        self._stores = stores
        self._settings = settings
        self._authenticate = authenticate
        self._clock = clock

    def routes(self) -> list[Any]:
        """One handler per idiomatic route, and one for all operations by id."""

        @route("/v1/op/{operation_id:str}", http_method=["POST"])
        async def by_id(request: AnyRequest) -> Response[Any]:
            return await self._answer(self._operation(request.path_params["operation_id"]), None, request)

        return [by_id, *(self._idiomatic(op, way) for op in self._registry for way in op.routes)]

    def _idiomatic(self, op: Operation, way: IdiomaticRoute) -> Any:
        async def handle(request: AnyRequest) -> Response[Any]:
            return await self._answer(op, way, request)

        methods: Any = ["GET", "HEAD"] if way.method == "GET" else [way.method]
        path = re.sub(r"{([a-z_]+)}", r"{\1:str}", way.path)
        return route(path, http_method=methods, status_code=200, name=f"{op.id} {way.method} {way.path}")(handle)

    def _operation(self, operation_id: str) -> Operation:
        found = self._registry.get(operation_id)
        if found is None:
            hint = did_you_mean(operation_id, [op.id for op in self._registry])
            raise UnknownOperation(f"There is no operation {operation_id[:200]!r}.{hint} /docs lists them all.")
        if found.receives_bytes:
            ways = " or ".join(f"{way.method} {way.path}" for way in found.routes)
            raise UnsupportedMediaType(f"{found.id} takes raw bytes, which have no place in JSON: use {ways}.")
        return found

    async def _answer(self, op: Operation, way: IdiomaticRoute | None, request: AnyRequest) -> Response[Any]:
        state = request.scope["state"]
        state["operation"] = op.id
        principal = await self._principal(op, request)
        state["principal"] = principal.id
        authority = _authority(op, principal, request) if op.takes_spend else None
        content = _chunks(request, self._settings.upload_bytes_max) if op.receives_bytes else None
        ctx = Context(
            principal=principal,
            clock=self._clock,
            stores=self._stores,
            settings=self._settings,
            registry=self._registry,
            request_id=state["request_id"],
            base_url=self._base_url(request),
            address=address_of(request),
            content=content,
        )
        asked = await self._bind(op, way, request)
        with structlog.contextvars.bound_contextvars(operation=op.id, principal=principal.id):
            kind = streams.wanted(request.headers.get("accept", "")) if op.follow and way is not None else None
            if op.follow is not None and kind is not None:
                return await streams.answer(op.follow(ctx, asked, streams.last_event_id(_headers(request))), kind)
            if authority is not None:
                return await self._spend(op, ctx, asked, authority)
            answer = await op.handler(ctx, asked)
        if isinstance(answer, Blob):
            return await blobs.answer(self._stores.objects, answer, method=request.method, headers=_headers(request))
        if answer is None:
            return Response(content=None, status_code=op.status)
        headers = self._link(answer, request, ctx.base_url) if way is not None and way.method == "GET" else {}
        return _json(msgspec.json.encode(answer), op.status, headers)

    async def _spend(self, op: Operation, ctx: Context, asked: Any, authority: SpendAuthority) -> Response[Any]:
        """The answer of an operation that spends: the first one, however often the request comes."""
        db = self._stores.db
        turn = await replay.begin(db, op, asked, authority, now=self._clock())
        if isinstance(turn, replay.Kept):
            return _json(turn.body, turn.status, {replay.HEADER: "true"})
        try:
            body = msgspec.json.encode(await op.handler(ctx, asked, spend=turn.authority))
        except BaseException:
            await replay.abandon(db, turn)
            raise
        await replay.finish(db, turn, op.status, body)
        return _json(body, op.status, {})

    async def _principal(self, op: Operation, request: AnyRequest) -> Principal:
        """Who asks, once it is sure that they may.

        Raises:
            Unauthenticated: nobody is named, or somebody unknown.
            MissingScope: the operation's scope was not given to them.
        """
        if op.scope == PUBLIC:
            return ANONYMOUS
        principal = await self._authenticate(
            self._stores,
            self._settings,
            request.headers.get("authorization"),
            registry=self._registry,
            now=self._clock(),
        )
        if principal.kind == "anonymous":
            raise Unauthenticated("Say who you are: `Authorization: Bearer <API key or access token>`.")
        if op.scope != ANY and op.scope not in principal.scopes:
            raise MissingScope(f"{op.id} needs the scope {op.scope}, which these credentials do not have.")
        return principal

    async def _bind(self, op: Operation, way: IdiomaticRoute | None, request: AnyRequest) -> Any:
        query: bytes = request.scope["query_string"]
        path = {} if way is None else {name: request.path_params[name] for name in way.path_fields}
        if way is not None and (op.receives_bytes or way.method not in _BODY_METHODS):
            return binding.from_query(op, path, query)
        limit = self._settings.body_bytes_max
        body = b"".join([chunk async for chunk in _chunks(request, limit)])
        return binding.from_body(op, path, body, request.headers.get("content-type", ""), query)

    def _base_url(self, request: AnyRequest) -> str:
        if self._settings.public_url:
            return self._settings.public_url.rstrip("/")
        host = request.headers.get("host", "")
        if not _HOST.match(host):
            host = f"{self._settings.host}:{self._settings.port}"
        return f"{request.scope['scheme']}://{host}"

    @staticmethod
    def _link(answer: Any, request: AnyRequest, base_url: str) -> Mapping[str, str]:
        """The `Link` header (RFC 8288) of a page that has a next one."""
        cursor = getattr(answer, "next_cursor", None)
        if not cursor:
            return {}
        given = parse_qsl(request.scope["query_string"].decode("ascii"), keep_blank_values=True)
        query = urlencode([pair for pair in given if pair[0] != "cursor"] + [("cursor", cursor)])
        return {"link": f'<{base_url}{quote(request.scope["path"])}?{query}>; rel="next"'}


def _json(body: bytes, status: int, headers: Mapping[str, str]) -> Response[Any]:
    return Response(body, status_code=status, headers=dict(headers), media_type="application/json")


def _authority(op: Operation, principal: Principal, request: AnyRequest) -> SpendAuthority:
    """The only maker of authority to spend; called after the scope was checked.

    Raises:
        IdempotencyKeyMissing: the header is absent or is not 1 to 255 printable ASCII characters.
    """
    key = request.headers.get("idempotency-key", "")
    if not _IDEMPOTENCY_KEY.match(key):
        raise IdempotencyKeyMissing(
            f"{op.id} spends money, so it needs an `Idempotency-Key` header of 1 to 255 printable ASCII characters "
            "(a UUID does well); repeating a request with the same key spends once."
        )
    return SpendAuthority(principal=principal, idempotency_key=key)


def _headers(request: AnyRequest) -> dict[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in request.scope["headers"]}


async def _chunks(request: AnyRequest, limit: int) -> AsyncIterator[bytes]:
    """The body as it comes in; refused as soon as it is, or says it is, longer than `limit` bytes.

    Raises:
        BodyTooLarge: it is.
        MalformedBody: the caller went away in the middle.
    """
    stated = request.headers.get("content-length", "")
    if stated.isascii() and stated.isdigit() and (len(stated) > 18 or int(stated) > limit):
        raise BodyTooLarge(f"The body has {stated[:30]} bytes; at most {limit} are taken here.")
    size = 0
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise MalformedBody(f"The connection ended after {size} bytes of the body.")
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > limit:
            raise BodyTooLarge(f"The body has more than {limit} bytes, which is the most that is taken here.")
        if chunk:
            yield chunk
        if not message.get("more_body", False):
            return
