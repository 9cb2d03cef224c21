"""The exposition is what Prometheus reads, and not everybody's to see."""

from types import SimpleNamespace

from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from eorouter.surface import meters
from eorouter.surface.meters import ApiMeters


def test_answers_are_counted_by_operation_and_streams_are_not_timed():
    made = ApiMeters()
    made.answered("items.get", 200, 0.003, is_stream=False)
    made.answered("processing.events.list", 200, 900.0, is_stream=True)
    made.answered("", 404, 0.001, is_stream=False)
    families = {each.name: each for each in text_string_to_metric_families(generate_latest(made.registry).decode())}
    counted = {
        (s.labels["operation"], s.labels["status"]): s.value
        for s in families["eorouter_http_requests"].samples
        if s.name.endswith("_total")
    }
    assert counted == {("items.get", "200"): 1, ("processing.events.list", "200"): 1, ("none", "404"): 1}
    timed = {s.labels["operation"] for s in families["eorouter_http_request_seconds"].samples}
    assert timed == {"items.get", "none"}


def test_who_may_see():
    def caller(host, **headers):
        return SimpleNamespace(client=SimpleNamespace(host=host), headers=headers)

    assert meters._may_see(caller("127.0.0.1"), "")
    assert not meters._may_see(caller("10.0.0.1"), "")
    assert not meters._may_see(caller("127.0.0.1", **{"x-forwarded-for": "10.0.0.1"}), "")
    assert meters._may_see(caller("10.0.0.1", authorization="Bearer secret"), "secret")
    assert not meters._may_see(caller("127.0.0.1"), "secret")
