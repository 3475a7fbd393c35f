"""Ablations: what each option does to model and criterion, and the table that comes out."""

import json

import pytest
import torch

from detr_fast import evaluation
from detr_fast.cli import main
from detr_fast.losses import SetCriterion
from detr_fast.matching import FastMatcher
from detr_fast.models import detr_tiny
from detr_fast.training import TrainConfig, ablation
from detr_fast.training.ablation import (
    VARIANTS,
    changed_variants,
    duplicates_per_image,
    mean_and_spread,
    without_duplicates,
)
from detr_fast.training.datasets import open_data
from detr_fast.visualize import ablation_report, plot_ablation
from detr_fast.visualize.ablation import readings


def tiny(**options) -> torch.nn.Module:
    torch.manual_seed(0)
    return detr_tiny(num_queries=6, dim=32, **options).eval()


class TestModelOptions:
    def test_without_self_attention_no_query_knows_of_the_others(self):
        image = torch.randn(1, 3, 64, 64)

        def change(model) -> list[bool]:
            """Which queries' boxes move when query 0 starts from another content."""
            with torch.no_grad():
                before = model(image)["pred_boxes"]
                model.query_embed.content[0] += 1
                return ((model(image)["pred_boxes"] - before)[0].abs() > 1e-7).any(-1).tolist()

        # The heads start at zero: let boxes depend on the content.
        for self_attention in (True, False):
            model = tiny(decoder_self_attention=self_attention)
            torch.nn.init.normal_(model.bbox_embed.layers[-1].weight)
            assert change(model) == [True] + [self_attention] * 5
        names = [name for name in model.state_dict() if "decoder" in name]
        assert names and not [name for name in names if "self_attn" in name or "norm1" in name]

    def test_position_encodings(self):
        """Without positions the encoder cannot tell where a feature is; else it can."""
        tokens = torch.randn(1, 32, 4, 5)
        order = torch.randperm(20, generator=torch.Generator().manual_seed(1))
        for options, blind in (
            ({}, False),
            ({"position_encoding": "learned"}, False),
            ({"position_at": "input"}, False),
            ({"position_encoding": "none"}, True),
            ({"position_encoding": "none", "position_at": "input"}, True),
        ):
            model = tiny(**options)
            memories = []
            for features in (tokens, tokens.flatten(2)[..., order].view_as(tokens)):
                with torch.no_grad():
                    position = model.backbone[1](features, None)
                    sequence, position = features.flatten(2).mT, position.flatten(2).mT
                    if model.position_at == "input":
                        sequence, position = sequence + position, torch.zeros_like(position)
                    memories.append(model.transformer.encoder(sequence, position, None))
            same = torch.allclose(memories[0][:, order], memories[1], atol=1e-5)
            assert same == blind, options

    def test_at_the_input_attention_gets_no_position(self):
        model = tiny(position_at="input")
        calls = []
        model.transformer.encoder.register_forward_pre_hook(lambda m, args: calls.append(args))
        plain = []
        tiny_plain = tiny()
        tiny_plain.transformer.encoder.register_forward_pre_hook(lambda m, args: plain.append(args))
        image = torch.randn(1, 3, 64, 64)
        with torch.no_grad():
            model(image), tiny_plain(image)
        (sequence, position, _), (features, encoding, _) = calls[0], plain[0]
        assert not position.any()
        torch.testing.assert_close(sequence, features + encoding)

    def test_the_paper_is_the_default(self):
        usual, named = tiny(), tiny(
            position_encoding="sine", position_at="attention", decoder_self_attention=True
        )  # fmt: skip
        image = torch.randn(1, 3, 64, 64)
        with torch.no_grad():
            assert torch.equal(usual(image)["pred_boxes"], named(image)["pred_boxes"])


