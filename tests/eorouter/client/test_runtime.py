"""Calls, errors, retries, sessions and paging, against a server in another process."""

import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from eorouter.client import (
    ApiProblem,
    Conflict,
    ConnectionFailed,
    EoRouterClient,
    EoRouterError,
    InvalidInput,
    NotFound,
    Retries,
    TooManyRequests,
    Unauthenticated,
    Unavailable,
)

Serve = Callable[..., Any]
BUSY = {"status": 503, "json": {"code": "unavailable", "message": "The database does not answer."}}
OP = "POST /v1/op/"


def problem(status: int, code: str, **more: Any) -> dict[str, Any]:
    body = {"code": code, "message": f"It is {code}.", "status": status, "request_id": "req_1", "errors": []}
    return {"status": status, "json": body | more, "headers": {"content-type": "application/problem+json"}}


def test_call_sends_fields_and_key_and_returns_the_answer(serve: Serve) -> None:
    service = serve({OP + "items.get": {"json": {"id": "itm_1"}}})
    with service.client() as client:
        assert client.call("items.get", item_id="itm_1", absent=None) == {"id": "itm_1"}
    (entry,) = service.journal()
    assert entry["body"] == '{"item_id":"itm_1"}'
    assert entry["headers"]["authorization"] == "Bearer eor_live_sk_secret"
    assert entry["headers"]["content-type"] == "application/json"
    assert entry["headers"]["user-agent"].startswith("eorouter-python/")


def test_call_without_an_answer_returns_none(serve: Serve) -> None:
    service = serve({OP + "items.delete": {"status": 204}})
    with service.client() as client:
        assert client.call("items.delete", item_id="itm_1") is None


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (401, "invalid_credentials", Unauthenticated),
        (404, "unknown_operation", NotFound),
        (409, "email_taken", Conflict),
        (422, "band_not_found", InvalidInput),
        (418, "a_code_of_the_future", ApiProblem),
    ],
)
def test_error_answer_has_the_class_of_its_status_and_the_code(
    serve: Serve, status: int, code: str, kind: type[ApiProblem]
) -> None:
    fault = {
        "pointer": "/task/band",
        "message": "There is no band X.",
        "code": code,
        "expected": "red",
        "received": "X",
    }
    service = serve({OP + "things.create": problem(status, code, errors=[fault])})
    with service.client() as client, pytest.raises(kind) as caught:
        client.call("things.create")
    error = caught.value
    assert type(error) is kind
    assert (error.code, error.status, error.request_id) == (code, status, "req_1")
    assert error.errors[0].pointer == "/task/band"
    assert str(error) == (
        f"It is {code}. [{code}, {status}, request req_1]\n  /task/band: There is no band X. (expected red, got X)"
    )


def test_error_page_of_a_proxy_is_still_a_typed_error(serve: Serve) -> None:
    service = serve({OP + "things.create": {"status": 502, "bytes": "<h1>Bad gateway</h1>"}})
    with service.client() as client, pytest.raises(Unavailable, match="502 Bad Gateway") as caught:
        client.call("things.create")
    assert caught.value.code == "http_502"


def test_answer_that_is_not_json_names_the_address(serve: Serve) -> None:
    service = serve({OP + "items.get": {"bytes": "<h1>It works!</h1>"}})
    with service.client() as client, pytest.raises(EoRouterError, match=r"not JSON.*address of eorouter"):
        client.call("items.get")


def test_read_is_repeated_until_the_service_is_back(serve: Serve) -> None:
    service = serve({OP + "items.search": [BUSY, {"drop": True}, {"status": 429, "json": {}}, {"json": {"items": []}}]})
    with service.client() as client:
        assert client.call("items.search") == {"items": []}
    assert len(service.journal()) == 4


def test_read_gives_up_after_its_tries_with_the_last_refusal(serve: Serve) -> None:
    service = serve({OP + "items.search": BUSY})
    with service.client() as client, pytest.raises(Unavailable, match="database does not answer"):
        client.call("items.search")
    assert len(service.journal()) == 4


