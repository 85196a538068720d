"""Corpora: mixtures and their options, text and tab-separated files, the built-in numbers."""

import gzip
import lzma
import shutil

import numpy as np
import pytest
from builders import read_pairs

from transformer_jax.data.corpora import Corpus, Pair, grouped, parse_corpora
from transformer_jax.data.numbers import read_numbers

WRITERS = {"": open, ".gz": gzip.open, ".xz": lzma.open}
ENGLISH = [f"line {i} ü" for i in range(5)]
GERMAN = [f"Zeile {i} ß" for i in range(5)]


def write(path, lines) -> None:
    with WRITERS[path.suffix if path.suffix in WRITERS else ""](path, "wb") as file:
        file.write("".join(f"{line}\n" for line in lines).encode())


def parse(names: str, **options) -> list[Corpus]:
    return parse_corpora(names, "en", "de", **options)


def read(prefix, **options) -> list[Pair]:
    (corpus,) = parse(f"text:{prefix}", **options)
    return list(corpus)


def fingerprint(corpus: str, *languages: str, **options) -> str:
    (result,) = parse_corpora(corpus, *(languages or ("en", "de")), **options)
    return result.fingerprint()


def error_of(corpus: str, *languages: str) -> str:
    with pytest.raises(ValueError) as error:
        read_pairs(corpus, *(languages or ("en", "de")))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("english", "german"), [("", ""), (".gz", ".xz"), (".xz", ""), ("", ".gz")]
)
def test_text_keeps_order_whatever_the_compression(tmp_path, english, german):
    write(tmp_path / f"c.en{english}", ENGLISH)
    write(tmp_path / f"c.de{german}", GERMAN)
    assert read(tmp_path / "c") == [Pair(*pair) for pair in zip(ENGLISH, GERMAN)]


def test_languages_choose_the_sides(tmp_path):
    write(tmp_path / "c.en", ENGLISH)
    write(tmp_path / "c.de", GERMAN)
    pairs = read_pairs(f"text:{tmp_path / 'c'}", "de", "en")
    assert pairs[0] == Pair(GERMAN[0], ENGLISH[0])


def test_max_pairs_are_the_first(tmp_path):
    write(tmp_path / "c.en", ENGLISH)
    write(tmp_path / "c.de", GERMAN)
    assert [pair.source for pair in read(tmp_path / "c", max_pairs=2)] == ENGLISH[:2]


def test_only_line_feeds_end_lines_and_a_carriage_return_before_one_is_dropped(tmp_path):
    (tmp_path / "c.en").write_bytes("a\u2028b\x0bc \r\n\r\nlast".encode())
    (tmp_path / "c.de").write_bytes(b"x\n\nz")
    assert read(tmp_path / "c") == [Pair("a\u2028b\x0bc ", "x"), Pair("", ""), Pair("last", "z")]


@pytest.mark.parametrize(("english", "german"), [(5, 3), (2, 5), (0, 4)])
def test_unequal_sides_are_told_with_both_line_counts(tmp_path, english, german):
    write(tmp_path / "c.en", ENGLISH[:english])
    write(tmp_path / "c.de", GERMAN[:german])
    told = error_of(f"text:{tmp_path / 'c'}")
    assert f"c.en has {english} lines" in told and f"c.de has {german}" in told


def test_invalid_utf8_is_told_with_file_and_line(tmp_path):
    write(tmp_path / "c.en", ENGLISH)
    (tmp_path / "c.de").write_bytes(b"gut\ngut\nschl\xffecht\ngut\ngut\n")
    assert f"{tmp_path / 'c.de'}, line 3: not valid UTF-8" in error_of(f"text:{tmp_path / 'c'}")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"gut\nsehr\0gut\n", "line 2: not valid UTF-8 (NUL character)"),
        ("gut\nschön\n".encode("utf-16"), "line 1: not valid UTF-8 (invalid start byte; UTF-16?)"),
        ("나나나\n".encode("utf-16-be"), "line 1: not valid UTF-8 (invalid start byte)"),
        (b"\xfe\xff" + "gut\n".encode("utf-16-be"), "UTF-16?"),
        ("gut\n".encode("utf-16-le"), "line 1: not valid UTF-8 (NUL character; UTF-16?)"),
        ("gut\n".encode("utf-32"), "UTF-16?"),
        (b"\0\0\xfe\xff" + "gut\n".encode("utf-32-be"), "UTF-16?"),
    ],
)
def test_other_encodings_are_told_as_invalid_utf8_is(tmp_path, content, told):
    write(tmp_path / "c.en", ENGLISH)
    (tmp_path / "c.de").write_bytes(content)
    assert f"{tmp_path / 'c.de'}, " in (error := error_of(f"text:{tmp_path / 'c'}"))
    assert told in error


