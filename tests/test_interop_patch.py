"""patch_transformers: models train as before, undoing it, and what it refuses."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from interop_cases import assert_same, batch
from torch import nn
from transformers.loss import (
    loss_d_fine,
    loss_deformable_detr,
    loss_for_object_detection,
    loss_grounding_dino,
    loss_lw_detr,
    loss_rt_detr,
)

import detr_fast
from detr_fast import FastMatcher
from detr_fast.interop import patch_transformers, transformers_patch
from detr_fast.interop.matchers import huggingface
from detr_fast.interop.matchers.shared import cost_blocks

CLASSES = 5
RESNET = {
    "embedding_size": 8,
    "hidden_sizes": [8, 16, 24, 32],
    "depths": [1, 1, 1, 1],
    "layer_type": "basic",
}
HEAD = {"num_labels": CLASSES, "auxiliary_loss": True, "d_model": 32, "decoder_ffn_dim": 64}
DETR = HEAD | {
    "num_queries": 20,
    "use_timm_backbone": False,
    "use_pretrained_backbone": False,
    "backbone": None,
    "encoder_layers": 1,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
}
RT_DETR = HEAD | {
    "num_queries": 20,
    "encoder_hidden_dim": 32,
    "encoder_in_channels": [16, 24, 32],
    "decoder_in_channels": [32, 32, 32],
    "decoder_layers": 2,
    "encoder_ffn_dim": 32,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "num_denoising": 10,
}


def resnet(*stages):
    return transformers.ResNetConfig(**RESNET, out_features=[f"stage{s}" for s in stages])


def detr():
    config = transformers.DetrConfig(backbone_config=resnet(4), **DETR)
    return transformers.DetrForObjectDetection(config)


def conditional_detr():
    config = transformers.ConditionalDetrConfig(backbone_config=resnet(4), **DETR)
    return transformers.ConditionalDetrForObjectDetection(config)


def deformable_detr():
    config = transformers.DeformableDetrConfig(
        backbone_config=resnet(2, 3, 4),
        num_feature_levels=3,
        with_box_refine=True,
        two_stage=True,
        two_stage_num_proposals=20,
        **DETR,
    )
    return transformers.DeformableDetrForObjectDetection(config)


def rt_detr():
    backbone = transformers.RTDetrResNetConfig(
        **RESNET, out_features=["stage2", "stage3", "stage4"]
    )
    config = transformers.RTDetrConfig(backbone_config=backbone, **RT_DETR)
    return transformers.RTDetrForObjectDetection(config)


def d_fine():
    backbone = transformers.HGNetV2Config(
        embedding_size=16,
        stem_channels=[3, 8, 16],
        hidden_sizes=[16, 16, 24, 32],
        depths=[1, 1, 1, 1],
        stage_in_channels=[16, 16, 16, 24],
        stage_mid_channels=[8, 8, 8, 8],
        stage_out_channels=[16, 16, 24, 32],
        stage_num_blocks=[1, 1, 1, 1],
        stage_numb_of_layers=[1, 1, 1, 1],
        out_features=["stage2", "stage3", "stage4"],
    )
    config = transformers.DFineConfig(
        backbone_config=backbone,
        decoder_n_points=[2, 2, 2],
        feat_strides=[8, 16, 32],
        **RT_DETR,
    )
    return transformers.DFineForObjectDetection(config)


def lw_detr():
    backbone = transformers.LwDetrViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=64,
        pretrain_image_size=64,
        patch_size=16,
        num_windows=4,
        window_block_indices=[0],
        out_indices=[1, 2],
    )
    config = transformers.LwDetrConfig(
        backbone_config=backbone,
        num_queries=12,
        group_detr=3,
        decoder_layers=2,
        decoder_self_attention_heads=4,
        decoder_cross_attention_heads=4,
        decoder_n_points=2,
        projector_scale_factors=[1.0],
        c2f_num_blocks=1,
        **HEAD,
    )
    return transformers.LwDetrForObjectDetection(config)


# The model, its image size, and the matchings of one step: of each decoder layer, and for the last
# three of the encoder's proposals.
MODELS = {
    "detr": (detr, 128, 3),
    "conditional_detr": (conditional_detr, 128, 3),
    "deformable_detr": (deformable_detr, 128, 3),
    "rt_detr": (rt_detr, 128, 3),
    "d_fine": (d_fine, 128, 3),
    "lw_detr": (lw_detr, 64, 3),
}
STEPS = 10


def train(build, size):
    """The losses of ten steps, each a dict, the same whenever called."""
    torch.manual_seed(0)
    model = build().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    history = []
    for step in range(STEPS):
        g = torch.Generator().manual_seed(step % 2)  # two batches in turn
        labels = [
            {
                "class_labels": torch.randint(0, CLASSES, (m,), generator=g),
                "boxes": 0.4 * torch.rand(m, 4, generator=g) + 0.3,
            }
            for m in (4, step % 2, 7)  # one has an image without objects
        ]
        images = torch.randn(3, 3, size, size, generator=g)
        out = model(pixel_values=images, labels=labels)
        optimizer.zero_grad()
        out.loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        losses = {name: value.item() for name, value in out.loss_dict.items()}
        history.append({"loss": out.loss.item(), **losses})
    return history


@pytest.fixture
def counted(monkeypatch):
    """Counts the calls of SciPy's solver and of FastMatcher."""
    calls = {"scipy": 0, "fast": 0}
    for module in (
        loss_for_object_detection,
        loss_deformable_detr,
        loss_rt_detr,
        loss_lw_detr,
    ):

        def solve(cost, solver=module.linear_sum_assignment):
            calls["scipy"] += 1
            return solver(cost)

        monkeypatch.setattr(module, "linear_sum_assignment", solve)

    def forward(self, outputs, targets, forward=FastMatcher.forward):
        calls["fast"] += 1
        return forward(self, outputs, targets)

    monkeypatch.setattr(FastMatcher, "forward", forward)
    return calls


