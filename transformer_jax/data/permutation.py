"""A random order of any number of things that needs no memory."""

import numpy as np

_ROUNDS = 6


def permuted(index_N: np.ndarray, size: int, key_N: np.ndarray) -> np.ndarray:
    """The places of indices in a random order of 0 to size - 1: a Feistel network.

    Each half of an index is in turn XORed with a hash of the other, which can be undone, so
    that no two indices meet (Luby and Rackoff 1988). What falls outside of `size` is permuted
    again until it does not (Black and Rogaway 2002, "cycle walking").

    Args:
      index_N: integers in [0, size).
      size: number of things, at most 2**62.
      key_N: uint64, from `keys`; another key is another order.

    Returns:
      [N] int64, distinct for distinct indices of one key.
    """
    half = np.uint64(max((max(size - 1, 1).bit_length() + 1) // 2, 1))
    mask = np.uint64((1 << int(half)) - 1)
    result_N = index_N.astype(np.uint64)
    walking = np.arange(len(result_N))
    while len(walking):
        value, key = result_N[walking], key_N[walking]
        left, right = value >> half, value & mask
        for number in range(_ROUNDS):
            left, right = right, left ^ (_hash(right ^ _hash(key + np.uint64(number))) & mask)
        result_N[walking] = left << half | right
        walking = walking[result_N[walking] >= size]
    return result_N.astype(np.int64)


def keys(*parts: int | np.ndarray) -> np.ndarray:
    """A uint64 key of integers, [N] if one of them is an array [N], else [1]."""
    result_N = np.zeros(1, np.uint64)
    for part in parts:
        result_N = _hash(result_N ^ np.atleast_1d(np.asarray(part)).astype(np.uint64))
    return result_N


def _hash(value_N: np.ndarray) -> np.ndarray:
    """SplitMix64's output function (Steele et al. 2014); uint64 arithmetic wraps around."""
    value_N = value_N + np.uint64(0x9E3779B97F4A7C15)
    value_N = (value_N ^ (value_N >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value_N = (value_N ^ (value_N >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value_N ^ (value_N >> np.uint64(31))
