"""Translation data sets of TensorFlow Datasets, downloaded and read without TensorFlow."""

import contextlib
import difflib
import pathlib
import re
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import tensorflow_datasets as tfds
import tensorflow_datasets.translate  # noqa: F401  registers the wmt* data sets
from tensorflow_datasets.core.download import downloader, extractor

RETRIES = 4  # of a download, within 3 s: the 10 of TensorFlow Datasets take over 200 s
_VARIABLE = tfds.features.TranslationVariableLanguages
_KINDS = (tfds.features.Translation, _VARIABLE)


def read_tfds(rest: str, source_language: str, target_language: str) -> Iterator[tuple[str, str]]:
    """Source and target texts of `rest`, such as "wmt14_translate/de-en:train[:10%]".

    The data set is downloaded and prepared first where it is not yet.

    Raises:
      ValueError: there is no such data set, configuration, language or split (the message
        names those that there are), or it cannot be prepared.
      OSError: it cannot be downloaded.
    """
    languages = (source_language, target_language)
    builder, split, key = _prepare(rest, languages)
    records = builder.as_data_source(split=split)
    for start in range(0, len(records), 1024):
        for record in records.__getitems__(range(start, min(start + 1024, len(records)))):
            texts = record[key] if key else record
            if key and isinstance(builder.info.features[key], _VARIABLE):
                texts = dict(zip(map(bytes.decode, texts["language"]), texts["translation"]))
            if all(language in texts for language in languages):
                # Texts of some data sets end in a line feed.
                source, target = (texts[language].decode().rstrip("\r\n") for language in languages)
                yield source, target


def tfds_content(rest: str, source_language: str, target_language: str) -> tuple[list[str], str]:
    """The files that hold `rest`, prepared first where they are not yet, and its full name."""
    builder, split, _ = _prepare(rest, (source_language, target_language))
    paths = set(map(str, builder.info.splits[split].filepaths))
    return sorted(paths), f"{builder.info.full_name}:{split}"


def _prepare(rest: str, languages: tuple[str, str]) -> tuple[tfds.core.DatasetBuilder, str, str]:
    """The prepared data set, its split, and the feature with the texts, "" for the record."""
    # A name may end in a version, name:1.0.0, and a split may hold colons, train[:10%].
    match = re.fullmatch(r"(\w[^:]*(?::[\d*]+\.[\d*]+\.[\d*]+)?):(.+)", rest)
    if not match:
        raise ValueError(f"corpus 'tfds:{rest}' names no split: expected tfds:NAME:SPLIT")
    name, split = match.groups()
    with _without_tensorflow(name):
        builder = tfds.builder(name, file_format="array_record")
    key = _text_feature(builder, languages)
    with _without_tensorflow(name):
        builder.download_and_prepare()
    try:
        if not builder.info.splits[split].num_examples:
            raise ValueError("it is empty")
    except Exception as error:
        known = f"only {', '.join(builder.info.splits)} ({_sentence(error)})"
        raise ValueError(f"tfds:{name} has no split {split!r}, {known}") from None
    return builder, split, key


def _text_feature(builder: tfds.core.DatasetBuilder, languages: tuple[str, str]) -> str:
    """The feature that holds the languages, "" for the record; ValueError where there is none."""
    features, configs = builder.info.features, ", ".join(builder.builder_configs)
    nested = [key for key in features if isinstance(features[key], _KINDS)]
    key = nested[0] if len(nested) == 1 else ""
    known = features[key].languages if key else list(features)
    for language in languages:
        if language not in known:
            hint = f"; the configurations of {builder.name} are {configs}" if configs else ""
            raise ValueError(
                f"tfds:{builder.name} has no texts in {language!r}, only {', '.join(known)}{hint}"
            )
    return key


@contextlib.contextmanager
def _without_tensorflow(name: str) -> Iterator[None]:
    """TensorFlow Datasets with stand-ins for TensorFlow, output on stderr, one-sentence errors."""
    # Downloading and extracting need TensorFlow for these alone; ftp is left to urllib then.
    files = SimpleNamespace(
        compat=SimpleNamespace(as_text=str),
        errors=SimpleNamespace(UnimplementedError=AttributeError),
        io=SimpleNamespace(gfile=SimpleNamespace(GFile=open)),
    )
    saved = [(vars(module), dict(vars(module))) for module in (downloader, extractor)]
    extractor.tf = downloader.tf = files
    downloader.MAX_RETRIES = RETRIES
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except Exception as error:
        chain = [error]
        while cause := chain[-1].__cause__ or chain[-1].__context__:
            chain.append(cause)
        for cause in chain:
            archive = re.match("Error while extracting (.+?) to ", str(cause))
            if archive and not getattr(cause.__cause__, "errno", 0):  # it is damaged
                # Without this file the download is not taken for whole.
                pathlib.Path(f"{archive[1]}.INFO").unlink(missing_ok=True)
        kind = OSError if isinstance(error, (OSError, tfds.download.DownloadError)) else ValueError
        raise kind(f"tfds:{name} cannot be prepared: {_reason(name, error)}") from error
    finally:
        for names, values in saved:
            names.update(values)


def _reason(name: str, error: Exception) -> str:
    data_set = name.partition(":")[0].partition("/")[0]
    if isinstance(error, tfds.core.DatasetNotFoundError):
        known = tfds.list_builders(with_community_datasets=False)
        near = difflib.get_close_matches(data_set, sorted(known), n=3) or ["another"]
        return f"there is no data set {data_set}; did you mean {' or '.join(near)}?"
    if "BuilderConfig" in str(error):
        known = ", ".join(tfds.builder_cls(data_set).builder_configs) or "one without a name"
        return f"it has no such configuration, only {known}"
    return (
        f"{_sentence(error)} (prepared elsewhere, with file_format=array_record, it is read from "
        "TFDS_DATA_DIR)"
    )


def _sentence(error: BaseException) -> str:
    text = re.sub(r'^Failed to construct dataset .*?}": ', "", str(error).strip())
    return re.sub(r"\s*\n[\s*]*", " ", text) or type(error).__name__
