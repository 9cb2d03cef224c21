"""Tokens are recognised under their purpose, until they end, and not once altered."""

from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eorouter import signing
from eorouter.errors import InvalidCursor, SignatureInvalid
from eorouter.settings import Settings
from eorouter.types import Input

HERE = Settings(secret="a" * 40)
ELSEWHERE = Settings(secret="b" * 40)
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
LATER = NOW + timedelta(minutes=5)

PAYLOADS = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


class ThingsListInput(Input):
    kind: str = "a"
    limit: int = 10
    cursor: str | None = None


@given(PAYLOADS)
def test_token_opens_to_what_was_signed(payload):
    token = signing.sign(HERE, "download", payload, expires_at=LATER)
    assert signing.verify(HERE, "download", token, now=NOW) == payload
    assert token.replace("-", "a").replace("_", "a").isalnum()


@given(st.integers(0, 200), st.integers(1, 63))
def test_token_altered_anywhere_is_refused(position, flip):
    token = bytearray(signing.sign(HERE, "download", ["key", 1], expires_at=LATER), "ascii")
    at = position % len(token)
    alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    token[at] = alphabet[(alphabet.index(token[at]) + flip) % 64]
    with pytest.raises(SignatureInvalid):
        signing.verify(HERE, "download", token.decode(), now=NOW)


@pytest.mark.parametrize("addition", ["=", "==", "A", "A===", "\n", " ", "%", "é"])
def test_token_with_something_added_is_refused(addition):
    token = signing.sign(HERE, "download", ["key", 1], expires_at=LATER)
    for text in (token + addition, addition + token, token[:9] + addition + token[9:]):
        with pytest.raises(SignatureInvalid):
            signing.verify(HERE, "download", text, now=NOW)


def test_token_in_the_other_alphabet_is_refused():
    tokens = (signing.sign(HERE, "download", number, expires_at=LATER) for number in range(99))
    token = next(token for token in tokens if "-" in token or "_" in token)
    with pytest.raises(SignatureInvalid):
        signing.verify(HERE, "download", token.replace("-", "+").replace("_", "/"), now=NOW)


@given(st.text())
def test_text_that_is_no_token_is_refused(text):
    with pytest.raises(SignatureInvalid):
        signing.verify(HERE, "download", text, now=NOW)


def test_token_is_good_for_one_purpose_one_installation_and_a_time():
    token = signing.sign(HERE, "download", "x", expires_at=LATER)
    assert signing.verify(HERE, "download", token, now=LATER) == "x"
    for settings, purpose, now in (
        (HERE, "upload", NOW),
        (ELSEWHERE, "download", NOW),
        (HERE, "download", LATER + timedelta(seconds=1)),
    ):
        with pytest.raises(SignatureInvalid):
            signing.verify(settings, purpose, token, now=now)


def test_cursor_holds_for_the_same_list_and_filters_whatever_the_page_size():
    asked = ThingsListInput(kind="b")
    token = signing.cursor(HERE, "things", asked, ["thg_9", 3])
    again = msgspec.structs.replace(asked, limit=50, cursor=token)
    assert signing.position(HERE, "things", again, token) == ["thg_9", 3]
    for settings, name, request in (
        (ELSEWHERE, "things", asked),
        (HERE, "others", asked),
        (HERE, "things", ThingsListInput(kind="c")),
    ):
        with pytest.raises(InvalidCursor):
            signing.position(settings, name, request, token)


def test_signed_address_is_no_cursor():
    token = signing.sign(HERE, "download", "x", expires_at=LATER)
    with pytest.raises(InvalidCursor):
        signing.position(HERE, "things", ThingsListInput(), token)
