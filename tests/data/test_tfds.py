"""TensorFlow Datasets: builders of its catalogue fetch tiny archives from a loopback server."""

import gzip
import hashlib
import http.server
import importlib.util
import io
import subprocess
import sys
import tarfile
import threading
import time
import zipfile

import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download import downloader, extractor
from tensorflow_datasets.core.utils.lazy_imports_utils import tensorflow as lazy_tensorflow
from tensorflow_datasets.datasets.para_crawl import para_crawl_dataset_builder as para_crawl
from tensorflow_datasets.datasets.ted_hrlr_translate import (
    ted_hrlr_translate_dataset_builder as ted_hrlr,
)
from tensorflow_datasets.datasets.ted_multi_translate import (
    ted_multi_translate_dataset_builder as ted_multi,
)
from tensorflow_datasets.translate import wmt

from transformer_jax.data import tfds as tfds_module
from transformer_jax.data.tfds import read_tfds, tfds_content

TED = "ted_hrlr_translate/pt_to_en"
RETRIES = tfds_module.RETRIES


class Server(http.server.ThreadingHTTPServer):
    """Answers with `files`: bytes are content, a number is a status, None is a broken answer."""

    def __init__(self):
        self.files = {}
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.thread = threading.Thread(target=self.serve_forever, args=(0.01,))
        self.thread.start()

    def close(self) -> None:
        if self.thread.is_alive():
            self.shutdown()
            self.server_close()
            self.thread.join()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        content = self.server.files.get(self.path.rpartition("/")[2], 404)
        self.send_response(content if isinstance(content, int) else 200)
        body = content if isinstance(content, bytes) else b"no"
        self.send_header("Content-Length", str(len(body) + 1000 * (content is None)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Server()
    yield server
    server.close()


@pytest.fixture(autouse=True)
def data_dir(tmp_path, monkeypatch):
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path))
    monkeypatch.setattr(tfds_module, "RETRIES", 0)
    tfds.disable_progress_bar()
    imported = "tensorflow" in sys.modules
    yield tmp_path
    assert ("tensorflow" in sys.modules) == imported


