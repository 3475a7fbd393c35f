"""DETR and its parts: shapes, names, padding, queries."""

import math
import re
import socket
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from detr_fast.models import (
    MODELS,
    PostProcess,
    detr_resnet18,
    detr_resnet50,
    detr_resnet50_dc5,
    detr_tiny,
)
from detr_fast.models.backbone import ResNetBackbone
from detr_fast.models.padding import pad_images, resize_mask
from detr_fast.models.position_encoding import (
    LearnedPositionEncoding,
    SinePositionEncoding,
    sine_features,
)
from detr_fast.models.queries import AnchorQueries
from detr_fast.models.transformer import Attention, DecoderLayer, EncoderLayer
from detr_fast.models.weights import CheckpointError


@pytest.fixture
def tiny():
    torch.manual_seed(0)
    return detr_tiny(num_classes=3, num_queries=7).eval()


class TestOutputs:
    @pytest.mark.parametrize("name", ["tiny", "resnet18", "resnet50_dc5"])
    @pytest.mark.parametrize("query_mode", ["learned", "anchor"])
    def test_shapes(self, name, query_mode):
        model = MODELS[name](num_classes=5, num_queries=9, query_mode=query_mode)
        outputs = model(torch.randn(2, 3, 64, 96))
        layers = len(model.transformer.decoder.layers)
        assert len(outputs["aux_outputs"]) == layers - 1
        for output in (outputs, *outputs["aux_outputs"]):
            assert output["pred_logits"].shape == (2, 9, 6)
            assert output["pred_boxes"].shape == (2, 9, 4)
            assert ((output["pred_boxes"] > 0) & (output["pred_boxes"] < 1)).all()

    def test_without_auxiliary_outputs(self):
        assert set(detr_tiny(aux_loss=False)(torch.randn(1, 3, 32, 32))) == {
            "pred_logits",
            "pred_boxes",
        }

    def test_a_list_of_images_is_the_padded_batch(self, tiny):
        images = [torch.randn(3, 64, 96), torch.randn(3, 80, 48)]
        batch, mask = pad_images(images)
        with torch.no_grad():
            listed, padded = tiny(images), tiny(batch, mask)
        torch.testing.assert_close(listed["pred_boxes"], padded["pred_boxes"])
        assert mask[0, :64, :96].sum() == 0 and mask[0, 64:].all()
        assert mask[1, :, 48:].all() and not mask[1, :, :48].any()

    def test_images_of_one_size_need_no_mask(self, tiny):
        images = torch.randn(2, 3, 64, 64)
        assert pad_images([*images])[1] is None
        assert pad_images([*images], multiple_of=48)[1].sum() == 2 * (96 * 96 - 64 * 64)
        nothing = torch.zeros(2, 64, 64, dtype=torch.bool)
        with torch.no_grad():
            torch.testing.assert_close(
                tiny(images)["pred_logits"], tiny(images, nothing)["pred_logits"]
            )

    def test_the_transformer_does_not_see_padding(self, tiny):
        """Features under the mask may be anything: no query and no valid feature attends there."""
        memory = torch.randn(1, 12, 128)
        position = torch.randn(1, 12, 128)
        mask = torch.zeros(1, 12, dtype=torch.bool)
        mask[:, 8:] = True
        changed = memory.clone()
        changed[:, 8:] += 100

        def detect(sequence):
            encoded = tiny.transformer.encoder(sequence, position, mask)
            _, boxes = tiny.transformer.decoder(
                encoded, position, mask, tiny.query_embed, tiny.bbox_embed
            )
            return encoded[:, :8], boxes[-1]

        with torch.no_grad():
            for before, after in zip(detect(memory), detect(changed), strict=True):
                torch.testing.assert_close(before, after)
            nn.init.normal_(tiny.bbox_embed.layers[-1].weight)  # zero at the start
            assert not torch.allclose(detect(memory)[1], detect(torch.randn(1, 12, 128))[1])

    @pytest.mark.parametrize(
        ("images", "mask", "message"),
        [
            (torch.zeros(2, 1, 32, 32), None, r"images has shape \[2, 1, 32, 32\]"),
            (torch.zeros(2, 3, 32, 32), torch.zeros(2, 32, 31, dtype=torch.bool), "mask is"),
            (torch.zeros(2, 3, 32, 32), torch.zeros(2, 32, 32), "expected torch.bool"),
            ([torch.zeros(3, 8, 8), torch.zeros(8, 8)], None, r"images\[1\] has shape \[8, 8\]"),
            ([], None, "at least one image"),
            ([torch.zeros(3, 8, 8)], torch.zeros(1, 8, 8, dtype=torch.bool), "a list of images"),
            (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), None, "uint8, expected normalised"),
            (
                [torch.zeros(3, 8, 8), torch.zeros(3, 8, 8, dtype=torch.uint8)],
                None,
                r"images\[1\] is torch.uint8, expected normalised",
            ),
        ],
    )
    def test_wrong_shapes_are_named(self, tiny, images, mask, message):
        with pytest.raises(ValueError, match=message):
            tiny(images, mask)

    @pytest.mark.parametrize("training", [False, True])
    def test_an_image_that_is_all_padding_gives_no_nan(self, training):
        """A batch that is filled up to a fixed size has such images."""
        model = detr_tiny(num_classes=3, dropout=0.1).train(training)
        mask = torch.zeros(2, 64, 64, dtype=torch.bool)
        mask[1] = True
        outputs = model(torch.randn(2, 3, 64, 64), mask)
        assert outputs["pred_logits"].isfinite().all() and outputs["pred_boxes"].isfinite().all()

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
    @pytest.mark.parametrize("query_mode", ["learned", "anchor"])
    def test_other_precisions(self, dtype, query_mode):
        """Boxes are never less than float32: half precision would cost them about a pixel."""
        torch.manual_seed(0)
        model = detr_tiny(query_mode=query_mode).eval()
        images = torch.randn(1, 3, 64, 64)
        with torch.no_grad():
            expected = model(images)["pred_boxes"]
            found = model.to(dtype)(images.to(dtype))["pred_boxes"]
        assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        tolerance = 1e-5 if dtype == torch.float64 else 0.05
        torch.testing.assert_close(found.float(), expected, atol=tolerance, rtol=0)

    def test_every_parameter_is_trained(self):
        """A parameter without a gradient would hang or break distributed training."""
        for query_mode in ("learned", "anchor"):
            model = detr_tiny(query_mode=query_mode)
            nn.init.normal_(model.bbox_embed.layers[-1].weight)
            outputs = model(torch.randn(2, 3, 32, 32))
            total = sum(
                o["pred_logits"].sum() + o["pred_boxes"].sum()
                for o in (outputs, *outputs["aux_outputs"])
            )
            total.backward()
            assert [n for n, p in model.named_parameters() if p.grad is None] == []


