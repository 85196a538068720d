"""Public corpora that are fetched where they are asked for: Multi30k, test sets of sacrebleu."""

import gzip
import hashlib
import http.client
import logging
import os
import pathlib
import urllib.request
import zlib

from transformer_jax.storage import atomic_write, cache_folder

logger = logging.getLogger(__name__)

# Task 1, raw text (Elliott et al. 2016, 2017), and SHA-256 of the unpacked files.
_MULTI30K = "https://raw.githubusercontent.com/multi30k/dataset/master/data/task1/raw/"
_SPLITS = {"train": "train", "valid": "val", "test": "test_2016_flickr"}
_SHA256 = {
    "train.en": "460a15fbd157e34a7a9957ee388c1ca247fe47af3ef25fb50442af6c274e0fc6",
    "train.de": "2c2b73fd2b548fbcde3a875e0a78d6ee94d498bfdee6bd3eae3945779e9ddf72",
    "val.en": "1f2a23d992769b5b3d209b0a10dd0b77c08cceb1f20dfb97ed0aafa49d107227",
    "val.de": "660e09eb7e1da2f856ea13ee5ad3cf6d36b3d5b0b733c857e94c5747a3dfc660",
    "test_2016_flickr.en": "399a4382932c1aadd3ceb9bef1008d388a64c76d4ae4e9d4728c6f4301cac182",
    "test_2016_flickr.de": "4be6b5b3236b79c25475c6bb829800a7ce559e9ba7a1f6c2394fe4d40be46d16",
}


def multi30k_files(split: str, *languages: str) -> list[str]:
    """The file of each language, fetched into the cache folder where it is not there yet."""
    names = [f"{_SPLITS.get(split)}.{language}" for language in languages]
    for name in names:
        if name not in _SHA256:
            raise ValueError(
                f"corpus 'multi30k:{split}' in {'-'.join(languages)} is none of multi30k:train, "
                "multi30k:valid and multi30k:test in English (en) and German (de)"
            )
    folder = cache_folder("corpora") / "multi30k"
    return [fetched(f"{_MULTI30K}{name}.gz", folder / name, _SHA256[name]) for name in names]


def fetched(url: str, path: pathlib.Path, sha256: str) -> str:
    """The path of a file, which is downloaded and unpacked (gzip) first where it is not there.

    Raises:
      OSError: it cannot be downloaded; the message says what to do.
      ValueError: something else was downloaded, by the `sha256` of the unpacked content.
    """
    if path.exists():
        return os.fspath(path)
    logger.info("downloading %s to %s", url, path)
    try:
        with urllib.request.urlopen(url, timeout=60) as response:
            content = gzip.decompress(response.read())
    except (OSError, http.client.HTTPException, EOFError, zlib.error) as error:
        reason = " ".join(str(getattr(error, "reason", error)).split()) or type(error).__name__
        raise OSError(
            f"{url} cannot be downloaded ({reason}): fetch it elsewhere and unpack it to {path}, "
            "or name files of your own by text:PREFIX"
        ) from None
    if (digest := hashlib.sha256(content).hexdigest()) != sha256:
        raise ValueError(
            f"{url} is not the file that was expected: its SHA-256, unpacked, is {digest}, not "
            f"{sha256}"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, "wb") as file:
        file.write(content)
    return os.fspath(path)


def sacrebleu_files(name: str, source_language: str, target_language: str) -> list[str]:
    """Source and first reference of a test set of sacrebleu, which fetches it where need be."""
    from sacrebleu import utils

    pair = f"{source_language}-{target_language}"
    if pair not in utils.get_langpairs_for_testset(name):
        known = utils.get_langpairs_for_testset(name) or utils.get_available_testsets()
        raise ValueError(
            f"sacrebleu has no test set {name!r} in {pair}, only {', '.join(sorted(known))}"
        )
    try:
        files = utils.get_source_file(name, pair), utils.get_reference_files(name, pair)[0]
    except (Exception, SystemExit) as error:
        reason = " ".join(str(error).split())
        raise OSError(f"sacrebleu cannot fetch its test set {name} in {pair}: {reason}") from None
    return list(map(os.fspath, files))
