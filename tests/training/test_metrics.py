"""Means of reports, and the log they are kept in."""

import json
import math
import resource
import sys
import types

import pytest

from transformer_jax import hosts
from transformer_jax.training.metrics import FILE, Meter, MetricLog, means, report_line


def sums(tokens: float, **more: float) -> dict[str, float]:
    values = {"loss": 6.0, "cross_entropy": 4.0, "correct": 3.0, "probability": 2.0}
    return values | {"tokens": tokens, "filled": 2.0, "places": 8.0} | more


@pytest.fixture
def no_tensorboard(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)


def lines(workdir) -> list[dict]:
    return [json.loads(line) for line in (workdir / FILE).read_text().splitlines()]


def test_means_are_over_tokens_and_fill_over_places():
    assert means(sums(4)) == {
        "loss": 1.5,
        "perplexity": pytest.approx(math.e),
        "accuracy": 0.75,
        "probability": 0.5,
        "fill": 0.25,
    }


def test_means_of_nothing_and_of_a_huge_loss_are_finite():
    assert math.isnan(means(sums(0, cross_entropy=0.0, places=0.0))["perplexity"])  # null in JSON
    assert math.isfinite(means(sums(1, cross_entropy=1e6))["perplexity"])


def test_a_report_weighs_steps_by_their_tokens_and_begins_anew():
    meter = Meter()
    meter.start_clock()
    meter.add(sums(1, loss=10.0) | {"learning_rate": 1.0})
    meter.add(sums(3, loss=2.0))
    report = meter.report()
    assert report["loss"] == 3.0 and report["accuracy"] == 1.5
    assert report["target_tokens_per_s"] > 0 and report["seconds_per_step"] > 0
    meter.add(sums(2, loss=8.0))
    assert meter.report()["loss"] == 4.0
    assert math.isnan(meter.report()["loss"])


def test_waiting_for_data_is_a_mean_over_the_steps_of_a_report():
    meter = Meter()
    meter.start_clock()
    for seconds in (0.0, 3.0):
        meter.add_wait(seconds)
        meter.add(sums(1))
    assert meter.report()["data_wait_s_per_step"] == 1.5
    meter.add_wait(0.5)
    meter.add(sums(1))
    assert meter.report()["data_wait_s_per_step"] == 0.5


def test_resumed_sums_report_what_an_uninterrupted_run_does():
    whole, before = Meter(), Meter()
    for meter in (whole, before):
        meter.add(sums(1, loss=10.0))
    resumed = Meter(json.loads(json.dumps(before.sums)))
    for meter in (whole, resumed):
        meter.add(sums(3, loss=2.0))
    one, other = (
        {k: v for k, v in m.report().items() if "_per_s" not in k} for m in (whole, resumed)
    )
    assert one == other
    assert before.sums["loss"] == 10.0


