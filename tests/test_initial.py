"""Starting from trained weights: what is loaded, what is left, and weights of another model."""

import argparse
import math
from pathlib import Path

import pytest
import torch
from torch import nn
from training_cases import small_trainer

from benchmarks.baselines.published_detr import PublishedDETR
from detr_fast.models import detr_resnet18, detr_resnet34, detr_tiny
from detr_fast.models.weights import CheckpointError
from detr_fast.training import TrainConfig, load_checkpoint, load_initial, load_model
from detr_fast.training.initial import Initial


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """A checkpoint as the published training writes it, of 91 classes and 100 queries."""
    torch.manual_seed(1)
    file = tmp_path_factory.mktemp("published") / "checkpoint.pth"
    options = argparse.Namespace(lr=1e-4, backbone="resnet18", dataset_file="coco")
    state = PublishedDETR("resnet18").state_dict()
    torch.save({"model": state, "optimizer": {"state": {}}, "epoch": 299, "args": options}, file)
    return file


def copied(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


class TestPublishedCheckpoint:
    def test_other_classes_and_queries_are_left_as_initialised(self, published):
        model = detr_resnet18(num_classes=3, num_queries=20)
        before = copied(model)
        found = load_initial(model, published)
        trained = torch.load(published, weights_only=False)["model"]
        left = {"class_embed.weight", "class_embed.bias", "query_embed.weight"}
        assert set(found.left) == left and set(found.loaded) == set(trained) - left
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, before[name] if name in left else trained[name]), name
        assert str(found) == (
            f"{published}: loaded {len(trained) - 3} tensors; left as initialised: "
            "class_embed.weight, class_embed.bias, query_embed.weight"
        )

    def test_all_of_it_fits_a_model_of_the_same_classes(self, published):
        model = detr_resnet18(num_classes=91, num_queries=100)
        assert load_initial(model, published).left == ()
        theirs = PublishedDETR("resnet18")
        theirs.load_state_dict(torch.load(published, weights_only=False)["model"])
        images, mask = torch.randn(1, 3, 64, 64), torch.zeros(1, 64, 64, dtype=torch.bool)
        with torch.no_grad():
            ours, expected = model.eval()(images), theirs.eval()(images, mask)
        for name in ("pred_logits", "pred_boxes"):
            torch.testing.assert_close(ours[name], expected[name], atol=1e-4, rtol=1e-4)

    def test_its_class_head_has_a_row_for_each_category_id_of_coco(self, published):
        names = ["toothbrush", "unicorn", "person", "stop sign"]  # ids 90, none, 1 and 13
        model = detr_resnet18(num_classes=4, num_queries=20)
        before = copied(model)
        found = load_initial(model, published, names)
        trained = torch.load(published, weights_only=False)["model"]
        assert sum(found.classes.values()) == 3 and len(found.classes) == 4
        for name in ("class_embed.weight", "class_embed.bias"):
            tensor = model.state_dict()[name]
            assert torch.equal(tensor[[0, 2, 3, 4]], trained[name][[90, 1, 13, 91]])
            assert torch.equal(tensor[1], before[name][1])

    def test_without_a_class_of_coco_it_has_no_names(self, published):
        for names in (["N/A", "unicorn"], ["unicorn"]):
            found = load_initial(detr_resnet18(num_classes=len(names)), published, names)
            assert found.classes is None and "class_embed.bias" in found.left
        names = [
            "person",
            *(f"class {k}" for k in range(90)),
        ]  # the same size
        found = load_initial(detr_resnet18(num_classes=91), published, names)
        assert found.classes is None and found.left == ()

    def test_where_batch_norm_is_trained(self, published):
        """The statistics are loaded; how often they were updated is not known, nor needed."""
        model = detr_resnet18(num_classes=91, norm="batch")
        assert load_initial(model, published).left == ()
        trained = torch.load(published, weights_only=False)["model"]
        name = "backbone.0.body.bn1.running_var"
        assert torch.equal(model.state_dict()[name], trained[name])

    def test_a_state_dict_alone(self, published, tmp_path):
        torch.save(torch.load(published, weights_only=False)["model"], tmp_path / "state.pth")
        assert load_initial(detr_resnet18(), tmp_path / "state.pth").left == ()


