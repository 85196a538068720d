"""The engine against a reference search, and its contract: companions change nothing."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from builders import model_parts
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from transformer_jax.config import DecodingConfig
from transformer_jax.data.vocabulary import BOS, EOS, PAD, UNK
from transformer_jax.decoding import engine
from transformer_jax.decoding.engine import Models, Sentence, in_order
from transformer_jax.decoding.options import SearchOptions
from transformer_jax.devices import replicate
from transformer_jax.model.masks import sentence_tokens

VOCAB, LONGEST, ROWS, ALPHA = 40, 32, 8, 0.6


@pytest.fixture(scope="module")
def models() -> Models:
    graphdef, params = model_parts(VOCAB, num_layers=2, model_dim=16, feed_forward_dim=32)
    # Sharper than a fresh model, so that sentences are translated differently and end.
    return Models((graphdef,), (replicate(jax.tree.map(lambda x: 1.3 * x, params)),))


def sentences(count: int, seed: int = 0, **fields) -> list[Sentence]:
    """Sentences of lengths in both buckets."""
    random = np.random.default_rng(seed)
    made = []
    for number in range(count):
        length = int(random.integers(1, 31))
        source = (*random.integers(4, VOCAB, length).tolist(), EOS)
        made.append(Sentence(number, source, limit_of(len(source)), seed=number, **fields))
    return made


def limit_of(length: int) -> int:
    return min(length + 8, LONGEST)


BEAM = SearchOptions(beam_size=3, n_best=3)


def translate(models, wanted, options=BEAM, rows=ROWS):
    """Tokens, scores and log-probabilities of each sentence, as plain numbers."""
    options = dataclasses.replace(options, rows=rows, max_length=LONGEST, max_length_ratio=1.5)
    found = engine.translate(models, wanted, options.resolved(DecodingConfig()))
    by_id = {id: tuple(x.tolist() for x in hypotheses) for id, hypotheses in found}
    assert len(by_id) == len(wanted)
    return [by_id[sentence.id] for sentence in wanted]


SENTENCES = sentences(110)


@pytest.fixture(scope="module")
def together(models):
    return translate(models, SENTENCES)


def words(tokens) -> tuple[int, ...]:
    return tuple(t for t in tokens if t != PAD)


@pytest.fixture(scope="module")
def next_log_probs(models):
    """Log-probabilities of the next word after each of some prefixes, by a whole pass each."""
    model = nnx.merge(models.graphdefs[0], models.params[0])

    @functools.partial(jax.jit, static_argnums=0)
    def whole_pass(graphdef, params, source_BS, source_lengths_B, target_BT):
        model = nnx.merge(graphdef, params)
        memory = model.encode(sentence_tokens(source_BS, source_lengths_B))
        target = sentence_tokens(target_BT, jnp.full(target_BT.shape[0], target_BT.shape[1]))
        return jax.nn.log_softmax(model.decode(memory, target))

    graphdef, params = nnx.split(model)

    def log_probs(source, prefixes) -> np.ndarray:
        source_BS = np.zeros((3, LONGEST), np.int32)
        source_BS[:, : len(source)] = source
        target_BT = np.zeros((3, LONGEST), np.int32)
        for row, prefix in enumerate(prefixes):
            target_BT[row, : len(prefix) + 1] = (BOS, *prefix)
        lengths = np.full(3, len(source))
        logits_BTV = whole_pass(graphdef, params, source_BS, lengths, target_BT)
        return np.asarray(logits_BTV)[range(len(prefixes)), [len(p) for p in prefixes]]

    return log_probs


def penalty(length: int) -> float:
    return ((5 + length) / 6) ** ALPHA


def reference_search(next_log_probs, source, limit, width=3):
    """Beam search in plain steps: the best ended (score, tokens), best first, and the least gap."""
    live, ended, gap = [(0.0, ())], [], np.inf
    for place in range(limit):
        rows = next_log_probs(source, [tokens for _, tokens in live])
        candidates = [
            (log_prob + float(row[word]), (*tokens, word))
            for (log_prob, tokens), row in zip(live, rows)
            for word in range(VOCAB)
            if word not in (PAD, BOS, UNK) and (place < limit - 1 or word == EOS)
        ]
        candidates.sort(reverse=True)
        scores = [score for score, _ in candidates[: 2 * width + 1]]
        gap = min([gap, *-np.diff(scores)])
        best = candidates[: 2 * width]
        ended += [(s / penalty(place + 1), t) for s, t in best[:width] if t[-1] == EOS]
        ended = sorted(ended, reverse=True)[:width]
        live = [(s, t) for s, t in best if t[-1] != EOS][:width]
        if not live or len(ended) == width and ended[-1][0] >= live[0][0] / penalty(limit):
            break
    gap = min([gap, *-np.diff([score for score, _ in ended])])
    return ended, gap


def test_the_engine_finds_what_plain_steps_over_whole_passes_find(together, next_log_probs):
    compared = 0
    for sentence, (tokens, scores, _) in list(zip(SENTENCES, together))[:15]:
        wanted, gap = reference_search(next_log_probs, sentence.source, sentence.max_length)
        if gap < 1e-5:
            continue
        compared += 1
        assert [words(row) for row in tokens] == [words for _, words in wanted]
        np.testing.assert_allclose(scores, [score for score, _ in wanted], atol=1e-4)
    assert compared >= 10


def test_the_sentences_are_of_several_shapes_and_end_by_themselves(together):
    lengths = [len(s.source) for s in SENTENCES]
    assert min(lengths) <= 16 < max(lengths)
    bests = [words(tokens[0]) for tokens, _, _ in together]
    assert len(set(bests)) > 60
    early = [len(best) < s.max_length for best, s in zip(bests, SENTENCES)]
    assert any(early) and len({len(best) for best in bests}) > 5


@settings(max_examples=12)
@given(st.data())
def test_companions_order_row_and_refill_change_not_a_bit(models, together, data):
    order = data.draw(st.permutations(range(len(SENTENCES))))
    piece = data.draw(st.sampled_from([1, 7, 50, 110]))
    pieces = [order[i : i + piece] for i in range(0, len(order), piece)][:3]
    for numbers in pieces:
        found = translate(models, [SENTENCES[n] for n in numbers])
        assert found == [together[n] for n in numbers]


def test_refill_is_as_no_refill(models, together, monkeypatch):
    """A batch that has a row for each sentence needs none."""
    monkeypatch.setattr(engine, "refill", None)
    rows = ROWS * jax.local_device_count()
    for start in range(0, len(SENTENCES), rows):
        some = slice(start, start + rows)
        assert translate(models, SENTENCES[some]) == together[some]


def test_across_rows_scores_agree(models, together):
    differing = 0
    for one, other in zip(together, translate(models, SENTENCES, rows=16)):
        differing += one[0] != other[0]
        np.testing.assert_allclose(one[1], other[1], atol=1e-4)
    assert differing <= 1


def test_a_row_by_itself_gives_the_same_again(models, together):
    few = SENTENCES[:9]
    found = translate(models, few, rows=1)
    assert translate(models, few[::-1], rows=1) == found[::-1]
    for one, other in zip(found, together):
        np.testing.assert_allclose(one[1], other[1], atol=1e-4)


def test_all_devices_have_rows_and_few_shapes_are_compiled(models, monkeypatch):
    states = []
    run = engine.run

    def noted(params, state, *args, **static):
        states.append((state.live_BWT.shape, len(state.live_BWT.sharding.device_set)))
        return run(params, state, *args, **static)

    monkeypatch.setattr(engine, "run", noted)
    translate(models, SENTENCES)
    devices = jax.local_device_count()
    assert devices == 4 and {count for _, count in states} == {devices}
    assert {shape for shape, _ in states} == {(devices * ROWS, 3, n) for n in (24, 32)}


def test_n_best_are_distinct_and_sorted(together):
    for tokens, scores, _ in together:
        assert len({words(row) for row in tokens}) == 3
        assert scores == sorted(scores, reverse=True)


def test_prefixes_of_any_length_are_kept(models):
    prefixes = [(5, 6, 7), (), tuple(range(4, 34)), (9,)]
    wanted = []
    for number, sentence in enumerate(sentences(20, seed=1)):
        prefix = prefixes[number % 4]
        wanted.append(
            sentence._replace(prefix=prefix, max_length=max(sentence.max_length, len(prefix) + 1))
        )
    found = translate(models, wanted)
    for sentence, (tokens, _, _) in zip(wanted, found):
        count = len(sentence.prefix)
        # Thirty given tokens leave room for one or two more, and so for few hypotheses.
        for row in tokens[:1] if count > 20 else tokens:
            assert tuple(row[:count]) == tuple(sentence.prefix)
            assert EOS in row[count:]
    alone = translate(models, wanted[2:3])
    assert alone == found[2:3]


def test_samples_are_the_same_whatever_the_batch(models):
    options = SearchOptions(n_best=2, sample=True, top_k=10)
    found = translate(models, SENTENCES, options)
    some = [4, 90, 13]
    assert translate(models, [SENTENCES[n] for n in some], options) == [found[n] for n in some]
    assert all(len({words(row) for row in tokens}) == 2 for tokens, _, _ in found if tokens[0][1])
    reseeded = [sentence._replace(seed=sentence.seed + 1000) for sentence in SENTENCES]
    assert translate(models, reseeded, options) != found


def test_no_sentence_gives_nothing(models):
    assert translate(models, []) == []


def test_rows_are_refilled_a_quarter_at_a_time(models, monkeypatch):
    wanted, refills = [], []
    run, refill = engine.run, engine.refill

    def noted_run(params, state, options, num_rows, **static):
        wanted.append(int(num_rows))
        return run(params, state, options, num_rows, **static)

    def noted_refill(state, fresh, rows_J, fresh_rows_J):
        refills.append(rows_J.tolist())
        return refill(state, fresh, rows_J, fresh_rows_J)

    monkeypatch.setattr(engine, "run", noted_run)
    monkeypatch.setattr(engine, "refill", noted_refill)
    translate(models, SENTENCES)
    assert set(wanted) == {ROWS // 4, ROWS} and len(refills) > 4
    assert any(len(set(rows[:2]) - {ROWS}) == 2 for rows in refills)


def test_results_come_back_in_order_as_soon_as_they_are_due():
    consumed = []

    def results():
        for id in (7, 5, 6, 9, 8):
            consumed.append(id)
            yield id, str(id)

    ordered = in_order(results(), 5)
    assert [next(ordered), consumed[-1]] == ["5", 5]
    assert [next(ordered), next(ordered), consumed[-1]] == ["6", "7", 6]
    assert list(ordered) == ["8", "9"]


def test_rows_are_chosen_by_memory(models):
    options = BEAM.resolved(DecodingConfig(rows=0, max_length=LONGEST))
    rows = [engine.rows_that_fit(models, options, memory) for memory in (1, 10**7, 4 * 10**7, 1e15)]
    assert rows == [8, rows[1], 4 * rows[1], 1024] and rows[1] > 8
    longer = dataclasses.replace(options, max_length=2 * LONGEST, beam_size=6)
    assert engine.rows_that_fit(models, longer, 4 * 10**7) < rows[2]


def test_without_rows_a_cpu_takes_those_of_the_config(models):
    assert translate(models, SENTENCES[:9], rows=0) == translate(models, SENTENCES[:9], rows=32)
