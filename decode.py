"""Translates, a sentence a line: python decode.py --workdir=runs/quickstart < source > target.

Each line is answered in order as soon as it is done, also on a pipe that never ends. With
--score_pairs the lines are source, tab and target, and come out with their log-probability.
With --corpus a corpus' source side is translated, and with --score too the translations are
scored against the target side and one JSON line is printed.
"""

import contextlib
import itertools
import json
import os
import sys

from absl import flags

from transformer_jax import command_line

_WORKDIR = flags.DEFINE_multi_string(
    "workdir", None, "Folder that train.py left; given several times, the models vote together."
)
_CHECKPOINT = flags.DEFINE_string("checkpoint", "best", "best, last, or the number of a step.")
_AVERAGE = flags.DEFINE_integer("average", 1, "Last checkpoints to average.", lower_bound=1)
_INPUT = flags.DEFINE_string("input", "", "File to translate, instead of standard input.")
_OUTPUT = flags.DEFINE_string("output", "", "File to write, instead of standard output.")
_CORPUS = flags.DEFINE_string("corpus", "", "Corpus to translate instead, such as text:PREFIX.")
_SCORE = flags.DEFINE_bool("score", False, "Print the corpus' scores instead of its translation.")
_SCORE_PAIRS = flags.DEFINE_bool(
    "score_pairs", False, "Score given translations: lines are source, tab, target."
)
_INTERACTIVE = flags.DEFINE_bool(
    "interactive", False, "Answer each line by itself, as it is typed."
)
_FORMAT = flags.DEFINE_enum("format", "text", ["text", "json"], "A text or a JSON object a line.")
_TARGET_LANGUAGE = flags.DEFINE_string(
    "target_language", "", "Language to translate into, of a model that was trained on several."
)
_PREFIX = flags.DEFINE_string("prefix", "", "Text that every translation begins with.")
_PREFIX_FILE = flags.DEFINE_string("prefix_file", "", "File of such texts, one a line.")
_ALIGNMENTS = flags.DEFINE_bool(
    "alignments", False, "Add word alignments: ||| 0-0 1-2 (source-target), or all of it in JSON."
)
_LAYER = flags.DEFINE_integer(
    "alignment_layer", None, "Layer of the cross attention, from 0; default: the mean of all."
)
_HEAD = flags.DEFINE_integer("alignment_head", None, "Head, from 0; default: the mean of all.")
_SCORES = flags.DEFINE_bool("scores", False, "Put score and log-probability before each text.")
# Those of SearchOptions, which says what they mean and what goes together.
_OPTIONS = [
    flags.DEFINE_integer("beam_size", 0, "Hypotheses of the beam; 1 = greedy; 0 = the config's."),
    flags.DEFINE_integer("n_best", 1, "Translations a line, best first."),
    flags.DEFINE_float("length_penalty", None, "GNMT's alpha; default: the config's."),
    flags.DEFINE_float("coverage_penalty", 0.0, "GNMT's beta."),
    flags.DEFINE_integer(
        "max_length", 0, "Tokens read of a line, and of its translation; 0 = the config's."
    ),
    flags.DEFINE_integer("min_length", 0, "Fewest tokens of a translation."),
    flags.DEFINE_float("max_length_ratio", 0.0, "Most tokens, times those of the source; 0 = any."),
    flags.DEFINE_float("min_length_ratio", 0.0, "Fewest tokens, times those of the source."),
    flags.DEFINE_integer(
        "no_repeat_ngram", 0, "n-grams of this length occur once; 0 = may repeat."
    ),
    flags.DEFINE_bool("sample", False, "Draw translations instead of searching for the best."),
    flags.DEFINE_float("temperature", 1.0, "Of sampling; below 1 draws more probable tokens."),
    flags.DEFINE_integer("top_k", 0, "Sample among the k most probable tokens; 0 = all."),
    flags.DEFINE_float("top_p", 1.0, "Sample among the tokens that have this much probability."),
    flags.DEFINE_integer("seed", 0, "Of sampling."),
    flags.DEFINE_integer(
        "rows", 0, "Sentences translated at once: 1, or eights; 0 = the config's."
    ),
]
flags.mark_flag_as_required("workdir")
flags.register_validator("workdir", all, "the name of a folder was wanted")


