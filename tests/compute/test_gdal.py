import pytest

from eorouter_compute import gdal


@pytest.fixture(autouse=True)
def no_store(monkeypatch):
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_S3_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("variable", "address", "host", "is_https"),
    [
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:9000", "127.0.0.1:9000", "NO"),
        ("AWS_ENDPOINT_URL", "https://minio.example/", "minio.example", "YES"),
        ("AWS_ENDPOINT_URL_S3", "https://store.example/s3/", "store.example/s3", "YES"),
    ],
)
def test_gdal_is_led_to_the_store_that_objects_are_written_to(monkeypatch, variable, address, host, is_https):
    monkeypatch.setenv(variable, address)
    found = gdal.remote_options()
    assert (found["AWS_S3_ENDPOINT"], found["AWS_HTTPS"], found["AWS_VIRTUAL_HOSTING"]) == (host, is_https, "FALSE")
    assert found.items() >= gdal.OPTIONS.items()


def test_the_address_for_s3_alone_comes_first(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://every.example")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "https://s3.example")
    assert gdal.remote_options()["AWS_S3_ENDPOINT"] == "s3.example"


def test_amazon_and_what_was_said_to_gdal_itself_stay_as_they_are(monkeypatch):
    assert gdal.remote_options() == gdal.OPTIONS
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://every.example")
    monkeypatch.setenv("AWS_S3_ENDPOINT", "own.example")
    assert gdal.remote_options() == gdal.OPTIONS