def tar(files: dict[str, str]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
    return stream.getvalue()


def lines(language: str, split: str) -> str:
    return "".join(f"{language} {split} {i} ü\n" for i in range(20))


def pairs(source: str, target: str, *splits: str) -> list[tuple[str, str]]:
    return sorted((f"{source} {s} {i} ü", f"{target} {s} {i} ü") for s in splits for i in range(20))


@pytest.fixture
def ted(server, monkeypatch):
    """ted_hrlr_translate as the server has it; the archive's name in `server.files`."""
    monkeypatch.setattr(ted_hrlr, "_DATA_URL", f"{server.url}/qi18naacl-dataset.tar.gz")
    server.files["qi18naacl-dataset.tar.gz"] = tar(
        {
            f"datasets/pt_to_en/{language}.{split}": lines(language, split)
            for language in ("pt", "en")
            for split in ("train", "dev", "test")
        }
    )
    return "qi18naacl-dataset.tar.gz"


@pytest.fixture
def wmt14(server, monkeypatch):
    train = ["europarl_v7", "commoncrawl", "newscommentary_v9"]
    files = {}
    for name in [*train, "newstest2013", "newstest2014"]:
        data_set = wmt.DATASET_MAP[name]
        for path, language in zip(data_set.get_path("de"), ("de", "en")):
            files[path] = lines(language, name)
            if path.endswith(".sgm"):
                files[path] = "".join(
                    f'<seg id="{i}">{line}</seg>\n'
                    for i, line in enumerate(files[path].split("\n"))
                )
        monkeypatch.setattr(data_set, "_urls", (f"{server.url}/{name}.tgz",))
        server.files[f"{name}.tgz"] = tar(files)
    return train


def read(rest: str, source: str = "pt", target: str = "en") -> list[tuple[str, str]]:
    return sorted(read_tfds(rest, source, target))


def error_of(rest: str, *languages: str, kind: type = ValueError) -> str:
    with pytest.raises(kind) as error:
        list(read_tfds(rest, *(languages or ("pt", "en"))))
    assert "\n" not in str(error.value)
    with pytest.raises(kind) as again:
        tfds_content(rest, *(languages or ("pt", "en")))
    assert type(again.value) is type(error.value)
    return str(error.value)


def test_a_tar_archive_is_prepared_once_and_without_tensorflow(server, ted, capsys):
    for source, target in [("pt", "en"), ("en", "pt")]:
        assert read(f"{TED}:train", source, target) == pairs(source, target, "train")
        server.close()
    assert read(f"{TED}:1.0.0:test") == pairs("pt", "en", "test")
    assert not capsys.readouterr().out  # where decode.py writes translations
    assert isinstance(downloader.MAX_RETRIES, int) and downloader.MAX_RETRIES > 0
    assert extractor.tf is lazy_tensorflow and downloader.tf is lazy_tensorflow


def test_wmt14_is_prepared_without_tensorflow(server, wmt14):
    assert read("wmt14_translate/de-en:train", "de", "en") == pairs("de", "en", *wmt14)
    server.close()
    assert read("wmt14_translate/de-en:test", "en", "de") == pairs("en", "de", "newstest2014")
    assert read("wmt14_translate/de-en:1.0.0:validation", "de", "en") == pairs(
        "de", "en", "newstest2013"
    )


def test_a_gzip_file_is_prepared_without_tensorflow(server, monkeypatch):
    config = para_crawl.Builder.builder_configs["ende"]
    monkeypatch.setattr(config, "data_url", f"{server.url}/en-de.txt.gz")
    text = "".join(f"en train {i} ü\tde train {i} ü\n" for i in range(20))
    server.files["en-de.txt.gz"] = gzip.compress(text.encode())
    assert read("para_crawl/ende:train", "en", "de") == pairs("en", "de", "train")


def test_of_many_languages_the_records_that_have_both_are_read(server, monkeypatch):
    monkeypatch.setattr(ted_multi, "_DATA_URL", f"{server.url}/ted_talks.tar.gz")
    rows = ["talk_name\ten\tfr\tde", "a\ten 0\tfr 0\tde 0", "b\ten 1\t__NULL__\tde 1"]
    names = [f"all_talks_{split}.tsv" for split in ("train", "dev", "test")]
    server.files["ted_talks.tar.gz"] = tar(dict.fromkeys(names, "\n".join(rows)))
    rest = "ted_multi_translate:validation"
    assert read(rest, "de", "en") == [("de 0", "en 0"), ("de 1", "en 1")]
    assert read(rest, "fr", "de") == [("fr 0", "de 0")]
    assert "no texts in 'xx', only ar, az," in error_of(rest, "en", "xx")


@pytest.mark.usefixtures("ted")
def test_splits_may_be_cut_and_added():
    whole = list(read_tfds(f"{TED}:train", "pt", "en"))
    assert list(read_tfds(f"{TED}:train[:10%]", "pt", "en")) == whole[:2]
    assert list(read_tfds(f"{TED}:1.0.0:train[18:]+train[:1]", "pt", "en")) == [
        *whole[18:],
        whole[0],
    ]
    assert read(f"{TED}:all") == pairs("pt", "en", "train", "dev", "test")


@pytest.mark.usefixtures("ted")
def test_content_names_files_version_and_split(data_dir):
    folder = data_dir / "ted_hrlr_translate/pt_to_en/1.0.0"
    files = {
        split: str(folder / f"ted_hrlr_translate-{split}.array_record-00000-of-00001")
        for split in ("train", "test")
    }
    content = tfds_content(f"{TED}:train[:2]+train[4:6]", "pt", "en")  # prepares
    assert content == ([files["train"]], "ted_hrlr_translate/pt_to_en/1.0.0:train[:2]+train[4:6]")
    content = tfds_content(f"{TED}:1.0.0:train+test", "pt", "en")
    assert content == (sorted(files.values()), "ted_hrlr_translate/pt_to_en/1.0.0:train+test")
    assert all(open(path, "rb").close() is None for path in files.values())


def broken_tar(archive: bytes) -> bytes:
    return archive[: len(archive) // 2]


@pytest.mark.parametrize(
    ("fault", "kind", "told"),
    [
        (404, OSError, "Failed to get url URL. HTTP code: 404."),
        (500, OSError, "too many 500 error responses"),
        (None, OSError, "IncompleteRead(2 bytes read, 1000 more"),
        (broken_tar, ValueError, "Compressed file ended before the end-of-stream marker"),
        (lambda _: b"<html>log in</html>", ValueError, "Error while extracting"),
        (lambda _: b"", ValueError, "Error while extracting"),
    ],
    ids=["404", "500", "cut", "broken", "page", "empty"],
)
def test_after_a_failed_download_the_next_is_whole(server, ted, data_dir, fault, kind, told):
    archive = server.files[ted]
    server.files[ted] = fault(archive) if callable(fault) else fault
    for _ in range(2):
        message = error_of(f"{TED}:train", kind=kind)
        assert message.startswith(f"tfds:{TED} cannot be ")
        assert told.replace("URL", f"{server.url}/{ted}") in message
    assert not list(data_dir.glob("**/*array_record*"))
    server.files[ted] = archive
    assert read(f"{TED}:train") == pairs("pt", "en", "train")


def test_a_broken_zip_archive_is_told_and_fetched_again(server, monkeypatch):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("pairs.txt", lines("en", "train"))
    monkeypatch.setattr(ZipPairs, "url", f"{server.url}/pairs.zip")
    server.files["pairs.zip"] = stream.getvalue()[:-30]
    assert "File is not a zip file" in error_of("zip_pairs:train", "en", "de")
    damaged = stream.getvalue().replace(b"train 3", b"train 4")
    server.files["pairs.zip"] = damaged
    assert "Bad CRC-32" in error_of("zip_pairs:train", "en", "de")
    server.files["pairs.zip"] = stream.getvalue()
    assert [source for source, _ in read("zip_pairs:train", "en", "de")] == sorted(
        lines("en", "train").splitlines()
    )


def test_a_wrong_checksum_is_told(server, ted, monkeypatch):
    archive = server.files[ted]
    info = tfds.download.checksums.UrlInfo(
        size=tfds.core.utils.Size(len(archive)),
        checksum=hashlib.sha256(archive).hexdigest(),
        filename=ted,
    )
    monkeypatch.setattr(ted_hrlr.Builder, "url_infos", {f"{server.url}/{ted}": info})
    server.files[ted] = archive + b"\0"
    message = error_of(f"{TED}:train")
    assert f"Artifact {server.url}/{ted}, downloaded to" in message
    assert "has wrong checksum: Expected: UrlInfo(" in message
    server.files[ted] = archive
    assert read(f"{TED}:train") == pairs("pt", "en", "train")


def test_a_refused_connection_is_told_within_seconds(server, ted, monkeypatch):
    monkeypatch.setattr(tfds_module, "RETRIES", RETRIES)
    server.close()
    start = time.monotonic()
    with pytest.raises(OSError) as error:
        list(read_tfds(f"{TED}:train", "pt", "en"))
    assert time.monotonic() - start < 20
    assert f"tfds:{TED} cannot be prepared: " in str(error.value)
    assert "refused" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.usefixtures("ted")
@pytest.mark.parametrize(
    ("rest", "told"),
    [
        (TED, "names no split: expected tfds:NAME:SPLIT"),
        (f"{TED}:dev", f"tfds:{TED} has no split 'dev', only train, validation, test ("),
        (f"{TED}:train[:0]", "only train, validation, test (it is empty)"),
        (f"{TED}:train[:10q]", "has no split 'train[:10q]', only train, validation, test ("),
        ("ted_hrlr_translate/xx_to_en:train", "it has no such configuration, only az_to_en, az"),
        (
            "wmt14_translate/xx-en:train",
            "no such configuration, only cs-en, de-en, fr-en, hi",
        ),
        (
            "wmt14_translate/xx-en:1.0.0:train",
            "no such configuration, only cs-en, de-en, fr-",
        ),
        ("mnist/xx:train", "it has no such configuration, only one without a name"),
        ("wmt14_translate:train", "tfds:wmt14_translate has no texts in 'pt', only cs, en; "),
        ("wmt14_translate:train", "the configurations of wmt14_translate are cs-en, de-en, fr-en,"),
        ("wmt14_translate/de-en:train", "tfds:wmt14_translate has no texts in 'pt', only de, "),
        (
            f"{TED}:2.0.0:train",
            "prepared: Dataset ted_hrlr_translate cannot be loaded at version 2.0.0, o",
        ),
        ("wmt41_translate/de-en:train", "did you mean wmt19_translate or "),
        ("mnist:train", "tfds:mnist has no texts in 'pt', only image, label"),
        ("bucc/bucc_de:train", "tfds:bucc has no texts in 'pt', only source_sentence, target_sen"),
        ("pairs_by_hand:train", "You should put pairs.txt there."),
    ],
)
def test_what_there_is_not_is_told_with_what_there_is(rest, told):
    assert told in error_of(rest)


def test_a_fresh_process_knows_the_wmt_data_sets():
    code = (
        "from transformer_jax.data.tfds import read_tfds\n"
        "next(read_tfds('wmt14_translate/xx-en:train', 'xx', 'en'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "it has no such configuration, only cs-en, de-en," in done.stderr


@pytest.mark.skipif(bool(importlib.util.find_spec("tensorflow")), reason="TensorFlow is installed")
def test_a_builder_that_needs_tensorflow_says_so(capsys):
    told = error_of("needs_tensor_flow:train")
    assert told.startswith(
        "tfds:needs_tensor_flow cannot be prepared: No module named 'tensorflow' ("
    )
    assert "\n" not in told and "file_format=array_record" in told
    assert not capsys.readouterr().out


def test_ftp_needs_no_tensorflow(server, monkeypatch):
    server.close()
    monkeypatch.setattr(ZipPairs, "url", server.url.replace("http", "ftp") + "/pairs.zip")
    assert "refused" in error_of("zip_pairs:train", "en", "de", kind=OSError)


def test_the_records_of_many_chunks_are_all_read_in_their_order():
    builder = tfds.builder("many_pairs", file_format="array_record")
    builder.download_and_prepare()
    records = builder.as_data_source("train")
    expected = [(record["en"].decode(), record["de"].decode().strip()) for record in records]
    assert len(set(expected)) == 2100
    assert list(read_tfds("many_pairs:train", "en", "de")) == expected


def test_what_is_prepared_in_another_format_is_told(data_dir):
    list(read_tfds("many_pairs:train", "en", "de"))
    path = data_dir / "many_pairs/1.0.0/dataset_info.json"
    path.write_text(path.read_text().replace("array_record", "tfrecord"))
    assert "File format is already set" in error_of("many_pairs:train")


class PairsByHand(tfds.core.GeneratorBasedBuilder):
    """Registered as pairs_by_hand by its definition; its user should have fetched a file."""

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = "You should put pairs.txt there."

    def _info(self):
        features = tfds.features.Translation(languages=("en", "pt"))
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(dl_manager.manual_dir)}

    def _generate_examples(self, path):
        yield 0, {"en": str(path), "pt": ""}


class NeedsTensorFlow(PairsByHand):
    """Registered as needs_tensor_flow."""

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(lazy_tensorflow.io.gfile.glob("*"))}


class ManyPairs(PairsByHand):
    """Registered as many_pairs; its texts are its features."""

    def _info(self):
        text = tfds.features.Text()
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict({"en": text, "de": text})
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(dl_manager)}

    def _generate_examples(self, _):
        for i in range(2100):
            yield i, {"en": f"en {i}", "de": f"de {i}\n"}


class ZipPairs(tfds.core.GeneratorBasedBuilder):
    """Registered as zip_pairs by its definition; the server has its archive."""

    VERSION = tfds.core.Version("1.0.0")
    url = ""

    def _info(self):
        features = tfds.features.Translation(languages=("en", "de"))
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        folder = dl_manager.download_and_extract(self.url)
        return {"train": self._generate_examples(folder / "pairs.txt")}

    def _generate_examples(self, path):
        for i, line in enumerate(path.read_text().splitlines()):
            yield i, {"en": line, "de": line.replace("en", "de")}