@pytest.mark.parametrize("name", MODELS)
def test_ten_training_steps_are_the_same(name, counted):
    build, size, matchings = MODELS[name]
    expected = train(build, size)
    assert counted["fast"] == 0 and counted["scipy"] >= 3 * matchings * STEPS
    counted["scipy"] = 0
    with patch_transformers():
        found = train(build, size)
    assert counted == {"fast": matchings * STEPS, "scipy": 0}
    assert expected[-2]["loss"] < 0.98 * expected[0]["loss"]  # it trains
    ties = ties_of_training(build, size)
    same = ties[0] // matchings if ties else STEPS  # steps until roundings decided a tie
    assert len(ties) <= 2
    for ours, theirs in zip(found[:same], expected[:same], strict=True):
        assert len(theirs) > 8
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-6)


def ties_of_training(build, size) -> list[int]:
    """The numbers of the matchings that differ from the original's, all at an equal cost.

    The training goes on with the original's, so that each has the same input.
    """
    calls, ties = 0, []

    def both(ours, original):
        def forward(self, outputs, targets, *groups, **named):
            nonlocal calls
            given = (self, outputs, targets, *groups)
            found, expected = (f(*given, **named) for f in (ours, original))
            same = [
                torch.equal(torch.stack(f), torch.stack(e))
                for f, e in zip(found, expected, strict=True)
            ]
            if not all(same):
                costs = costs_in_double(self, outputs, targets)
                ties.append(calls)
                for cost, pair, pair_of_original in zip(costs, found, expected, strict=True):
                    total = cost[pair_of_original].sum()
                    assert float(cost[pair].sum()) == pytest.approx(float(total), rel=1e-7)
            calls += 1
            return expected

        return forward

    with patch_transformers(), pytest.MonkeyPatch.context() as patch:
        for kind, original in transformers_patch._replaced.items():
            patch.setattr(kind, "forward", both(kind.forward, original))
        train(build, size)
    return ties


def costs_in_double(matcher, outputs, targets):
    _, fast = matcher.__dict__["_detr_fast"]
    predictions = {
        "pred_logits": outputs["logits"].detach().double(),
        "pred_boxes": outputs["pred_boxes"].detach().double(),
    }
    renamed = [{"labels": t["class_labels"], "boxes": t["boxes"].double()} for t in targets]
    return cost_blocks(fast, predictions, renamed)


def given():
    outputs, targets = batch(30, [8, 11], classes=6)
    outputs = {"logits": outputs["pred_logits"], "pred_boxes": outputs["pred_boxes"]}
    for target in targets:
        target["class_labels"] = target.pop("labels") % 5
    return outputs, targets