def main(_) -> None:
    from transformer_jax.data.corpus import read_corpus
    from transformer_jax.decoding.stream import (
        MOST,
        Texts,
        Writer,
        arriving,
        pairs_of,
        score_pairs,
        translate_lines,
    )
    from transformer_jax.decoding.translator import Translator
    from transformer_jax.evaluation import score_translator

    _check_flags()
    options = {flag.name: flag.value for flag in _OPTIONS}
    with contextlib.ExitStack() as files:
        lines, output = sys.stdin.buffer, sys.stdout.buffer
        if _INPUT.value:
            lines = files.enter_context(open(_INPUT.value, "rb"))
        prefixes = itertools.repeat(_PREFIX.value) if _PREFIX.value else None
        if _PREFIX_FILE.value:
            prefix_lines = files.enter_context(open(_PREFIX_FILE.value, encoding="utf-8"))
            prefixes = (line.rstrip("\r\n") for line in prefix_lines)
        translator = Translator.from_workdir(
            *_WORKDIR.value, checkpoint=_CHECKPOINT.value, average=_AVERAGE.value
        )
        align = {"layer": _LAYER.value, "head": _HEAD.value} if _ALIGNMENTS.value else None
        # Mistakes are told before the output is opened, and so emptied.
        translator.check(align, **options)
        data, name = translator.config.data, _INPUT.value or "standard input"
        if _CORPUS.value:
            name, languages = _CORPUS.value, (data.source_language, data.target_language)
            corpus = list(read_corpus(name, *languages, language_tags=data.language_tags))
            pairs = (corpus[i : i + MOST] for i in range(0, len(corpus), MOST))
            texts = ([source for source, _ in group] for group in pairs)
        else:
            to_texts = Texts(
                name,
                translator.vocabulary,
                tags=data.language_tags,
                language=_TARGET_LANGUAGE.value,
            )
            groups = arriving(lines)
            if _INTERACTIVE.value:
                groups = _one_by_one(groups)
            texts = to_texts.groups(groups)
            pairs = pairs_of(texts, name) if _SCORE_PAIRS.value else None
        if _OUTPUT.value:
            output = files.enter_context(open(_OUTPUT.value, "wb"))
        writer = Writer(
            output, translator.vocabulary, as_json=_FORMAT.value == "json", scores=_SCORES.value
        )
        settings = {"name": name, "align": align} | options
        if _SCORE.value:
            scores, _ = score_translator(translator, corpus, **options)
            output.write((json.dumps(scores) + "\n").encode())
        elif _SCORE_PAIRS.value:
            score_pairs(translator, pairs, writer, **settings)
        else:
            translate_lines(translator, texts, writer, prefixes=prefixes, **settings)


def _check_flags() -> None:
    """ValueError on flags that do not go together."""
    if _SCORE.value and not _CORPUS.value:
        raise ValueError("--score needs a corpus to score: --corpus=text:PREFIX, say")
    if _TARGET_LANGUAGE.value and _CORPUS.value:
        raise ValueError("--target_language is for lines; a corpus says its own, as in @en-de")
    for one, other in (
        (_SCORE, _SCORE_PAIRS),
        (_SCORE, _ALIGNMENTS),
        (_CORPUS, _INPUT),
        (_CORPUS, _INTERACTIVE),
        (_INPUT, _INTERACTIVE),
        (_PREFIX, _PREFIX_FILE),
        (_SCORE, _PREFIX),
        (_SCORE, _PREFIX_FILE),
        (_SCORE_PAIRS, _PREFIX),
        (_SCORE_PAIRS, _PREFIX_FILE),
    ):
        if one.value and other.value:
            raise ValueError(f"--{one.name} and --{other.name} do not go together")
    for flag in (_LAYER, _HEAD):
        if flag.value is not None and not _ALIGNMENTS.value:
            raise ValueError(f"--{flag.name} needs --alignments")
    if _OUTPUT.value:
        for flag in (_INPUT, _PREFIX_FILE):
            if flag.value and os.path.realpath(_OUTPUT.value) == os.path.realpath(flag.value):
                raise ValueError(
                    f"--output={_OUTPUT.value} is the --{flag.name}, and would be lost"
                )


def _one_by_one(groups):
    """Each line by itself, with a prompt where somebody types."""
    prompt = "> " if sys.stdin.isatty() else ""
    print(prompt, end="", file=sys.stderr, flush=True)
    for group in groups:
        for line in group:
            yield [line]
            print(prompt, end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    command_line.run(main)
