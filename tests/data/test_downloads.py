"""Public corpora: fetched once, checked, or one sentence."""

import gzip
import hashlib
import io
import urllib.error

import pytest
from builders import read_pairs

from transformer_jax.data.corpora import parse_corpora
from transformer_jax.data.downloads import fetched

TEXT = "größer\n".encode()
SHA256 = hashlib.sha256(TEXT).hexdigest()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "transformer_jax/corpora"


@pytest.fixture
def answers(monkeypatch):
    """What the network answers, the first first: content, or an error."""
    answers = []

    def urlopen(url, timeout):
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return io.BytesIO(answer)

    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    return answers


def test_a_file_is_fetched_once(answers, cache):
    answers.append(gzip.compress(TEXT))
    path = cache / "some/file"
    for _ in range(2):
        assert fetched("https://x.org/file.gz", path, SHA256) == str(path)
    assert path.read_bytes() == TEXT and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (urllib.error.URLError(OSError(-2, "Name or service not known")), "Name or service not"),
        (urllib.error.HTTPError("u", 404, "Not Found", {}, None), "Not Found"),
        (TimeoutError("timed out"), "timed out"),
        (b"<html>log in</html>", "Not a gzipped file"),
        (gzip.compress(TEXT * 1000)[:-9], "ended before"),
        (gzip.compress(b"other text"), f"is {hashlib.sha256(b'other text').hexdigest()}, not "),
    ],
    ids=["no network", "404", "slow", "page", "cut", "other"],
)
def test_what_cannot_be_fetched_is_one_sentence_and_leaves_nothing(answers, cache, answer, reason):
    answers += [answer, gzip.compress(TEXT)]
    path = cache / "file"
    with pytest.raises((OSError, ValueError), match=r"^https://x\.org/file\.gz ") as error:
        fetched("https://x.org/file.gz", path, SHA256)
    assert reason in str(error.value) and "\n" not in str(error.value)
    if isinstance(error.value, OSError):
        assert f"unpack it to {path}, or name files of your own by text:PREFIX" in str(error.value)
    assert not path.exists()
    assert fetched("https://x.org/file.gz", path, SHA256) == str(path)


def test_multi30k_is_what_its_folder_holds(cache):
    """As of a machine without a network, to which they were copied."""
    folder = cache / "multi30k"
    folder.mkdir(parents=True)
    for name in ("val", "test_2016_flickr"):
        (folder / f"{name}.en").write_text(f"a {name}\n")
        (folder / f"{name}.de").write_text(f"ein {name}\n")
    assert read_pairs("multi30k:valid,multi30k:test@de-en", "en", "de") == [
        ("a val", "ein val"),
        ("ein test_2016_flickr", "a test_2016_flickr"),
    ]
    (corpus,) = parse_corpora("multi30k:valid", "en", "de")
    (text,) = parse_corpora(f"text:{folder / 'val'}", "en", "de")
    assert corpus.fingerprint() == text.fingerprint()  # its tokens are those of the files


def test_multi30k_without_a_network_names_address_and_folder(answers, cache):
    answers.append(urllib.error.URLError("no network"))
    with pytest.raises(OSError) as error:
        read_pairs("multi30k:train", "en", "de")
    address = "https://raw.githubusercontent.com/multi30k/dataset/master/data/task1/raw/train.en.gz"
    assert str(error.value).startswith(f"{address} cannot be downloaded (no network): ")
    assert str(cache / "multi30k/train.en") in str(error.value)


@pytest.mark.parametrize("rest", ["dev@en-de", "train@en-fr", "val@en-de"])
def test_what_multi30k_has_not_is_refused(rest):
    with pytest.raises(ValueError, match=r"is none of multi30k:train, multi30k:valid and multi30k"):
        read_pairs(f"multi30k:{rest}", "en", "de")


def test_a_test_set_of_sacrebleu_is_source_and_reference(tmp_path, monkeypatch):
    for side in ("en", "de"):
        (tmp_path / f"set.{side}").write_text(f"{side} 1\n{side} 2\n")
    monkeypatch.setattr("sacrebleu.utils.get_source_file", lambda *_: str(tmp_path / "set.en"))
    monkeypatch.setattr(
        "sacrebleu.utils.get_reference_files", lambda *_: [str(tmp_path / "set.de")]
    )
    pairs = read_pairs("sacrebleu:wmt14", "en", "de")
    assert pairs == [("en 1", "de 1"), ("en 2", "de 2")]


def test_a_test_set_that_is_not_there_is_one_sentence(monkeypatch):
    with pytest.raises(ValueError, match=r"no test set 'wmt14' in en-ko, only cs-en, de-en"):
        read_pairs("sacrebleu:wmt14", "en", "ko")
    with pytest.raises(ValueError, match=r"no test set 'none' in en-de, only .*wmt14"):
        read_pairs("sacrebleu:none", "en", "de")

    def fails(*_):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("sacrebleu.utils.get_source_file", fails)
    with pytest.raises(OSError, match=r"cannot fetch its test set wmt14 in en-de: .*no network"):
        read_pairs("sacrebleu:wmt14", "en", "de")
