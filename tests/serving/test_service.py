"""The server over a translator of capitals: what it answers, what it refuses, how it ends."""

import importlib.util
import itertools
import os
import socket
import threading
import time

import numpy as np
import pytest
from serving.served import Served

from transformer_jax.decoding.options import SearchOptions
from transformer_jax.serving import server, service
from transformer_jax.serving.limits import Limits


@pytest.fixture(scope="module")
def served():
    with pytest.MonkeyPatch.context() as patch:
        served = Served(patch)
        yield served
        assert served.end() == 0


@pytest.fixture
def own(monkeypatch):
    """Makes a server of the test's own."""
    made = []

    def make(**options) -> Served:
        made.append(Served(monkeypatch, **options))
        return made[-1]

    yield make
    for each in made:
        each.translator.free.set()
        each.end()


def test_answers_are_decodes_json(served):
    status, headers, answer = served.translate("a b", "c")
    assert status == 200 and headers["content-type"] == "application/json"
    hypothesis = {"text": "A B", "score": -0.0, "log_prob": -1.0, "tokens": list("A B")}
    fields = {"source": "a b", "truncated": False, "unknown": 0, "hypotheses": [hypothesis]}
    assert answer["translations"][0] == fields and len(answer["translations"]) == 2


def test_options_of_a_request_and_what_it_asks_to_be_told(served):
    fields = {"n_best": 2, "beam_size": 3, "length_penalty": 1, "prefix": "x ", "alignments": True}
    _, _, answer = served.translate("a", target_language="de", attention=True, **fields)
    (told,) = answer["translations"]
    # Without the language's tag, which is no word of the source.
    assert [x["alignment"]["source_words"] for x in told["hypotheses"]] == [["a"]] * 2
    assert [x["text"] for x in told["hypotheses"]] == ["X <2DE> A"] * 2
    attention = told["attention"]
    assert attention["source_tokens"] == ["\u2581<2de>", "\u2581a", "<eos>"]
    np.testing.assert_allclose(np.sum(attention["cross"], axis=-1), np.ones((2, 3, 4)), atol=1e-5)


@pytest.mark.parametrize("server_samples", [False, True])
def test_samples_are_as_many_as_are_asked_for(own, server_samples):
    served = own(options=SearchOptions(sample=True, n_best=4)) if server_samples else own()
    for n_best in (1, 2):
        _, _, answer = served.translate("a", sample=True, n_best=n_best)
        assert len(answer["translations"][0]["hypotheses"]) == n_best


def test_the_page_of_attention_is_that_of_decode(served):
    status, headers, page = served.ask("/attention", {"texts": ["a"], "hypothesis": 0})
    assert status == 200 and headers["content-type"] == "text/html; charset=utf-8"
    assert b"<title>Attention</title>" in page


@pytest.mark.parametrize(
    ("body", "status", "told"),
    [
        (b"", 400, "the body is not JSON: expected a value at line 1 column 1"),
        (b"\xff\xfe", 400, "the body is not JSON: byte 0 is not UTF-8"),
        (
            b'{"texts":\n ["a" "b"]}',
            400,
            "expected a comma or a closing bracket at line 2 column 7",
        ),
        (b'{"n_best": 1' + b"0" * 4100 + b"}", 413, "more than"),
        (b"[" * 4000, 400, "the body is not JSON: its lists and objects are nested too deep"),
        (b'{"texts": ["a"], "n_best": ' + b"9" * 4000 + b"}", 422, "n_best=99999"),
        (b'{"texts": ["a"], "top_k": 1' + b"0" * 5000, 413, "more than 4096 bytes"),
        (b'{"texts": ["a"], "length_penalty": 1e999}', 422, "length_penalty=inf must be in"),
        (b'{"texts": ["a"], "length_penalty": NaN}', 400, "NaN is no number of JSON"),
        (b"3", 400, "the body is 3; expected a JSON object"),
        ({}, 422, "there are 0 texts; expected 1 to 4"),
        ({"texts": ["a"] * 5}, 422, "there are 5 texts; expected 1 to 4"),
        ({"texts": "a"}, 422, "texts is 'a'; expected a list of texts"),
        ({"texts": ["a", None]}, 422, "texts[1] is null; expected a text"),
        ({"texts": ["a" * 51]}, 422, "texts[0] has 51 characters; at most 50 are read"),
        ({"texts": ["a\nb"]}, 422, "texts[0] has a line end or NUL"),
        ({"texts": ["\ud800"]}, 422, "texts[0] has half of a surrogate pair"),
        ({"texts": ["a"], "prefix": ["x"]}, 422, "prefix is a list; expected a text"),
        ({"texts": ["a"], "alignments": 1}, 422, "alignments is 1; expected true or false"),
        ({"texts": ["a"], "hypothesis": True}, 422, "hypothesis is true; expected a whole"),
        ({"texts": ["a"], "hypothesis": 1}, 422, "hypothesis=1 must be in [0, 0]"),
        ({"texts": ["a"], "beam": 3}, 422, "there is no field 'beam'; expected texts, "),
        ({"texts": ["a"], "rows": 8}, 422, "there is no field 'rows': the server's own holds"),
        ({"texts": ["a"], "beam_size": 0}, 422, "beam_size=0 must be in [1, 256]"),
        ({"texts": ["a"], "beam_size": []}, 422, "beam_size is a list; expected a whole number"),
        ({"texts": ["a"], "beam_size": 9}, 422, "beam_size=9 is more than this server's 8"),
        ({"texts": ["a"], "sample": "yes"}, 422, "sample is 'yes'; expected true or false"),
        ({"texts": ["a"], "n_best": 5, "beam_size": 4}, 422, "n_best=5 is more than the beam"),
        ({"texts": ["a"], "target_language": "ko"}, 422, "no tag <2ko>"),
        ({"texts": ["a", "b"], "attention": True}, 422, "attention is shown of one text, not of 2"),
        ({"texts": ["a", "bad"]}, 422, "it is bad"),
        ({"texts": ["broken"]}, 500, "the server has failed; its log says why"),
    ],
    ids=itertools.count(),
)
def test_what_cannot_be_is_refused_in_a_sentence(served, body, status, told):
    got, headers, answer = served.ask("/translate", body)
    assert (got, headers["content-type"]) == (status, "application/json")
    assert list(answer) == ["error"] and told in answer["error"] and len(answer["error"]) <= 1003


