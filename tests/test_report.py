"""The page of a run: complete, self-contained, and readable in a browser, large and small."""

import base64
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.JpegImagePlugin import get_sampling

from detr_fast.cli import main
from detr_fast.data import Shapes
from detr_fast.visualize import plot_dataset
from detr_fast.visualize.comparison import image_quality, truth_and_detections
from detr_fast.visualize.page import Page

pytest.importorskip("pycocotools")
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


@pytest.fixture(scope="module")
def run(voc_folder, tmp_path_factory) -> Path:
    """A short run, with its page."""
    runs = tmp_path_factory.mktemp("runs")
    options = ["--data", f"voc:{voc_folder}", "--epochs", "2", "--runs", str(runs), "--name", "r"]
    options += ["--batch-size", "4", "--num-queries", "6", "--device", "cpu", "--workers", "0"]
    assert main(["train", *options]) == 0
    assert main(["report", str(runs / "r"), "--device", "cpu"]) == 0
    return runs / "r"


class Reader(HTMLParser):
    """Collects tags, and whether each opened one is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.images = 0

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "img"):
            self.open.append(tag)
        self.images += tag == "img"
        self.links += [value for name, value in attrs if name in ("src", "href", "srcset")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_self_contained(run):
    page = (run / "report.html").read_text()
    reader = Reader()
    reader.feed(page)
    assert not reader.open
    assert reader.images >= 6
    assert all(link.startswith(("data:image/", "#")) for link in reader.links)
    assert "@import" not in page and "url(" not in page and "<script" not in page
    for name in (
        "Results",
        "Training",
        "Images",
        "Attention",
        "Queries",
        "Data",
        "Speed",
        "Configuration",
    ):
        assert f">{name}</h2>" in page
    for text in ("AP_small", "circle", "eos_coef", "images per second", "12 images"):
        assert text in page


def test_figures_are_those_of_the_weights_in_the_pictures(run, tmp_path):
    """The best checkpoint's, after epoch 1 here, not the last evaluation's."""
    copy = shutil.copytree(run, tmp_path / "copy")
    state = torch.load(copy / "last.pt", weights_only=True)
    (copy / "best.pt").unlink()
    torch.save(state | {"step": 3}, copy / "best.pt")
    rows = [json.loads(line) for line in (copy / "metrics.jsonl").read_text().splitlines()]
    vals = [row for row in rows if row["kind"] == "val"]
    for row, figure in zip(vals, (0.625, 0.125), strict=True):
        row["AP"] = figure
    (copy / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["report", str(copy), "--device", "cpu"]) == 0
    page = (copy / "report.html").read_text()
    text = "The model shown is the one after epoch 1; the last AP was 0.125, after epoch 2."
    assert page.index("0.625") < page.index(text)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
@pytest.mark.parametrize("width", [1280, 500], ids=["desktop", "phone"])
def test_in_a_browser(run, tmp_path, width):
    """It is drawn without a request to the network, and nothing hangs over the page's side."""
    picture = tmp_path / "page.png"
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += ["--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={tmp_path / 'profile'}"]
    page = (run / "report.html").resolve().as_uri()
    subprocess.run(
        [*command, f"--window-size={width},1600", f"--screenshot={picture}", page],
        cwd=tmp_path, capture_output=True, timeout=180, check=True,
    )  # fmt: skip
    pixels = np.array(Image.open(picture).convert("RGB"))
    assert pixels.shape[:2] == (1600, width)
    assert (pixels < 250).any(-1).mean() > 0.02
    # The page tells its own width: nothing but the scrolling boxes may be wider than the window.
    measured = tmp_path / "measured.html"
    script = (
        "<script>document.title='W'+document.documentElement.scrollWidth+'/'+innerWidth</script>"
    )
    measured.write_text((run / "report.html").read_text().replace("</body>", script + "</body>"))
    dumped = subprocess.run(
        [*command, f"--window-size={width},1600", "--dump-dom", measured.resolve().as_uri()],
        cwd=tmp_path, capture_output=True, timeout=180, check=True, text=True,
    )  # fmt: skip
    scroll, inner = map(int, re.search(r"<title>W(\d+)/(\d+)</title>", dumped.stdout).groups())
    assert scroll <= inner


