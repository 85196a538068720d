"""The models, behind one protocol, so that training, search and evaluation exist once.

    encode(source, key, return_attention) -> memory
    decode(memory, target, key, return_attention) -> logits [B, T, V]
    start(memory, beam_width, max_length) -> context, cache
    step(context, cache, token_BW, position_B, return_attention) -> logits [B, W, V], context, cache

`source` and `target` are `masks.Tokens`, [B, S] and [B, T] each; a target begins with BOS.
`decode` is teacher forcing: the logits, float32, are of the next token at every position. A model
that is trained has the two halves as well: `embedding.logits` of `states` [B, T, D].
`start` and `step` decode W hypotheses a sentence, one position at a time, to at most
`max_length`; `token_BW` are the tokens at `position_B`, BOS at position 0. `context` has a row
a sentence; `cache` is a pytree whose leaves lead with B * W, the hypotheses of a sentence side by
side, and may be reordered with them. `key` is the random key of dropout; None turns it off.
With `return_attention` a method returns attention weights too, {"encoder": [L, B, H, S, S]},
{"decoder": [L, B, H, T, T], "cross": [L, B, H, T, S]} and cross weights [L, B, H, W, S], as far as
the model has them (`attention_shape`: layers and heads by name).
"""
