"""Traces, when they are asked for: spans that begin with a request and end in a kernel, sent by OTLP over HTTP.

Off is the default and costs a comparison: the OpenTelemetry packages are imported by `configure` and by nothing else.
What travels between processes is a W3C `traceparent`, a text of 55 characters, stored with the job and sent with every
shard. The standard variables `OTEL_EXPORTER_OTLP_HEADERS`, `OTEL_TRACES_SAMPLER` and the like are OpenTelemetry's own
and hold here too.
"""

import os
import re
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from types import TracebackType
from typing import Any, Protocol, Self

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
"""The variable by which a worker learns where spans go."""

_TRACEPARENT = re.compile(r"^00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}$")
_FLUSH_MS = 3000

Value = str | bool | int | float


class Span(Protocol):
    """A stretch of time with a name. Use it with `with`; what raises inside is marked as an error."""

    @property
    def traceparent(self) -> str:
        """What to hand on, so that what follows belongs to this span; empty where traces are off."""
        ...

    def set(self, name: str, value: Value) -> None:
        """Add an attribute."""
        ...

    def stretch(self, name: str, begin_ns: int, end_ns: int) -> None:
        """Add a child that is over already; times in nanoseconds since 1970."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class _Nothing:
    """The span of a process that sends no traces."""

    traceparent = ""

    def set(self, name: str, value: Value) -> None: ...

    def stretch(self, name: str, begin_ns: int, end_ns: int) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


_NOTHING = _Nothing()
_provider: Any = None
_tracer: Any = None


def configure(service: str, endpoint: str) -> None:
    """Send this process's spans to `endpoint`, an address without `/v1/traces`; an empty one leaves traces off."""
    global _provider, _tracer  # noqa: PLW0603 - one provider per process, as OpenTelemetry has it
    if not endpoint or _provider is not None:
        return
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    named = {"service.name": service, "service.version": _release(), "process.pid": os.getpid()}
    _provider = TracerProvider(resource=Resource.create(named), shutdown_on_exit=False)
    _provider.add_span_processor(
        BatchSpanProcessor(
            OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces", timeout=5), schedule_delay_millis=1000
        )
    )
    _tracer = _provider.get_tracer("eorouter", _release())


def shut_down() -> None:
    """Send what is left, and trace no more."""
    global _provider, _tracer
    provider, _provider, _tracer = _provider, None, None
    if provider is not None:
        provider.force_flush(_FLUSH_MS)
        provider.shutdown()


def is_on() -> bool:
    """Spans of this process are sent."""
    return _tracer is not None


def span(
    name: str,
    *,
    parent: str | None = None,
    kind: str = "INTERNAL",
    attributes: Mapping[str, Value] | None = None,
    begin_ns: int | None = None,
) -> Span:
    """A span, begun when it is made or at `begin_ns`, ended with its block.

    Args:
        name: of low cardinality: what is done, not to what.
        parent: `traceparent` of what this belongs to; None continues the span around, an empty or strange one begins
            a trace.
        kind: of OpenTelemetry: INTERNAL, SERVER, CLIENT, PRODUCER, CONSUMER.
        attributes: what it is done to.
        begin_ns: nanoseconds since 1970.
    """
    if _tracer is None:
        return _NOTHING
    return _Real(_tracer, name, parent, kind=kind, begin_ns=begin_ns, about=attributes or {})


def traceparent() -> str:
    """That of the span around; empty where there is none."""
    if _tracer is None:
        return ""
    from opentelemetry import trace

    return _spelled(trace.get_current_span().get_span_context())


def is_traceparent(text: str) -> bool:
    """The text is a `traceparent` of W3C Trace Context, version 00."""
    return _TRACEPARENT.match(text) is not None


class _Real:
    """A span of OpenTelemetry."""

    def __init__(
        self, tracer: Any, name: str, parent: str | None, *, kind: str, begin_ns: int | None, about: Mapping[str, Value]
    ) -> None:
        from opentelemetry import trace

        self._trace = trace
        self._tracer = tracer
        context = None if parent is None else _context(parent)
        self._span = tracer.start_span(
            name, context=context, kind=trace.SpanKind[kind], attributes=dict(about), start_time=begin_ns
        )
        self._entered: Any = None

    @property
    def traceparent(self) -> str:
        """See `Span`."""
        return _spelled(self._span.get_span_context())

    def set(self, name: str, value: Value) -> None:
        """See `Span`."""
        self._span.set_attribute(name, value)

    def stretch(self, name: str, begin_ns: int, end_ns: int) -> None:
        """See `Span`."""
        around = self._trace.set_span_in_context(self._span)
        self._tracer.start_span(name, context=around, start_time=begin_ns).end(end_time=end_ns)

    def __enter__(self) -> Self:
        self._entered = self._trace.use_span(self._span, end_on_exit=True)
        self._entered.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._entered.__exit__(kind, error, trace)


def _context(parent: str) -> Any:
    from opentelemetry import trace
    from opentelemetry.context import Context

    if not is_traceparent(parent):
        return Context()
    _, trace_id, span_id, flags = parent.split("-")
    remote = trace.SpanContext(int(trace_id, 16), int(span_id, 16), True, trace.TraceFlags(int(flags, 16)))
    return trace.set_span_in_context(trace.NonRecordingSpan(remote), Context())


def _spelled(context: Any) -> str:
    if not context.is_valid:
        return ""
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"


def _release() -> str:
    try:
        return version("eorouter")
    except PackageNotFoundError:
        return "unknown"
