"""What a run says of its CUDA graph and of waiting for data, and what the benchmark makes of it."""

import io
import itertools
import re
import sys
import time
from types import SimpleNamespace

import pytest
from training_cases import small_trainer, train_rows

from detr_fast.cli.benchmark import table
from detr_fast.training.graph import ShapeMismatch
from detr_fast.training.logs import ProgressBar, read_metrics


def lines_about_graphs(capsys) -> list[str]:
    said = capsys.readouterr()
    return [line for line in (said.out + said.err).splitlines() if "CUDA graph" in line]


def assert_one_line(capsys, quiet: bool, pattern: str) -> None:
    """About graphs, unless nothing is to be printed."""
    lines = lines_about_graphs(capsys)
    assert len(lines) == (0 if quiet else 1)
    assert all(re.match(pattern, line) for line in lines)


@pytest.mark.parametrize("quiet", [False, True])
def test_without_a_cuda_graph_a_run_says_why_and_trains_on(tmp_path, capsys, quiet):
    small_trainer(tmp_path / "plain", quiet=quiet, epochs=1).run()
    assert not lines_about_graphs(capsys)
    trainer = small_trainer(tmp_path / "asked", quiet=quiet, epochs=1, cuda_graph=True)
    trainer.run()
    assert_one_line(capsys, quiet, r"note +no CUDA graph: .*\bcpu\b")
    assert trainer.step == 6
    assert train_rows(tmp_path / "asked") == train_rows(tmp_path / "plain")


@pytest.mark.parametrize("quiet", [False, True])
def test_a_batch_of_another_shape_ends_the_cuda_graph_and_is_trained_on(
    tmp_path, monkeypatch, capsys, quiet
):
    class Graphed:
        """Trains as the step does, up to the fourth batch."""

        def __init__(self, step, capacity: int) -> None:
            self.step, self.capacity, self.calls = step, capacity, 0

        def __call__(self, batch, mark):
            self.calls += 1
            if self.calls == 4:
                raise ShapeMismatch("images are too wide")
            return self.step([batch], mark)

    small_trainer(tmp_path / "plain", epochs=2).run()
    monkeypatch.setattr("detr_fast.training.engine.GraphedStep", Graphed)
    monkeypatch.setattr("detr_fast.training.engine.cuda_graph_obstacle", lambda *_: None)
    trainer = small_trainer(tmp_path / "graphed", quiet=quiet, epochs=2, cuda_graph=True)
    graphed = trainer.graphed
    assert graphed.capacity == 4 * max(len(trainer.train_set.record(i).boxes) for i in range(24))
    assert not lines_about_graphs(capsys)
    trainer.run()
    assert_one_line(capsys, quiet, r"note +.*without a CUDA graph: images are too wide$")
    assert graphed.calls == 4 and trainer.graphed is None
    assert (trainer.step, trainer.images_seen) == (12, 48)
    assert train_rows(tmp_path / "graphed") == train_rows(tmp_path / "plain")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("waited", [0.25, 0.75])
def test_progress_bar_says_what_share_was_waited_for_data(tmp_path, monkeypatch, waited):
    """By clocks on which each step takes a second, and so much of it passes in the loader."""
    trainer = small_trainer(tmp_path, quiet=False, epochs=1)
    seconds, load, terminal = itertools.count(), trainer.prefetcher.batches, Terminal()

    class Prefetcher:
        data_seconds = 0.0

        def batches(self, loader):
            for batch in load(loader):
                self.data_seconds += waited
                yield batch

    trainer.prefetcher = Prefetcher()
    clock = SimpleNamespace(perf_counter=lambda: float(next(seconds)), monotonic=time.monotonic)
    monkeypatch.setattr("detr_fast.training.engine.time", clock)
    monkeypatch.setattr(sys, "stderr", terminal)
    trainer.run()
    shown = terminal.getvalue().split("\r")[-1]
    assert " 6/6 [" in shown and re.search(r"epoch 1/1 loss [\d.]+ img/s 4.0 data", shown)
    assert f"img/s 4.0 data {waited:.0%} | step {1 - waited:.0%}" in shown
    rows = [row for row in read_metrics(tmp_path / "metrics.jsonl") if row["kind"] == "train"]
    assert [row["data_share"] for row in rows] == [waited] * 6


@pytest.mark.parametrize("quiet", [False, True])
def test_progress_bar_is_for_terminals_that_want_it(monkeypatch, quiet):
    for stream in (Terminal(), io.StringIO()):
        monkeypatch.setattr(sys, "stderr", stream)
        bar = ProgressBar(2, 0, quiet)
        bar.advance()
        bar.show(loss="1.50")
        bar.show(AP="0.25")
        bar.close()
        shown = stream.getvalue()
        assert ("1/2" in shown and "loss 1.50 AP 0.25" in shown) == (stream.isatty() and not quiet)
        assert bool(shown) == (stream.isatty() and not quiet)


@pytest.mark.parametrize(
    ("data", "rest", "which"),
    [
        (3.0, 2.0, "data 60% | step 40%: the loader is the bottleneck"),
        (2.0, 3.0, "data 40% | step 60%: the step is the bottleneck"),
        (1.0, 1.0, "data 50% | step 50%: the step is the bottleneck"),
        (0.0, 1.0, "data 0% | step 100%: the step is the bottleneck"),
    ],
)
def test_benchmark_table_names_the_bottleneck(data, rest, which):
    said = table({"data": data, "forward": rest / 2, "backward": rest / 2}, data + rest, 8)
    last = said.splitlines()[-1]
    assert last.startswith(which)
    assert ("--workers" in last) == ("the loader" in which)
    assert f" {8 / (data + rest):.1f} images/s" in said