def test_a_page_of_attention_is_of_one_text(served):
    status, _, answer = served.ask("/attention", {"texts": ["a", "b"]})
    assert (status, answer["error"]) == (422, "attention is shown of one text, not of 2")


@pytest.mark.parametrize(
    "path", ["/translate", "/attention", "/health", "/metrics", "/", "/x", "/health/"]
)
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "OPTIONS"])
def test_paths_and_methods_that_are_not_there(served, path, method):
    status, headers, answer = served.ask(path, b"", method)
    allowed = "POST" if path in ("/translate", "/attention") else "GET"
    absent = path in ("/x", "/health/")
    assert status == (404 if absent else 405 if method != allowed else status)
    assert absent or allowed in headers.get("allow", allowed)
    assert status < 400 or list(answer) == ["error"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["content-security-policy"].startswith("default-src 'none'; script-src 'sha256-")


def test_ten_megabytes_are_refused_and_so_is_what_only_says_that_it_is_long(served):
    status, _, answer = served.ask("/translate", b" " * 10_000_000)
    assert (status, answer["error"]) == (413, "the body has more than 4096 bytes")
    long = b"POST /translate HTTP/1.1\r\nHost: localhost\r\nContent-Length: %s\r\n\r\n"
    assert served.raw(long % b"999999999999").startswith(b"HTTP/1.1 413 ")
    assert served.raw(long % (b"9" * 5000)).startswith(b"HTTP/1.1 4")


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET /" + b"a" * 100_000,
        b"GET /\0 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"POST /translate HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST /translate HTTP/1.1\r\nHost: a]b\r\nConnection: close\r\n\r\n",
    ],
)
def test_what_is_no_http_is_refused(served, sent):
    assert served.raw(sent).startswith(b"HTTP/1.1 40")
    assert served.ask("/health")[::2] == (200, {"status": "ok"})


def test_pages_of_other_sites_may_not_ask(served):
    body = {"texts": ["a"]}
    assert served.ask("/translate", body, **{"Sec-Fetch-Site": "cross-site"})[0] == 403
    assert served.ask("/translate", body, **{"Sec-Fetch-Site": "same-origin"})[0] == 200
    assert served.ask("/", None, **{"Sec-Fetch-Site": "cross-site"})[0] == 200  # a link
    for origin, status in (("null", 403), ("http://evil.example", 403), ("http://localhost", 200)):
        form = {"Content-Type": "text/plain", "Origin": origin, "Host": "localhost"}
        assert served.ask("/translate", body, **form)[0] == status
    for host, status in (("evil.example", 403), ("localhost:80", 200), ("[::1]:80", 200)):
        assert served.ask("/health", None, Host=host)[0] == status


def test_metrics_count(served):
    before = served.metric("translate_seconds_count")
    served.translate("a", "b")
    assert served.metric("translate_seconds_count") == before + 1
    assert served.metric('requests_total{path="/translate",status="200"}') == before + 1
    assert served.metric('translate_seconds_bucket{le="+Inf"}') == before + 1
    assert served.metric("memory_bytes") > 10**7 and served.metric("waiting_texts") == 0
    lines = served.ask("/metrics")[2].decode().splitlines()
    assert all(line.startswith(("transformer_jax_", "# TYPE transformer_jax_")) for line in lines)


def test_slow_clients_are_cut_off(own, monkeypatch):
    monkeypatch.setattr(service, "READ_S", 0.2)
    monkeypatch.setattr(server, "IDLE_S", 0.2)
    served = own()
    half = b"POST /translate HTTP/1.1\r\nHost: localhost\r\nContent-Length: 20\r\n\r\n{"
    assert served.raw(half).startswith(b"HTTP/1.1 408 ")
    assert served.raw(b"POST /translate HTTP/1.1\r\nHost:") == b""