class TestConfig:
    @pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
    def test_every_variant_builds_and_learns(self, variant):
        config = TrainConfig.create(**{"query_mode": "anchor", **variant.options})
        torch.manual_seed(0)
        model = detr_tiny(**config.model_args(3))
        criterion = SetCriterion(
            3,
            FastMatcher(config.cost_class, config.cost_bbox, config.cost_giou),
            eos_coef=config.eos_coef,
            weight_class=config.weight_class,
            weight_bbox=config.weight_bbox,
            weight_giou=config.weight_giou,
        )
        outputs = model(torch.randn(2, 3, 48, 48))
        assert outputs["pred_boxes"].shape == (2, config.num_queries, 4)
        assert ("aux_outputs" in outputs) == config.aux_loss
        targets = [{"labels": torch.tensor([k]), "boxes": torch.full((1, 4), 0.4)} for k in (0, 2)]
        losses = criterion(outputs, targets)
        losses["loss"].backward()
        assert any(p.grad is not None and p.grad.any() for p in model.parameters())
        layers = range(2) if config.aux_loss else ()
        expected = sum(
            weight * (losses[name] + sum(losses[f"{name}_{i}"] for i in layers))
            for name, weight in criterion.weights.items()
        )
        torch.testing.assert_close(losses["loss"].detach(), expected)

    def test_plain_configurations_build_plain_models(self):
        assert set(TrainConfig.create().model_args(3)) == {"num_classes", "num_queries"}
        assert TrainConfig.create(aux_loss=False).model_args(3)["aux_loss"] is False

    def test_wrong_values_are_named(self):
        for options, message in (
            ({"position_encoding": "polar"}, "position_encoding is 'polar'"),
            ({"position_at": "end"}, "position_at is 'end'"),
            ({"cost_giou": -1.0}, "cost_giou is -1"),
            ({"weight_class": float("nan")}, "weight_class is nan"),
        ):
            with pytest.raises(ValueError, match=message):
                TrainConfig.create(**options)

    def test_variants_that_are_the_baseline_are_left_out(self):
        config = TrainConfig.create(num_queries=20)
        names = [variant.name for variant in changed_variants(config)]
        assert names[0] == "baseline" and len(set(names)) == len(names)
        assert not {"queries-20", "eos-0.1", "anchor-queries"} & set(names)
        assert {"queries-1", "queries-100", "learned-queries", "no-self-attention"} <= set(names)
        learned = TrainConfig.create(query_mode="learned", num_queries=5)
        names = [variant.name for variant in changed_variants(learned)]
        assert "anchor-queries" in names and "learned-queries" not in names
        assert "queries-5" not in names and "queries-20" in names
        only = changed_variants(config, ["no-giou"])
        assert [variant.name for variant in only] == ["baseline", "no-giou"]
        with pytest.raises(ValueError, match="unknown variant 'no-luck'"):
            changed_variants(config, ["no-luck"])


def test_duplicates():
    boxes = torch.tensor([[0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 10], [50, 50, 60, 60.0]])
    image = {
        "boxes": boxes,
        "scores": torch.tensor([0.9, 0.8, 0.7, 0.6]),
        "labels": torch.tensor([0, 0, 1, 0]),
    }
    assert duplicates_per_image({1: image}) == 1  # the third is of another class
    assert duplicates_per_image({1: image, 2: image | {"scores": image["scores"] / 2}}) == 0.5
    assert duplicates_per_image({1: image}, iou=0.95) == 0
    assert without_duplicates(image)["scores"].tolist() == pytest.approx([0.9, 0.7, 0.6])
    assert duplicates_per_image({}) == 0


def test_mean_and_spread():
    assert mean_and_spread([1.0, 2.0, 3.0]) == (2, 1)
    assert mean_and_spread([4.0]) == (4, 0)


def rows(**aps: list[float]) -> list[dict]:
    """Results as the ablation writes them, with these APs of seeds 0, 1, ..."""
    return [
        {
            "variant": name.replace("_", "-"),
            "group": "decoder",
            "seed": seed,
            "steps": 10,
            "AP": ap,
            "AP50": ap,
            "AP_nms": ap + (0.02 if name == "no_self_attention" else 0),
            "duplicates": 1.0 + 0.1 * seed if name == "no_self_attention" else 0.0,
            "curve": [{"epoch": e, "AP": ap * e / 3, "AP50": ap} for e in (1, 2, 3)],
        }
        for name, values in aps.items()
        for seed, ap in enumerate(values)
    ]


class TestReport:
    def test_says_what_the_numbers_carry_and_no_more(self):
        results = rows(
            baseline=[0.50, 0.52, 0.51],
            no_self_attention=[0.30, 0.33, 0.31],
            no_aux_loss=[0.51, 0.49, 0.55],
            eos_1=[0.70, 0.71, 0.72],
            no_giou=[0.2],
        )
        said = {line.split("**")[1]: line for line in readings(results)}
        assert set(said) == {"no-self-attention", "no-aux-loss", "eos-1", "no-giou"}
        assert "worse than the baseline, AP -0.197 ± " in said["no-self-attention"]
        assert "more duplicates, 1.10 per image instead of 0.00" in said["no-self-attention"]
        assert "NMS adds 0.020 AP" in said["no-self-attention"]
        assert "not told apart" in said["no-aux-loss"]
        assert "better than the baseline" in said["eos-1"]
        assert "no conclusion" in said["no-giou"]

    def test_interval_is_students(self):
        """scipy.stats knows the same interval."""
        from scipy import stats

        difference = [-0.20, -0.19, -0.25]
        results = rows(baseline=[0.5, 0.5, 0.5], no_giou=[0.5 + d for d in difference])
        low, high = stats.t.interval(0.95, 2, loc=sum(difference) / 3, scale=stats.sem(difference))
        (line,) = readings(results)
        mean, half = line.split("AP ")[1].rstrip(".").split(" ± ")
        assert float(mean) == pytest.approx((low + high) / 2, abs=1e-3)
        assert float(half) == pytest.approx((high - low) / 2, abs=2e-3)

    def test_page_and_curves(self):
        results = rows(baseline=[0.5, 0.52], no_giou=[0.4, 0.41], no_aux_loss=[0.1, 0.2])
        page = ablation_report(results, TrainConfig.create(image_size=(48, 48)))
        assert "| baseline | 2 | 0.510 ± 0.014 |" in page
        assert "| no-giou | 2 | 0.405 ± 0.007 |" in page
        assert page.index("no-aux-loss") < page.index("no-giou")
        assert min(plot_ablation(results).size) > 200
        assert plot_ablation(results[:1]).width > 200
        with pytest.raises(ValueError, match="no baseline"):
            ablation_report(results[2:], TrainConfig.create())