@pytest.mark.parametrize("missing", ["en", "de"])
def test_a_missing_file_is_named(tmp_path, missing):
    write(tmp_path / f"c.{'de' if missing == 'en' else 'en'}", ENGLISH)
    with pytest.raises(FileNotFoundError, match=rf"no file .*c\.{missing} \(nor"):
        read(tmp_path / "c")


@pytest.mark.parametrize("suffix", [".gz", ".xz"])
def test_a_truncated_file_is_an_error_and_no_shorter_corpus(tmp_path, suffix):
    lines = [f"line {i * i}" for i in range(20_000)]
    write(tmp_path / f"c.en{suffix}", lines)
    write(tmp_path / "c.de", lines)
    path = tmp_path / f"c.en{suffix}"
    path.write_bytes(path.read_bytes()[:-2000])
    told = error_of(f"text:{tmp_path / 'c'}")
    assert told.startswith(f"{path} is damaged after line ")
    number = int(told.removeprefix(f"{path} is damaged after line ").partition(":")[0])
    assert 0 < number < 20_000


@pytest.mark.parametrize("position", [10, -6], ids=["block", "checksum"])
def test_a_damaged_gzip_file_is_told(tmp_path, position):
    content = bytearray(gzip.compress(b"one line\n" * 100))
    content[position] ^= 0xFF
    (tmp_path / "c.en.gz").write_bytes(content)
    write(tmp_path / "c.de", GERMAN)
    assert f"{tmp_path / 'c.en.gz'} is damaged" in error_of(f"text:{tmp_path / 'c'}")


@pytest.mark.parametrize("suffix", [".gz", ".xz"])
def test_a_file_that_is_not_compressed_is_told(tmp_path, suffix):
    (tmp_path / f"c.de{suffix}").write_bytes(b"not compressed\n")
    write(tmp_path / "c.en", ENGLISH)
    told = error_of(f"text:{tmp_path / 'c'}")
    assert told.startswith(f"{tmp_path / f'c.de{suffix}'} is damaged after line 0")


@pytest.mark.parametrize(
    ("names", "languages", "told"),
    [
        ("text:{x}.en", "en-de", r"x\.en\.en .*: PREFIX is without the suffix, text:.*/x$"),
        ("text:{x}.ko.gz", "en-ko", r"PREFIX is without the suffix, text:.*/x$"),
        ("text:{x}", "en-de", r"no file .*x\.de \(nor with .*\), only .*/x\.en, .*/x\.ko\.gz$"),
        (
            "text:{x}",
            "en-kr",
            r"no file .*x\.kr .*, only .*/x\.en, .*/x\.ko\.gz; did you mean ko\?",
        ),
        ("text:{x}z", "jp-en", r"no file .*xz\.jp \(nor with \.gz or \.xz\); did you mean ja\?"),
        ("numbers:test", "en-kr", r"no language 'kr', only .*; did you mean ko\?"),
        ("numbers:test", "en-tlh", r"no language 'tlh', only [^;]*$"),
    ],
)
def test_a_side_that_is_not_there_is_told_with_what_was_meant(tmp_path, names, languages, told):
    write(tmp_path / "x.en", ENGLISH)
    write(tmp_path / "x.ko.gz", ENGLISH)
    with pytest.raises((OSError, ValueError), match=told):
        read_pairs(names.format(x=tmp_path / "x"), *languages.split("-"))


def test_a_space_after_the_comma_of_a_mixture_is_no_part_of_a_name():
    names = "numbers:train@en-ko@2, tsv:a, b.tsv@1,  text:c@1 "
    assert [x.name for x in parse(names)] == ["numbers:train", "tsv:a, b.tsv", "text:c"]