class TestPublishedNames:
    def test_state_dict(self):
        state = detr_resnet50().state_dict()
        shapes = {
            "transformer.encoder.layers.0.self_attn.in_proj_weight": (768, 256),
            "transformer.encoder.layers.5.self_attn.out_proj.bias": (256,),
            "transformer.encoder.layers.5.linear1.weight": (2048, 256),
            "transformer.encoder.layers.5.norm2.weight": (256,),
            "transformer.decoder.layers.5.multihead_attn.in_proj_bias": (768,),
            "transformer.decoder.layers.0.norm3.bias": (256,),
            "transformer.decoder.norm.weight": (256,),
            "class_embed.weight": (92, 256),
            "bbox_embed.layers.2.weight": (4, 256),
            "query_embed.weight": (100, 256),
            "input_proj.weight": (256, 2048, 1, 1),
            "backbone.0.body.conv1.weight": (64, 3, 7, 7),
            "backbone.0.body.layer4.2.bn3.running_var": (2048,),
            "backbone.0.body.layer1.0.downsample.1.running_mean": (256,),
        }
        for name, shape in shapes.items():
            assert tuple(state[name].shape) == shape, name
        # 6 x 12 encoder, 6 x 18 decoder, 2 norm, 2 class, 6 box, 1 query, 2 projection tensors;
        # the backbone has 53 convolutions with four tensors of frozen batch norm each.
        assert len(state) == 6 * 12 + 6 * 18 + 2 + 2 + 6 + 1 + 2 + 53 * 5

    def test_dc5_has_the_same_names_and_twice_the_resolution(self):
        plain, dilated = detr_resnet50(), detr_resnet50_dc5()
        dilated.load_state_dict(plain.state_dict(), strict=True)
        with torch.no_grad():
            assert plain.backbone[0](torch.zeros(1, 3, 64, 64)).shape[-1] == 2
            assert dilated.backbone[0](torch.zeros(1, 3, 64, 64)).shape[-1] == 4


