"""What layers cost: the sizes measured, Table 1's counts, and how memory grows."""

import layer_cost


def test_each_size_is_measured_once_beside_the_theory(monkeypatch):
    monkeypatch.setattr(layer_cost, "FIXED", 64)
    costs = layer_cost.layer_costs([64, 256], [8, 64], repeats=1)
    sizes = [(64, 64), (256, 64), (64, 8)]
    assert [(c["layer"], c["n"], c["d"]) for c in costs] == [
        (layer, *size) for layer in ("self-attention", "lstm") for size in sizes
    ]
    by_size = {(c["layer"], c["n"], c["d"]): c for c in costs}
    for n, d in sizes:
        attention, lstm = by_size["self-attention", n, d], by_size["lstm", n, d]
        assert (attention["operations"], attention["steps"]) == (n**2 * d, 1)
        assert (lstm["operations"], lstm["steps"]) == (n * d**2, n)
        assert attention["seconds"] > 0 and lstm["seconds"] > 0
    # Four times the length: weights of every pair of positions, but one state a position.
    grown = {
        layer: by_size[layer, 256, 64]["bytes"] / by_size[layer, 64, 64]["bytes"]
        for layer in ("self-attention", "lstm")
    }
    assert grown["self-attention"] > 7 and 3 < grown["lstm"] < 6