def test_swaps_wherever_a_class_was_imported_by_name(counted):
    """loss_d_fine has its matcher from loss_rt_detr; a matcher may exist before the patch."""
    originals = {
        loss_for_object_detection.HungarianMatcher: loss_for_object_detection.HungarianMatcher(),
        loss_deformable_detr.DeformableDetrHungarianMatcher: (
            loss_deformable_detr.DeformableDetrHungarianMatcher()
        ),
        loss_d_fine.RTDetrHungarianMatcher: loss_d_fine.RTDetrHungarianMatcher(
            transformers.RTDetrConfig()
        ),
    }
    before = [matcher(*given()) for matcher in originals.values()]
    forwards = [kind.forward for kind in originals]
    with patch_transformers():
        assert counted["fast"] == 0
        for matcher, expected in zip(originals.values(), before, strict=True):
            assert_same(matcher(*given()), expected)
        assert counted == {"fast": 3, "scipy": 3 * 2}
        assert [kind.forward for kind in originals] != forwards
    assert [kind.forward for kind in originals] == forwards
    for matcher, expected in zip(originals.values(), before, strict=True):
        assert_same(matcher(*given()), expected)
    assert counted == {"fast": 3, "scipy": 2 * 3 * 2}


def test_leaves_matchers_of_other_costs_alone():
    forward = loss_grounding_dino.GroundingDinoHungarianMatcher.forward
    with patch_transformers():
        assert loss_grounding_dino.GroundingDinoHungarianMatcher.forward is forward


def is_patched():
    ours = huggingface.HungarianMatcher.forward
    return loss_for_object_detection.HungarianMatcher.forward is ours


def test_idempotent_and_undoable():
    assert not is_patched()
    first = patch_transformers()
    second = patch_transformers()
    assert is_patched()
    second.undo()
    assert not is_patched()
    first.undo()
    second.undo()
    assert not is_patched()


def test_blocks_nest():
    with patch_transformers():
        with patch_transformers():
            assert is_patched()
        assert is_patched()
    assert not is_patched()
    patch = patch_transformers()
    with patch_transformers():
        pass
    assert is_patched()
    patch.undo()
    with pytest.raises(ZeroDivisionError), patch_transformers():
        raise ZeroDivisionError
    assert not is_patched()


def test_errors_are_in_the_names_of_transformers():
    outputs, targets = given()
    targets[1]["class_labels"][2] = 6
    matcher = loss_for_object_detection.HungarianMatcher()
    message = r"^targets\[1\]\['class_labels'\]\[2\] is 6, but logits have "
    with patch_transformers(), pytest.raises(ValueError, match=message):
        matcher(outputs, targets)


def test_refuses_another_transformers(monkeypatch):
    class HungarianMatcher(nn.Module):
        def __init__(self, class_cost=1, bbox_cost=1, giou_cost=1):
            super().__init__()

        def forward(self, outputs, targets, masks):
            raise NotImplementedError

    with monkeypatch.context() as context:
        context.setattr(loss_for_object_detection, "HungarianMatcher", HungarianMatcher)
        message = (
            r"^patch_transformers replaces the matchers of transformers 5, but in [\d.]+ "
            r"transformers\.loss\.loss_for_object_detection\.HungarianMatcher\.forward takes "
            r"\(self, outputs, targets, masks\), not \(self, outputs, targets\)$"
        )
        with pytest.raises(RuntimeError, match=message):
            patch_transformers()
    with monkeypatch.context() as context:
        context.delattr(loss_rt_detr, "RTDetrHungarianMatcher")
        message = r"but [\d.]+ has no transformers\.loss\.loss_rt_detr\.RTDetrHungarianMatcher \("
        with pytest.raises(RuntimeError, match=message):
            patch_transformers()
    assert not is_patched()
    with monkeypatch.context() as context:
        context.setitem(sys.modules, "transformers", None)
        with pytest.raises(ImportError, match=r"^patch_transformers needs transformers: "):
            patch_transformers()


def test_importing_interop_imports_no_other_code_base(tmp_path):
    folder = Path(huggingface.__file__).parent
    names = [path.stem for path in folder.glob("*.py") if path.stem != "__init__"]
    assert len(names) == 9
    lines = [f"import detr_fast.interop.matchers.{name}" for name in names]
    lines += ["import sys", "import detr_fast.interop"]
    lines += ["print(sorted({'transformers', 'ultralytics', 'rfdetr', 'scipy'} & {*sys.modules}))"]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        cwd=tmp_path,
        env={"PYTHONPATH": str(Path(detr_fast.__file__).parents[1])},
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "[]", done.stderr
