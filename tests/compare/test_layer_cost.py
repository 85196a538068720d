"""What layers cost: the sizes measured, Table 1's counts, and how memory grows."""

import pytest

from transformer_jax.compare.layer_cost import layer_costs


def test_each_size_is_measured_once_beside_the_theory():
    costs = layer_costs([64, 256], [8, 16], fixed_length=64, fixed_width=8, repeats=1)
    sizes = [(64, 8), (256, 8), (64, 16)]
    assert [(c["layer"], c["n"], c["d"]) for c in costs] == [
        (layer, *size) for layer in ("self-attention", "lstm") for size in sizes
    ]
    by_size = {(c["layer"], c["n"], c["d"]): c for c in costs}
    for n, d in sizes:
        attention, lstm = by_size["self-attention", n, d], by_size["lstm", n, d]
        assert (attention["operations"], attention["steps"]) == (n**2 * d, 1)
        assert (lstm["operations"], lstm["steps"]) == (n * d**2, n)
        assert attention["seconds"] > 0 and lstm["seconds"] > 0
    # Four times the length: weights of every pair of places, but one state a place.
    grown = {
        layer: by_size[layer, 256, 8]["bytes"] / by_size[layer, 64, 8]["bytes"]
        for layer in ("self-attention", "lstm")
    }
    assert grown["self-attention"] > 8 and 3 < grown["lstm"] < 6


@pytest.mark.parametrize(("lengths", "widths"), [([0], []), ([], [12]), ([], [0])])
def test_sizes_that_no_layer_has_are_errors(lengths, widths):
    with pytest.raises(ValueError, match="n of at least 1 and d of 8, 16"):
        layer_costs(lengths, widths)
