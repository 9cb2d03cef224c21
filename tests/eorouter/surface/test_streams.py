"""A list that goes on, as server-sent events and as lines, over the real surface."""

import msgspec
import pytest

from eorouter.errors import InvalidInput
from eorouter.surface import streams


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("text/event-stream", "text/event-stream"),
        ("application/x-ndjson, application/json;q=0.5", "application/x-ndjson"),
        ("application/json, text/event-stream", None),
        ("*/*", None),
        ("text/html, */*;q=0.1", None),
        ("", None),
    ],
)
def test_a_stream_is_sent_to_who_asks_for_one_before_json(accept, kind):
    assert streams.wanted(accept) == kind


@pytest.mark.parametrize("text", ["x", "-1", "1.5", "9" * 19, "１"])
def test_an_id_that_is_none_of_ours_is_refused(text):
    with pytest.raises(InvalidInput, match="Last-Event-ID"):
        streams.last_event_id({"last-event-id": text})


def parsed(text):
    """Server-sent events by the standard's own steps: blocks, fields, comments left out."""
    found = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if line and not line.startswith(":"))
        if "data" in fields:
            found.append((int(fields["id"]), fields["event"], msgspec.json.decode(fields["data"])))
    return found


async def test_events_carry_id_kind_and_entry_and_go_on_behind_an_id(client_of):
    async with client_of() as client:
        whole = await client.get("/v1/ticks", headers={"accept": "text/event-stream"})
        assert whole.headers["content-type"].startswith("text/event-stream")
        assert whole.text.startswith("retry: ")
        assert parsed(whole.text) == [(n, "tick", {"number": n}) for n in (1, 2, 3)]
        rest = await client.get("/v1/ticks", headers={"accept": "text/event-stream", "last-event-id": "2"})
        assert parsed(rest.text) == [(3, "tick", {"number": 3})]
        over = await client.get("/v1/ticks", headers={"accept": "text/event-stream", "last-event-id": "3"})
        assert (over.status_code, over.content) == (204, b"")


async def test_lines_are_one_entry_each(client_of):
    async with client_of() as client:
        answer = await client.get("/v1/ticks", headers={"accept": "application/x-ndjson"})
    lines = [msgspec.json.decode(line) for line in answer.text.splitlines() if line]
    assert lines == [{"number": 1}, {"number": 2}, {"number": 3}]


async def test_without_asking_the_list_is_json_and_a_refusal_is_a_problem(client_of):
    async with client_of() as client:
        plain = await client.get("/v1/ticks")
        refused = await client.get("/v1/ticks?limit=7", headers={"accept": "text/event-stream"})
        strange = await client.get("/v1/ticks", headers={"accept": "text/event-stream", "last-event-id": "x"})
    assert plain.json() == {"ticks": [{"number": 1}, {"number": 2}, {"number": 3}]}
    assert (refused.status_code, refused.json()["code"]) == (404, "not_found")
    assert (strange.status_code, strange.json()["code"]) == (422, "invalid_input")
