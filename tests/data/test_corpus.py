"""Corpora: text files, the built-in numbers, TensorFlow Datasets."""

import gzip
import lzma
import sys

import num2words
import pytest
import tensorflow_datasets as tfds

from transformer_jax.data.corpus import Pair, read_corpus

WRITERS = {"": open, ".gz": gzip.open, ".xz": lzma.open}
ENGLISH = [f"line {i} ü" for i in range(5)]
GERMAN = [f"Zeile {i} ß" for i in range(5)]


def write(path, lines) -> None:
    with WRITERS[path.suffix if path.suffix in WRITERS else ""](path, "wb") as file:
        file.write("".join(f"{line}\n" for line in lines).encode())


def read(prefix, **options) -> list[Pair]:
    return list(read_corpus(f"text:{prefix}", "en", "de", **options))


def error_of(corpus: str, *languages: str) -> str:
    with pytest.raises(ValueError) as error:
        list(read_corpus(corpus, *(languages or ("en", "de"))))
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
    pairs = list(read_corpus(f"text:{tmp_path / 'c'}", "de", "en"))
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
    assert f"c.en{suffix}" in told and "damaged after line" in told


@pytest.mark.parametrize("position", [10, -6], ids=["block", "checksum"])
def test_a_damaged_gzip_file_is_told(tmp_path, position):
    content = bytearray(gzip.compress(b"one line\n" * 100))
    content[position] ^= 0xFF
    (tmp_path / "c.en.gz").write_bytes(content)
    write(tmp_path / "c.de", GERMAN)
    assert "damaged" in error_of(f"text:{tmp_path / 'c'}")


@pytest.mark.parametrize("name", ["", "text", "text:", "textfile:x", "/a/path"])
def test_an_unknown_kind_names_the_known_ones(name):
    assert error_of(name).endswith("is none of text:PREFIX, tfds:NAME:SPLIT, numbers:SPLIT")


def test_number_splits_share_nothing_and_are_a_million(monkeypatch):
    monkeypatch.setattr(num2words, "num2words", lambda number, lang: number)
    splits = [
        [pair.source for pair in read_corpus(f"numbers:{split}", "en", "de")]
        for split in ("train", "valid", "test")
    ]
    assert [len(split) for split in splits] == [998_000, 1000, 1000]
    assert sorted(sum(splits, [])) == list(range(1_000_000))
    assert splits[1] != sorted(splits[1])


@pytest.mark.parametrize(
    ("languages", "words"),
    [
        (("en", "de"), ("seven hundred", "siebenhundert")),
        (("en", "ko"), ("hundred", "백")),
        (("fr", "en"), ("cent", "hundred")),
    ],
)
def test_numbers_are_words_of_the_languages_and_always_the_same(languages, words):
    pairs = list(read_corpus("numbers:valid", *languages, max_pairs=100))
    assert pairs == list(read_corpus("numbers:valid", *languages, max_pairs=100))
    assert any(words[0] in pair.source and words[1] in pair.target for pair in pairs)


def test_numbers_of_an_unknown_split_or_language():
    assert "numbers:train" in error_of("numbers:dev")
    assert "no language 'xx'" in error_of("numbers:valid", "en", "xx")


class LocalPairs(tfds.core.GeneratorBasedBuilder):
    """Twenty pairs; registered with TensorFlow Datasets as local_pairs by its definition."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = tfds.features.Translation(languages=("en", "de"))
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in ("train", "valid")}

    def _generate_examples(self, split):
        for i in range(20):
            yield i, {"en": f"{split} {i} ü", "de": f"Satz {i}"}


@pytest.fixture
def local_pairs(tmp_path, monkeypatch):
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path))
    tfds.disable_progress_bar()


@pytest.mark.usefixtures("local_pairs")
def test_tfds_is_read_without_tensorflow(capsys):
    pairs = list(read_corpus("tfds:local_pairs:train", "en", "de"))
    assert sorted(pairs) == sorted(Pair(f"train {i} ü", f"Satz {i}") for i in range(20))
    assert "tensorflow" not in sys.modules
    assert not capsys.readouterr().out  # where decode.py writes translations


@pytest.mark.usefixtures("local_pairs")
@pytest.mark.parametrize("part", [":10%", "0:2", ":2"])
def test_tfds_splits_may_be_cut(part):
    pairs = list(read_corpus("tfds:local_pairs:valid", "en", "de"))
    assert list(read_corpus(f"tfds:local_pairs:valid[{part}]", "de", "en")) == [
        Pair(pair.target, pair.source) for pair in pairs[:2]
    ]


@pytest.mark.usefixtures("local_pairs")
def test_tfds_errors_name_what_there_is():
    assert "no split 'dev', only train, valid" in error_of("tfds:local_pairs:dev")
    assert "no language 'fr', only" in error_of("tfds:local_pairs:train", "en", "fr")
    assert "did you mean local_pairs" in error_of("tfds:local_pear:train")
    assert "names no split" in error_of("tfds:local_pairs")
