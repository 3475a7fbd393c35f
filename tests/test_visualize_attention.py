"""Attention weights are those the model used, and lie on the picture where its cells look."""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from detr_fast.models import build_detr, detr_tiny
from detr_fast.models.backbone import ConvBackbone, ResNetBackbone
from detr_fast.models.padding import pad_images
from detr_fast.visualize import (
    CellGrid,
    attention_figures,
    attention_weights,
    overlay,
    plot_decoder_attention,
    plot_encoder_attention,
    record_attention,
)


def model(query_mode: str = "anchor", **options) -> nn.Module:
    torch.manual_seed(0)
    return detr_tiny(num_queries=7, query_mode=query_mode, dim=32, **options).eval()


@pytest.mark.parametrize("query_mode", ["learned", "anchor"])
def test_weights_times_values_are_what_the_module_returned(query_mode):
    detr = model(query_mode)
    images, mask = pad_images([torch.randn(3, 70, 96), torch.randn(3, 96, 50)])
    seen = {}
    modules = [layer.self_attn for layer in detr.transformer.encoder.layers]
    modules += [layer.multihead_attn for layer in detr.transformer.decoder.layers]
    hooks = [
        module.register_forward_hook(lambda m, args, out: seen.__setitem__(m, (args, out)))
        for module in modules
    ]
    with torch.no_grad(), record_attention(detr) as record:
        detr(images, mask)
    for hook in hooks:
        hook.remove()
    assert record.feature_size == (12, 12) and record.image_size == (96, 96)

    every = torch.cartesian_prod(torch.arange(12), torch.arange(12))
    weights = {}
    for index, layer in enumerate(detr.transformer.encoder.layers):
        weights[layer.self_attn] = record.encoder_attention(every, index).flatten(3)
    for index, layer in enumerate(detr.transformer.decoder.layers):
        weights[layer.multihead_attn] = record.decoder_attention(index).flatten(3)
    assert len(weights) == len(modules) == 5
    for module, found in weights.items():
        (_, _, value, *_), output = seen[module]
        v = F.linear(value, *(x.chunk(3)[2] for x in (module.in_proj_weight, module.in_proj_bias)))
        v = v.unflatten(-1, (module.num_heads, -1)).transpose(1, 2)
        expected = module.out_proj((found @ v).transpose(1, 2).flatten(2))
        torch.testing.assert_close(expected, output, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.sum(-1), torch.ones(found.shape[:-1]))
    padded = record.decoder_attention()[1][..., 7:]  # cells beyond the 50 pixels of this image
    assert padded.numel() and not padded.any()  # nobody looks at padding


def test_the_hooks_are_gone_and_change_nothing():
    detr = model()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = detr(images)["pred_boxes"]
        with record_attention(detr):
            during = detr(images)["pred_boxes"]
    assert torch.equal(before, during)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in detr.modules())


def test_weights_match_multihead_attention():
    torch.manual_seed(1)
    attention = model().transformer.encoder.layers[0].self_attn
    original = nn.MultiheadAttention(32, 4, batch_first=True)
    original.load_state_dict(attention.state_dict())
    query, key = torch.randn(2, 5, 32), torch.randn(2, 9, 32)
    mask = torch.rand(2, 9) < 0.3
    _, expected = original(query, key, key, mask, average_attn_weights=False)
    torch.testing.assert_close(attention_weights(attention, query, key, mask), expected)


def test_faults_are_named():
    detr = model()
    with torch.no_grad(), record_attention(detr) as record:
        with pytest.raises(ValueError, match="no forward pass"):
            record.decoder_attention()
        detr(torch.randn(1, 3, 64, 64))
    with pytest.raises(ValueError, match="no decoder layer 3: there are 3, counted from 0"):
        record.decoder_attention(3)
    with pytest.raises(ValueError, match=r"cells\[1\] is \(8, 0\), the map is 8 x 8"):
        record.encoder_attention(torch.tensor([[0, 0], [8, 0]]))


@pytest.mark.parametrize(
    ("backbone", "size"),
    [
        (ConvBackbone(), (296, 270)),
        (ConvBackbone((4, 4, 4, 4), (4, 2, 2, 1)), (529, 496)),
        (ResNetBackbone("resnet18"), (650, 724)),
        (ResNetBackbone("resnet50", dilation=True), (600, 629)),
    ],
)
def test_a_cell_is_drawn_where_its_receptive_field_is(backbone, size):
    """The centre of what a cell depends on, from gradients, is the middle of its spot."""
    backbone.eval()
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d):  # all weights alike: symmetric receptive fields
            nn.init.constant_(module.weight, 1 / module.weight[0].numel())
        elif isinstance(module, nn.MaxPool2d):
            module.forward = lambda x: F.avg_pool2d(x, 3, 2, 1)
    image = torch.ones(1, 3, *size, dtype=torch.float64, requires_grad=True)
    features = backbone.double()(image)
    h, w = features.shape[-2:]
    row, column = h // 2, w // 2
    (gradient,) = torch.autograd.grad(features[0, :, row, column].sum(), image)
    influence = gradient[0].sum(0).abs()
    peak = []  # the field is symmetric, and hardly reaches the borders
    for axis in (1, 0):
        profile = influence.sum(axis)
        middle = (profile * torch.arange(len(profile))).sum() / profile.sum()
        peak.append(float(middle))
    grid = CellGrid((h, w), size, size)
    spot = torch.zeros(h, w)
    spot[row, column] = 1
    drawn = grid.to_picture(spot)
    found = divmod(int(drawn.argmax()), size[1])
    assert drawn.shape == size and drawn.max() == 1
    assert max(abs(a - b) for a, b in zip(peak, found, strict=True)) < 1, (peak, found)
    assert grid.cell_at(found[1] + 0.5, found[0] + 0.5) == (row, column)