def test_a_byte_order_mark_is_no_text(tmp_path):
    """Only at the beginning of a file is it one."""
    (tmp_path / "c.en").write_bytes("\ufeffone\n\ufefftwo\n".encode())
    (tmp_path / "c.de").write_bytes("\ufeff\r\nzwei\n".encode())
    assert read(tmp_path / "c") == [Pair("one", ""), Pair("\ufefftwo", "zwei")]


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz"])
def test_empty_files_are_a_corpus_without_pairs(tmp_path, suffix):
    for side in ("en", "de"):
        write(tmp_path / f"c.{side}{suffix}", [])
    (corpus,) = parse(f"text:{tmp_path / 'c'}")
    assert list(corpus) == []


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz"])
def test_tsv_has_source_and_target_and_ignores_further_columns(tmp_path, suffix):
    path = tmp_path / f"c.tsv{suffix}"
    write(path, ["\ufeffone ü\teins ß", "two\tzwei\tlicence\t", "\tdrei", "four\t\r"])
    pairs = [Pair("one ü", "eins ß"), Pair("two", "zwei"), Pair("", "drei"), Pair("four", "")]
    assert read_pairs(f"tsv:{path}", "en", "de") == pairs


def test_tsv_errors_say_where(tmp_path):
    path = tmp_path / "c.tsv"
    write(path, ["one\teins", "no tab"])
    assert error_of(f"tsv:{path}") == f"{path}, line 2: no tab between source and target"
    write(path, ["one\teins", ""])
    assert f"{path}, line 2: no tab" in error_of(f"tsv:{path}")
    path.write_bytes(b"one\teins\ntwo\tzw\xffei\n")
    assert f"{path}, line 2: not valid UTF-8" in error_of(f"tsv:{path}")
    with pytest.raises(FileNotFoundError, match="none.tsv"):
        read_pairs(f"tsv:{tmp_path / 'none.tsv'}", "en", "de")


@pytest.mark.parametrize("name", ["", "text", "text:", "textfile:x", "/a/path"])
def test_an_unknown_kind_names_the_known_ones(name):
    known = "is none of text:PREFIX, tsv:FILE, tfds:NAME:SPLIT, multi30k:SPLIT, "
    known += "sacrebleu:NAME, numbers:SPLIT"
    assert error_of(name).endswith(known)


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        ("text:a", [("text:a", "en", "de", 0)]),
        ("text:a,tsv:b.tsv", [("text:a", "en", "de", 0), ("tsv:b.tsv", "en", "de", 0)]),
        ("text:a@it-en", [("text:a", "it", "en", 0)]),
        ("text:a@en-zh-Hans", [("text:a", "en", "zh-Hans", 0)]),
        ("text:a@2@en-sr-Latn-RS", [("text:a", "en", "sr-Latn-RS", 2)]),
        ("text:a-b/c@x@de-en", [("text:a-b/c@x", "de", "en", 0)]),
        ("text:a@3", [("text:a", "en", "de", 3)]),
        ("text:a@it-en@.5,text:a@2.5e1@de-en", [("text:a", "it", "en", 0.5),
                                                 ("text:a", "de", "en", 25)]),
        ("numbers:train@en-pt_BR@+2", [("numbers:train", "en", "pt_BR", 2)]),
        ("tfds:a/de-en:train[:10%]@3,numbers:test@1", [("tfds:a/de-en:train[:10%]", "en", "de", 3),
                                                       ("numbers:test", "en", "de", 1)]),
        ("text:/data,old/a,b,text:c", [("text:/data,old/a,b", "en", "de", 0),
                                       ("text:c", "en", "de", 0)]),
        ("tsv:me@home/a@b.tsv", [("tsv:me@home/a@b.tsv", "en", "de", 0)]),
        ("tsv:me@home/x.tsv@fr-en@2", [("tsv:me@home/x.tsv", "fr", "en", 2)]),
        ("text:run@3/x", [("text:run@3/x", "en", "de", 0)]),
        ("text:wmt@it-en/x", [("text:wmt@it-en/x", "en", "de", 0)]),
        ("text:C:\\a,text.b", [("text:C:\\a,text.b", "en", "de", 0)]),
    ],
)  # fmt: skip
def test_a_mixture_is_parsed_into_names_languages_and_weights(names, wanted):
    corpora = parse(names)
    assert [(x.name, x.source_language, x.target_language, x.weight) for x in corpora] == wanted
    assert {(x.tag, x.max_pairs) for x in corpora} == {("", 0)}


