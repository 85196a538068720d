"""Layers written out in NumPy, in float64, that several tests compare with."""

import numpy as np


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def linear(layer, x):
    """A layer's product with x, plus its bias if it has one."""
    bias = 0 if layer.bias is None else np.asarray(layer.bias[...], np.float64)
    return x @ np.asarray(layer.kernel[...], np.float64) + bias


def cell_step(kind: str, cell, state, x):
    """One step of a recurrent cell, gate by gate: the new state, [h], or [c, h] of an LSTM."""
    given, own = linear(cell.dense_i, x), linear(cell.dense_h, state[-1])
    if kind == "rnn":
        return [np.tanh(given + own)]
    if kind == "gru":
        (r1, z1, n1), (r2, z2, n2) = (np.split(y, 3, axis=-1) for y in (given, own))
        z = sigmoid(z1 + z2)
        return [(1 - z) * np.tanh(n1 + sigmoid(r1 + r2) * n2) + z * state[0]]
    i, f, g, o = np.split(given + own, 4, axis=-1)
    c = sigmoid(f) * state[0] + sigmoid(i) * np.tanh(g)
    return [c, sigmoid(o) * np.tanh(c)]
