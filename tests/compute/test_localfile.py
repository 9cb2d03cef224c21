"""Files written once: every byte in its place whatever the sizes of the writes, whole or not there, on any disk."""

import errno
import fcntl
import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from eorouter_compute import localfile
from eorouter_compute.localfile import create_once

BLOCK = 4 << 20
SIZES = [
    [],
    [0],
    [1],
    [BLOCK],
    [BLOCK - 1, 1, 1],
    [BLOCK + 1],
    [3 * BLOCK],
    [100, 9 * BLOCK + 7, 0, 4096],
    [4 * BLOCK],
    [4 * BLOCK + 1, 5],
    [5000] * 2000,
]


@pytest.mark.parametrize("is_durable", [True, False])
@pytest.mark.parametrize("sizes", SIZES, ids=lambda sizes: f"{len(sizes)}x{sum(sizes)}")
def test_bytes_are_those_written_in_their_order(tmp_path, sizes, is_durable):
    data = np.random.default_rng(3).integers(0, 256, sum(sizes), np.uint8)
    path, ends = tmp_path / "folder" / "file.bin", np.cumsum([0, *sizes])
    with create_once(path, is_durable=is_durable) as target:
        for start, end in pairwise(ends):
            assert target.write(data[start:end].data) == end - start
        assert not path.exists()
    assert path.read_bytes() == data.tobytes()
    assert [each.name for each in path.parent.iterdir()] == ["file.bin"]


def test_items_wider_than_a_byte_are_counted_in_bytes(tmp_path):
    values = np.arange(30, dtype=np.float32).reshape(2, 3, 5)
    with create_once(tmp_path / "f", is_durable=True) as target:
        assert target.write(values.data) == 120  # pyright: ignore[reportArgumentType]
    assert (tmp_path / "f").read_bytes() == values.tobytes()


@pytest.mark.parametrize("is_durable", [True, False])
def test_the_second_writer_of_a_name_loses_and_leaves_nothing(tmp_path, is_durable):
    def write(text):
        with create_once(tmp_path / "f", is_durable=is_durable) as target:
            target.write(text)

    write(b"first")
    with pytest.raises(FileExistsError):
        write(b"second")
    assert [(each.name, each.read_bytes()) for each in tmp_path.iterdir()] == [("f", b"first")]


def refusing(monkeypatch, error, after):
    """Let writes fail once `after` of them went well; tells what was tried."""
    real, tried = os.write, []

    def write(descriptor, data):
        tried.append(len(data))
        if len(tried) == after + 1:
            raise OSError(error, os.strerror(error))
        return real(descriptor, data)

    monkeypatch.setattr(localfile.os, "write", write)
    return tried


@pytest.mark.parametrize("after", [0, 2, 4])
def test_a_full_disk_is_told_to_the_writer_and_leaves_nothing(tmp_path, monkeypatch, after):
    refusing(monkeypatch, errno.ENOSPC, after)

    def write():
        with create_once(tmp_path / "f", is_durable=True) as target:
            for _ in range(5):
                target.write(bytes(BLOCK))

    with pytest.raises(OSError, match="No space left"):
        write()
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_refuses_direct_blocks_gets_them_through_the_cache(tmp_path, monkeypatch):
    tried = refusing(monkeypatch, errno.EINVAL, 5)
    data = np.random.default_rng(4).bytes(7 * BLOCK + 10)
    with create_once(tmp_path / "f", is_durable=True) as target:
        target.write(data)
    assert (tmp_path / "f").read_bytes() == data
    assert tried == [*[BLOCK] * 8, 4096]


def test_large_files_pass_the_cache_by_and_their_beginnings_do_not(tmp_path, monkeypatch):
    real, direct = os.write, []

    def write(descriptor, data):
        direct.append(bool(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT))
        return real(descriptor, data)

    monkeypatch.setattr(localfile.os, "write", write)
    with create_once(tmp_path / "f", is_durable=True) as target:
        target.write(bytes(6 * BLOCK))
    assert direct == [False] * 4 + [True] * 2


def test_a_writer_that_gives_up_leaves_nothing_open(tmp_path):
    before = len(list(Path("/proc/self/fd").iterdir()))

    def half():
        with create_once(tmp_path / "f", is_durable=True) as target:
            target.write(bytes(3 * BLOCK))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        half()
    assert list(tmp_path.iterdir()) == []
    assert len(list(Path("/proc/self/fd").iterdir())) == before
