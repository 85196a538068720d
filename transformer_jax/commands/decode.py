"""Translates, a sentence a line: decode --workdir=runs/quickstart < source > target.

Each line is answered in order as soon as it is done (with --alignments, as soon as those are
that came with it), also on a pipe that never ends. With --score_pairs the lines are source,
tab and target, and come out with their log-probability. With --corpus a corpus' source side
is translated, and with --score too the translations are scored against the target side and
one JSON line is printed. With --attention_html a page is written, once all lines are
translated or Ctrl-C is pressed, that shows what the model attended to. With --shard=0/8 the first
eighth of the lines is answered; the same command again completes an output that was interrupted,
and the outputs of all shards, one after the other, are that of the whole. The processes of a job
on several hosts share the lines of --input or --corpus so, and join their answers to --output.
"""

import contextlib
import dataclasses
import itertools
import json
import os
import pathlib
import re
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, BinaryIO

from absl.flags import FlagValues

from transformer_jax import allocator, cli, interruption
from transformer_jax.decoding.options import SearchOptions

if TYPE_CHECKING:
    from transformer_jax.data.corpora import Corpus
    from transformer_jax.decoding.translator import Translator

USAGE = "--workdir=FOLDER [--input=FILE] [--output=FILE] [--beam_size=N ...]"

# Names, defaults and help of the flags that are not options of the search.
_FILES = (
    ("input", "File to translate, plain, .gz or .xz; default: standard input."),
    ("output", "File to write; default: standard output."),
    ("prefix_file", "File with a text a line, which that line's translation begins with."),
    ("attention_html", "Page to write, for a browser: attention of the first 100 lines."),
)
_FLAGS = (
    ("corpus", "", "Corpus to translate instead of lines, such as text:PREFIX."),
    ("score", False, "Print the corpus' scores instead of its translation."),
    ("score_pairs", False, "Score given translations: lines are source, tab, target."),
    ("interactive", False, "Answer each line by itself, as it is typed."),
    ("target_language", "", "Language to translate into, of a model trained on several."),
    ("prefix", "", "Text that every translation begins with."),
    ("alignments", False, "Add word alignments: ||| 0-0 1-2 (source-target), or all in JSON."),
    ("scores", False, "Put score and log-probability before each text."),
)

_READING = {"max_length", "rows"}  # of SearchOptions: apply to given translations too
_SEARCH = [x.name for x in dataclasses.fields(SearchOptions) if x.name not in _READING]
_PREFIXES = "prefix prefix_file"
# Flags that do not go together, and why where it is not plain; flags that need another.
_EXCLUDE = (
    ("score", f"score_pairs alignments attention_html scores format n_best {_PREFIXES}", ""),
    ("score_pairs", f"attention_html scores {_PREFIXES} {' '.join(_SEARCH)}", ""),
    ("corpus", "input interactive", ""),
    ("corpus", "target_language", ": a corpus says its own, as in @en-de"),
    ("input", "interactive", ""),
    ("prefix", "prefix_file", ""),
    ("checkpoint", "average", ": the latest are averaged"),
    ("scores", "format", ": JSON has scores always"),
    ("shard", "score attention_html", ": the outputs of all shards are joined first"),
)
_NEED = (
    ("score", "corpus"),
    ("alignment_layer", "alignments"),
    ("alignment_head", "alignments"),
    ("shard", "output"),
)
# Flags that change no answer; what files contain does.
_IDLE = set("input output prefix_file workdir coordinator num_processes process_id".split())


def model_flags(parser: cli.Parser) -> None:
    """Flags of the model, which `loaded` reads."""
    parser.flag(
        "workdir",
        None,
        "Folder that train left; given several times, an ensemble: the mean of their "
        "probabilities.",
        parse=cli.path,
        required=True,
        repeated=True,
        metavar="FOLDER",
    )
    parser.flag("checkpoint", None, "best, last, or the number of a step. Default: best.")
    parser.flag("average", 1, "Latest checkpoints to average.")


def loaded(flags: FlagValues) -> "Translator":
    """The model that flags name."""
    from transformer_jax.decoding.translator import Translator

    if flags.average < 1:
        raise ValueError(f"--average={flags.average} must be at least 1")
    return Translator.from_workdir(
        *flags.workdir, checkpoint=flags.checkpoint or "best", average=flags.average
    )


