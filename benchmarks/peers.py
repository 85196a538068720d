"""The speed of other programs, in a process of their own: for --peer of our benchmarks.

    python benchmarks/peers.py JOB.json

A job is what decode_speed.py or train_speed.py wrote: the very parameters or sizes, sentences and
options that ours had. One JSON line comes out, with the program's version and target_tokens_per_s.
"""

import json
import os
import pathlib
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from types import SimpleNamespace
from typing import Any

import numpy as np

Job = dict[str, Any]
PAD, BOS, EOS, UNK = range(4)


def decoding_of_ctranslate2(job: Job) -> tuple[str, Callable[[], int]]:
    """The version, and what decodes all sources and returns the tokens made, EOS among them."""
    import ctranslate2

    settings = {"compute_type": job["dtype"], "intra_threads": job["threads"], "inter_threads": 1}
    translator = ctranslate2.Translator(job["folder"], device=job["device"], **settings)

    def decode() -> int:
        results = translator.translate_batch(
            [pieces[:-1] for pieces in job["pieces"]],  # it adds EOS itself
            beam_size=job["beam"],
            length_penalty=job["length_penalty"],
            max_batch_size=job["rows"],
            min_decoding_length=job["min_length"],
            max_decoding_length=job["max_length"],
            suppress_sequences=job["never"],
            disable_unk=True,
            return_end_token=True,
        )
        return sum(len(result.hypotheses[0]) for result in results)

    return f"ctranslate2 {ctranslate2.__version__}", decode


def decoding_of_transformers(job: Job) -> tuple[str, Callable[[], int]]:
    """As of CTranslate2; its batches are of sentences of similar length, too."""
    import torch
    import transformers

    torch.set_num_threads(job["threads"])
    dtype = getattr(torch, job["dtype"])
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(job["folder"], dtype=dtype)
    model = model.to(job["device"]).eval()
    sources = sorted(job["sources"], key=len, reverse=True)
    groups = [sources[i : i + job["rows"]] for i in range(0, len(sources), job["rows"])]
    batches = [torch.tensor(padded(group), device=job["device"]) for group in groups]

    def decode() -> int:
        made = 0
        for ids in batches:
            with torch.inference_mode():
                tokens = model.generate(
                    ids,
                    attention_mask=(ids != PAD).long(),
                    num_beams=job["beam"],
                    do_sample=False,
                    length_penalty=job["length_penalty"],
                    early_stopping=False,
                    min_new_tokens=job["min_length"],
                    max_new_tokens=job["max_length"],
                )
            made += int((tokens[:, 1:] != PAD).sum())
        return made

    return f"transformers {transformers.__version__}, torch {torch.__version__}", decode


def training_of_transformers(job: Job) -> tuple[str, Callable[[], int]]:
    """The version, and what makes an update of the next batch and returns its target tokens."""
    import torch
    import transformers

    torch.manual_seed(0)
    torch.set_num_threads(job["threads"])
    model = transformers.MarianMTModel(
        transformers.MarianConfig(
            **job["sizes"],
            attention_dropout=0.0,
            activation_dropout=0.0,
            activation_function="relu",
            scale_embedding=True,
            share_encoder_decoder_embeddings=True,
            tie_word_embeddings=True,
            max_position_embeddings=1024,
            pad_token_id=PAD,
            bos_token_id=BOS,
            eos_token_id=EOS,
            decoder_start_token_id=BOS,
            forced_eos_token_id=None,
            use_cache=False,
        )
    )
    model, optimizer = _on_device(model, job["device"])
    batches = synthetic_batches(job) if "shape" in job else sorted_batches(job)
    in_bfloat16 = job["dtype"] == "bfloat16"

    def update() -> int:
        source, target, labels = (torch.tensor(x, device=job["device"]) for x in next(batches))
        with torch.autocast(job["device"], torch.bfloat16, enabled=in_bfloat16):
            logits = model(
                input_ids=source, attention_mask=(source != PAD).long(), decoder_input_ids=target
            ).logits
        loss = torch.nn.functional.cross_entropy(
            logits.float().flatten(0, 1),
            labels.flatten(),
            label_smoothing=job["smoothing"],
            ignore_index=PAD,
        )
        _descend(loss, model, optimizer)
        return int((labels != PAD).sum())

    return f"transformers {transformers.__version__}, torch {torch.__version__}", update


def training_of_joeynmt(job: Job) -> tuple[str, Callable[[], int]]:
    """As of transformers, by JoeyNMT's own model, batch and loss."""
    import torch
    from joeynmt.batch import Batch
    from joeynmt.model import build_model
    from joeynmt.vocabulary import Vocabulary

    torch.manual_seed(0)
    torch.set_num_threads(job["threads"])
    names = ["unk", "pad", "bos", "eos"]  # the order that it needs
    symbols: dict[str, Any] = {"lang_tags": [], "sep_token": None}
    symbols |= {f"{name}_token": f"<{name}>" for name in names}
    symbols |= {f"{name}_id": id for id, name in enumerate(names)}
    own_ids = np.arange(job["sizes"]["vocab_size"])
    own_ids[[UNK, PAD, BOS, EOS]] = range(4)
    words = [f"word{id}" for id in own_ids[4:]]
    vocabulary = Vocabulary(words, SimpleNamespace(**symbols))
    model = build_model(_joeynmt_config(job["sizes"]), vocabulary, vocabulary)
    model.loss_function = "crossentropy", job["smoothing"]
    device = torch.device(job["device"])
    model, optimizer = _on_device(model, job["device"])
    batches = synthetic_batches(job) if "shape" in job else sorted_batches(job)

    def update() -> int:
        source, target, labels = (torch.tensor(own_ids[x]) for x in next(batches))
        batch = Batch(
            src=source,
            src_length=(source != own_ids[PAD]).sum(1),
            src_prompt_mask=None,
            trg=torch.cat([target[:, :1], labels], 1),
            trg_prompt_mask=None,
            indices=torch.arange(len(source)),
            device=device,
            pad_index=int(own_ids[PAD]),
            eos_index=int(own_ids[EOS]),
        )
        with torch.autocast(job["device"], torch.bfloat16, enabled=job["dtype"] == "bfloat16"):
            loss, *_ = model(return_type="loss", **vars(batch))
        _descend(batch.normalize(loss, "tokens"), model, optimizer)
        return batch.ntokens

    return f"joeynmt {metadata.version('joeynmt')}, torch {torch.__version__}", update