@pytest.mark.parametrize(
    ("weight", "told"),
    [
        ("0", "must be above zero, and finite"),
        ("-1", "must be above zero, and finite"),
        ("nan", "must be above zero, and finite"),
        ("inf", "must be above zero, and finite"),
        ("1e999", "must be above zero, and finite"),
        ("1.2.3", "is not a number"),
        ("2-3", "is not a number"),
        ("1e", "is not a number"),
    ],
)
def test_a_weight_that_is_none_is_told_with_its_corpus(weight, told):
    item = f"text:a@{weight}"
    assert error_of(f"text:b@1,{item}") == f"the weight {weight} of corpus {item!r} {told}"


@pytest.mark.parametrize("names", ["text:a@2,text:b", "text:b,text:a@2,text:c@1"])
def test_weights_are_of_all_corpora_or_of_none(names):
    told = f"corpus text:b has no weight, and others of {names!r} have one"
    assert error_of(names) == told


def test_tags_are_of_each_corpus_target_and_not_on_sources_without_text(tmp_path):
    write(tmp_path / "a.tsv", ["one\teins", " \tzwei", "\tdrei", "four\t\u3000\u00a0"])
    name = f"tsv:{tmp_path / 'a.tsv'}"
    pairs = read_pairs(f"{name},{name}@it-en", "en", "de", language_tags=True)
    sources = ["<2de> one", "", "", "<2de> four", "<2en> one", "", "", "<2en> four"]
    assert pairs == [Pair(*x) for x in zip(sources, ["eins", "zwei", "drei", ""] * 2)]


def test_a_mixture_is_read_one_corpus_after_the_other(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / f"{name}.en", [f"{name} {line}" for line in ENGLISH])
        write(tmp_path / f"{name}.de", GERMAN)
    names = f"text:{tmp_path / 'b'}@1,text:{tmp_path / 'a'}@de-en@9"
    wanted = [*zip([f"b {x}" for x in ENGLISH], GERMAN), *zip(GERMAN, [f"a {x}" for x in ENGLISH])]
    assert read_pairs(names, "en", "de") == [Pair(*pair) for pair in wanted]


@pytest.mark.parametrize("max_pairs", [1, 5])
def test_what_comes_after_max_pairs_is_not_read(tmp_path, max_pairs):
    (tmp_path / "c.tsv").write_bytes(b"one\teins\n" * max_pairs + b"\xff\n")
    (corpus,) = parse(f"tsv:{tmp_path / 'c.tsv'}", max_pairs=max_pairs)
    assert len(list(corpus)) == max_pairs


def test_fingerprints_are_of_the_content_not_of_its_path(tmp_path):
    write(tmp_path / "c.en", ENGLISH)
    write(tmp_path / "c.de", GERMAN)
    name = f"text:{tmp_path / 'c'}"
    first = fingerprint(name)
    for side in ("en", "de"):
        shutil.copy(tmp_path / f"c.{side}", tmp_path / f"moved.{side}")
    assert fingerprint(f"text:{tmp_path / 'moved'}") == first
    assert fingerprint(f"{name}@3") == first  # a share is no content
    write(tmp_path / "lines.tsv", map("\t".join, zip(ENGLISH, GERMAN)))
    others = [
        fingerprint(name, "de", "en"),
        fingerprint(name, language_tags=True),
        fingerprint(name, max_pairs=3),
        fingerprint(name, max_pairs=4),
        fingerprint(f"tsv:{tmp_path / 'lines.tsv'}"),
        fingerprint("numbers:train"),
        fingerprint("numbers:valid"),
        fingerprint("numbers:valid", "de", "en"),
    ]
    write(tmp_path / "c.de", [*GERMAN[:-1], "Zeile"])
    others.append(fingerprint(name))
    write(tmp_path / "c.de", ENGLISH)
    write(tmp_path / "c.en", GERMAN)
    others.append(fingerprint(name))
    assert len({first, *others}) == 1 + len(others)


def test_fingerprints_tell_where_one_side_ends(tmp_path):
    def write_sides(english, german):
        (tmp_path / "c.en").write_bytes(english)
        (tmp_path / "c.de").write_bytes(german)
        return fingerprint(f"text:{tmp_path / 'c'}")

    assert write_sides(b"a\nb\n", b"c\n") != write_sides(b"a\n", b"b\nc\n")


