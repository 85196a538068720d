"""The search on machines that are not there, compiled by their own compilers."""

import re

import jax
import pytest
from builders import tiny_model_config
from search_targets import compiled_search, step_of

from transformer_jax.model.build import abstract_model

SIZES = {"num_layers": 1, "model_dim": 128, "num_heads": 2, "feed_forward_dim": 256}
VOCAB_SIZE = 512


@pytest.mark.targets
@pytest.mark.parametrize(
    ("package", "name", "max_launches"),
    [("libtpu", "tpu:v5e:2x2", 300), ("jax_cuda12_plugin", "gpu:h100:1", 80)],
    ids=["tpu", "gpu"],
)
def test_a_step_has_few_launches_no_loop_and_rounds_no_weights(package, name, max_launches):
    pytest.importorskip(package)
    config = tiny_model_config(**SIZES, dtype="bfloat16")
    compiled = compiled_search(name, config, VOCAB_SIZE, rows=8, beam=2, length=16)
    step = step_of(compiled.as_text())
    assert step["loops"] == 0 and 40 < step["launches"] <= max_launches
    _, params = abstract_model(config, VOCAB_SIZE)
    weights = {x.shape[1:] for x in jax.tree.leaves(params) if x.ndim > 2} | {(VOCAB_SIZE, 128)}
    rounded = re.findall(r"bf16\[([\d,]+)\]\S* convert\(", compiled.as_text())
    assert not weights & {tuple(map(int, shape.split(","))) for shape in rounded}


TEXT = """HloModule search

%fused (a: f32[8]) -> f32[8] {
  ROOT %c = f32[8]{0:T(128)} convert(%a)
}

%inner_more (s: (s32[])) -> pred[] {
  %three = s32[] constant(3)
}

%inner (s: (s32[])) -> (s32[]) {
  %x = f32[8]{0:T(128)} fusion(%y), calls=%fused, backend_config={"estimated_cycles":"10"}
}

%more (s: (s32[], f32[8])) -> pred[] {
  ROOT %less = pred[] compare(%i, %j), direction=LT
}

%body (s: (s32[], f32[8])) -> (s32[], f32[8]) {
  %g = f32[8]{0:T(8)(2,1)S(1)} get-tuple-element(%s), index=1
  %w = (s32[], /*index=1*/f32[8]{0}) while(%t), condition=%inner_more, body=%inner
  %u = (f32[8], s32[8]) fusion(%g), calls=%fused, backend_config={"estimated_cycles":"7"}
}

ENTRY %main (a: f32[8]) -> f32[8] {
  %b = f32[8] fusion(%a), calls=%fused
  %w.1 = (s32[], f32[8]) while(%t), condition=%more, body=%body
}
"""


def test_a_step_is_the_body_of_the_outermost_loop():
    assert step_of(TEXT) == {"launches": 4, "loops": 1, "cycles": 37}
    assert step_of(TEXT, searched=False) == {"launches": 5, "loops": 2, "cycles": 37}
    known = TEXT.replace("body=%inner", 'body=%inner, backend={"known_trip_count":{"n":"5"}}')
    assert step_of(known) == {"launches": 6, "loops": 1, "cycles": 57}