@pytest.mark.parametrize(("answer", "kind"), [(BUSY, Unavailable), ({"drop": True}, ConnectionFailed)])
def test_write_is_sent_once_when_it_may_have_been_done(
    serve: Serve, answer: dict[str, Any], kind: type[Exception]
) -> None:
    service = serve({OP + "projects.create": answer})
    with service.client() as client, pytest.raises(kind):
        client.call("projects.create", name="x")
    assert len(service.journal()) == 1


def test_nothing_else_than_passing_faults_is_repeated(serve: Serve) -> None:
    service = serve({OP + "items.get": problem(404, "not_found")})
    with service.client() as client, pytest.raises(NotFound):
        client.call("items.get", item_id="x")
    assert len(service.journal()) == 1


def test_retry_after_is_waited_for(serve: Serve) -> None:
    service = serve({OP + "items.get": [{"status": 429, "json": {}, "headers": {"retry-after": "0.3"}}, {"json": {}}]})
    start = time.monotonic()
    with service.client() as client:
        client.call("items.get")
    assert time.monotonic() - start >= 0.3


def test_retry_after_beyond_patience_is_raised_at_once(serve: Serve) -> None:
    service = serve({OP + "items.get": {"status": 429, "json": {}, "headers": {"retry-after": "3600"}}})
    with service.client() as client, pytest.raises(TooManyRequests) as caught:
        client.call("items.get")
    assert caught.value.retry_after_s == 3600
    assert len(service.journal()) == 1


def test_no_service_is_said_with_the_address_and_the_tries() -> None:
    retries = Retries(tries=3, first_wait_s=0.001)
    with (
        EoRouterClient("http://127.0.0.1:9", retries=retries) as client,
        pytest.raises(ConnectionFailed, match=r"http://127\.0\.0\.1:9 after 3 tries.*Is the service running there\?"),
    ):
        client.call("projects.create", name="never sent, so safely repeated")


def test_silent_service_times_out(serve: Serve) -> None:
    service = serve({OP + "projects.create": {"hang_s": 5, "json": {}}})
    with service.client(timeout_s=0.2) as client, pytest.raises(ConnectionFailed, match="timed out"):
        client.call("projects.create", name="x")


def test_waits_grow_within_their_bounds() -> None:
    retries = Retries(first_wait_s=1.0, longest_wait_s=5.0)
    for failures, ceiling in ((1, 1.0), (2, 2.0), (3, 4.0), (4, 5.0), (9, 5.0)):
        drawn = [retries.wait_s(failures) for _ in range(50)]
        assert ceiling / 2 <= min(drawn) <= max(drawn) <= ceiling
        assert len(set(drawn)) > 1
    assert retries.wait_s(1, asked_s=30.0) == 30.0


def test_session_is_renewed_once_when_its_token_has_run_out(serve: Serve) -> None:
    service = serve(
        {
            OP + "auth.login": {"json": {"access_token": "old", "refresh_token": "r1"}},
            OP + "auth.refresh": {"json": {"access_token": "new", "refresh_token": "r2"}},
            OP + "projects.create": [problem(401, "unauthenticated"), {"json": {"id": "prj_1"}}],
        }
    )
    with service.client(api_key=None) as client:
        client.login("a@example.org", "long enough password")
        assert client.call("projects.create", name="x") == {"id": "prj_1"}
    sent = [entry["headers"].get("authorization") for entry in service.journal("projects.create")]
    assert sent == ["Bearer old", "Bearer new"]
    assert service.journal("auth.refresh")[0]["body"] == '{"refresh_token":"r1"}'


def test_key_that_was_revoked_is_not_renewed(serve: Serve) -> None:
    service = serve({OP + "projects.get": problem(401, "unauthenticated")})
    with service.client() as client, pytest.raises(Unauthenticated):
        client.projects.get("prj_1")
    assert len(service.journal()) == 1


