"""Translates, a sentence a line: python decode.py --workdir=runs/quickstart < source > target.

Each line is answered in order as soon as it is done (with --alignments, as soon as those are
that came with it), also on a pipe that never ends. With --score_pairs the lines are source,
tab and target, and come out with their log-probability. With --corpus a corpus' source side
is translated, and with --score too the translations are scored against the target side and
one JSON line is printed. With --attention_html a page is written, once all lines are
translated or Ctrl-C is pressed, that shows what the model attended to.
"""

import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from absl import flags

from transformer_jax import cli

_WORKDIR = cli.define_path(
    "workdir",
    None,
    "Folder that train.py left; given several times, the models vote together.",
    multi=True,
)
_CHECKPOINT = flags.DEFINE_string("checkpoint", "best", "best, last, or the number of a step.")
_AVERAGE = flags.DEFINE_integer("average", 1, "Last checkpoints to average.", lower_bound=1)
_INPUT = cli.define_path(
    "input", "", "File to translate, plain, .gz or .xz, instead of standard input."
)
_OUTPUT = cli.define_path("output", "", "File to write, instead of standard output.")
_CORPUS = flags.DEFINE_string("corpus", "", "Corpus to translate instead, such as text:PREFIX.")
_SCORE = flags.DEFINE_bool("score", False, "Print the corpus' scores instead of its translation.")
_SCORE_PAIRS = flags.DEFINE_bool(
    "score_pairs", False, "Score given translations: lines are source, tab, target."
)
_INTERACTIVE = flags.DEFINE_bool(
    "interactive", False, "Answer each line by itself, as it is typed."
)
_FORMAT = flags.DEFINE_enum("format", "text", ["text", "json"], "A text or a JSON object a line.")
_LANGUAGE = flags.DEFINE_string(
    "target_language", "", "Language to translate into, of a model that was trained on several."
)
_PREFIX = flags.DEFINE_string("prefix", "", "Text that every translation begins with.")
_PREFIX_FILE = cli.define_path("prefix_file", "", "File of such texts, one a line.")
_ALIGNMENTS = flags.DEFINE_bool(
    "alignments", False, "Add word alignments: ||| 0-0 1-2 (source-target), or all of it in JSON."
)
_LAYER = flags.DEFINE_integer(
    "alignment_layer", None, "Layer of the cross attention, from 0; default: the mean of all."
)
_HEAD = flags.DEFINE_integer("alignment_head", None, "Head, from 0; default: the mean of all.")
_ATTENTION_HTML = cli.define_path(
    "attention_html", "", "Page to write, for a browser: attention of the first 100 lines."
)
_SCORES = flags.DEFINE_bool("scores", False, "Put score and log-probability before each text.")
_READING = [
    flags.DEFINE_integer(
        "max_length",
        None,
        "Tokens read of a line and of its translation; default: the config's.",
        2,
    ),
    flags.DEFINE_integer(
        "rows", None, "Sentences translated at once: 1, or eights; default: the config's.", 1
    ),
]
_N_BEST = flags.DEFINE_integer("n_best", 1, "Translations a line, best first.")
_SEARCH = [
    flags.DEFINE_integer(
        "beam_size", None, "Hypotheses of the beam; 1 = greedy; default: the config's.", 1
    ),
    _N_BEST,
    flags.DEFINE_float("length_penalty", None, "GNMT's alpha; default: the config's."),
    flags.DEFINE_float("coverage_penalty", 0.0, "GNMT's beta."),
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
]
flags.mark_flag_as_required("workdir")
flags.register_validator("workdir", all, "the name of a folder was wanted")


def main(_) -> None:
    _check_flags()
    from transformer_jax.data.corpora import open_text, raw_lines
    from transformer_jax.decoding.options import SearchOptions
    from transformer_jax.decoding.stream import Writer, decoded, score_pairs, translate_lines
    from transformer_jax.decoding.translator import Translator
    from transformer_jax.evaluation import score_translator
    from transformer_jax.figures.attention_page import AttentionLines, check_page

    # Those of SearchOptions, which says what they mean and what goes together.
    given = {flag.name: flag.value for flag in _READING + _SEARCH if flag.value is not None}
    options = SearchOptions(**given)
    with contextlib.ExitStack() as files:
        lines = None if _CORPUS.value else files.enter_context(_opened_input())
        if _ATTENTION_HTML.value:
            check_page(_ATTENTION_HTML.value, _open_files())
        prefixes = _PREFIX.value
        if name := _PREFIX_FILE.value:
            prefix_lines = raw_lines(files.enter_context(open_text(name)), name)
            prefixes = (decoded(line, name, n) for n, line in enumerate(prefix_lines, 1))
        translator = Translator.from_workdir(
            *_WORKDIR.value, checkpoint=_CHECKPOINT.value, average=_AVERAGE.value
        )
        align = None
        if _ALIGNMENTS.value:
            # The tag that is put before each line is not one of its words.
            tags = translator.config.data.language_tags
            tagged = tags if _CORPUS.value else bool(_LANGUAGE.value)
            align = {"layer": _LAYER.value, "head": _HEAD.value, "skip": int(tagged)}
        # Mistakes are told before the output is opened, and so emptied.
        translator.check(options, prefix=_PREFIX.value, align=align)
        name, corpora, texts, pairs = _texts(translator, lines)
        attention = None
        if _ATTENTION_HTML.value:
            attention = AttentionLines(translator, name=name, options=options)
        output = files.enter_context(_opened_output())
        writer = Writer(
            output, translator.vocabulary, as_json=_FORMAT.value == "json", scores=_SCORES.value
        )
        settings = {"name": name, "align": align}
        if lines is not None and lines.isatty():
            print("Waiting for lines to translate; Ctrl-D ends.", file=sys.stderr)
        if _SCORE.value:
            scores, _ = score_translator(translator, corpora, options)
            output.write((json.dumps(scores) + "\n").encode())
        elif _SCORE_PAIRS.value:
            score_pairs(translator, pairs, writer, options, **settings)
        else:
            # Neither among the answers nor among the lines of a log.
            progress = not _INTERACTIVE.value and sys.stderr.isatty() and not output.isatty()
            more = {"prefixes": prefixes, "attention": attention, "progress": progress}
            with _page(attention):
                translate_lines(translator, texts, writer, options, **more, **settings)