class TestOwnRun:
    def test_the_weights_that_are_evaluated(self, tmp_path):
        small_trainer(tmp_path, epochs=1).run()
        last = load_checkpoint(tmp_path)
        best = last | {"ema": {name: tensor + 1 for name, tensor in last["ema"].items()}}
        (tmp_path / "best.pt").unlink()  # one file with last.pt so far
        for file, expected in (("last.pt", last), ("best.pt", best)):
            torch.save(expected, tmp_path / file)
            model = detr_tiny(num_classes=3, num_queries=6)
            found = load_initial(model, tmp_path)
            assert found.file == tmp_path / file and found.left == ()
            assert torch.equal(model.class_embed.weight, expected["ema"]["class_embed.weight"])
        torch.save(best | {"ema": None}, tmp_path / "best.pt")
        load_initial(model, tmp_path)
        assert torch.equal(model.class_embed.weight, best["model"]["class_embed.weight"])

    def test_a_training_starts_there_and_anew(self, tmp_path, capsys):
        small_trainer(tmp_path / "first", epochs=1).run()
        trained = load_model(load_checkpoint(tmp_path / "first")).state_dict()
        options = {"init_from": str(tmp_path / "first"), "epochs": 2, "num_queries": 9}
        trainer = small_trainer(tmp_path / "second", **options)
        assert trainer.step == 0 and not trainer.optimizer.state
        for model in (trainer.model, trainer.eval_model):
            tensors = model.state_dict()
            assert torch.equal(tensors["class_embed.weight"], trained["class_embed.weight"])
            assert tensors["query_embed.anchors"].shape == (9, 4)
        trainer.run()
        checkpoint = load_checkpoint(tmp_path / "second")
        assert TrainConfig.from_dict(checkpoint["config"]).init_from == options["init_from"]
        (tmp_path / "first" / "best.pt").unlink()
        (tmp_path / "first" / "last.pt").unlink()
        assert small_trainer(tmp_path / "second", checkpoint, **options).step == 12

    def test_a_class_head_of_other_classes_is_loaded_by_name(self, tmp_path):
        trained = detr_tiny(num_classes=3).state_dict()
        names = ["circle", "square", "triangle"]
        torch.save({"model": trained, "ema": None, "class_names": names}, tmp_path / "run.pt")
        for ours, rows in (
            (["triangle", "circle", "square"], [2, 0, 1, 3]),
            (["square", "hexagon", "circle"], [1, None, 0, 3]),
            (["triangle"], [2, 3]),
            (["a", "b", "c", "d"], [None, None, None, None, 3]),
        ):
            model = detr_tiny(num_classes=len(ours))
            before = copied(model)
            found = load_initial(model, tmp_path / "run.pt", ours)
            for name in ("class_embed.weight", "class_embed.bias"):
                tensor = model.state_dict()[name]
                for row, source in enumerate(rows):
                    expected = before[name][row] if source is None else trained[name][source]
                    assert torch.equal(tensor[row], expected), (ours, name, row)
            assert "class_embed.weight" not in found.loaded
            known = len(rows) - 1 - rows.count(None)
            new = ", ".join(n for n, row in zip(ours, rows, strict=False) if row is None)
            assert str(found) == (
                f"{tmp_path / 'run.pt'}: loaded {len(found.loaded)} tensors; class_embed: {known} "
                f"of {len(ours)} classes by name; left as initialised: "
                f"{'of class_embed ' + new if new else 'nothing'}"
            )

    def test_of_many_new_classes_some_are_named(self):
        classes = dict.fromkeys("abcdefghij", False) | {"k": True}
        said = str(Initial(Path("run.pt"), (), ("query_embed.weight",), classes))
        assert said.endswith(
            "class_embed: 1 of 11 classes by name; left as initialised: query_embed.weight, of "
            "class_embed a, b, c, d, e, f, g, h and 2 more"
        )

    def test_a_class_head_of_the_same_classes_is_loaded_whole(self, tmp_path):
        trained = detr_tiny(num_classes=2).state_dict()
        for names in (["a", "b"], None, [1, 2], 2):  # also where there are none to compare
            torch.save({"model": trained, "class_names": names}, tmp_path / "run.pt")
            model = detr_tiny(num_classes=2)
            found = load_initial(model, tmp_path / "run.pt", ("a", "b"))
            assert found.classes is None and not found.left
            assert torch.equal(model.class_embed.weight, trained["class_embed.weight"])

    def test_class_names_that_do_not_fit_the_class_head(self, tmp_path):
        state = detr_tiny(num_classes=3).state_dict()
        torch.save({"model": state, "class_names": ["a", "b"]}, tmp_path / "run.pt")
        model = detr_tiny(num_classes=2)
        before = copied(model)
        message = r"run\.pt: class_embed\.weight is \[4, 128\], expected \[3, 128\] for its 2 class"
        with pytest.raises(CheckpointError, match=message):
            load_initial(model, tmp_path / "run.pt", ["b", "a"])
        del state["class_embed.weight"]
        torch.save({"model": state, "class_names": ["a", "b", "c"]}, tmp_path / "run.pt")
        with pytest.raises(CheckpointError, match=r"class_embed\.weight is missing, expected \[4"):
            load_initial(model, tmp_path / "run.pt", ["b", "a"])
        with pytest.raises(ValueError, match="3 class names for a model of 2 classes"):
            load_initial(model, tmp_path / "run.pt", ["c", "b", "a"])
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, before[name])

    def test_a_training_on_the_classes_in_another_order(self, tmp_path):
        small_trainer(tmp_path / "first", epochs=1).run()
        file = tmp_path / "first" / "best.pt"
        state = load_checkpoint(file)
        torch.save(state | {"class_names": state["class_names"][::-1]}, file)
        trained = load_model(state).state_dict()["class_embed.bias"]
        trainer = small_trainer(tmp_path / "second", init_from=str(file))
        assert torch.equal(trainer.model.class_embed.bias, trained[[2, 1, 0, 3]])

    def test_queries_of_another_kind(self, tmp_path):
        torch.save(detr_tiny(query_mode="learned").state_dict(), tmp_path / "learned.pth")
        found = load_initial(detr_tiny(), tmp_path / "learned.pth")
        assert found.left and all(name.startswith("query_embed.") for name in found.left)


