"""Objects of an attempt: what is counted and digested, however large, and that they appear once and whole."""

import hashlib

import numpy as np
import pytest

from eorouter_compute.attempt import Attempt, local_path, read_object
from eorouter_compute.errors import AttemptExists


def test_digest_of_a_large_object_is_that_of_its_bytes(tmp_path):
    """The buffer is used again after each write, while the digest is taken beside."""
    rng, buffer, expected = np.random.default_rng(1), np.empty(3 << 20, np.uint8), hashlib.sha256()
    attempt = Attempt(tmp_path.as_uri())
    with attempt.create("large.bin") as target:
        for _ in range(15):
            buffer[:] = rng.integers(0, 256, buffer.size, np.uint8)
            expected.update(buffer.tobytes())
            assert target.write(buffer) == buffer.size  # pyright: ignore[reportCallIssue, reportArgumentType]
    ref = attempt.refs["large.bin"]
    assert (ref.size, ref.sha256) == (45 << 20, expected.hexdigest())
    assert hashlib.sha256(read_object(ref.href)).hexdigest() == ref.sha256


def test_what_passes_to_the_merge_is_whole_and_has_no_digest(tmp_path):
    attempt, parts = Attempt(tmp_path.as_uri()), [bytes([n]) * (n << 15) for n in (1, 40, 2, 90)]
    with attempt.create("segment.bin", is_passing=True) as target:
        for part in parts:
            target.write(part)
    ref = attempt.refs["segment.bin"]
    assert (ref.size, ref.sha256) == (sum(map(len, parts)), "")
    assert read_object(ref.href) == b"".join(parts)


def test_an_object_appears_whole_or_never(tmp_path):
    attempt = Attempt(tmp_path.as_uri())

    def half() -> None:
        with attempt.create("half.bin") as target:
            target.write(bytes(40 << 20))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        half()
    assert list(tmp_path.iterdir()) == []
    assert attempt.refs == {}


def test_a_method_that_writes_a_name_twice_is_told_so_unless_the_first_came_to_nothing(tmp_path):
    attempt = Attempt(tmp_path.as_uri())
    with pytest.raises(ZeroDivisionError), attempt.create("one.bin"):
        raise ZeroDivisionError
    attempt.write("one.bin", b"first")
    with pytest.raises(ValueError, match=r"one\.bin twice"):
        attempt.write("one.bin", b"second")


def test_a_second_writer_of_the_same_name_loses(tmp_path):
    first = Attempt(tmp_path.as_uri()).write("one.bin", b"first")
    with pytest.raises(AttemptExists, match=r"one\.bin"):
        Attempt(tmp_path.as_uri()).write("one.bin", b"second")
    path = local_path(first.href)
    assert path is not None
    assert path.read_bytes() == b"first"