def add_flags(parser: cli.Parser) -> None:
    """The command's flags."""
    model_flags(parser)
    for name, help in _FILES:
        parser.flag(name, "", help, parse=cli.path, metavar="FILE")
    for name, default, help in _FLAGS:
        parser.flag(name, default, help)
    help = "Part of --input or --corpus to answer, from 0, as of the tasks of an array job."
    parser.flag("shard", None, help, parse=_shard, metavar="INDEX/COUNT")
    help = "A text or a JSON object a line."
    parser.flag("format", "text", help, parse=_format, metavar="text|json")
    for name in ("layer", "head"):
        help = f"The {name} of the cross attention, from 0. Default: the mean of all."
        parser.flag(f"alignment_{name}", None, help, kind=int)
    parser.section("search")
    parser.option_flags(SearchOptions)
    parser.process_flags()


def run(flags: FlagValues) -> None:
    """Translates, scores or aligns."""
    _check(flags)
    from transformer_jax import hosts
    from transformer_jax.devices import check_devices

    hosts.initialize(flags.coordinator, flags.num_processes, flags.process_id)
    with hosts.leaving_on_errors(), contextlib.ExitStack() as files:
        check_devices()
        with hosts.together():
            in_parts = _in_parts(flags)
            is_whole = in_parts and os.path.exists(flags.output)
        if any(hosts.gather(is_whole)):
            print(f"{flags.output} is there already, and so is whole", file=sys.stderr)
            return
        options = SearchOptions(
            **{x.name: getattr(flags, x.name) for x in dataclasses.fields(SearchOptions)}
        )
        with hosts.together():  # mistakes are reported before the output is opened, and so emptied
            lines, prefix_lines = _opened_texts(flags, files)
            translator, align = _checked_translator(flags, options)
            part_of = _part_of(flags, translator, options) if in_parts else None
        if flags.score:
            _score(flags, translator, options)
            return
        output, part = None, range(sys.maxsize)
        if part_of:
            output, part = files.enter_context(_opened_part(flags, *part_of))
        name, groups = _lines(flags, translator, lines, part)
        output = output or files.enter_context(_opened_output(flags))
        if lines is not None and lines.isatty():
            print("Waiting for lines to translate; Ctrl-D ends.", file=sys.stderr)
        prefixes = _prefixes(flags, prefix_lines, part)
        _answer(flags, translator, options, groups, output, prefixes, name=name, align=align)


def _answer(flags, translator, options, groups, output, prefixes, *, name, align) -> None:
    """Writes the answers to groups of lines."""
    from transformer_jax import hosts
    from transformer_jax.decoding import streaming
    from transformer_jax.figures.attention_page import AttentionLines

    settings = {"name": name, "align": align}
    as_json = flags.format == "json"
    writer = streaming.Writer(output, translator.vocabulary, as_json=as_json, scores=flags.scores)
    if flags.score_pairs:
        streaming.score_lines(translator, groups, writer, options, **settings)
        return
    attention = None
    if flags.attention_html:
        attention = AttentionLines(translator, name=name, options=options)
    # Neither among the answers nor among the lines of a log.
    shown = hosts.is_first() and sys.stderr.isatty() and not output.isatty()
    settings |= {"attention": attention, "progress": shown and not flags.interactive}
    groups = streaming.with_prefixes(groups, prefixes, name)
    with _page(attention, flags, translator):
        streaming.translate_lines(translator, groups, writer, options, **settings)


def _score(flags: FlagValues, translator, options: SearchOptions) -> None:
    from transformer_jax import hosts
    from transformer_jax.evaluation import score_translator

    with contextlib.ExitStack() as files:
        with hosts.together():
            corpora = [(corpus, list(corpus)) for corpus in _corpora(flags, translator)]
            if hosts.is_first():
                output = files.enter_context(_opened_output(flags))
        scores, _ = score_translator(translator, corpora, options)
        with hosts.together():
            if hosts.is_first():
                output.write((json.dumps(scores) + "\n").encode())


def _format(text: str) -> str:
    if text not in ("text", "json"):
        raise ValueError(f"--format={text} must be one of text, json")
    return text