class TestBackbone:
    def test_weights_from_a_file(self, tmp_path):
        resnet = torchvision.models.resnet18()
        torch.save(resnet.state_dict(), tmp_path / "resnet18.pth")
        backbone = ResNetBackbone("resnet18", tmp_path / "resnet18.pth").eval()
        images = torch.randn(1, 3, 64, 64)
        resnet.eval()
        with torch.no_grad():
            x = resnet.maxpool(resnet.relu(resnet.bn1(resnet.conv1(images))))
            expected = resnet.layer4(resnet.layer3(resnet.layer2(resnet.layer1(x))))
            torch.testing.assert_close(backbone(images), expected, atol=1e-4, rtol=1e-4)

    def test_a_wrong_file_is_named(self, tmp_path):
        with pytest.raises(CheckpointError, match=r"nowhere\.pth: no such file"):
            ResNetBackbone("resnet18", tmp_path / "nowhere.pth")
        torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "resnet18.pth")
        with pytest.raises(CheckpointError, match=r"resnet18\.pth do not fit"):
            ResNetBackbone("resnet34", tmp_path / "resnet18.pth")
        (tmp_path / "text.pth").write_text("not weights")
        with pytest.raises(CheckpointError, match=r"text\.pth cannot be read"):
            ResNetBackbone("resnet18", tmp_path / "text.pth")

    def test_imagenet_weights_that_torch_has_already(self, tmp_path, monkeypatch):
        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
        resnet = torchvision.models.resnet18()
        (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
        file = tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
        torch.save(resnet.state_dict(), file)
        for norm in ("frozen", "batch"):
            backbone = ResNetBackbone("resnet18", "imagenet", norm)
            torch.testing.assert_close(backbone.body.conv1.weight, resnet.conv1.weight)
        file.write_bytes(file.read_bytes()[:2000])
        with pytest.raises(CheckpointError, match=rf"put that file at {re.escape(str(file))}"):
            ResNetBackbone("resnet18", "imagenet")

    def test_imagenet_weights_without_a_network(self, tmp_path, monkeypatch):
        def refuse(*_, **__):
            raise URLError(socket.gaierror(-2, "Name or service not known"))

        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
        monkeypatch.setattr("torch.hub.download_url_to_file", refuse)
        with pytest.raises(CheckpointError) as caught:
            ResNetBackbone("resnet50", "imagenet")
        for part in (
            "https://download.pytorch.org/models/resnet50-0676ba61.pth (URLError: ",
            "Name or service not known",
            str(tmp_path / "hub" / "checkpoints" / "resnet50-0676ba61.pth"),
            "--backbone-weights PATH",
        ):
            assert part in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1

    def test_trainable_layers(self):
        backbone = ResNetBackbone("resnet18", trainable_layers=3)
        trained = {name.split(".")[1] for name, p in backbone.named_parameters() if p.requires_grad}
        assert trained == {"layer2", "layer3", "layer4"}
        assert all(p.requires_grad for p in ResNetBackbone("resnet18").parameters())

    def test_dc5_dilates_the_last_stage(self):
        body = ResNetBackbone("resnet50", dilation=True).body
        assert [body[f"layer{k}"][1].conv2.dilation for k in (3, 4)] == [(1, 1), (2, 2)]

    def test_frozen_norm_keeps_its_statistics(self):
        for norm, changes in (("frozen", False), ("batch", True)):
            backbone = ResNetBackbone("resnet18", norm=norm).train()
            before = backbone.body.bn1.running_mean.clone()
            backbone(torch.randn(2, 3, 64, 64) + 3)
            assert torch.equal(before, backbone.body.bn1.running_mean) is not changes

    @pytest.mark.parametrize("norm", ["frozen", "batch"])
    def test_what_users_add_to_its_modules_takes_effect(self, norm):
        backbone = ResNetBackbone("resnet18", norm=norm).eval()
        conv = backbone.body.layer4[1].conv2
        nn.init.constant_(backbone.body.layer4[1].bn2.bias, 1.0)
        images = torch.randn(1, 3, 64, 64)
        heard = []
        with torch.no_grad():
            expected = backbone(images)
            handles = [
                part.register_forward_hook(lambda _, __, out: heard.append(out))
                for part in (backbone.body.layer4, backbone.body.layer4[1], conv)
            ]
            torch.testing.assert_close(backbone(images), expected, atol=1e-5, rtol=1e-5)
            assert len(heard) == 3 and torch.equal(heard[-1], heard[-2])
            for handle in handles:
                handle.remove()
            conv.bias = nn.Parameter(torch.full((512,), 100.0))
            assert backbone(images).mean() > 50
            backbone.body.layer4[1].conv2 = nn.Identity()
            changed = backbone(images)
            backbone.body.layer4[1] = nn.Identity()
            assert not torch.equal(backbone(images), changed)
        assert len(heard) == 3

    def test_padding_with_other_values_than_zeros(self):
        backbone = ResNetBackbone("resnet18").eval()
        images = torch.randn(1, 3, 64, 64)
        with torch.no_grad():
            zeros = backbone(images)
            for conv in (m for m in backbone.modules() if isinstance(m, nn.Conv2d)):
                conv.padding_mode = "circular"
            expected = images
            for part in backbone.body.values():
                expected = part(expected)
            torch.testing.assert_close(backbone(images), expected, atol=1e-5, rtol=1e-5)
        assert (zeros - expected).abs().max() > 0.1

    @pytest.mark.parametrize("change", ["hook", "strides"])
    def test_an_export_has_a_pooling_as_it_was_changed(self, change):
        backbone = ResNetBackbone("resnet18").eval()
        if change == "hook":
            backbone.body.maxpool.register_forward_hook(lambda _, __, out: out * 3)
        else:
            backbone.body.maxpool = nn.MaxPool2d((3, 3), (2, 1), (1, 1))
        images = torch.randn(2, 3, 64, 64)
        exported = torch.export.export(backbone, (images,)).module()
        with torch.no_grad():
            torch.testing.assert_close(exported(images), backbone(images), atol=1e-4, rtol=1e-4)

    def test_checkpointing_with_hooks_gives_the_same_gradients(self):
        torch.manual_seed(0)
        backbone = ResNetBackbone("resnet18").train()
        images = torch.randn(1, 3, 64, 64)
        calls, gradients = [], []
        backbone.body.layer1[0].register_forward_pre_hook(lambda *_: calls.append(1))
        for checkpointing in (False, True):
            backbone.checkpointing = checkpointing
            backbone.zero_grad()
            backbone(images).square().mean().backward()
            gradients.append([p.grad.clone() for p in backbone.parameters()])
        assert len(calls) == 3  # once, then in the forward pass and when it is recomputed
        torch.testing.assert_close(*gradients)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"name": "vgg16"}, "unknown backbone 'vgg16'"),
            ({"norm": "group"}, "norm is 'group'"),
            ({"name": "resnet18", "dilation": True}, "DC5 needs bottleneck"),
            ({"trainable_layers": 6}, r"expected 0\.\.5"),
        ],
    )
    def test_wrong_options_are_named(self, options, message):
        with pytest.raises(ValueError, match=message):
            ResNetBackbone(**options)


