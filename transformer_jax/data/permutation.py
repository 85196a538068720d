"""Stateless pseudo-random permutation of range(n) (Feistel network)."""

import numpy as np

_ROUNDS = 6


def permuted(index_P: np.ndarray, size: int, *key: int | np.ndarray) -> np.ndarray:
    """The images of indices under a pseudo-random permutation of range(size).

    Each half of an index is in turn XORed with a hash of the other, which can be undone, so
    that no two indices meet (Luby and Rackoff 1988). What falls outside of `size` is permuted
    again until it does not (Black and Rogaway 2002, "cycle walking").

    The indices are in [0, size), of at most 2**62. Parts of the key are integers or [P] of them;
    another key is another order. Returns [P] int64, distinct for distinct indices of one key.
    """
    key_P = np.broadcast_to(keys(*key), index_P.shape)
    half = np.uint64(max((max(size - 1, 1).bit_length() + 1) // 2, 1))
    mask = np.uint64((1 << int(half)) - 1)
    result_P = index_P.astype(np.uint64)
    walking = np.arange(len(result_P))
    while len(walking):
        value, key_W = result_P[walking], key_P[walking]
        left, right = value >> half, value & mask
        for number in range(_ROUNDS):
            left, right = right, left ^ (_hash(right ^ _hash(key_W + np.uint64(number))) & mask)
        result_P[walking] = left << half | right
        walking = walking[result_P[walking] >= size]
    return result_P.astype(np.int64)


def keys(*parts: int | np.ndarray) -> np.ndarray:
    """A uint64 key of integers, [P] if one of them is an array [P], else [1]."""
    result_P = np.zeros(1, np.uint64)
    for part in parts:
        result_P = _hash(result_P ^ np.atleast_1d(np.asarray(part)).astype(np.uint64))
    return result_P


def _hash(value_P: np.ndarray) -> np.ndarray:
    """SplitMix64's output function (Steele et al. 2014); uint64 arithmetic wraps around."""
    value_P = value_P + np.uint64(0x9E3779B97F4A7C15)
    value_P = (value_P ^ (value_P >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value_P = (value_P ^ (value_P >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value_P ^ (value_P >> np.uint64(31))
