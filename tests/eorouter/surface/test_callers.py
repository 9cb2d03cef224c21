"""Where requests come from."""

from eorouter.surface import callers


def of(host: str | None) -> str:
    client = None if host is None else type("Client", (), {"host": host})
    return callers.address_of(type("Request", (), {"client": client}))


def test_addresses_of_one_network_are_one():
    assert of("2001:db8::1") == of("2001:db8::2") != of("2001:db8:1::1")
    assert of("10.0.0.1") != of("10.0.0.2")


def test_what_is_no_address_is_taken_as_it_is():
    assert of("testclient") == "testclient"
    assert of(None) == ""