def test_faults(run, tmp_path, capsys):
    assert main(["report", str(run / "last.pt"), "--out", str(tmp_path / "p.html")]) == 2
    assert "expected a run's" in capsys.readouterr().err
    assert main(["report", str(run), "--out", str(tmp_path / "none" / "p.html")]) == 2
    assert "expected a file in an existing folder" in capsys.readouterr().err
    assert main(["report", str(tmp_path)]) == 2
    assert "no such file" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["report", str(run), "--images", "0"])
    assert "--images: '0', expected a whole number >= 1" in capsys.readouterr().err
    with pytest.raises(ValueError, match="needs a section"):
        Page("x").text("y")


def test_text_is_escaped():
    page = Page("<b>run</b>")
    page.section("a & b")
    page.text("<script>alert(1)</script>")
    page.tables((("<i>",), [("1 < 2",)]))
    page.picture(Image.new("RGB", (3, 3)), 'a "picture"')
    text = page.html()
    assert "<script>" not in text and "<b>run" not in text and "<i>" not in text
    assert "1 &lt; 2" in text and "a &amp; b" in text and "&quot;picture&quot;" in text
    Reader().feed(text)


def test_photographs_keep_the_colour_of_thin_lines():
    page = Page("x")
    page.section("y")
    page.picture(Image.new("RGB", (30, 30)), "z", photograph=True)
    data = re.search(r"data:image/jpeg;base64,([^\"]+)", page.html())[1]
    assert get_sampling(Image.open(io.BytesIO(base64.b64decode(data)))) == 0  # 4:4:4


class TestQuality:
    boxes = torch.tensor([[0, 0, 10, 10], [20, 20, 30, 30.0]])

    def quality(self, scores, labels, boxes, truth=(0, 1)) -> float:
        found = {"scores": torch.tensor(scores), "labels": torch.tensor(labels)}
        found["boxes"] = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
        return image_quality(found, torch.tensor(truth), self.boxes[: len(truth)])

    def test_values(self):
        both = self.boxes.tolist()
        assert self.quality([0.9, 0.8], [0, 1], both) == pytest.approx(1)
        assert self.quality([0.9, 0.8], [1, 1], both) == pytest.approx(0.5)  # a wrong class
        assert self.quality([0.9, 0.4], [0, 1], both) == pytest.approx(0.5)  # a miss
        assert self.quality([0.9] * 3, [0, 1, 0], [*both, both[0]]) == pytest.approx(2 / 3)
        assert self.quality([0.9], [0], [[0, 0, 10, 5]], (0,)) == pytest.approx(0.5)
        assert self.quality([0.1], [0], both[:1]) == 0
        none = torch.zeros(0, dtype=torch.int64)
        found = {"scores": torch.zeros(1), "labels": none.new_zeros(1), "boxes": self.boxes[:1]}
        assert image_quality(found, none, torch.zeros(0, 4)) == 1
        assert image_quality(found | {"scores": torch.ones(1)}, none, torch.zeros(0, 4)) == 0


def test_pictures():
    picture = Image.new("RGB", (60, 40), "white")
    found = {"scores": torch.tensor([0.9]), "labels": torch.tensor([1])}
    found["boxes"] = torch.tensor([[0.1, 0.1, 0.5, 0.5]])
    both = truth_and_detections(
        picture, torch.tensor([0]), torch.tensor([[0.3, 0.3, 0.2, 0.2]]), found, ["a", "b"]
    )
    assert both.width > 600 and both.height > 200
    assert plot_dataset({"train": Shapes(5, 64), "val": Shapes(3, 64, 1)}).width > 1000
