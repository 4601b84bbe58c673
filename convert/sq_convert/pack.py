"""The packing of indices, docs/FORMAT.md section 2: both directions, vectorised."""

from __future__ import annotations

from typing import cast

import numpy as np
from numpy.typing import NDArray

DWORDS = 16  # of a full block, or of a full block's plane
CODES_PER_DWORD = {4: 8, 3: 32, 2: 16}  # for 3 bits: per dword of the three planes together
WIDTHS = tuple(sorted(CODES_PER_DWORD))  # bits of an index


def row_bytes(n_in: int, bits: int) -> int:
    """Bytes of one packed row of ``n_in`` indices."""
    per_dword = CODES_PER_DWORD[bits]
    planes = 3 if bits == 3 else 1
    full, rest = divmod(n_in, DWORDS * per_dword)
    return 4 * planes * (DWORDS * full + -(-rest // per_dword))


def pack(codes: NDArray[np.uint8], bits: int) -> NDArray[np.int8]:
    """Indices ``[n_out, n_in]``, each below ``2**bits``, to raw bytes ``[n_out, row_bytes]``."""
    n_out, n_in = codes.shape
    per_dword = CODES_PER_DWORD[bits]
    block = DWORDS * per_dword
    n_full = n_in // block
    parts = [_pack_blocks(codes[:, : n_full * block].reshape(n_out, n_full, per_dword, DWORDS), bits)]
    rest = n_in - n_full * block
    if rest:
        dwords = -(-rest // per_dword)
        tail = np.zeros((n_out, per_dword * dwords), np.uint8)
        tail[:, :rest] = codes[:, n_full * block :]
        parts.append(_pack_blocks(tail.reshape(n_out, 1, per_dword, dwords), bits))
    return np.concatenate(parts, axis=1).view(np.int8)


def unpack(packed: NDArray[np.int8], n_in: int, bits: int) -> NDArray[np.uint8]:
    """The reverse of :func:`pack`: raw bytes ``[n_out, row_bytes]`` to indices ``[n_out, n_in]``."""
    n_out = packed.shape[0]
    per_dword = CODES_PER_DWORD[bits]
    block = DWORDS * per_dword
    full_bytes = row_bytes(n_in // block * block, bits)
    words = np.ascontiguousarray(packed).view(np.uint8)
    codes = [_unpack_blocks(words[:, :full_bytes], DWORDS, bits)]
    rest = n_in % block
    if rest:
        codes.append(_unpack_blocks(words[:, full_bytes:], -(-rest // per_dword), bits))
    return np.ascontiguousarray(np.concatenate(codes, axis=1)[:, :n_in]).reshape(n_out, n_in)


def _pack_blocks(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """``[n_out, n_blocks, codes per dword, dwords]`` to bytes ``[n_out, n_blocks · bytes of a block]``."""
    n_out = codes.shape[0]
    if bits != 3:
        words = _fields(codes, bits)
    else:
        low, high = codes[:, :, :24], codes[:, :, 24:]
        planes = [
            low[:, :, 8 * p : 8 * p + 8] | (high >> np.uint8(p) & np.uint8(1)) << np.uint8(3)
            for p in range(3)
        ]
        words = np.stack([_fields(plane, 4) for plane in planes], axis=2)
    return np.ascontiguousarray(words.astype("<u4")).reshape(n_out, -1).view(np.uint8)


def _fields(codes: NDArray[np.uint8], width: int) -> NDArray[np.uint32]:
    """``[…, 32 / width, dwords]`` of values of ``width`` bits to dwords ``[…, dwords]``, the first lowest."""
    words = np.zeros(codes.shape[:-2] + codes.shape[-1:], np.uint32)
    for j in range(32 // width):
        words |= codes[..., j, :].astype(np.uint32) << np.uint32(width * j)
    return words


def _unpack_blocks(packed: NDArray[np.uint8], dwords: int, bits: int) -> NDArray[np.uint8]:
    """Bytes ``[n_out, …]`` of blocks of ``dwords`` dwords (a plane) to indices ``[n_out, …]``."""
    n_out = packed.shape[0]
    planes, width = (3, 4) if bits == 3 else (1, bits)
    words = np.ascontiguousarray(packed).view("<u4").reshape(n_out, -1, planes, 1, dwords)
    shifts = np.arange(0, 32, width, dtype=np.uint32).reshape(-1, 1)
    # [n_out, n_blocks, planes, fields of a dword, dwords]
    fields: NDArray[np.uint8] = (words >> shifts & (2**width - 1)).astype(np.uint8)
    if bits != 3:
        return fields.reshape(n_out, -1)
    low = (fields & 7).reshape(n_out, fields.shape[1], 24, dwords)
    top = fields >> 3
    high = top[:, :, 0] | top[:, :, 1] << 1 | top[:, :, 2] << 2
    return cast("NDArray[np.uint8]", np.concatenate([low, high], axis=2).reshape(n_out, -1))
