"""Spans reach a collector that speaks OTLP over HTTP, under the caller's trace; without one they cost nothing."""

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from eorouter_compute import tracing

CALLER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.fixture
def collector():
    """Address of a collector, and the spans it got."""
    spans = []

    class Collect(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                raise AssertionError("unexpected")
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                for scope in resource.scope_spans:
                    spans.extend(scope.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            return

    with HTTPServer(("127.0.0.1", 0), Collect) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", spans
        server.shutdown()
        thread.join()


def test_spans_arrive_under_the_trace_of_the_caller(collector):
    address, spans = collector
    tracing.configure("test", address)
    try:
        with tracing.span("request", parent=CALLER, kind="SERVER") as request:
            handed_on = tracing.traceparent()
            assert handed_on == request.traceparent
        with tracing.span("run clip", parent=handed_on) as run:
            run.stretch("read", 1, 2)
    finally:
        tracing.shut_down()
    by_name = {span.name: span for span in spans}
    assert set(by_name) == {"request", "run clip", "read"}
    assert {span.trace_id.hex() for span in spans} == {CALLER.split("-")[1]}
    assert by_name["request"].parent_span_id.hex() == CALLER.split("-")[2]
    assert by_name["run clip"].parent_span_id == by_name["request"].span_id
    assert by_name["read"].parent_span_id == by_name["run clip"].span_id


def test_off_hands_nothing_on():
    with tracing.span("request", parent=CALLER) as span:
        assert (span.traceparent, tracing.traceparent(), tracing.is_on()) == ("", "", False)
    assert not tracing.is_traceparent("00-" + "0" * 32 + "-00f067aa0ba902b7-01")