class TestCellGrid:
    def test_other_picture_size(self):
        """The spot stays at the same place of the image, whatever it is drawn on."""
        spot = torch.zeros(12, 16)
        spot[6, 4] = 1
        plain = CellGrid((12, 16), (96, 128), (96, 128)).to_picture(spot)
        assert divmod(int(plain.argmax()), 128) == (48, 32)
        large = CellGrid((12, 16), (96, 128), (288, 192)).to_picture(spot)
        rows, columns = np.nonzero(large.numpy() > 0.95 * float(large.max()))
        assert abs(rows.mean() + 0.5 - 3 * 48.5) < 1 and abs(columns.mean() + 0.5 - 1.5 * 32.5) < 1

    def test_cells_at_the_corners(self):
        grid = CellGrid((12, 16), (96, 128), (192, 128))
        assert grid.cell_at(0, 0) == (0, 0) and grid.cell_at(128, 192) == (11, 15)

    def test_values_between_cells_are_bilinear(self):
        grid = CellGrid((3, 3), (24, 24), (24, 24))
        plane = torch.arange(3.0)[:, None] * 8 + torch.zeros(3)
        drawn = grid.to_picture(plane)
        torch.testing.assert_close(drawn[:17, 0], torch.arange(17.0))
        assert (drawn[17:] == 16).all()  # beyond the last centre there is nothing to mix with

    def test_one_cell(self):
        grid = CellGrid((1, 1), (20, 20), (20, 30))
        assert (grid.to_picture(torch.full((1, 1), 3.0)) == 3).all()

    @pytest.mark.parametrize("place", range(3))
    def test_faults(self, place):
        sizes = [(20, 20)] * 3
        sizes[place] = (0, 3)
        name = ("feature_size", "image_size", "picture_size")[place]
        with pytest.raises(ValueError, match=rf"{name} is \(0, 3\)"):
            CellGrid(*sizes)


def test_overlay():
    picture = Image.new("RGB", (30, 20), (200, 200, 200))
    heat = torch.zeros(20, 30)
    heat[5, 7] = 2
    drawn = overlay(picture, heat)
    assert drawn.shape == (20, 30, 3)
    assert (drawn[0, 0] == 120).all()  # grey, darker
    assert drawn[5, 7, 0] > 200 and drawn[5, 7, 2] < drawn[5, 7, 0]
    assert (np.abs(drawn.astype(int) - 120).sum(-1) > 0).sum() == 1
    with pytest.raises(ValueError, match=r"heat is \[3, 3\]"):
        overlay(picture, torch.zeros(3, 3))


def drawn_figures(monkeypatch, draw) -> list:
    """The figures that a call makes."""
    figures = []
    with monkeypatch.context() as patch:
        new_figure = attention_figures.new_figure
        patch.setattr(
            attention_figures,
            "new_figure",
            lambda *size: figures.append(new_figure(*size)) or figures[-1],
        )
        draw()
    return figures


def drawn_titles(monkeypatch, draw) -> list[str]:
    (figure,) = drawn_figures(monkeypatch, draw)
    return [ax.get_title() for ax in figure.axes]


