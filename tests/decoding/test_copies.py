"""A step of the search, as a CPU's compiler has it, moves no parameter and no history."""

import math
import re

import jax
import jaxlib
import numpy as np
import pytest
from builders import model_parts

from transformer_jax.config import DecodingConfig
from transformer_jax.decoding import search
from transformer_jax.decoding.engine import IDS, Models
from transformer_jax.decoding.options import SearchOptions
from transformer_jax.decoding.search import Constraints, Search
from transformer_jax.model.masks import sentence_tokens

MODEL_DIM, LENGTH = 32, 24


def step_of(rows: int, beam: int) -> list[str]:
    """The instructions of a step."""
    graphdef, params = model_parts(model_dim=MODEL_DIM, feed_forward_dim=48)
    models = Models((graphdef,), (params,)).prepared()
    options = SearchOptions(beam_size=beam).resolved(DecodingConfig())
    ids_BS = np.ones((rows, 8), np.int32)
    lengths_B = np.full(rows, 8, np.int32)
    constraints = Constraints(lengths_B, lengths_B, np.zeros((rows, LENGTH), np.int32), lengths_B)

    def start(models):
        own = Search(models.merged(), options, IDS)
        memory = own.model.encode(sentence_tokens(ids_BS, lengths_B))
        return search.first_state(own, memory, constraints, ids_BS != 0)

    def run(models, state):
        return search.run(Search(models.merged(), options, IDS), state, 1)

    state = jax.eval_shape(start, models)
    text = jax.jit(run, donate_argnums=1).lower(models, state).compile().as_text()
    name = re.search(r" while\(.* body=%?([\w.-]+)", text)[1]
    return re.search(rf"\n%?{re.escape(name)} .*{{\n((.*\n)*?)}}", text)[1].splitlines()


@pytest.mark.skipif(jaxlib.__version__ < "0.11", reason="this compiler copies the history")
@pytest.mark.parametrize(("rows", "beam"), [(1, 1), (1, 3), (8, 1)])
def test_a_step_moves_no_parameter_and_writes_each_history_once(rows, beam):
    sizes = [
        math.prod(map(int, shape.split(",")))
        for line in step_of(rows, beam)
        for shape in re.findall(r" = \w+\[([\d,]+)\]\S* (?:fusion|copy|transpose)\(", line)
    ]
    assert len(sizes) > 20
    for projections in (1, 2, 3):
        assert projections * MODEL_DIM**2 not in sizes
    assert sizes.count(rows * beam * LENGTH * MODEL_DIM) == 2  # keys and values