def test_entries_follow_the_cursors_of_every_page(serve: Serve) -> None:
    service = serve(
        {
            OP + "projects.list": [
                {"json": {"projects": [{"id": "1"}, {"id": "2"}], "next_cursor": "c1"}},
                {"json": {"projects": [], "next_cursor": "c2"}},
                {"json": {"projects": [{"id": "3"}], "next_cursor": None}},
            ]
        }
    )
    with service.client() as client:
        assert [entry["id"] for entry in client.projects.list()] == ["1", "2", "3"]
    assert [entry["body"] for entry in service.journal()] == ["{}", '{"cursor":"c1"}', '{"cursor":"c2"}']


def test_entries_of_what_is_no_list_are_refused(serve: Serve) -> None:
    service = serve({OP + "auth.me": {"json": {"id": "usr_1", "email": "a@example.org"}}})
    with service.client() as client, pytest.raises(EoRouterError, match=r"auth\.me does not answer with a list"):
        next(client.entries("auth.me"))


def test_repr_names_the_address_and_never_the_key() -> None:
    with EoRouterClient("http://127.0.0.1:8000/", api_key="eor_live_sk_secret") as client:
        assert repr(client) == "EoRouterClient('http://127.0.0.1:8000', key)"
        client.use_key("eor_live_sk_other_secret")
        assert "secret" not in repr(client) + repr(vars(client))


def test_address_and_key_come_from_the_environment_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EOROUTER_URL", "https://eo.example")
    monkeypatch.setenv("EOROUTER_API_KEY", "eor_live_sk_secret")
    with EoRouterClient() as ours, EoRouterClient("https://elsewhere.example") as other:
        assert repr(ours) == "EoRouterClient('https://eo.example', key)"
        assert repr(other) == "EoRouterClient('https://elsewhere.example', anonymous)"


@pytest.mark.parametrize("address", ["", "127.0.0.1:8000", "ftp://x", "http://"])
def test_address_that_is_none_is_refused_at_once(address: str) -> None:
    with pytest.raises(ValueError, match="address"):
        EoRouterClient(address)


def test_missing_address_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EOROUTER_URL", raising=False)
    with pytest.raises(ValueError, match="EOROUTER_URL"):
        EoRouterClient()


def test_importing_the_client_brings_nothing_of_the_service() -> None:
    program = (
        "import sys; import eorouter; light = set(sys.modules); from eorouter import EoRouterClient;"
        "ours = sorted(m for m in sys.modules if m.startswith('eorouter') and not m.startswith('eorouter.client'));"
        "heavy = sorted({'numpy', 'litestar', 'sqlalchemy', 'rasterio', 'dask', 'rich'} & set(sys.modules));"
        "print(ours, heavy, 'httpx2' in light)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['eorouter'] [] False"


def events(*ids: int) -> str:
    return "".join(f'{{"event_id":{number},"type":"job.progressed"}}\n\n' for number in ids)


def test_follow_takes_up_a_stream_that_breaks_and_ends_with_the_list(serve: Serve) -> None:
    whole = events(1, 2, 3)
    path = "GET /v1/jobs/job_1/events?after="
    service = serve(
        {
            OP + "processing.jobs.get": {"json": {"job_id": "job_1", "state": "running"}},
            path + "0": {"bytes": whole, "stop_after": len(events(1)) + len(events(2)) + 5},
            path + "2": [{"drop": True}, BUSY, {"bytes": events(3)}],
            path + "3": {"status": 204},
        }
    )
    with service.client() as client:
        assert [each["event_id"] for each in client.jobs.get("job_1").events()] == [1, 2, 3]
    asked = [entry["line"].rpartition("=")[2] for entry in service.journal("/events")]
    assert asked == ["0", "2", "2", "2", "3"]


def test_follow_of_a_job_that_is_not_there_is_refused(serve: Serve) -> None:
    service = serve(
        {
            OP + "processing.jobs.get": {"json": {"job_id": "job_1", "state": "running"}},
            "GET /v1/jobs/job_1/events?after=0": problem(404, "not_found"),
        }
    )
    with service.client() as client, pytest.raises(NotFound):
        list(client.jobs.get("job_1").events())