class TestPositionEncoding:
    def test_sine_at_one_place(self):
        """Written out for one pixel: y before x, sine and cosine in turn, 1-based, over 2 pi."""
        encoding = SinePositionEncoding(256)(torch.zeros(1, 1, 5, 7), None)
        assert encoding.shape == (1, 256, 5, 7)
        for axis, place in enumerate((3 / 5, 6 / 7)):  # row 2, column 5
            for pair in (0, 1, 31, 63):
                angle = place * 2 * math.pi / 10000 ** (2 * pair / 128)
                found = encoding[0, axis * 128 + 2 * pair : axis * 128 + 2 * pair + 2, 2, 5]
                expected = torch.tensor([math.sin(angle), math.cos(angle)])
                torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)

    def test_sine_is_normalised_to_the_unpadded_image(self):
        mask = torch.ones(1, 8, 8, dtype=torch.bool)
        mask[:, :5, :6] = False
        padded = SinePositionEncoding(64)(torch.zeros(1, 1, 8, 8), mask)
        alone = SinePositionEncoding(64)(torch.zeros(1, 1, 5, 6), None)
        torch.testing.assert_close(padded[:, :, :5, :6], alone)

    def test_learned(self):
        with pytest.raises(ValueError, match="needs an even dim, got 63"):
            LearnedPositionEncoding(63)
        encoding = LearnedPositionEncoding(64, max_size=8)
        found = encoding(torch.zeros(2, 1, 3, 4), None)
        assert found.shape == (1, 64, 3, 4)
        torch.testing.assert_close(found[0, :32, 1, 2], encoding.col_embed.weight[2])
        torch.testing.assert_close(found[0, 32:, 1, 2], encoding.row_embed.weight[1])
        with pytest.raises(ValueError, match="9 x 4"):
            encoding(torch.zeros(1, 1, 9, 4), None)

    def test_learned_starts_uniform_in_both_directions(self):
        for weight in LearnedPositionEncoding(64, max_size=8).parameters():
            assert weight.min() >= 0 and 0.9 < weight.max() <= 1

    def test_learned_in_a_model(self):
        model = detr_tiny(position_encoding="learned")
        assert "backbone.1.row_embed.weight" in model.state_dict()
        assert model(torch.randn(1, 3, 32, 32))["pred_boxes"].shape == (1, 20, 4)

    def test_mask_resizing(self):
        mask = torch.zeros(1, 64, 64, dtype=torch.bool)
        mask[:, 40:] = True
        assert resize_mask(mask, (8, 8))[0, :, 0].tolist() == [False] * 5 + [True] * 3


