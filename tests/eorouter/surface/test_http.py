"""The surface as a caller meets it, on a toy registry that has every shape of operation."""

import msgspec
import pytest

from eorouter.errors import Problem

JSON = {"content-type": "application/json"}


def problem(answer, status: int, code: str) -> Problem:
    """The problem body of an answer, which must be one of that status and code."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body = msgspec.json.decode(answer.content, type=Problem)
    assert (body.status, body.code) == (status, code)
    assert body.request_id == answer.headers["x-request-id"]
    return body


def pointers(body: Problem) -> list[str]:
    return [fault.pointer for fault in body.errors]


class TestRouting:
    async def test_operation_by_id_and_by_its_route_answer_the_same(self, client_of):
        async with client_of() as client:
            by_id = await client.post("/v1/op/toys.get", json={"toy_id": "ball"})
            by_route = await client.get("/v1/toys/ball")
        assert by_id.status_code == by_route.status_code == 200
        assert by_id.json() == by_route.json() == {"toy_id": "toy_1", "name": "ball", "shape": None, "colours": []}

    async def test_status_comes_from_the_operation(self, client_of):
        async with client_of() as client:
            assert (await client.post("/v1/toys", json={"name": "ball"})).status_code == 201
            gone = await client.delete("/v1/toys/ball")
            assert (gone.status_code, gone.content) == (204, b"")

    async def test_unknown_route_is_a_problem_with_status_404(self, client_of):
        async with client_of() as client:
            problem(await client.get("/v1/nothing/here"), 404, "not_found")

    async def test_unknown_operation_suggests_near_ones(self, client_of):
        async with client_of() as client:
            body = problem(await client.post("/v1/op/toys.creat", json={}), 404, "unknown_operation")
        assert "'toys.create'" in body.message

    async def test_wrong_method_names_those_allowed(self, client_of):
        async with client_of() as client:
            answer = await client.put("/v1/toys")
        problem(answer, 405, "method_not_allowed")
        assert answer.headers["allow"] == "GET, HEAD, OPTIONS, POST"

    async def test_operation_that_receives_bytes_is_sent_to_its_route(self, client_of):
        async with client_of() as client:
            body = problem(await client.post("/v1/op/toys.content.receive", json={}), 415, "unsupported_media_type")
        assert "PUT /v1/toys/{toy_id}/content" in body.message

    async def test_head_has_the_headers_of_get_and_no_body(self, client_of):
        async with client_of() as client:
            got, head = await client.get("/v1/toys/ball"), await client.head("/v1/toys/ball")
        assert head.content == b""
        assert head.headers["content-length"] == got.headers["content-length"] == str(len(got.content))

    async def test_cross_origin_is_off(self, client_of):
        async with client_of() as client:
            answer = await client.get("/v1/public", headers={"origin": "https://elsewhere.example"})
        assert not [name for name in answer.headers if name.startswith("access-control")]


class TestPrincipals:
    async def test_no_credentials_are_401_with_a_challenge(self, client_of):
        async with client_of(None) as client:
            answer = await client.get("/v1/toys/ball")
        problem(answer, 401, "unauthenticated")
        assert answer.headers["www-authenticate"] == "Bearer"

    async def test_unknown_credentials_are_401(self, client_of):
        async with client_of("Bearer nobody") as client:
            problem(await client.get("/v1/toys/ball"), 401, "unauthenticated")

    async def test_missing_scope_is_403_and_named(self, client_of):
        async with client_of("Bearer reads") as client:
            body = problem(await client.post("/v1/toys", json={"name": "ball"}), 403, "missing_scope")
            assert "toys:write" in body.message
            assert (await client.get("/v1/toys/ball")).status_code == 200

    async def test_any_needs_a_principal_and_no_scope(self, client_of):
        async with client_of("Bearer none") as client:
            assert (await client.get("/v1/me")).json()["id"] == "key_1"
        async with client_of(None) as client:
            problem(await client.get("/v1/me"), 401, "unauthenticated")

    async def test_public_needs_nobody_and_knows_nobody(self, client_of):
        for authorization in (None, "Bearer nobody", "Bearer all"):
            async with client_of(authorization) as client:
                assert (await client.get("/v1/public")).json()["id"] == "anonymous"

    async def test_scope_is_checked_before_the_body_is_read(self, client_of):
        async with client_of("Bearer reads") as client:
            problem(await client.post("/v1/toys", content=b"{", headers=JSON), 403, "missing_scope")

    async def test_spending_needs_an_idempotency_key_after_its_scope(self, client_of):
        async with client_of() as client:
            problem(await client.post("/v1/toys/ball/purchase"), 400, "idempotency_key_missing")
            spent = await client.post("/v1/toys/ball/purchase", headers={"idempotency-key": "k-1"})
            assert spent.json()["id"] == "k-1"
            assert spent.json()["base_url"] == "key_1"
            bad = await client.post("/v1/toys/ball/purchase", headers={"idempotency-key": "k" * 256})
            problem(bad, 400, "idempotency_key_missing")
        async with client_of("Bearer reads") as client:
            spent = await client.post("/v1/toys/ball/purchase", headers={"idempotency-key": "k-1"})
            problem(spent, 403, "missing_scope")


class TestBinding:
    async def test_every_fault_of_a_body_is_located(self, client_of):
        request = {"nam": "x", "shape": {"shape": "disc", "radius_m": "wide"}, "weights_g": [1, 0]}
        async with client_of() as client:
            body = problem(await client.post("/v1/toys", json=request), 422, "invalid_input")
        assert set(pointers(body)) == {"/nam", "/name", "/shape/radius_m", "/weights_g/1"}
        by_pointer = {fault.pointer: fault for fault in body.errors}
        assert "'name'" in by_pointer["/nam"].message
        assert (by_pointer["/shape/radius_m"].expected, by_pointer["/shape/radius_m"].received) == ("float", "str")
        assert (by_pointer["/weights_g/1"].expected, by_pointer["/weights_g/1"].received) == ("int >= 1", "0")

    @pytest.mark.parametrize(
        ("text", "place"),
        [('{"name": "a",\n "shape": nul}', "line 2, column"), ('{"name" "a"}', "line 1, column 9"), ("[1, 2", "JSON")],
    )
    async def test_malformed_json_is_400_and_located(self, client_of, text, place):
        async with client_of() as client:
            body = problem(await client.post("/v1/toys", content=text, headers=JSON), 400, "malformed_body")
        assert place in body.message

    @pytest.mark.parametrize(
        "kind", ["text/plain", "application/x-www-form-urlencoded", "", "application/json;charset=x"]
    )
    async def test_other_media_type_is_415(self, client_of, kind):
        async with client_of() as client:
            answer = await client.post("/v1/toys", content=b'{"name": "a"}', headers={"content-type": kind})
            problem(answer, 415, "unsupported_media_type")

    async def test_body_over_the_limit_is_413_with_and_without_a_stated_length(self, client_of):
        async def chunks():
            for _ in range(10):
                yield b" " * 1000

        async with client_of() as client:
            problem(await client.post("/v1/toys", content=b" " * 5000, headers=JSON), 413, "body_too_large")
            problem(await client.post("/v1/toys", content=chunks(), headers=JSON), 413, "body_too_large")

    async def test_bytes_stream_to_the_handler_up_to_the_limit(self, client_of):
        async def chunks(count: int):
            for _ in range(count):
                yield b"x" * 1000

        async with client_of() as client:
            taken = await client.put("/v1/toys/ball/content", content=chunks(8))
            assert taken.json() == {"size_bytes": 8000}
            problem(await client.put("/v1/toys/ball/content", content=chunks(9)), 413, "body_too_large")
            problem(await client.put("/v1/toys/ball/content", content=b"x" * 9000), 413, "body_too_large")

    async def test_query_lists_repeat_or_are_comma_separated(self, client_of):
        async with client_of() as client:
            for query in ("colours=red,blue&colours=green", "colours=red&colours=blue&colours=green"):
                answer = await client.get(f"/v1/toys?{query}")
                assert answer.json()["toys"][0]["colours"] == ["red", "blue", "green"]

    @pytest.mark.parametrize(
        ("query", "pointer"),
        [
            ("limit=0", "/limit"),
            ("limit=ten", "/limit"),
            ("limit=1&limit=2", "/limit"),
            ("kind=sof", "/kind"),
            ("colour=red", "/colour"),
            ("mass_kg_max=nan", "/mass_kg_max"),
            ("is_new=maybe", "/is_new"),
        ],
    )
    async def test_query_faults_are_located(self, client_of, query, pointer):
        async with client_of() as client:
            body = problem(await client.get(f"/v1/toys?{query}"), 422, "invalid_input")
        assert pointers(body) == [pointer]

    async def test_path_field_in_the_body_may_be_repeated_but_not_contradicted(self, client_of):
        async with client_of() as client:
            same = await client.patch("/v1/toys/ball", json={"toy_id": "ball", "name": "bear"})
            assert same.json()["name"] == "bear:0"
            other = await client.patch("/v1/toys/ball", json={"toy_id": "cube", "name": "bear"})
            assert pointers(problem(other, 422, "invalid_input")) == ["/toy_id"]

    async def test_path_fields_are_converted_and_located(self, client_of):
        async with client_of() as client:
            taken = await client.put("/v1/toys/numbered/7/ball", json={"name": "bear"})
            assert taken.json()["name"] == "bear:7"
            bad = await client.put("/v1/toys/numbered/seven/ball", json={"name": "bear"})
            assert pointers(problem(bad, 422, "invalid_input")) == ["/number"]

    async def test_query_beside_a_body_is_refused(self, client_of):
        async with client_of() as client:
            answer = await client.post("/v1/toys?name=ball", json={"name": "ball"})
        assert pointers(problem(answer, 422, "invalid_input")) == ["/name"]

    async def test_page_with_a_next_one_links_to_it(self, client_of):
        async with client_of() as client:
            first = await client.get("/v1/toys?colours=red&limit=1")
            assert first.headers["link"].endswith('/v1/toys?colours=red&limit=1&cursor=c%262>; rel="next"')
            address = first.headers["link"].partition(">")[0].lstrip("<")
            second = await client.get(address)
        assert second.json()["next_cursor"] is None
        assert "link" not in second.headers


class TestFaults:
    async def test_unforeseen_exception_is_500_without_its_text_but_logged(self, client_of, logs):
        async with client_of() as client:
            answer = await client.get("/v1/toys/broken", headers={"x-request-id": "mine-1"})
        body = problem(answer, 500, "internal_fault")
        assert body.request_id == "mine-1"
        assert "mine-1" in body.message
        assert "secret-detail" not in answer.text
        assert "Traceback" not in answer.text
        (entry,) = [entry for entry in logs if entry["event"] == "internal_fault"]
        assert "secret-detail" in str(entry["exc_info"])

    async def test_outage_is_503_and_asks_to_come_again(self, client_of):
        async with client_of() as client:
            answer = await client.get("/v1/toys/outage")
        problem(answer, 503, "unavailable")
        assert int(answer.headers["retry-after"]) > 0

    async def test_faulty_statement_is_no_outage(self, client_of):
        async with client_of() as client:
            problem(await client.get("/v1/toys/faulty"), 500, "internal_fault")

    async def test_error_of_compute_keeps_its_code_and_pointer(self, client_of):
        async with client_of() as client:
            body = problem(await client.get("/v1/toys/outside"), 422, "aoi_outside")
        assert pointers(body) == ["/aoi"]

    async def test_declared_error_is_its_problem(self, client_of):
        async with client_of() as client:
            problem(await client.get("/v1/toys/gone"), 404, "not_found")


class TestEnvelope:
    async def test_each_exchange_is_one_line_in_the_log(self, client_of, logs):
        async with client_of() as client:
            await client.get("/v1/toys/ball?colours=red")
            await client.get("/nowhere")
        found = [entry for entry in logs if entry["event"] == "request"]
        assert [(e["path"], e["status"], e["operation"], e["principal"]) for e in found] == [
            ("/v1/toys/ball", 422, "toys.get", "key_1"),
            ("/nowhere", 404, None, None),
        ]
        assert all(entry["duration_ms"] >= 0 and entry["sent_bytes"] > 0 for entry in found)

    async def test_sane_request_id_is_kept_and_another_is_replaced(self, client_of):
        async with client_of() as client:
            kept = await client.get("/v1/me", headers={"x-request-id": "Trace_1.a-b"})
            assert kept.headers["x-request-id"] == kept.json()["request_id"] == "Trace_1.a-b"
            for given in ("a b", "x" * 65, "é".encode().decode("latin-1"), ""):
                made = await client.get("/v1/me", headers={"x-request-id": given.encode("latin-1")})
                assert made.headers["x-request-id"] == made.json()["request_id"] != given
                assert made.headers["x-request-id"].startswith("req_")

    async def test_base_url_comes_from_the_setting_else_from_a_sane_host_header(self, client_of):
        async with client_of() as client:
            assert (await client.get("/v1/me")).json()["base_url"] == "http://testserver.local"
            spoofed = await client.get("/v1/me", headers={"host": "evil.example/path?"})
            problem(spoofed, 400, "malformed_body")
        async with client_of(public_url="https://eo.example/") as client:
            assert (await client.get("/v1/me")).json()["base_url"] == "https://eo.example"

    async def test_health_needs_nobody(self, client_of):
        async with client_of(None) as client:
            assert (await client.get("/healthz")).json() == {"state": "alive"}