def _shard(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    index, count = map(int, found.groups()) if found else (0, 0)
    if not index < count:
        raise ValueError(f"--shard={text} must be INDEX/COUNT, such as 0/8 to 7/8")
    return index, count


def _check(flags: FlagValues) -> None:
    """ValueError on flags that do not go together."""
    given = cli.given(flags)
    for name, others, why in _EXCLUDE:
        for other in others.split():
            if {name, other} <= given:
                raise ValueError(f"--{name} and --{other} do not go together{why}")
    for name, other in _NEED:
        if name in given and other not in given:
            raise ValueError(f"--{name} needs --{other}")


def _in_parts(flags: FlagValues) -> bool:
    """Whether this process answers a part of the lines; ValueError where it cannot."""
    import jax

    in_job = jax.process_count() > 1 and not flags.score
    what = "a job of several processes" if in_job else "--shard"
    if not (in_job or flags.shard):
        return False
    if flags.attention_html:
        raise ValueError(f"{what} and --attention_html do not go together")
    if not flags.output:
        raise ValueError(f"{what} needs --output")
    if not (folder := pathlib.Path(flags.output).absolute().parent).is_dir():
        raise ValueError(f"--output={flags.output}: there is no folder {folder}")
    if os.path.exists(flags.output) and not os.path.isfile(flags.output):
        raise ValueError(f"--output={flags.output} is not a file, which {what} needs")
    if not (flags.corpus or os.path.isfile(flags.input)):
        name = f"--input={flags.input}" if flags.input else "standard input"
        raise ValueError(f"{what} needs --corpus, or an --input that is a file; {name} is none")
    return True


def _opened_texts(flags: FlagValues, files: contextlib.ExitStack):
    """The file of lines, or None of a corpus, and the lines of that of prefixes."""
    from transformer_jax.data.text_files import open_text, raw_lines
    from transformer_jax.figures.attention_page import check_page

    lines = None if flags.corpus else files.enter_context(_opened_input(flags))
    if flags.attention_html:
        check_page(flags.attention_html, _open_files(flags))
    prefix_lines = iter(())
    if name := flags.prefix_file:
        prefix_lines = raw_lines(files.enter_context(open_text(name)), name)
    return lines, prefix_lines


def _checked_translator(flags: FlagValues, options: SearchOptions):
    """The model, and the settings of alignments; ValueError where the flags do not suit it."""
    translator = loaded(flags)
    align = _alignment_settings(flags, translator)
    allocator.keep_freed_memory()
    translator.check(options, prefix=flags.prefix, align=align)
    if flags.attention_html:
        translator.check_attention()
    return translator, align


def _alignment_settings(flags: FlagValues, translator) -> dict[str, Any] | None:
    if not flags.alignments:
        return None
    # The tag that is put before each line is not one of its words.
    tags = translator.config.data.language_tags
    tagged = tags if flags.corpus else bool(flags.target_language)
    return {"layer": flags.alignment_layer, "head": flags.alignment_head, "skip": int(tagged)}


def _corpora(flags: FlagValues, translator) -> list["Corpus"]:
    from transformer_jax.data.corpora import parse_corpora

    data = translator.config.data
    languages = data.source_language, data.target_language
    return parse_corpora(flags.corpus, *languages, language_tags=data.language_tags)


def _languages(flags: FlagValues, translator) -> list[tuple[str, str]]:
    """Of sources and translations, each pair once."""
    data = translator.config.data
    if not flags.corpus:
        return [(data.source_language, flags.target_language or data.target_language)]
    pairs = ((x.source_language, x.target_language) for x in _corpora(flags, translator))
    return list(dict.fromkeys(pairs))


def _lines(flags: FlagValues, translator, file: BinaryIO | None, part: range):
    """Where the lines are from, and those of a part in groups."""
    from transformer_jax.decoding import shards, streaming

    name = flags.corpus or flags.input or "standard input"
    if flags.corpus:
        pairs = itertools.chain.from_iterable(_corpora(flags, translator))
        if part.stop == sys.maxsize:  # mistakes are reported before an answer, as by a part's count
            pairs = list(pairs)
        return name, shards.within(streaming.of_pairs(pairs), part)
    groups = streaming.arriving(file, name)
    groups = _one_by_one(groups) if flags.interactive else shards.within(groups, part)
    groups = streaming.numbered(groups, name, part.start + 1)
    if flags.target_language:
        groups = streaming.with_tag(groups, flags.target_language, translator.vocabulary)
    return name, streaming.with_targets(groups) if flags.score_pairs else groups


def _prefixes(flags: FlagValues, lines: Iterator[bytes], part: range) -> Iterator[str] | str:
    """The prefixes of a part's lines, or that of all."""
    from transformer_jax.decoding.streaming import decoded

    if not (name := flags.prefix_file):
        return flags.prefix
    numbered = itertools.islice(enumerate(lines, 1), part.start, part.stop)
    return (decoded(line, name, number) for number, line in numbered)


def _part_of(flags: FlagValues, translator, options: SearchOptions) -> tuple[str, range, int]:
    """A hash of what answers depend on, the lines to answer, and how many an answer has."""
    from transformer_jax.data.text_files import open_text, raw_lines
    from transformer_jax.decoding import shards

    settings = [(name, flags[name].value) for name in sorted(cli.given(flags) - _IDLE)]
    options = translator.resolved(options)
    settings.append(repr(options))
    names = filter(None, (flags.input, flags.prefix_file))
    states = [(x.st_size, x.st_mtime_ns) for x in map(os.stat, names)]
    if flags.corpus:
        corpora = _corpora(flags, translator)
        states += [corpus.fingerprint() for corpus in corpora]
        total = sum(1 for _ in itertools.chain.from_iterable(corpora))
    else:
        with open_text(flags.input) as file:
            total = sum(1 for _ in raw_lines(file, flags.input, cut=True))
    key = shards.fingerprint(translator.models.params, settings, states)
    is_single = flags.score_pairs or flags.format == "json"
    lines = shards.share(range(total), *flags.shard or (0, 1))
    return key, lines, 1 if is_single else options.n_best


@contextlib.contextmanager
def _opened_part(
    flags: FlagValues, key: str, lines: range, lines_each: int
) -> Iterator[tuple[BinaryIO, range]]:
    """The file for this process' part of lines, and those that it lacks answers for."""
    from transformer_jax import hosts
    from transformer_jax.decoding import shards

    mine = lines[hosts.share(len(lines))]
    with shards.unfinished(flags.output, key, lines_each) as (file, answers):
        yield file, mine[answers:]


@contextlib.contextmanager
def _page(attention, flags: FlagValues, translator) -> Iterator[None]:
    """Writes the page of attention, if there is one, at the end or when a signal comes."""
    if attention is None:
        yield
        return
    names = [os.path.basename(os.path.realpath(folder)) for folder in flags.workdir]
    page = flags.attention_html, f"Attention of {', '.join(names)}", _languages(flags, translator)
    interruption.end_on_signals()
    with interruption.undone(lambda: attention.write(*page)):
        yield
    attention.write(*page)


def _opened_input(flags: FlagValues) -> contextlib.AbstractContextManager[BinaryIO]:
    """Where lines come from; ValueError if the output would overwrite it."""
    if not flags.input and sys.stdin is None:
        raise ValueError("standard input is closed; --input names a file")
    if os.path.isfile(flags.output):
        source = flags.input or sys.stdin.fileno()
        for name, file in (("input", source), ("prefix file", flags.prefix_file)):
            if file != "" and os.path.samestat(os.stat(file), os.stat(flags.output)):
                raise ValueError(f"--output={flags.output} is the {name}, and would be lost")
    from transformer_jax.data.text_files import open_text

    return open_text(flags.input) if flags.input else contextlib.nullcontext(sys.stdin.buffer)


def _open_files(flags: FlagValues) -> dict[str, str | int]:
    """The files that are read and written, but for the page of attention."""
    files = {"prefix file": flags.prefix_file, "input": flags.input, "output": flags.output}
    for name, stream in (("input", sys.stdin), ("output", sys.stdout)):
        if not files[name] and stream is not None:
            files[name] = stream.fileno()
    return {name: file for name, file in files.items() if file != ""}


def _opened_output(flags: FlagValues) -> contextlib.AbstractContextManager[BinaryIO]:
    if flags.output:
        return open(flags.output, "wb")
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