def _joeynmt_config(sizes: dict[str, Any]) -> dict[str, Any]:
    width = sizes["d_model"]
    sides = {
        side: {
            "type": "transformer",
            "num_layers": sizes[f"{side}_layers"],
            "num_heads": sizes[f"{side}_attention_heads"],
            "ff_size": sizes[f"{side}_ffn_dim"],
            "hidden_size": width,
            "embeddings": {"embedding_dim": width, "scale": True},
            "dropout": sizes["dropout"],
        }
        for side in ("encoder", "decoder")
    }
    return sides | {"tied_embeddings": True, "tied_softmax": True}


def _on_device(model, device: str):
    import torch

    model = model.to(device).train()
    settings = {"lr": 1e-4, "betas": (0.9, 0.98), "eps": 1e-9, "fused": device == "cuda"}
    return model, torch.optim.Adam(model.parameters(), **settings)


def _descend(loss, model, optimizer) -> None:
    """An update by a loss, waited for."""
    import torch

    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if loss.device.type == "cuda":
        torch.cuda.synchronize()


def synthetic_batches(job: Job) -> Iterator[tuple[np.ndarray, ...]]:
    """Full rows of random words: source, the decoder's input, labels."""
    random = np.random.default_rng(0)
    batches = random.integers(4, job["sizes"]["vocab_size"], (4, 3, *job["shape"]))
    while True:
        yield from map(tuple, batches)


def sorted_batches(job: Job) -> Iterator[tuple[np.ndarray, ...]]:
    """Pairs of similar length, as many as fit a budget of tokens a side, padding included.

    Source, the decoder's input, labels; the batches of an epoch are in random order.
    """
    with np.load(job["pairs"]) as stored:
        sides = [
            np.split(stored[f"{x}_ids"], stored[f"{x}_ends"][:-1]) for x in ("source", "target")
        ]
    pairs = sorted(zip(*sides), key=lambda pair: (len(pair[1]), len(pair[0])))
    batches, longest = [[]], 0
    for pair in pairs:
        longest = max(longest, *map(len, pair))
        if batches[-1] and longest * (len(batches[-1]) + 1) > job["tokens_per_batch"]:
            batches.append([])
            longest = max(map(len, pair))
        batches[-1].append(pair)
    random = np.random.default_rng(0)
    while True:
        for index in random.permutation(len(batches)):
            source, labels = map(padded, zip(*batches[index]))
            target = np.pad(labels, ((0, 0), (1, 0)), constant_values=BOS)[:, :-1]
            yield source, target, labels


def padded(sentences) -> np.ndarray:
    """Rows [B, T] of token ids, int64."""
    rows = np.full((len(sentences), max(map(len, sentences))), PAD, np.int64)
    for row, sentence in zip(rows, sentences):
        row[: len(sentence)] = sentence
    return rows


PEERS = {
    ("decoding", "ctranslate2"): decoding_of_ctranslate2,
    ("decoding", "transformers"): decoding_of_transformers,
    ("training", "joeynmt"): training_of_joeynmt,
    ("training", "transformers"): training_of_transformers,
}


def measured(job: Job) -> dict[str, Any]:
    """Runs a job: once or some times first, then as often as is timed."""
    if (job["work"], job["peer"]) not in PEERS:
        known = ", ".join(peer for work, peer in PEERS if work == job["work"])
        raise SystemExit(f"{job['peer']} is no peer in {job['work']}; these are: {known}")
    version, call = PEERS[job["work"], job["peer"]](job)
    for _ in range(job["warmup"]):
        call()
    speeds, seconds, tokens = [], 0.0, 0
    for _ in range(job["repeats"]):
        start = time.perf_counter()
        made = call()
        last = time.perf_counter() - start
        seconds, tokens = seconds + last, tokens + made
        speeds.append(made / last)
    # Batches of real pairs differ in size; anything else is the same each time.
    speed = tokens / seconds if "pairs" in job else statistics.median(speeds)
    # What getrusage tells is that of the process before, where this one came from it.
    status = pathlib.Path("/proc/self/status").read_text()
    peak = 1024 * int(re.search(r"VmHWM:\s*(\d+)", status)[1])
    what = {"peer": version, "dtype": job["dtype"], "tokens": made}
    return what | {"target_tokens_per_s": speed, "peak_rss_bytes": peak}


if __name__ == "__main__":
    with open(sys.argv[1]) as file:
        described = json.load(file)
    described.setdefault("threads", len(os.sched_getaffinity(0)))
    print(json.dumps(measured(described)), flush=True)
