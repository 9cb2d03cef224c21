"""Tiles packed as DEFLATE: zlib reads each back, checksum and all, and the header says how hard the writer tried."""

import zlib

import numpy as np
import pytest

from eorouter_compute import deflate


def _tiles() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    partly = np.zeros((64, 64, 1), "uint16")
    partly[:9, :13] = rng.integers(0, 9000, (9, 13, 1))
    return {
        "zeros": np.zeros((64, 64, 1), "uint16"),
        "noise": rng.integers(0, 65536, (64, 64, 1), "uint16"),
        "classes": np.kron(rng.integers(0, 9, (8, 8)), np.ones((8, 8))).astype("uint8")[..., np.newaxis],
        "partly": partly,
        "bands": rng.integers(0, 50, (32, 64, 3), "uint16"),
    }


@pytest.mark.parametrize("kind", _tiles())
def test_zlib_reads_a_packed_tile_back_and_it_calls_itself_thorough(kind: str) -> None:
    tile = _tiles()[kind]
    packed = deflate.pack(tile)
    assert zlib.decompress(packed) == tile.tobytes()
    assert deflate.is_thorough(packed)
    assert deflate.pack(tile.copy()) == packed


@pytest.mark.parametrize("level", [0, 1, 3, 4, 9, 12])
def test_zlib_reads_every_level_back(level: int) -> None:
    tile = _tiles()["classes"]
    assert zlib.decompress(deflate.pack_at(tile, level)) == tile.tobytes()


@pytest.mark.parametrize("level", [0, 1, 2, 3])
@pytest.mark.parametrize("size", [1, 15, 16, 17, 300, 70_000])
def test_isal_starts_with_a_dictionary_for_its_hashes_would_hold_an_address_else(level: int, size: int) -> None:
    pixels = np.random.default_rng(size).integers(0, 9, size, "uint8")
    packed = deflate.pack_at(pixels, level)
    ahead = min(size, 16)
    assert packed[2:7] == bytes([0, ahead, 0, 255 - ahead, 255])
    assert packed[7 : 7 + ahead] == pixels[:ahead].tobytes()
    assert zlib.decompress(packed) == pixels.tobytes()
    rest = zlib.decompressobj(-zlib.MAX_WBITS, zdict=pixels[:ahead].tobytes())
    assert rest.decompress(packed[7 + ahead : -4]) == pixels[ahead:].tobytes()


def test_a_redundant_tile_is_no_larger_than_zlib_makes_it() -> None:
    tile = _tiles()["classes"]
    assert len(deflate.pack(tile)) <= len(zlib.compress(tile.tobytes(), 6))


@pytest.mark.parametrize(("level", "is_thorough"), [(1, False), (6, True), (9, True)])
def test_streams_of_zlib_are_told_apart_by_level(level: int, is_thorough: bool) -> None:
    assert deflate.is_thorough(zlib.compress(b"pixels" * 99, level)) is is_thorough


def test_an_empty_tile_is_not_thorough() -> None:
    assert not deflate.is_thorough(b"")
