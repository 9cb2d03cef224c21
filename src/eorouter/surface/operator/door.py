"""Who comes in to the operator's pages: a log-in of their own in a cookie, or an operator's access token.

    cookie ── signature, expiry ──┐
    Bearer <access token> ────────┴─► session row still open ─► users.is_operator ─► Pass

The last two are read on every request, and by `still` again while a connection stays open, so that a log-out, a change
of password and `eorouter operators --remove` count at once. API keys belong to an organisation and open nothing here.

Forms and websockets carry the cookie of whoever's browser sends them, so they must come from our own pages: the cookie
is `SameSite=Strict`, and `Origin` has to be ours besides.
"""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

import msgspec
import structlog
from litestar.connection import ASGIConnection, Request
from litestar.datastructures import Cookie

from eorouter import identity, signing
from eorouter.errors import BodyTooLarge, InvalidCredentials, MissingScope, SignatureInvalid, Unauthenticated
from eorouter.operation import Registry
from eorouter.settings import Settings
from eorouter.storage import Stores, log_ins, operators
from eorouter.storage.operators import Operator
from eorouter.surface.callers import address_of

PATH = "/operator"
COOKIE = "eorouter_operator"
LIFE = timedelta(hours=12)
_PURPOSE = "operator"
_FORM_BYTES_MAX = 8192

log = structlog.get_logger(__name__)

AnyConnection = ASGIConnection[Any, Any, Any, Any]


class Pass(msgspec.Struct, frozen=True, kw_only=True):
    """An operator, and the log-in that says so."""

    operator: Operator
    session_id: str
    by_cookie: bool


class Door:
    """Lets operators in, and nobody else."""

    def __init__(
        self, stores: Stores, settings: Settings, registry: Registry, *, clock: Callable[[], datetime]
    ) -> None:
        self._stores = stores
        self._settings = settings
        self._registry = registry
        self._clock = clock

    async def who(self, connection: AnyConnection) -> Pass | None:
        """The operator whose request this is; None for everybody else."""
        authorization = connection.headers.get("authorization")
        session_id = await (self._of_bearer(authorization) if authorization else self._of_cookie(connection))
        if session_id is None:
            return None
        async with self._stores.db.read() as tx:
            operator = await operators.in_session(tx, session_id, now=self._clock())
        if operator is None:
            return None
        return Pass(operator=operator, session_id=session_id, by_cookie=not authorization)

    async def still(self, seen: Pass) -> bool:
        """Whoever came in may stay."""
        async with self._stores.db.read() as tx:
            return await operators.in_session(tx, seen.session_id, now=self._clock()) is not None

    async def _of_bearer(self, authorization: str) -> str | None:
        try:
            principal = await identity.authenticate(
                self._stores, self._settings, authorization, registry=self._registry, now=self._clock()
            )
        except Unauthenticated:
            return None
        return principal.session_id

    async def _of_cookie(self, connection: AnyConnection) -> str | None:
        token = connection.cookies.get(COOKIE, "")
        try:
            return signing.verify(self._settings, _PURPOSE, token, now=self._clock())
        except SignatureInvalid:
            return None

    async def log_in(self, request: Request[Any, Any, Any]) -> Cookie:
        """The cookie for whoever sent the form of the log-in page.

        Raises:
            MissingScope: another site's page sent it.
            log_ins.TooMany: after too many failed tries.
            InvalidCredentials: wrong, or not an operator's; which of both is not told.
        """
        self.check_origin(request)
        form = await _form(request)
        email, password, now = form.get("email", ""), form.get("password", ""), self._clock()
        account, address = email.strip().lower()[:320], address_of(request)
        if len(password) > identity.PASSWORD_LENGTH_MAX:
            password = ""  # which is nobody's
        try:
            async with log_ins.trying(self._stores.db, account, address, now=now):
                tokens = await identity.log_in(self._stores, self._settings, email, password, now=now, as_operator=True)
        except InvalidCredentials:
            log.warning("operator.log_in.refused", address=address)
            raise
        log.info("operator.log_in.opened", address=address, user=tokens.user_id)
        token = signing.sign(self._settings, _PURPOSE, tokens.session_id, expires_at=now + LIFE)
        return self._cookie(request, token, int(LIFE.total_seconds()))

    async def log_out(self, request: Request[Any, Any, Any]) -> Cookie:
        """End the session of the cookie, if it has one; returns the cookie that takes it away.

        Raises:
            MissingScope: another site's page asks for it.
        """
        self.check_origin(request)
        session_id = await self._of_cookie(request)
        if session_id is not None:
            async with self._stores.db.write() as tx:
                await identity.end_session(tx, session_id, now=self._clock())
        return self._cookie(request, "", 0)

    def check_origin(self, connection: AnyConnection) -> None:
        """Let nothing pass that another site's page sent.

        Raises:
            MissingScope: `Origin` is absent, or not the address of this service.
        """
        origin = connection.headers.get("origin", "")
        if origin not in self._origins(connection):
            raise MissingScope(
                f"This comes from a page of {origin[:200] or 'nowhere'}, not of this service. Open {PATH} itself; "
                "behind a proxy, EOROUTER_PUBLIC_URL says under which address that is."
            )

    def _origins(self, connection: AnyConnection) -> set[str]:
        """What browsers say of our own pages: no other site can choose the `Host` that they send."""
        scheme = {"ws": "http", "wss": "https"}.get(connection.scope["scheme"], connection.scope["scheme"])
        own = {f"{scheme}://{connection.headers.get('host', '').lower()}"}
        public = urlsplit(self._settings.public_url)
        return own | ({f"{public.scheme}://{public.netloc.lower()}"} if public.netloc else set())

    def _cookie(self, request: Request[Any, Any, Any], value: str, max_age: int) -> Cookie:
        is_secure = request.headers.get("origin", "").startswith("https:")  # what the browser sees, behind any proxy
        return Cookie(
            key=COOKIE, value=value, max_age=max_age, path=PATH, httponly=True, samesite="strict", secure=is_secure
        )


async def _form(request: Request[Any, Any, Any]) -> dict[str, str]:
    """Fields of a small form, the first value of each.

    Raises:
        BodyTooLarge: it is none of our pages'.
    """
    body = b""
    while True:
        message = await request.receive()
        body += message.get("body", b"")
        if len(body) > _FORM_BYTES_MAX:
            raise BodyTooLarge(f"A log-in has at most {_FORM_BYTES_MAX} bytes.")
        if not message.get("more_body", False):
            break
    fields = parse_qs(body.decode("utf-8", "replace"), keep_blank_values=True)
    return {name: values[0] for name, values in fields.items()}