class TestAttention:
    def test_equals_torch(self):
        torch.manual_seed(0)
        ours, theirs = Attention(32, 4), nn.MultiheadAttention(32, 4, batch_first=True)
        nn.init.normal_(ours.in_proj_bias)
        theirs.load_state_dict(ours.state_dict())
        q, k, v = torch.randn(2, 5, 32), torch.randn(2, 9, 32), torch.randn(2, 9, 32)
        mask = torch.zeros(2, 9, dtype=torch.bool)
        mask[1, 6:] = True
        expected, _ = theirs(q, k, v, key_padding_mask=mask)
        torch.testing.assert_close(ours(q, k, v, mask), expected)

    def test_position_is_never_part_of_the_value(self):
        """With one key there is nothing to choose, so positions must not change the result."""
        layer = detr_tiny(dropout=0.0).eval().transformer.encoder.layers[0]
        features = torch.randn(1, 1, 128)
        torch.testing.assert_close(
            layer(features, torch.zeros(1, 1, 128), None),
            layer(features, torch.randn(1, 1, 128), None),
        )

    def test_dropout_is_for_training_only(self):
        attention = Attention(32, 4, dropout=0.5)
        x = torch.randn(1, 6, 32)
        assert not torch.equal(attention(x, x, x), attention(x, x, x))
        attention.eval()
        assert torch.equal(attention(x, x, x), attention(x, x, x))

    def test_padding_is_not_seen_with_dropout_either(self):
        attention = Attention(32, 4, dropout=0.5)
        q, k, v = torch.randn(2, 5, 32), torch.randn(2, 9, 32), torch.randn(2, 9, 32)
        mask = torch.zeros(2, 9, dtype=torch.bool)
        mask[1, 6:] = True
        torch.manual_seed(0)
        expected = attention(q, k, v, mask)
        v[mask] = 100.0
        torch.manual_seed(0)
        torch.testing.assert_close(attention(q, k, v, mask), expected)

    def test_every_branch_is_dropped(self):
        """With everything dropped, only the shortcuts are left."""
        encoder, decoder = EncoderLayer(32, 4, 64, 1.0), DecoderLayer(32, 4, 64, 1.0)
        x, y = torch.randn(2, 5, 32), torch.randn(2, 3, 32)
        hidden = []
        for layer in (encoder, decoder):
            for part in (module for module in layer.modules() if isinstance(module, Attention)):
                nn.init.normal_(part.out_proj.bias)
            layer.linear2.register_forward_pre_hook(lambda _, inputs: hidden.append(inputs[0]))
        assert torch.equal(encoder(x, x, None), encoder.norm2(encoder.norm1(x)))
        expected = decoder.norm3(decoder.norm2(decoder.norm1(y)))
        assert torch.equal(decoder(y, y, x, x, None), expected)
        assert len(hidden) == 2 and not any(h.any() for h in hidden)

    def test_starts_as_in_the_paper(self):
        """Xavier, and attention without a bias, as nn.MultiheadAttention."""
        for name, p in detr_tiny(query_mode="learned").transformer.named_parameters():
            if p.dim() > 1:
                bound = (6 / sum(p.shape)) ** 0.5
                assert 0.95 * bound < p.abs().max() <= bound, name
            elif "attn" in name:
                assert not p.any(), name


