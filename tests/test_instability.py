"""Matching instability: between decoder layers by the criterion, between evaluations by a watch."""

import json

import pytest
import torch

from detr_fast.data import Shapes
from detr_fast.losses import SetCriterion
from detr_fast.reference import HungarianMatcher
from detr_fast.training import TrainConfig, Trainer, load_checkpoint
from detr_fast.training.evaluation_losses import EvaluationLosses
from detr_fast.training.instability import MatchingInstability
from detr_fast.training.recipes import eval_recipe, train_recipe


def batch(seed: int, n: int = 7, counts: tuple[int, ...] = (3, 0, 5)):
    generator = torch.Generator().manual_seed(seed)
    layers = [
        {
            "pred_logits": torch.randn(len(counts), n, 4, generator=generator),
            "pred_boxes": torch.rand(len(counts), n, 4, generator=generator) * 0.3 + 0.3,
        }
        for _ in range(3)
    ]
    targets = [
        {
            "labels": torch.randint(0, 3, (m,), generator=generator),
            "boxes": torch.rand(m, 4, generator=generator) * 0.3 + 0.3,
            "image_id": torch.tensor(10 + b),
        }
        for b, m in enumerate(counts)
    ]
    return layers, targets


def queries(layer, targets) -> list[list[int]]:
    """By SciPy, one image after the other; -1 = none."""
    rows = []
    for target, (chosen, index) in zip(targets, HungarianMatcher()(layer, targets), strict=True):
        row = [-1] * len(target["labels"])
        for q, t in zip(chosen.tolist(), index.tolist(), strict=True):
            row[t] = q
        rows.append(row)
    return rows


def flat(rows: list[list[int]]) -> list[int]:
    return [query for row in rows for query in row]


@pytest.mark.parametrize("n", [7, 2])
def test_between_layers(n):
    layers, targets = batch(0, n)
    outputs = {**layers[-1], "aux_outputs": layers[:-1]}
    losses = SetCriterion(3)(outputs, targets)
    rows = [flat(queries(layer, targets)) for layer in layers]
    for i in (0, 1):
        changed = sum(a != b for a, b in zip(rows[i], rows[i + 1], strict=True))
        assert float(losses[f"rematched_{i}"]) == pytest.approx(changed / 8)
    assert "rematched_2" not in losses


def test_probability_of_no_object():
    layers, targets = batch(1)
    losses = SetCriterion(3)(layers[0], targets)
    empty = layers[0]["pred_logits"].softmax(-1)[..., -1]
    matched = torch.zeros(3, 7, dtype=torch.bool)
    for image, row in enumerate(queries(layers[0], targets)):
        matched[image, row] = True
    assert float(losses["no_object_matched"]) == pytest.approx(float(empty[matched].mean()))
    assert float(losses["no_object_unmatched"]) == pytest.approx(float(empty[~matched].mean()))
    assert "rematched_0" not in losses  # one layer


def test_without_targets_everything_is_zero():
    layers, targets = batch(2, counts=(0, 0))
    losses = SetCriterion(3)({**layers[0], "aux_outputs": layers[1:]}, targets)
    assert losses["rematched_0"] == 0 and losses["no_object_matched"] == 0


def add(watch: MatchingInstability, layer, targets) -> None:
    """Match a batch as an evaluation does, and add it to the record."""
    watch.add(EvaluationLosses(SetCriterion(3)).add(layer, targets).query_index[-1], targets)


@pytest.mark.parametrize("n", [7, 2])
def test_an_evaluation_matches_the_last_layer(n):
    layers, targets = batch(6, n)
    outputs = {**layers[-1], "aux_outputs": layers[:-1]}
    matches = EvaluationLosses(SetCriterion(3)).add(outputs, targets)
    assert matches.query_index[-1].tolist() == flat(queries(layers[-1], targets))


class TestWatch:
    def test_between_evaluations(self):
        layers, targets = batch(3)
        watch = MatchingInstability()
        for number, layer in enumerate(layers[:2]):
            parts = [{k: v[b : b + 1] for k, v in layer.items()} for b in range(3)]
            for part, target in zip(parts, targets, strict=True):
                add(watch, part, [target])
            found = watch.finish()
            assert number or found == {}
        before, after = (flat(queries(layer, targets)) for layer in layers[:2])
        changed = sum(a != b for a, b in zip(before, after, strict=True))
        assert found == {"rematched_epoch": changed / 8} and changed

    def test_goes_on_from_its_state(self):
        layers, targets = batch(4)
        watch = MatchingInstability()
        assert watch.state() is None
        add(watch, layers[0], targets)
        watch.finish()
        resumed = MatchingInstability(watch.state())
        for one in (watch, resumed):
            add(one, layers[1], targets)
        assert watch.finish() == resumed.finish() != {}

    def test_other_images_are_not_compared(self):
        layers, targets = batch(5)
        watch = MatchingInstability()
        add(watch, layers[0], targets)
        watch.finish()
        add(watch, {k: v[:2] for k, v in layers[0].items()}, targets[:2])
        assert watch.finish() == {}

    @pytest.mark.parametrize("change", [-1, 1])
    def test_nor_are_images_whose_annotations_were_corrected(self, change):
        layers, targets = batch(5)
        watch = MatchingInstability()
        add(watch, layers[0], targets)
        watch.finish()
        resumed = MatchingInstability(watch.state())
        at = next(i for i, target in enumerate(targets) if len(target["labels"]) > 1)
        keep = slice(0, change) if change < 0 else [*range(len(targets[at]["labels"])), 0]
        corrected = {k: targets[at][k][keep] for k in ("labels", "boxes")}
        others = [t | corrected if i == at else t for i, t in enumerate(targets)]
        add(resumed, layers[0], others)
        assert resumed.finish() == {}


def test_a_run_logs_it(tmp_path):
    pytest.importorskip("pycocotools")
    config = TrainConfig.create(epochs=2, batch_size=4, num_queries=6, amp="none", log_every=2)
    train, val = (
        Shapes(8, 64, seed, t(config)) for seed, t in ((0, train_recipe), (1, eval_recipe))
    )
    trainer = Trainer(config, train, val, tmp_path / "run", torch.device("cpu"), quiet=True)
    trainer.run()
    rows = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    wanted = {
        f"{part}{layer}"
        for part in ("loss_ce", "loss_bbox", "loss_giou")
        for layer in ("", "_0", "_1")
    }
    wanted |= {
        "rematched_0",
        "rematched_1",
        "no_object_matched",
        "no_object_unmatched",
        "grad_norm",
    }
    for row in rows:
        if row["kind"] == "train":
            assert wanted <= set(row)
            assert 0 <= row["rematched_0"] <= 1 and 0 < row["no_object_unmatched"] < 1
    first, second = [row for row in rows if row["kind"] == "val"]
    assert "rematched_epoch" not in first and 0 <= second["rematched_epoch"] <= 1
    state = load_checkpoint(tmp_path / "run")["matching"]
    assert (
        int(state["counts"].sum())
        == len(state["query_index"])
        == sum(val.boxes_per_class().values())
    )
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    board.Reload()
    tags = board.Tags()["scalars"]
    assert {"train/loss_ce_0", "val/per_class/circle", "train/rematched_0", "val/AP"} <= set(tags)
    assert {"val/loss", "val/loss_ce", "val/loss_ce_0"} <= set(tags)


def test_each_evaluation_is_compared_with_the_one_before():
    layers, targets = batch(3)
    watch = MatchingInstability()
    for layer in (layers[0], layers[1], layers[1]):
        add(watch, layer, targets)
        found = watch.finish()
    assert found == {"rematched_epoch": 0}