def test_command(voc_folder, tmp_path, capsys):
    """Two variants, two seeds; called again it trains nothing, and another baseline is refused."""
    pytest.importorskip("pycocotools")
    out = tmp_path / "ablation"
    options = ["ablate", "--data", f"voc:{voc_folder}", "--epochs", "1", "--batch-size", "4"]
    options += ["--num-queries", "6", "--out", str(out), "--device", "cpu"]
    only = ["--only", "no-self-attention"]
    assert main([*options, "--repeats", "1", *only]) == 0
    assert main([*options, "--repeats", "2", *only]) == 0
    results = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    done = [(row["variant"], row["seed"]) for row in results]
    assert done == [(v, s) for s in (0, 1) for v in ("baseline", "no-self-attention")]
    assert {row["steps"] for row in results} == {3} and {row["images"] for row in results} == {12}
    assert {path.name for path in out.iterdir()} == {
        *("results.jsonl", "README.md", "curves.png", "config.json")
    }
    command = f"detr-fast ablate --data voc:{voc_folder} --num-queries 6 --epochs 1 --batch-size 4"
    assert f"{command} --repeats 2 --only no-self-attention\n" in (out / "README.md").read_text()
    capsys.readouterr()
    older = json.loads((out / "config.json").read_text())
    del older["ablation of"]["init_from"]  # an option that came later
    (out / "config.json").write_text(json.dumps(older))
    assert main([*options, "--repeats", "2", *only]) == 0
    assert "seed" not in capsys.readouterr().out.split("\n", 1)[1].split("wrote")[0]
    assert main([*options, "--repeats", "2", "--image-size", "64", "64", *only]) == 2
    assert "another baseline" in capsys.readouterr().err
    for damaged in ("{}", "[]", "{"):
        (out / "config.json").write_text(damaged)
        assert main([*options, "--repeats", "2", *only]) == 2
        assert "another baseline" in capsys.readouterr().err
    (out / "config.json").write_text(json.dumps(older))

    # A result that was cut off is trained again, and takes no other with it.
    lines = (out / "results.jsonl").read_text().splitlines(keepends=True)
    (out / "results.jsonl").write_text("".join(lines[:3]) + lines[3][:40])
    assert main([*options, "--repeats", "2", "--only", "no-self-attention", "no-giou"]) == 0
    again = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    found = {(row["variant"], row["seed"]) for row in again}
    assert found == {*done, ("no-giou", 0), ("no-giou", 1)} and len(again) == len(found)


def test_nothing_else_is_touched(voc_folder, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("all of it")
    options = ["ablate", "--data", f"voc:{voc_folder}", "--out", str(tmp_path), "--device", "cpu"]
    assert main(options) == 2
    assert "holds no ablation" in capsys.readouterr().err
    assert (tmp_path / "run" / "thesis.txt").read_text() == "all of it"
    # What fails before the first training leaves nothing that stands in the way of the next call.
    options[4] = str(tmp_path / "new")
    assert main([*options, "--val-data", "voc:nowhere"]) == 2
    assert not (tmp_path / "new").exists()


def test_each_seed_is_trained_with_and_its_averaged_model_evaluated(
    voc_folder, tmp_path, monkeypatch
):
    seeds, trainers, evaluated = [], [], []

    class Remembered(ablation.Trainer):
        def __init__(self, config, *others, **options):
            super().__init__(config, *others, **options)
            seeds.append(config.seed)
            trainers.append(self)

    def detect(model, *others):
        evaluated.append(model)
        return evaluation.detect(model, *others)

    monkeypatch.setattr(ablation, "Trainer", Remembered)
    monkeypatch.setattr(ablation, "detect", detect)
    options = {"epochs": 1, "batch_size": 4, "num_queries": 6, "workers": 0}
    config = TrainConfig.create(data=f"voc:{voc_folder}", **options)
    runs = ablation.Ablation(config, open_data, tmp_path / "a", torch.device("cpu"))
    assert len(list(runs.run(changed_variants(config, ["no-giou"])[:1], [0, 1]))) == 2
    assert seeds == [0, 1]
    assert all(m is t.eval_model for m, t in zip(evaluated, trainers, strict=True))
