"""Subword regularisation: sentences are segmented anew, at random, each time they are read.

Source: Kudo 2018 for unigram vocabularies, Provilkov et al. 2020 for BPE. Pieces do not cross
spaces, so that a sentence is drawn word by word. Words, and what they may become, are few
enough to be remembered. What is drawn depends on seed, epoch and pair alone; SentencePiece's
own sampling differs from process to process.
"""

import bisect
import functools
import itertools
import random
import zlib
from collections.abc import Sequence

import numpy as np
from sentencepiece import sentencepiece_model_pb2 as protocol

from transformer_jax.data.packing import Growth, Shape
from transformer_jax.data.permutation import keys
from transformer_jax.data.token_store import TokenStore, flat
from transformer_jax.data.vocabulary import SPACE, Vocabulary

_BEST = 64  # segmentations of a word that are drawn from (unigram)
DRAWS = 32  # made of each word beforehand (BPE)
CACHED_WORDS = 1 << 18  # remembered
_MEASURED = 500  # pairs of each corpus that the growth is measured on
_SPARE = 1.05  # a row of few pairs may grow more than the mean


class Segmenter:
    """The segmentations of words, and how often each is to be drawn."""

    def __init__(self, vocabulary: Vocabulary, alpha: float):
        """
        Args:
          vocabulary: unigram or BPE; ValueError for another.
          alpha: of a unigram vocabulary, the smoothness of the distribution (Kudo 2018, section
            3.2: 1 = as the model has it, towards 0 = uniform); of a BPE vocabulary, the
            probability that a merge is left out.
        """
        model = protocol.ModelProto.FromString(vocabulary.model)
        kinds = {protocol.TrainerSpec.UNIGRAM: self._best, protocol.TrainerSpec.BPE: self._merged}
        self._vocabulary, self._alpha = vocabulary, alpha
        self._pieces = [piece.piece for piece in model.pieces]
        # Neither control symbols nor bytes, tags or the unknown one.
        normal = protocol.ModelProto.SentencePiece.NORMAL
        self._ids = {x.piece: i for i, x in enumerate(model.pieces) if x.type == normal}
        if model.trainer_spec.model_type not in kinds or not self._ids:
            raise ValueError(
                "the vocabulary cannot segment a word in more than one way, as "
                "config.data.sampling_alpha asks for; expected a unigram or bpe one"
            )
        self._scores = [piece.score for piece in model.pieces]
        self._begins_word = np.array([piece.startswith(SPACE) for piece in self._pieces])
        self._segmentations = kinds[model.trainer_spec.model_type]
        self._choices = functools.lru_cache(CACHED_WORDS)(self._choices_of)

    def draw(self, ids: np.ndarray, *key: int) -> list[int]:
        """Another segmentation of a sentence, closed by EOS as `ids` is."""
        starts = np.flatnonzero(self._begins_word[ids])
        starts = np.unique(np.concatenate([[0], starts, [len(ids) - 1]])).tolist()
        # One number in [0, 1) for each word.
        chances = (keys(*key, np.arange(len(starts))) >> np.uint64(11)) / 2.0**53
        words, result = ids.tolist(), []
        for start, stop, chance in zip(starts, starts[1:], chances.tolist()):
            choices, ends = self._choices(tuple(words[start:stop]))
            result.extend(choices[bisect.bisect_right(ends, chance, hi=len(ends) - 1)])
        return [*result, words[-1]]

    def _choices_of(self, word: tuple[int, ...]) -> tuple[list[tuple[int, ...]], list[float]]:
        """The segmentations of a word, and the cumulative distribution over them."""
        pieces = [self._pieces[i] for i in word]
        known = all(piece in self._ids for piece in pieces)
        choices, weights = self._segmentations("".join(pieces)) if known else ([], [])
        if not choices:
            choices, weights = [word], [1.0]
        return choices, list(itertools.accumulate(weight / sum(weights) for weight in weights))

    def _best(self, text: str) -> tuple[list[tuple[int, ...]], list[float]]:
        """The most probable segmentations by a unigram vocabulary, and their weights."""
        choices = [
            tuple(ids)
            for ids in self._vocabulary.nbest(text.removeprefix(SPACE), _BEST)
            if "".join(piece for i in ids if (piece := self._pieces[i]) in self._ids) == text
        ]
        scores = np.array([sum(self._scores[i] for i in ids) for ids in choices])
        return choices, np.exp(self._alpha * (scores - scores.max(initial=-np.inf))).tolist()

    def _merged(self, text: str) -> tuple[list[tuple[int, ...]], list[float]]:
        """Some segmentations that BPE gives where merges are left out."""
        if not all(character in self._ids for character in text):
            return [], []
        chance, draws = random.Random(zlib.crc32(text.encode())), []
        for _ in range(DRAWS):
            pieces = list(text)
            while merges := [
                (-self._scores[self._ids[pair]], index)
                for index, pair in enumerate(map("".join, itertools.pairwise(pieces)))
                if pair in self._ids and chance.random() >= self._alpha
            ]:
                _, index = min(merges)
                pieces[index : index + 2] = [pieces[index] + pieces[index + 1]]
            draws.append(tuple(self._ids[piece] for piece in pieces))
        return draws, [1.0] * DRAWS


class Resampler:
    """Other segmentations of the sentences of stores."""

    def __init__(self, vocabulary: Vocabulary, alpha: float, seed: int):
        """`vocabulary` and `alpha` are as for `Segmenter`."""
        self._segmenter, self._seed = Segmenter(vocabulary, alpha), seed

    def growth(self, stores: Sequence[TokenStore]) -> Growth:
        """How much longer the sides become, with a little to spare, from samples of them."""
        stored, drawn = np.zeros(2), np.zeros(2)
        for store in stores:
            pairs = np.unique(np.linspace(0, len(store) - 1, _MEASURED).astype(int))
            for number, side in enumerate((store.source, store.target)):
                for pair in pairs.tolist():
                    stored[number] += len(side[pair])
                    drawn[number] += len(self._segmenter.draw(side[pair], self._seed, pair))
        return Growth(*(round(max(float(x), 1.0) * _SPARE, 2) for x in drawn / stored))

    def __call__(
        self,
        store: TokenStore,
        corpus: int,
        epochs: np.ndarray,
        pairs: np.ndarray,
        counts: np.ndarray,
        shape: Shape,
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Ids end to end and lengths of each side of the pairs, [pairs], `counts` [rows] a row.

        What a row has no room for stays as it is in the store, whose number is `corpus`.
        """
        result = []
        for number, (side, room) in enumerate(zip((store.source, store.target), shape)):
            sentences: list[Sequence[int]] = []
            for end, count in zip(np.cumsum(counts), counts):
                row = slice(end - count, end)
                stored = [side[pair] for pair in pairs[row]]
                spare = room - sum(map(len, stored))
                for pair, epoch, ids in zip(pairs[row].tolist(), epochs[row].tolist(), stored):
                    drawn = self._segmenter.draw(ids, self._seed, corpus, epoch, pair, number)
                    sentence = drawn if len(drawn) - len(ids) <= spare else ids
                    spare -= len(sentence) - len(ids)
                    sentences.append(sentence)
            result.append(flat(sentences, np.int32))
        return result