def test_the_clock_counts_training_alone(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("transformer_jax.training.metrics.time.monotonic", lambda: now[0])
    meter = Meter()
    for seconds, change in [(0, meter.start_clock), (2, meter.stop_clock), (50, meter.start_clock)]:
        now[0] += seconds
        change()
    now[0] += 3
    meter.add(sums(20), flops=100.0)
    report = meter.report()
    assert report["seconds_per_step"] == 5.0 and report["target_tokens_per_s"] == 4.0
    assert report["model_flops_per_s"] == 20.0
    meter.add(sums(20))
    assert meter.report()["model_flops_per_s"] == 0.0


@pytest.mark.usefixtures("no_tensorboard")
def test_the_log_is_an_object_a_line(tmp_path):
    log = MetricLog(tmp_path, 0, -1)
    log.write(5, {"loss": 1.5, "signature": "ü"})
    assert lines(tmp_path) == [{"step": 5, "loss": 1.5, "signature": "ü"}]  # before it is closed
    log.write(10, {"loss": 0.5})
    log.close()
    assert [line["step"] for line in lines(tmp_path)] == [5, 10]


@pytest.mark.usefixtures("no_tensorboard")
def test_a_resumed_log_drops_later_steps_and_a_half_written_line(tmp_path):
    log = MetricLog(tmp_path, 0, -1)
    for step in (5, 10, 15):
        log.write(step, {"loss": step})
    log.close()
    with (tmp_path / FILE).open("a") as file:
        file.write('{"step": 1')
    log = MetricLog(tmp_path, 10, -1)
    log.write(11, {"loss": 11})
    log.close()
    assert lines(tmp_path) == [{"step": step, "loss": step} for step in (5, 10, 11)]


@pytest.mark.usefixtures("no_tensorboard")
@pytest.mark.parametrize(("evaluated", "kept"), [(5, [5]), (10, [5, 10])])
def test_a_resumed_log_drops_an_evaluation_that_the_checkpoint_lacks(tmp_path, evaluated, kept):
    """One that a signal had interrupted, made again, and killed before the checkpoint was whole."""
    log = MetricLog(tmp_path, 0, -1)
    for step in (5, 10):
        log.write(step, {"valid_loss": 1.0})
    log.close()
    MetricLog(tmp_path, 10, evaluated).close()
    assert [line["step"] for line in lines(tmp_path)] == kept


def test_tensorboard_gets_the_numbers(tmp_path, monkeypatch):
    """Those of several corpora apart; by a stand-in for tensorboardX, which need not be there."""
    scalars, opened = [], []

    class SummaryWriter:
        def __init__(self, folder, purge_step):
            opened.append((folder, purge_step))

        def add_scalar(self, *scalar):
            scalars.append(scalar)

        def close(self):
            opened.append("closed")

    tensorboard = types.SimpleNamespace(SummaryWriter=SummaryWriter)
    monkeypatch.setitem(sys.modules, "tensorboardX", tensorboard)
    log = MetricLog(tmp_path, 3, -1)
    parts = [{"bleu": 1.0}]
    log.write(4, {"loss": 1.5, "signature": "text", "epochs": [0.5, 0.25], "corpora": parts})
    log.close()
    assert len(lines(tmp_path)) == 1
    assert opened == [(str(tmp_path / "tensorboard"), 4), "closed"]
    assert scalars == [("loss", 1.5, 4), ("epochs/0", 0.5, 4), ("epochs/1", 0.25, 4)]


@pytest.mark.usefixtures("no_tensorboard")
def test_the_log_has_null_for_numbers_that_json_does_not_have(tmp_path):
    log = MetricLog(tmp_path, 0, -1)
    log.write(1, {"loss": math.nan, "epochs": [math.inf, 0.5], "parts": [{"bleu": -math.inf}]})
    log.close()
    text = (tmp_path / FILE).read_text()
    assert "NaN" not in text and "Infinity" not in text
    assert lines(tmp_path) == [
        {"step": 1, "loss": None, "epochs": [None, 0.5], "parts": [{"bleu": None}]}
    ]


def test_a_line_of_a_report_fits_a_terminal_and_tells_which_value_is_smoothed():
    report = {"loss": 1.2345, "perplexity": 1.0812, "accuracy": 0.9812, "learning_rate": 1.2e-3}
    report |= {"target_tokens_per_s": 9723.4, "seconds_left": 83.0}
    assert report_line(600, report, True) == (
        "step 600: smoothed loss 1.234, perplexity 1.08, accuracy 98.1%, lr 1.2e-03, 9.72k tokens/s"
    )
    assert report_line(600, report, False).startswith("step 600: loss 1.234, perplexity 1.08")
    large = {"loss": 30.1234, "perplexity": 1e13, "accuracy": 1.0, "target_tokens_per_s": 1e8}
    assert len(report_line(1_000_000, report | large, True)) <= 100
    assert report_line(600, report | {"mfu": 0.382}, True).endswith(" 9.72k tokens/s, MFU 38%")
    assert "perplexity 1.01e+304," in report_line(1, report | {"perplexity": math.exp(700)}, True)


@pytest.mark.usefixtures("no_tensorboard")
def test_what_a_full_disk_refuses_is_written_later(tmp_path, caplog):
    log = MetricLog(tmp_path, 0, -1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    log.write(1, {"loss": 1.0})
    resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / FILE).stat().st_size + 5, limits[1]))
    try:
        for step in (2, 3):
            log.write(step, {"loss": 1.0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [record.message for record in caplog.records] == [
        f"{tmp_path / FILE} cannot be written: File too large; training goes on"
    ]
    log.close()
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3]


@pytest.mark.usefixtures("no_tensorboard")
def test_one_process_alone_writes_the_log(tmp_path, monkeypatch):
    monkeypatch.setattr(hosts, "is_first", lambda: False)
    log = MetricLog(tmp_path, 0, -1)
    log.write(1, {"loss": 1.0})
    log.close()
    assert not list(tmp_path.iterdir())