def test_who_waits_too_long_is_told_and_who_leaves_is_forgotten(own):
    served = own(limits=Limits(timeout=0.3))
    served.translator.free.clear()
    status, headers, answer = served.translate("a")
    assert (status, headers["retry-after"]) == (503, "1")
    assert answer["error"] == "not answered within 0.3 seconds"
    served.until(lambda: served.metric("open_requests") == 0)


def test_more_than_may_wait_is_refused(own):
    served = own()
    served.translator.free.clear()
    results = []
    ask = lambda *texts: results.append(served.translate(*texts)[::2])  # noqa: E731
    threads = [threading.Thread(target=ask, args=[text]) for text in "abc"]
    threads[0].start()
    served.until(lambda: served.translator.batches)
    for thread in threads[1:]:
        thread.start()
    served.until(lambda: served.metric("waiting_texts") == 2)
    status, _, answer = served.translate("d", "e", "f")
    assert (status, answer["error"]) == (503, "2 texts wait already; try again later")
    connection = socket.create_connection(("127.0.0.1", served.port))
    connection.sendall(b"POST /translate HTTP/1.1\r\nHost: localhost\r\nContent-Length: 16\r\n\r\n")
    connection.sendall(b'{"texts": ["x"]}')
    served.until(lambda: served.metric("waiting_texts") == 3)
    connection.close()  # who leaves is not translated for
    served.until(lambda: served.metric("open_requests") == 3)
    served.translator.free.set()
    for thread in threads:
        thread.join(20)
    assert [status for status, _ in results] == [200] * 3
    assert sorted(sum(served.translator.batches, [])) == ["a", "b", "c"]


def test_a_stop_answers_what_is_accepted_and_refuses_the_rest(own, caplog):
    caplog.set_level("INFO", "transformer_jax")
    served, results = own(), []
    served.translator.free.clear()
    threads = [
        threading.Thread(target=lambda text: results.append(served.translate(text)), args=[text])
        for text in "abc"
    ]
    for thread in threads:
        thread.start()
    served.until(lambda: served.metric("open_requests") == 3)
    served.stop.signal = "SIGTERM"
    served.until(lambda: served.ask("/health")[::2] == (503, {"status": "stopping"}))
    status, headers, answer = served.translate("d")
    assert (status, answer) == (503, {"error": "the server is stopping"})
    assert headers["connection"] == "close"
    served.translator.free.set()
    assert served.end() == 0
    for thread in threads:
        thread.join(20)
    assert sorted(x[2]["translations"][0]["hypotheses"][0]["text"] for x in results) == [
        "A",
        "B",
        "C",
    ]
    assert "stopped: 3 translations answered, 0 left" in caplog.text


def test_a_body_that_has_half_come_does_not_delay_the_end(own):
    served, answers = own(), []
    half = b"POST /translate HTTP/1.1\r\nHost: localhost\r\nContent-Length: 20\r\n\r\n{"
    thread = threading.Thread(target=lambda: answers.append(served.raw(half)))
    thread.start()
    served.until(lambda: served.service.reading)
    start = time.monotonic()
    assert served.end() == 0 and time.monotonic() - start < service.READ_S / 2
    thread.join(20)
    assert answers[0].startswith(b"HTTP/1.1 503 ") and b"the server is stopping" in answers[0]


def test_what_takes_longer_than_the_grace_is_told_and_is_a_failure(own, monkeypatch):
    exits, results = [], []
    monkeypatch.setattr(os, "_exit", exits.append)
    served = own(limits=Limits(grace=0.1))
    served.translator.free.clear()
    thread = threading.Thread(target=lambda: results.append(served.translate("a")[::2]))
    thread.start()
    served.until(lambda: served.metric("open_requests") == 1)
    assert served.end() == 1 and exits == [1]
    thread.join(20)
    assert results == [(503, {"error": "the server has stopped"})]


def test_a_batch_that_nobody_waits_for_is_no_failure(own, monkeypatch):
    exits = []
    monkeypatch.setattr(os, "_exit", exits.append)
    served = own(limits=Limits(grace=0.1, timeout=0.1))
    served.translator.free.clear()
    assert served.translate("a")[2] == {"error": "not answered within 0.1 seconds"}
    assert served.end() == 0 and exits == [0]


def test_alignments_of_an_answer_are_bounded(own):
    status, _, answer = own(limits=Limits()).translate(*["a " * 1200] * 2, alignments=True)
    assert status == 422 and "alignments have more than 2000000 weights" in answer["error"]


def test_a_server_that_would_refuse_its_own_beam_is_not_started(own):
    with pytest.raises(ValueError, match="beam_size=9 of the server's own is more than max_beam"):
        own(options=SearchOptions(beam_size=9))


def test_what_is_missing_is_told(monkeypatch, failing):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    told = "serve needs starlette: pip install 'transformer_jax[serve]'"
    assert told in failing("serve", "--workdir=x")


def test_an_address_that_cannot_be_is_told(served):
    with pytest.raises(OSError, match="in use") as error:
        server.bound("127.0.0.1", served.port)
    assert error.value.filename == f"--host=127.0.0.1 --port={served.port}"
    with pytest.raises(OSError):
        server.bound("no.such.host.invalid", 0)
