"""Files up and down, over a line that breaks."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eorouter.client import (
    ChecksumMismatch,
    EoRouterError,
    InvalidInput,
    JobCancelled,
    JobFailed,
    TooLarge,
    TransferFailed,
    WaitTimeout,
)

Serve = Callable[..., Any]
OP = "POST /v1/op/"
CONTENT = "".join(chr(32 + n % 90) for n in range(300_000))
SHA256 = hashlib.sha256(CONTENT.encode()).hexdigest()
NAME = "attachment; filename=\"ndvi.tif\"; filename*=UTF-8''ndvi.tif"
FILE = {"bytes": CONTENT, "headers": {"etag": '"v1"', "content-disposition": NAME}, "ranged": True}


def item(url: str = "", sha256: str | None = SHA256) -> dict[str, Any]:
    asset: dict[str, Any] = {"href": f"{url}/v1/items/itm_1/assets/ndvi"}
    if sha256:
        asset["file:checksum"] = "1220" + sha256
    return {"json": {"id": "itm_1", "assets": {"ndvi": asset}}}


def served(*answers: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {OP + "items.get": item(**changes), "GET /v1/items/itm_1/assets/ndvi": list(answers)}


def test_download_arrives_whole_with_its_own_name(serve: Serve, tmp_path: Path) -> None:
    service = serve(served(FILE))
    seen: list[tuple[int, int]] = []
    with service.client() as client:
        path = client.items.download("itm_1", "ndvi", to=tmp_path, on_progress=lambda *at: seen.append(at))
    assert path == tmp_path / "ndvi.tif"
    assert path.read_text() == CONTENT
    assert seen[-1] == (300_000, 300_000)
    assert [n for n, _ in seen] == sorted(n for n, _ in seen)
    assert list(tmp_path.iterdir()) == [path]


def test_download_continues_where_the_connection_dropped(serve: Serve, tmp_path: Path) -> None:
    service = serve(served({**FILE, "stop_after": 100_000}, {**FILE, "stop_after": 50_000}, FILE))
    with service.client() as client:
        path = client.items.download("itm_1", "ndvi", to=tmp_path / "goal.tif")
    assert path.read_text() == CONTENT
    ranges = [entry["headers"].get("range") for entry in service.journal("GET")]
    assert ranges == [None, "bytes=100000-", "bytes=150000-"]
    assert {entry["headers"].get("if-range") for entry in service.journal("GET")} == {None, '"v1"'}


def test_download_survives_more_drops_than_tries_while_it_moves_on(serve: Serve, tmp_path: Path) -> None:
    service = serve(served(*[{**FILE, "stop_after": 20_000}] * 10, FILE))
    with service.client() as client:
        assert client.items.download("itm_1", "ndvi", to=tmp_path).read_text() == CONTENT


def test_download_that_never_moves_on_ends_with_an_error(serve: Serve, tmp_path: Path) -> None:
    answer = {"bytes": CONTENT, "stop_after": 1000}  # no entity tag: it begins anew each time
    service = serve(served(answer))
    with service.client() as client, pytest.raises(TransferFailed, match="again and again"):
        client.items.download("itm_1", "ndvi", to=tmp_path)


def test_download_begun_by_an_earlier_process_is_finished(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "itm_1.ndvi.part").write_text(CONTENT[:123_456])
    (tmp_path / "itm_1.ndvi.part.etag").write_text('"v1"')
    service = serve(served(FILE))
    with service.client() as client:
        assert client.items.download("itm_1", "ndvi", to=tmp_path).read_text() == CONTENT
    assert [entry["headers"]["range"] for entry in service.journal("GET")] == ["bytes=123456-"]


@pytest.mark.parametrize("held", [300_000, 400_000])
def test_download_with_nothing_left_to_fetch_is_still_checked(serve: Serve, tmp_path: Path, held: int) -> None:
    (tmp_path / "itm_1.ndvi.part").write_text((CONTENT * 2)[:held])
    (tmp_path / "itm_1.ndvi.part.etag").write_text('"v1"')
    service = serve(served(FILE))
    with service.client() as client:
        assert client.items.download("itm_1", "ndvi", to=tmp_path).read_text() == CONTENT


def test_download_of_an_object_that_changed_begins_anew(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "itm_1.ndvi.part").write_text("old" * 1000)
    (tmp_path / "itm_1.ndvi.part.etag").write_text('"v0"')
    service = serve(served(FILE))
    with service.client() as client:
        assert client.items.download("itm_1", "ndvi", to=tmp_path).read_text() == CONTENT


def test_download_with_another_checksum_is_removed(serve: Serve, tmp_path: Path) -> None:
    service = serve(served(FILE, sha256="0" * 64))
    with service.client() as client, pytest.raises(ChecksumMismatch, match=SHA256):
        client.items.download("itm_1", "ndvi", to=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("disposition", "expected"),
    [
        ("attachment; filename=\"x_.tif\"; filename*=UTF-8''x%C3%A4.tif", "xä.tif"),
        ('attachment; filename="../../etc/passwd"', "passwd"),
        ("attachment; filename*=UTF-8''..%2F..%2Fevil.tif", "evil.tif"),
        ('attachment; filename=".."', "itm_1.ndvi"),
        ("attachment; filename*=UTF-8''a%00b", "itm_1.ndvi"),
        ("", "itm_1.ndvi"),
    ],
)
def test_download_never_leaves_its_folder(serve: Serve, tmp_path: Path, disposition: str, expected: str) -> None:
    folder = tmp_path / "inner"
    folder.mkdir()
    service = serve(served({"bytes": CONTENT, "headers": {"content-disposition": disposition}}))
    with service.client() as client:
        path = client.items.download("itm_1", "ndvi", to=folder)
    assert path == folder / expected
    assert [found.name for found in folder.iterdir()] == [expected]


def test_download_of_an_unknown_asset_names_those_there_are(serve: Serve, tmp_path: Path) -> None:
    service = serve(served(FILE))
    with service.client() as client, pytest.raises(EoRouterError, match=r"no asset 'red'. It has: ndvi"):
        client.items.download("itm_1", "red", to=tmp_path)


def test_download_from_elsewhere_does_not_get_the_key(serve: Serve, tmp_path: Path) -> None:
    store = serve({"GET /v1/items/itm_1/assets/ndvi": FILE})
    service = serve({OP + "items.get": item(url=store.url)})
    with service.client() as client:
        client.items.download("itm_1", "ndvi", to=tmp_path)
    assert "authorization" in service.journal()[0]["headers"]
    assert "authorization" not in store.journal("GET")[0]["headers"]


def test_download_redirected_elsewhere_does_not_take_the_key_along(serve: Serve, tmp_path: Path) -> None:
    store = serve({"GET /signed": FILE})
    service = serve(served({"status": 302, "headers": {"location": f"{store.url}/signed"}}))
    with service.client() as client:
        assert client.items.download("itm_1", "ndvi", to=tmp_path).read_text() == CONTENT
    assert "authorization" not in store.journal("GET")[0]["headers"]


def uploading(*answers: dict[str, Any], put: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    address = {"method": "PUT", "url": "/v1/uploads/upl_1/content?token=t", "headers": {"x-store": "a"}}
    return {
        OP + "uploads.initiate": {"json": {"upload": upload_state("initiated")["json"], "address": address}},
        "PUT /v1/uploads/upl_1/content?token=t": put or [{"json": {}}],
        OP + "uploads.complete": list(answers),
    }


def upload_state(state: str, **more: Any) -> dict[str, Any]:
    return {"json": {"upload_id": "upl_1", "state": state, "item_id": None, "problem": None} | more}


def test_upload_streams_and_waits_for_the_item(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "scene.tif"
    path.write_text(CONTENT)
    service = serve(
        uploading(upload_state("ingesting"), upload_state("ingesting"), upload_state("completed", item_id="itm_1"))
    )
    seen: list[tuple[int, int]] = []
    with service.client() as client:
        done = client.uploads.upload(path, project_id="prj_1", title="A scene", on_progress=lambda *at: seen.append(at))
    assert done["item_id"] == "itm_1"
    assert seen[-1] == (300_000, 300_000)
    assert len(seen) == 2
    (put,) = service.journal("PUT")
    assert put["headers"]["content-length"] == "300000"
    assert "transfer-encoding" not in put["headers"]
    assert put["body"] == "300000 bytes"
    assert put["headers"]["x-store"] == "a"
    asked = json.loads(service.journal("initiate")[0]["body"])
    assert asked == {
        "project_id": "prj_1", "filename": "scene.tif", "size_bytes": 300_000, "sha256": SHA256, "title": "A scene",
    }  # fmt: skip
    assert len(service.journal("complete")) == 3


def test_upload_is_sent_again_from_its_beginning_when_the_line_breaks(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "scene.tif"
    path.write_text(CONTENT)
    done = upload_state("completed", item_id="itm_1")
    service = serve(uploading(done, put=[{"drop": True}, {"status": 503, "json": {}}, {"json": {}}]))
    with service.client() as client:
        client.uploads.upload(path, project_id="prj_1")
    assert [entry["body"] for entry in service.journal("PUT")] == ["300000 bytes"] * 3


def test_upload_that_is_refused_while_it_is_sent_is_not_sent_again(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "scene.tif"
    path.write_text(CONTENT)
    refusal = {
        "status": 413,
        "json": {"code": "quota_exceeded", "message": "10 bytes are left."},
        "headers": {"connection": "close"},
    }
    service = serve(uploading(upload_state("completed"), put=[refusal]))
    with service.client() as client, pytest.raises(TooLarge, match="10 bytes are left"):
        client.uploads.upload(path, project_id="prj_1")
    assert len(service.journal("PUT")) == 1


def test_upload_that_cannot_be_taken_in_says_why(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "scene.tif"
    path.write_text("not a raster")
    refusal = {"status": 422, "json": {"code": "unreadable", "message": "It is no raster.", "request_id": "req_9"}}
    service = serve(uploading(upload_state("ingesting"), refusal))
    with (
        service.client() as client,
        pytest.raises(InvalidInput, match=r"It is no raster\. \[unreadable, 422, request req_9"),
    ):
        client.uploads.upload(path, project_id="prj_1")


def test_upload_that_takes_too_long_stops_waiting(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "scene.tif"
    path.write_text(CONTENT)
    service = serve(uploading(upload_state("ingesting"), upload_state("ingesting")))
    with service.client() as client, pytest.raises(WaitTimeout, match=r"still being taken in after 0\.05 s"):
        client.uploads.upload(path, project_id="prj_1", timeout_s=0.05)


def job(state: str, **more: Any) -> dict[str, Any]:
    return {"json": {"job_id": "job_1", "state": state, "pixels_done": 0, "problem": None} | more}


def test_job_is_asked_until_it_completed(serve: Serve) -> None:
    service = serve(
        {
            OP + "analytics.execute": job("queued"),
            OP + "processing.jobs.get": [
                job("running"),
                job("running", pixels_done=5),
                job("completed", result={"items": {"clip": "itm_2"}}),
            ],
        }
    )
    seen: list[str] = []
    with service.client() as client:
        done = client.execute("itm_1", method="clip", project_id="prj_1", aoi=[1, 2, 3, 4]).wait(
            on_progress=lambda j: seen.append(j.state)
        )
    assert seen == ["queued", "running", "running", "completed"]
    assert done.item_ids == ["itm_2"]
    assert json.loads(service.journal("analytics.execute")[0]["body"]) == {
        "task": {"method": "clip", "aoi": [1, 2, 3, 4]}, "inputs": [{"item_id": "itm_1"}], "project_id": "prj_1",
    }  # fmt: skip


def test_job_without_onlookers_is_waited_for_by_the_service(serve: Serve) -> None:
    ended = {"started_at": "2026-01-01T00:00:00Z", "finished_at": "2026-01-01T00:00:02.500000Z"}
    service = serve(
        {
            OP + "processing.jobs.get": job("completed", result={"items": {"ndvi": "itm_2"}}, **ended),
            OP + "analytics.execute": job("queued"),
        }
    )
    with service.client() as client:
        done = client.execute(method="clip", inputs=["itm_1"], project_id="prj_1").wait()
    assert done.items == {"ndvi": "itm_2"}
    assert done.seconds == 2.5
    (asked,) = service.journal("jobs.get")
    assert json.loads(asked["body"]) == {"job_id": "job_1", "wait_s": 20.0}


@pytest.mark.parametrize(
    ("me", "projects", "expected"),
    [({"project_id": "prj_key"}, [], "prj_key"), ({"project_id": None}, [{"project_id": "prj_only"}], "prj_only")],
)
def test_job_without_items_goes_to_the_project_there_can_be_only_one_of(
    serve: Serve, me: dict[str, Any], projects: list[dict[str, Any]], expected: str
) -> None:
    service = serve(
        {
            OP + "auth.me": {"json": me},
            OP + "projects.list": {"json": {"projects": projects, "next_cursor": None}},
            OP + "analytics.execute": job("queued"),
        }
    )
    with service.client() as client:
        client.execute(method="generate")
    assert json.loads(service.journal("analytics.execute")[0]["body"])["project_id"] == expected


def test_job_with_items_leaves_its_project_to_the_service(serve: Serve) -> None:
    service = serve({OP + "analytics.execute": job("queued")})
    with service.client() as client:
        client.execute("itm_1", "itm_2", method="clip")
    assert "project_id" not in json.loads(service.journal("analytics.execute")[0]["body"])


def test_job_that_the_service_waits_for_is_asked_for_once(serve: Serve) -> None:
    service = serve({OP + "analytics.execute": job("queued"), OP + "processing.jobs.get": job("completed")})
    with service.client() as client:
        client.execute("itm_1", method="clip").wait()
    assert len(service.journal("processing.jobs.get")) == 1


def test_job_without_items_asks_for_its_project_where_there_are_several(serve: Serve) -> None:
    there_are = {"json": {"projects": [{"project_id": "prj_1"}, {"project_id": "prj_2"}], "next_cursor": None}}
    service = serve({OP + "auth.me": {"json": {"project_id": None}}, OP + "projects.list": there_are})
    with service.client() as client, pytest.raises(EoRouterError, match=r"project_id=… of prj_1, prj_2"):
        client.execute(method="generate")


@pytest.mark.parametrize(("state", "kind"), [("failed", JobFailed), ("cancelled", JobCancelled)])
def test_job_that_ends_without_outputs_is_raised(serve: Serve, state: str, kind: type[Exception]) -> None:
    problem = {"code": "source_unreadable", "message": "Tile 3 is broken.", "shard": 4} if state == "failed" else None
    service = serve({OP + "analytics.execute": job("queued"), OP + "processing.jobs.get": job(state, problem=problem)})
    with service.client() as client, pytest.raises(kind) as caught:
        client.execute("itm_1", method="clip", project_id="prj_1").wait()
    if isinstance(caught.value, JobFailed):
        assert caught.value.problem["shard"] == 4
        assert "Tile 3 is broken" in str(caught.value)


def test_job_that_takes_too_long_stops_waiting_and_goes_on(serve: Serve) -> None:
    service = serve({OP + "analytics.execute": job("queued"), OP + "processing.jobs.get": job("running")})
    with service.client() as client, pytest.raises(WaitTimeout, match="still running"):
        client.execute("itm_1", method="clip", project_id="prj_1").wait(timeout_s=0.03)