class TestQueries:
    def test_learned_queries_start_at_zero(self):
        model = detr_resnet18(num_queries=4)
        content, reference = model.query_embed.start(3)
        assert content.shape == (3, 4, 256) and not content.any() and reference is None

    def test_positions_of_anchors_start_as_their_sine_features(self):
        queries = AnchorQueries(3, 32, 20.0)
        radians = queries.anchors.sigmoid() * 2 * math.pi
        x, y, _, _ = sine_features(radians, 16, 20.0).unbind(-2)
        torch.testing.assert_close(queries.position(queries.anchors), torch.cat((y, x), -1))

    def test_anchors_before_training_are_the_boxes(self, tiny):
        """The box head ends in zeros, so every layer predicts the anchors themselves."""
        with torch.no_grad():
            outputs = tiny(torch.randn(2, 3, 64, 64))
        anchors = tiny.query_embed.anchors.sigmoid().expand(2, -1, -1)
        for output in (outputs, *outputs["aux_outputs"]):
            torch.testing.assert_close(output["pred_boxes"], anchors)

    def test_anchors_cover_the_image(self):
        for n in (1, 5, 20, 300):
            anchors = AnchorQueries(n, 32, 20.0).anchors.sigmoid()
            assert anchors.shape == (n, 4)
            assert ((anchors > 0) & (anchors < 1)).all()
        centres = AnchorQueries(100, 32, 20.0).anchors.sigmoid()[:, :2]
        cells = {(int(5 * x), int(5 * y)) for x, y in centres.tolist()}
        assert len(cells) == 25  # no empty cell in a 5 x 5 grid

    def test_a_refined_anchor_passes_no_gradient_to_the_next_layer(self):
        queries = AnchorQueries(3, 32, 20.0)
        offsets = torch.randn(1, 3, 4, requires_grad=True)
        boxes, reference = queries.boxes(offsets, queries.start(1)[1])
        assert boxes.requires_grad and not reference.requires_grad
        torch.testing.assert_close(boxes, reference.sigmoid())

    def test_an_untrained_anchor_attends_to_its_own_place(self):
        """On features without content the first cross-attention is strongest near the anchor."""
        torch.manual_seed(0)
        model = detr_tiny(num_queries=20)
        position = model.backbone[1](torch.zeros(1, 1, 12, 12), None).flatten(2).mT  # [1, S, D]
        attention = model.transformer.decoder.layers[0].multihead_attn
        centres = model.query_embed.anchors.sigmoid()[:, :2]
        query = model.query_embed.position(model.query_embed.anchors[None])
        places = torch.stack(torch.meshgrid(torch.arange(12), torch.arange(12), indexing="xy"), -1)
        weights = torch.zeros(20, 144)
        for head in range(attention.num_heads):
            rows = slice(32 * head, 32 * head + 32)
            q = query[0] @ attention.in_proj_weight[:128][rows].T
            k = position[0] @ attention.in_proj_weight[128:256][rows].T
            weights += (q @ k.T / 32**0.5).softmax(-1) / attention.num_heads
        best = places.view(-1, 2)[weights.argmax(-1)] / 12 + 1 / 12
        assert (best - centres).abs().max() < 0.2