def _texts(translator, lines: BinaryIO | None):
    """Where the lines are from, the corpora that they are of, and groups of texts and of pairs."""
    from transformer_jax.data.corpora import parse_corpora
    from transformer_jax.decoding.stream import MOST, Texts, arriving, pairs_of

    data, name = translator.config.data, _CORPUS.value or _INPUT.value or "standard input"
    if _CORPUS.value:
        languages = data.source_language, data.target_language
        corpora = parse_corpora(name, *languages, language_tags=data.language_tags)
        corpora = [(corpus, list(corpus)) for corpus in corpora]
        corpus = [pair for _, pairs in corpora for pair in pairs]
        pairs = [corpus[i : i + MOST] for i in range(0, len(corpus), MOST)]
        return name, corpora, ([pair.source for pair in group] for group in pairs), pairs
    to_texts = Texts(name, translator.vocabulary, tags=data.language_tags, language=_LANGUAGE.value)
    groups = arriving(lines, name)
    texts = to_texts.groups(_one_by_one(groups) if _INTERACTIVE.value else groups)
    return name, [], texts, pairs_of(texts)


@contextlib.contextmanager
def _page(attention) -> Iterator[None]:
    """Writes the page of attention, if one is wanted, in the end or when Ctrl-C is pressed."""
    if attention is None:
        yield
        return
    names = [os.path.basename(os.path.realpath(folder)) for folder in _WORKDIR.value]
    page = _ATTENTION_HTML.value, f"Attention of {', '.join(names)}"
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        with contextlib.suppress(ValueError):  # there was no line yet
            attention.write(*page)
        raise
    attention.write(*page)


def _check_flags() -> None:
    """ValueError on flags that do not go together."""
    if _SCORE.value and not _CORPUS.value:
        raise ValueError("--score needs a corpus to score: --corpus=text:PREFIX, say")
    if _LANGUAGE.value and _CORPUS.value:
        raise ValueError("--target_language is for lines; a corpus says its own, as in @en-de")
    prefixes = (_PREFIX, _PREFIX_FILE)
    for one, others in (
        (_SCORE, (_SCORE_PAIRS, _ALIGNMENTS, _ATTENTION_HTML, _SCORES, _FORMAT, _N_BEST)),
        (_SCORE, prefixes),
        (_SCORE_PAIRS, (_ATTENTION_HTML, _SCORES, *prefixes, *_SEARCH)),
        (_CORPUS, (_INPUT, _INTERACTIVE)),
        (_INPUT, (_INTERACTIVE,)),
        (_PREFIX, (_PREFIX_FILE,)),
    ):
        for other in others:
            if one.value and other.value != other.default:
                raise ValueError(f"--{one.name} and --{other.name} do not go together")
    if _CHECKPOINT.present and _AVERAGE.value > 1:
        raise ValueError("--checkpoint and --average do not go together: the last are averaged")
    if _SCORES.value and _FORMAT.value == "json":
        raise ValueError("--scores is for text: with --format=json there are scores always")
    for flag in (_LAYER, _HEAD):
        if flag.value is not None and not _ALIGNMENTS.value:
            raise ValueError(f"--{flag.name} needs --alignments")


def _opened_input() -> contextlib.AbstractContextManager[BinaryIO]:
    """Where lines come from; ValueError if the output would overwrite it."""
    if not _INPUT.value and sys.stdin is None:
        raise ValueError("standard input is closed; --input names a file")
    if os.path.isfile(_OUTPUT.value):
        source = _INPUT.value or sys.stdin.fileno()
        for name, file in (("input", source), ("prefix file", _PREFIX_FILE.value)):
            if file != "" and os.path.samestat(os.stat(file), os.stat(_OUTPUT.value)):
                raise ValueError(f"--output={_OUTPUT.value} is the {name}, and would be lost")
    from transformer_jax.data.corpora import open_text

    return open_text(_INPUT.value) if _INPUT.value else contextlib.nullcontext(sys.stdin.buffer)


def _open_files() -> dict[str, str | int]:
    """The files that are read and written, but for the page of attention."""
    files = {"prefix file": _PREFIX_FILE.value, "input": _INPUT.value, "output": _OUTPUT.value}
    for name, stream in (("input", sys.stdin), ("output", sys.stdout)):
        if not files[name] and stream is not None:
            files[name] = stream.fileno()
    return {name: file for name, file in files.items() if file != ""}


def _opened_output() -> contextlib.AbstractContextManager[BinaryIO]:
    if _OUTPUT.value:
        return open(_OUTPUT.value, "wb")
    if sys.stdout is None:
        raise ValueError("standard output is closed; --output names a file")
    return contextlib.nullcontext(sys.stdout.buffer)


def _one_by_one(groups: Iterable[list[bytes]]) -> Iterator[list[bytes]]:
    """Each line by itself, with a prompt where somebody types."""
    prompt = "> " if sys.stdin.isatty() else ""
    print(prompt, end="", file=sys.stderr, flush=True)
    for group in groups:
        for line in group:
            yield [line]
            print(prompt, end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    # Ends at once and without a word, also while libraries start: what is done is written.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    cli.run(main)
