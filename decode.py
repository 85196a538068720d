"""Translates, a sentence a line: python decode.py --workdir=runs/quickstart < source > target.

With --corpus it translates a corpus' source side, and with --score too it scores the
translations against the target side and prints one JSON line.
"""

import contextlib
import json
import os
import sys

from absl import flags

from transformer_jax import command_line

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder that train.py left.")
_CHECKPOINT = flags.DEFINE_string("checkpoint", "best", "best, last, or the number of a step.")
_AVERAGE = flags.DEFINE_integer("average", 1, "Last checkpoints to average.", lower_bound=1)
_INPUT = flags.DEFINE_string("input", "", "File to translate, instead of standard input.")
_OUTPUT = flags.DEFINE_string("output", "", "File to write, instead of standard output.")
_CORPUS = flags.DEFINE_string("corpus", "", "Corpus to translate instead, such as text:PREFIX.")
_SCORE = flags.DEFINE_bool("score", False, "Print the corpus' scores instead of its translation.")
_TARGET_LANGUAGE = flags.DEFINE_string(
    "target_language", "", "Language to translate into, of a model that was trained on several."
)
_BEAM_SIZE = flags.DEFINE_integer("beam_size", 0, "1 = greedy; 0 = the config's.", 0, 64)
_N_BEST = flags.DEFINE_integer("n_best", 1, "Translations a line, best first.", lower_bound=1)
_LENGTH_PENALTY = flags.DEFINE_float("length_penalty", None, "GNMT's alpha.", lower_bound=0.0)
_MAX_LENGTH = flags.DEFINE_integer(
    "max_length",
    0,
    "Tokens read of a line, and of its translation; 0 = the config's.",
    lower_bound=0,
)
_ROWS = flags.DEFINE_integer("rows", 0, "Sentences translated at once.", lower_bound=0)
_SCORES = flags.DEFINE_bool("scores", False, "Put score and log-probability before each text.")
flags.mark_flag_as_required("workdir")
flags.register_validator("workdir", bool, "the name of a folder was wanted")


def main(_) -> None:
    from transformer_jax.data.corpus import read_corpus
    from transformer_jax.decoding.stream import tagged, text_lines, translate_lines
    from transformer_jax.decoding.translator import Translator
    from transformer_jax.evaluation import score_translator

    if _SCORE.value and not _CORPUS.value:
        raise ValueError("--score needs a corpus to score: --corpus=text:PREFIX, say")
    if _TARGET_LANGUAGE.value and _CORPUS.value:
        raise ValueError("--target_language is for lines; a corpus says its own, as in @en-de")
    with contextlib.ExitStack() as files:
        lines, output = sys.stdin.buffer, sys.stdout.buffer
        if _INPUT.value:
            lines = files.enter_context(open(_INPUT.value, "rb"))
        translator = Translator.from_workdir(
            _WORKDIR.value, checkpoint=_CHECKPOINT.value, average=_AVERAGE.value
        )
        options = {
            "beam_size": _BEAM_SIZE.value,
            "n_best": _N_BEST.value,
            "length_penalty": _LENGTH_PENALTY.value,
            "max_length": _MAX_LENGTH.value,
            "rows": _ROWS.value,
        }
        data = translator.config.data
        name = _INPUT.value or "standard input"
        texts = text_lines(lines, name)
        if data.language_tags or _TARGET_LANGUAGE.value:
            texts = tagged(texts, translator.vocabulary, _TARGET_LANGUAGE.value, name)
        if _CORPUS.value:
            languages = data.source_language, data.target_language
            pairs = list(read_corpus(_CORPUS.value, *languages, language_tags=data.language_tags))
            name, texts = _CORPUS.value, [pair.source for pair in pairs]
        if _OUTPUT.value:
            if _INPUT.value and os.path.realpath(_OUTPUT.value) == os.path.realpath(_INPUT.value):
                raise ValueError(f"--output={_OUTPUT.value} is the input, and would be lost")
            output = files.enter_context(open(_OUTPUT.value, "wb"))
        if _SCORE.value:
            scores, _ = score_translator(translator, pairs, **options)
            output.write((json.dumps(scores) + "\n").encode())
        else:
            translate_lines(translator, texts, output, name=name, scores=_SCORES.value, **options)


if __name__ == "__main__":
    command_line.run(main)