class TestFigures:
    names = ("circle", "square", "triangle")

    @pytest.mark.parametrize("query_mode", ["learned", "anchor"])
    @pytest.mark.parametrize(
        "options",
        [{}, {"layer": "all"}, {"head": "each", "most": 2}, {"head": 1, "layer": 0, "most": 1}],
    )
    def test_decoder(self, query_mode, options):
        picture = Image.new("RGB", (80, 60), "white")
        drawn = plot_decoder_attention(
            model(query_mode), torch.randn(3, 60, 80), picture, self.names, threshold=0, **options
        )
        assert min(drawn.size) > 150
        assert len(np.unique(np.array(drawn).reshape(-1, 3), axis=0)) > 100

    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            ({}, ["layer 2 of 0..2"]),
            ({"layer": 1}, ["layer 1 of 0..2"]),
            ({"layer": -3, "head": 1}, ["layer 0, head 1"]),
            ({"layer": "all"}, ["layer 0", "layer 1", "layer 2"]),
            ({"layer": "all", "head": 2}, [f"layer {i}, head 2" for i in range(3)]),
            ({"head": "each"}, [f"layer 2, head {i}" for i in range(4)]),
        ],
    )
    def test_titles_number_layers_and_heads_as_the_options_do(self, monkeypatch, options, expected):
        picture = Image.new("RGB", (80, 60))
        titles = drawn_titles(
            monkeypatch,
            lambda: plot_decoder_attention(
                model(), torch.randn(3, 60, 80), picture, self.names, threshold=0, most=1, **options
            ),
        )
        assert titles[0].startswith("query ") and titles[1:] == expected

    def test_the_encoders_layer_is_named(self, monkeypatch):
        picture = Image.new("RGB", (80, 60))
        image = torch.randn(3, 60, 80)
        for options, expected in (
            ({}, "encoder layer 1 of 0..1"),
            ({"layer": 0, "head": 3}, "encoder layer 0 of 0..1, head 3"),
        ):
            titles = drawn_titles(
                monkeypatch, lambda o=options: plot_encoder_attention(model(), image, picture, **o)
            )
            assert titles[0] == expected

    def test_captions_of_long_names_stay_above_their_pictures(self, monkeypatch):
        image, picture = torch.randn(3, 60, 30), Image.new("RGB", (30, 60))
        names = ["a class of a long name"] * 3
        figures = drawn_figures(
            monkeypatch,
            lambda: plot_decoder_attention(model(), image, picture, names, threshold=0, most=4),
        )
        extents = [ax.title.get_window_extent() for ax in figures[0].axes if ax.get_title()]
        assert len(extents) == 8
        assert not any(a.overlaps(b) for a, b in itertools.combinations(extents, 2))

    def test_the_heat_is_where_the_weights_are(self):
        """The brightest place of a map drawn is the cell with the largest weight."""
        detr = model()
        image = torch.randn(3, 96, 96)
        with torch.no_grad(), record_attention(detr) as record:
            detr(image[None])
        weights = record.decoder_attention()[0].mean(0)[3]
        row, column = divmod(int(weights.argmax()), 12)
        drawn = CellGrid((12, 12), (96, 96), (96, 96)).to_picture(weights)
        assert divmod(int(drawn.argmax()), 96) == (8 * row, 8 * column)

    def test_a_model_without_auxiliary_outputs(self):
        detr = model(aux_loss=False)
        image, picture = torch.randn(3, 60, 80), Image.new("RGB", (80, 60))
        drawn = plot_decoder_attention(
            detr, image, picture, self.names, threshold=0, layer="all", most=1
        )
        one = plot_decoder_attention(detr, image, picture, self.names, threshold=0, most=1)
        panels = 1 + len(detr.transformer.decoder.layers)
        assert drawn.width / one.width == pytest.approx(panels / 2, rel=0.1)

    def test_decoder_faults(self):
        image, picture = torch.randn(3, 60, 80), Image.new("RGB", (80, 60))
        for options, message in (
            ({"threshold": 1.0}, "no detection reaches 1.0, the best is 0"),
            ({"threshold": 0, "head": 4}, "no head 4: there are 4"),
            ({"threshold": 0, "head": "first"}, "no head 'first': there are 4"),
            ({"threshold": 0, "head": True}, "no head True: there are 4"),
            ({"threshold": 0, "layer": 5}, "decoder layer 5"),
            ({"threshold": 0, "layer": "all", "head": "each"}, "either all layers or each head"),
        ):
            with pytest.raises(ValueError, match=message):
                plot_decoder_attention(model(), image, picture, self.names, **options)

    def test_scores_of_nan_are_named(self):
        broken = model()
        torch.nn.init.constant_(broken.class_embed.weight, torch.nan)
        picture = Image.new("RGB", (80, 60))
        with pytest.raises(ValueError, match=r"the scores of (\d+) of \1 queries are NaN"):
            plot_decoder_attention(broken, torch.randn(3, 60, 80), picture, self.names)

    @pytest.mark.parametrize("points", [None, [(10, 20)], [(0, 0), (80, 60), (40, 30)]])
    def test_encoder(self, points):
        picture = Image.new("RGB", (80, 60), "white")
        drawn = plot_encoder_attention(model(), torch.randn(3, 60, 80), picture, points)
        assert min(drawn.size) > 150
        with pytest.raises(ValueError, match=r"points\[0\] is \(81, 2\), outside the 80 x 60"):
            plot_encoder_attention(model(), torch.randn(3, 60, 80), picture, [(81, 2)])
        with pytest.raises(ValueError, match="no head 'each': there are 4"):
            plot_encoder_attention(model(), torch.randn(3, 60, 80), picture, head="each")

    def test_any_backbone(self):
        detr = build_detr(
            ResNetBackbone("resnet18"), num_classes=3, num_queries=4, dim=32, num_heads=4,
            num_encoder_layers=1, num_decoder_layers=1, dim_feedforward=32,
        )  # fmt: skip
        picture = Image.new("RGB", (80, 60), "white")
        image = torch.randn(3, 200, 333)
        with torch.no_grad(), record_attention(detr) as record:
            detr(image[None])
        assert record.feature_size == (7, 11)  # a thirty-second, rounded up
        for drawn in (
            plot_decoder_attention(detr, image, picture, self.names, threshold=0),
            plot_encoder_attention(detr, image, picture),
        ):
            assert min(drawn.size) > 150