class TestPostProcess:
    def test_its_threshold(self):
        assert repr(PostProcess(0.5)) == "PostProcess(score_threshold=0.5)"
        for wrong in (2, -0.1, math.nan):
            with pytest.raises(ValueError, match=f"score_threshold is {wrong}"):
                PostProcess(wrong)

    def test_scales_and_drops_no_object(self):
        logits = torch.tensor([[[0.0, 2.0, 9.0], [5.0, 0.0, 0.0]]])  # best: "no object"; class 0
        boxes = torch.tensor([[[0.5, 0.5, 0.2, 0.4], [0.25, 0.5, 0.5, 1.0]]])
        (found,) = PostProcess()(
            {"pred_logits": logits, "pred_boxes": boxes}, torch.tensor([[100, 200]])
        )
        assert found["labels"].tolist() == [1, 0]
        torch.testing.assert_close(found["scores"], logits.softmax(-1)[0, [0, 1], [1, 0]])
        expected = torch.tensor([[80.0, 30.0, 120.0, 70.0], [0.0, 0.0, 100.0, 100.0]])
        torch.testing.assert_close(found["boxes"], expected)

    def test_threshold(self):
        logits = torch.tensor([[[0.0, 0.0, 9.0], [5.0, 0.0, 0.0]]])
        outputs = {"pred_logits": logits, "pred_boxes": torch.rand(1, 2, 4)}
        (found,) = PostProcess(0.5)(outputs, torch.tensor([[10, 10]]))
        assert found["labels"].tolist() == [0]
        (again,) = PostProcess(0.5)(outputs, [(10, 10)])
        assert torch.equal(again["boxes"], found["boxes"])
        with pytest.raises(ValueError, match="sizes has shape"):
            PostProcess()(outputs, torch.tensor([10, 10]))

    @pytest.mark.parametrize(
        "sizes",
        [
            [(100, 200), [50, 80]],
            np.array([[100, 200], [50, 80]]),
            [torch.tensor([100, 200]), torch.tensor([50, 80])],  # as targets hold "orig_size"
            (torch.tensor([100, 200]), (50.0, 80.0)),
            [(torch.tensor(100), torch.tensor(200)), (50, 80)],
        ],
        ids=["pairs", "array", "tensors", "mixed", "scalars"],
    )
    def test_sizes_may_be_a_sequence(self, sizes):
        outputs = {"pred_logits": torch.rand(2, 3, 4), "pred_boxes": torch.rand(2, 3, 4)}
        expected = PostProcess()(outputs, torch.tensor([[100, 200], [50, 80]]))
        for found, right in zip(PostProcess()(outputs, sizes), expected, strict=True):
            assert torch.equal(found["boxes"], right["boxes"])

    @pytest.mark.parametrize(
        ("sizes", "message"),
        [
            ([torch.tensor([10, 10]), torch.tensor([[10, 10]])], r"sizes\[1\] has shape \[1, 2\]"),
            ([(10, 10), (10, 10, 3)], r"sizes\[1\] has shape \[3\], expected \[2\]"),
            ([10, 10], r"sizes\[0\] has shape \[\], expected \[2\]"),
            ([(10, 10)], r"sizes has shape \[1, 2\], expected \[2, 2\]"),
            ([], r"sizes has shape \[0, 2\], expected \[2, 2\]"),
        ],
    )
    def test_wrong_sizes_of_a_sequence_are_named(self, sizes, message):
        outputs = {"pred_logits": torch.rand(2, 3, 4), "pred_boxes": torch.rand(2, 3, 4)}
        with pytest.raises(ValueError, match=message):
            PostProcess()(outputs, sizes)

    @pytest.mark.parametrize("threshold", [0.0, 0.5])
    def test_scores_of_nan_are_kept(self, threshold):
        """Without them, a broken model would look like one that finds nothing."""
        logits = torch.tensor([[[0.0, 0.0, 9.0], [torch.nan, 0.0, 0.0], [5.0, 0.0, 0.0]]])
        outputs = {"pred_logits": logits, "pred_boxes": torch.rand(1, 3, 4)}
        (found,) = PostProcess(threshold)(outputs, [(10, 10)])
        expected = [False, True, False] if threshold == 0 else [True, False]
        assert found["scores"].isnan().tolist() == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"query_mode": "random"}, "query_mode is 'random'"),
        ({"position_encoding": "polar"}, "position_encoding is 'polar'"),
        ({"position_at": "output"}, "position_at is 'output'"),
        ({"num_queries": 0}, "num_queries 0"),
        ({"dim": 130}, "divisible"),
        ({"stride": 4}, "stride is 4"),
        ({"num_decoder_layers": 0}, "num_decoder_layers is 0"),
    ],
)
def test_wrong_builder_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        detr_tiny(**options)
