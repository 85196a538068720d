"""An ensemble of models with one vocabulary, behind the protocol of one."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from transformer_jax.model.masks import Tokens


class Ensemble:
    """The mean of the models' probabilities at each position (Sutskever et al. 2014, section 3.6).

    Its logits are log-probabilities. In its attention each model is a layer of one head, the mean
    of the model's own. Memory, context and cache are lists, an item for each model.
    """

    def __init__(self, models: Sequence):
        self.models = list(models)

    @property
    def attention_shape(self) -> dict[str, tuple[int, int]]:
        """A layer of one head for each model, of the attention that all of them have."""
        names = set.intersection(*(set(model.attention_shape) for model in self.models))
        return {name: (len(self.models), 1) for name in sorted(names)}

    def _each(self, method: str, owned: Sequence[Sequence], *shared) -> list:
        """What the method of each model gives for the model's own arguments and those of all."""
        columns = zip(self.models, *owned, strict=True)
        return [getattr(model, method)(*own, *shared) for model, *own in columns]

    def encode(self, source: Tokens, key=None, return_attention=False):
        results = self._each("encode", [], source, key, return_attention)
        if not return_attention:
            return results
        memories, weights = map(list, zip(*results))
        return memories, _means(weights)

    def decode(self, memory, target: Tokens, key=None, return_attention=False):
        results = self._each("decode", [memory], target, key, return_attention)
        if not return_attention:
            return _mean_logits(results)
        logits, weights = zip(*results)
        return _mean_logits(logits), _means(weights)

    def start(self, memory, beam_width: int, max_length: int):
        contexts, caches = zip(*self._each("start", [memory], beam_width, max_length))
        return list(contexts), list(caches)

    def step(self, context, cache, token_BW, position_B, return_attention=False):
        shared = token_BW, position_B, return_attention
        results = self._each("step", [context, cache], *shared)
        logits, contexts, caches, *weights = map(list, zip(*results))
        result = _mean_logits(logits), contexts, caches
        return (*result, _means([{"cross": w} for w in weights[0]])["cross"]) if weights else result


def _mean_logits(logits: Sequence[jax.Array]) -> jax.Array:
    log_probs = jnp.stack([jax.nn.log_softmax(x) for x in logits])
    return jax.nn.logsumexp(log_probs, axis=0) - jnp.log(len(logits))


def _means(attention: Sequence[dict[str, jax.Array]]) -> dict[str, jax.Array]:
    """[models, B, 1, T, M] each, of the attention that all models have."""
    return {
        name: jnp.stack([weights[name].mean(axis=(0, 2))[:, None] for weights in attention])
        for name in attention[0]
        if all(name in weights for weights in attention)
    }
