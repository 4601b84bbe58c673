"""Packing: there and back over awkward sizes, and docs/FORMAT.md's sentences one by one."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from sq_convert.pack import WIDTHS, pack, row_bytes, unpack

SIZES = [1, 7, 8, 31, 32, 33, 44, 64, 127, 128, 129, 172, 511, 512, 513, 576, 700, 1536, 11008]


def some_codes(n_in: int, bits: int) -> NDArray[np.uint8]:
    return np.random.default_rng(n_in).integers(0, 2**bits, (5, n_in), dtype=np.uint8)


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("n_in", SIZES)
def test_round_trip(n_in: int, bits: int) -> None:
    codes = some_codes(n_in, bits)
    packed = pack(codes, bits)
    assert packed.dtype == np.int8
    assert packed.shape == (5, row_bytes(n_in, bits))
    assert (unpack(packed, n_in, bits) == codes).all()


@pytest.mark.parametrize("n_in", SIZES)
def test_row_bytes_are_those_of_the_document(n_in: int) -> None:
    assert row_bytes(n_in, 4) == 64 * (n_in // 128) + 4 * -(-(n_in % 128) // 8)
    assert row_bytes(n_in, 3) == 192 * (n_in // 512) + 12 * -(-(n_in % 512) // 32)
    assert row_bytes(n_in, 2) == 64 * (n_in // 256) + 4 * -(-(n_in % 256) // 16)


def dwords(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint32]:
    return pack(codes, bits).view("<u4")


def test_the_example_of_the_document() -> None:
    codes = some_codes(44, 4)
    words = dwords(codes, 4)
    assert words.shape == (5, 6)
    assert ((words[:, 2] >> 12 & 15) == codes[:, 20]).all()


def test_four_bits_weight_by_weight() -> None:
    codes = some_codes(300, 4)
    words = dwords(codes, 4)
    for weight in range(300):
        block, within = divmod(weight, 128)
        width = 16 if block < 2 else 6  # 44 weights are left
        j, i = divmod(within, width)
        assert ((words[:, 16 * block + i] >> (4 * j) & 15) == codes[:, weight]).all()


def test_three_bits_weight_by_weight() -> None:
    codes = some_codes(612, 3)
    words = dwords(codes, 3)
    for weight in range(612):
        block, within = divmod(weight, 512)
        width = 16 if block < 1 else 4  # 100 weights are left
        c, i = divmod(within, width)
        start = 48 * block + i
        if c < 24:
            found = words[:, start + width * (c // 8)] >> (4 * (c % 8)) & 7
        else:
            bit = [words[:, start + width * p] >> (4 * (c - 24) + 3) & 1 for p in range(3)]
            found = bit[0] | bit[1] << 1 | bit[2] << 2
        assert (found == codes[:, weight]).all()


def test_two_bits_weight_by_weight() -> None:
    codes = some_codes(300, 2)
    words = dwords(codes, 2)
    for weight in range(300):
        block, within = divmod(weight, 256)
        width = 16 if block < 1 else 3  # 44 weights are left
        j, i = divmod(within, width)
        assert ((words[:, 16 * block + i] >> (2 * j) & 3) == codes[:, weight]).all()


@pytest.mark.parametrize(("bits", "block", "last"), [(2, 256, [3]), (3, 512, [7, 0, 0]), (4, 128, [15])])
def test_positions_past_the_row_are_zero(bits: int, block: int, last: list[int]) -> None:
    full = np.full((1, block + 1), 2**bits - 1, np.uint8)
    assert dwords(full, bits)[0, block * bits // 32 :].tolist() == last