class TestOtherModels:
    def test_the_first_tensor_that_does_not_fit_is_named(self, published, tmp_path):
        torch.save({"model": detr_tiny().state_dict()}, tmp_path / "tiny.pth")
        torch.save({"model": detr_resnet34().state_dict()}, tmp_path / "resnet34.pth")
        name = "transformer.encoder.layers.0.self_attn.in_proj_weight"
        first = "backbone.0.body.layer1.2.conv1.weight"
        sizes = rf"{name} is \[384, 128\] in the file and \[768, 256"
        for build, file, message in (
            (detr_resnet18, tmp_path / "tiny.pth", sizes),
            (detr_resnet34, published, f"it has no {first}"),
            (detr_resnet18, tmp_path / "resnet34.pth", f", which has no {first}"),
        ):
            model = build()
            before = copied(model)
            with pytest.raises(CheckpointError, match=rf"{file} does not fit the model.*{message}"):
                load_initial(model, file)
            for key, tensor in model.state_dict().items():
                assert torch.equal(tensor, before[key])

    @pytest.mark.parametrize("name", ["input_proj.weight", "class_embed.bias"])
    def test_values_that_no_training_can_start_from(self, tmp_path, name):
        state = detr_tiny().state_dict()
        file = tmp_path / "odd.pth"
        for spoilt, said in (
            (state[name].int(), f"{name} is torch.int32, expected floating point"),
            (state[name] * math.nan, f"{name} holds values that are not finite"),
            (state[name] + math.inf, f"{name} holds values that are not finite"),
        ):
            torch.save(state | {name: spoilt}, file)
            model = detr_tiny()
            before = copied(model)
            with pytest.raises(CheckpointError, match=said):
                load_initial(model, file)
            assert all(torch.equal(value, before[n]) for n, value in model.state_dict().items())

    def test_files_without_weights(self, tmp_path):
        torch.save({"epoch": 3}, tmp_path / "notes.pth")
        with pytest.raises(CheckpointError, match=r"notes\.pth holds no weights"):
            load_initial(detr_tiny(), tmp_path / "notes.pth")
        tensor = torch.ones(2)
        for notes in (
            {0: tensor},
            {"model": {1: tensor}},
            {"model": tensor},
            {"ema": tensor},
            {"ema": {"step": 3}, "model": {"a": tensor}},
        ):
            torch.save(notes, tmp_path / "notes.pth")
            with pytest.raises(CheckpointError, match=r"notes\.pth holds no weights"):
                load_initial(detr_tiny(), tmp_path / "notes.pth")
        torch.save({}, tmp_path / "empty.pth")
        with pytest.raises(CheckpointError, match=r"empty\.pth does not fit the model: it has no"):
            load_initial(detr_tiny(), tmp_path / "empty.pth")
        with pytest.raises(CheckpointError, match=r"last\.pt: no such file"):
            load_initial(detr_tiny(), tmp_path)

    def test_code_in_a_file_is_not_run(self, tmp_path):
        class Harmful:
            def __reduce__(self):
                return Path.touch, (tmp_path / "ran",)

        torch.save({"model": {}, "args": Harmful()}, tmp_path / "harmful.pth")
        with pytest.raises(CheckpointError, match=r"harmful\.pth cannot be read"):
            load_initial(detr_tiny(), tmp_path / "harmful.pth")
        assert not (tmp_path / "ran").exists()


class TestConfig:
    def test_a_resnets_backbone_is_fine_tuned_without_a_download(self):
        config = TrainConfig.create(model="resnet50", init_from="detr.pth")
        assert config.backbone_weights is None and config.lr_backbone == 1e-5
        args = config.model_args(num_classes=3)
        assert (args["norm"], args["trainable_layers"]) == ("frozen", 3)

    def test_tiny_has_one_rate(self):
        assert TrainConfig.create(init_from="run", lr=1e-4).lr_backbone == 1e-4

    def test_two_sources_of_the_backbone_are_one_too_many(self):
        with pytest.raises(ValueError, match="init_from has the backbone's weights: leave"):
            TrainConfig.create(model="resnet50", init_from="a.pth", backbone_weights="imagenet")