def test_a_corpus_that_is_no_longer_what_it_was_is_told(tmp_path):
    write(tmp_path / "c.en", ENGLISH)
    write(tmp_path / "c.de", GERMAN)
    (corpus,) = parse(f"text:{tmp_path / 'c'}")
    content = corpus.fingerprint()
    corpus.check_unchanged(content)
    write(tmp_path / "c.de", GERMAN)  # as it was
    corpus.check_unchanged(content)
    write(tmp_path / "c.de", GERMAN[::-1])
    with pytest.raises(ValueError) as error:
        corpus.check_unchanged(content)
    name = f"text:{tmp_path / 'c'}"
    assert str(error.value) == f"corpus {name} has changed while it was read; start again"


def test_a_tag_names_a_language_with_its_hyphens(tmp_path):
    write(tmp_path / "a.tsv", ["one\teins"])
    name = f"tsv:{tmp_path / 'a.tsv'}@en-zh-Hans"
    (pair,) = read_pairs(name, "en", "de", language_tags=True)
    assert pair.source == "<2zh-Hans> one"


def test_a_fingerprint_names_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*c\.en"):
        fingerprint(f"text:{tmp_path / 'c'}")


@pytest.fixture
def digits(monkeypatch):
    """Numbers as digits instead of words, "1,234" in both languages."""
    monkeypatch.setattr(
        "transformer_jax.data.numbers.number_words", lambda number, language: f"{number:,}"
    )


def test_number_splits_share_nothing_and_are_a_million(digits):
    splits = [
        [int(target.replace(",", "")) for _, target in read_numbers(split, "en", "de")]
        for split in ("train", "valid", "test")
    ]
    assert [len(split) for split in splits] == [998_000, 1000, 1000]
    assert sorted(sum(splits, [])) == list(range(1_000_000))
    assert splits[1] != sorted(splits[1])


def test_spoken_numbers_are_short_and_without_commas_often(digits):
    """And none is held out, and the targets of all have their commas."""
    (corpus,) = parse_corpora("numbers:spoken", "en", "de", max_pairs=60_000)
    pairs = list(corpus)
    held_out = read_pairs("numbers:valid,numbers:test", "en", "de")
    assert not {pair.target for pair in held_out} & {pair.target for pair in pairs}
    assert {str(n) for n in range(100)} <= {pair.source for pair in pairs}
    assert 0.18 < np.mean([len(pair.target) <= 5 for pair in pairs]) < 0.25  # below ten thousand
    longer = [pair for pair in pairs if "," in pair.target]
    assert 0.48 < np.mean(["," in pair.source for pair in longer]) < 0.52
    assert all(pair.source.replace(",", "") == pair.target.replace(",", "") for pair in pairs)


def test_a_range_of_numbers_is_all_of_them_in_order(digits):
    pairs = read_pairs("numbers:998-1001", "en", "de")
    assert [pair.source for pair in pairs] == ["998", "999", "1,000", "1,001"]
    for wrong in ("9-8", "0-1000000", "5"):
        assert f"numbers:{wrong}" in error_of(f"numbers:{wrong}")


@pytest.mark.parametrize(
    ("languages", "words"),
    [
        (("en", "de"), ("seven hundred", "siebenhundert")),
        (("en", "ko"), ("hundred", "백")),
        (("fr", "en"), ("cent", "hundred")),
    ],
)
def test_numbers_are_words_of_the_languages_and_always_the_same(languages, words):
    (corpus,) = parse_corpora("numbers:valid", *languages, max_pairs=100)
    pairs = list(corpus)
    assert pairs == list(corpus) and len(pairs) == 100
    assert any(words[0] in pair.source and words[1] in pair.target for pair in pairs)


def test_numbers_of_an_unknown_split_or_language():
    assert "numbers:train" in error_of("numbers:dev")
    assert "no language 'xx'" in error_of("numbers:valid", "en", "xx")


def test_long_pairs_come_in_small_groups_and_others_in_large_ones():
    long, short = Pair("x" * 2**20, "y" * 2**20), Pair("x", "y")
    pairs = [long] * 3 + [short] * 7
    groups = list(grouped(pairs, 4))
    assert [pair for group in groups for pair in group] == pairs
    assert [len(group) for group in groups] == [2, 4, 4]
