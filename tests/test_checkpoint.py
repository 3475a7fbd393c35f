"""Checkpoints: what is in them, when they are written, and errors in reading and writing."""

import errno
import os
import pickle
from pathlib import Path

import pytest
import torch
from training_cases import small_trainer

from detr_fast.files import check_writable, written_whole
from detr_fast.models.weights import CheckpointError
from detr_fast.training import TrainConfig, load_checkpoint, load_model
from detr_fast.training.checkpoint import ENTRIES, save_checkpoint

pytest.importorskip("pycocotools")


def test_loads_with_weights_only_and_holds_its_config(tmp_path):
    trainer = small_trainer(tmp_path, epochs=1, query_mode="learned")
    trainer.run()
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    assert TrainConfig.from_dict(state["config"]) == trainer.config
    assert state["class_names"] == ["circle", "square", "triangle"]
    model = load_model(load_checkpoint(tmp_path / "last.pt"))
    image = torch.randn(1, 3, 48, 48)
    with torch.no_grad():
        torch.testing.assert_close(
            model(image)["pred_boxes"], trainer.eval_model.eval()(image)["pred_boxes"]
        )


def test_the_best_epoch_is_written_once(tmp_path, monkeypatch):
    """Its two names are one file, until the next epoch's checkpoint takes one of them."""
    figures = iter([0.3, 0.2, 0.25, 0.4])
    row = {"AP50": 0.5, "AP75": 0.5, "per_class": {}}
    monkeypatch.setattr(
        "detr_fast.evaluation.evaluate", lambda *_, **__: {"AP": next(figures), **row}
    )
    last, best = tmp_path / "last.pt", tmp_path / "best.pt"
    for epochs, same, steps in ((1, True, (6, 6)), (3, False, (18, 6)), (4, True, (24, 24))):
        checkpoint = load_checkpoint(tmp_path) if last.exists() else None
        small_trainer(tmp_path, checkpoint, epochs=epochs, warmup_steps=0).run()
        assert last.samefile(best) == same
        assert tuple(load_checkpoint(path)["step"] for path in (last, best)) == steps


def test_of_equal_epochs_the_last_is_the_best(tmp_path, monkeypatch):
    row = {"AP": 0.0, "AP50": 0.0, "AP75": 0.0, "per_class": {}}
    monkeypatch.setattr("detr_fast.evaluation.evaluate", lambda *_, **__: dict(row))
    small_trainer(tmp_path, epochs=2).run()
    assert load_checkpoint(tmp_path / "best.pt")["step"] == 12


def test_without_hard_links_the_best_is_copied(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("no hard links here")

    monkeypatch.setattr("os.link", refuse)
    small_trainer(tmp_path, epochs=1).run()
    assert (tmp_path / "last.pt").read_bytes() == (tmp_path / "best.pt").read_bytes()
    assert not (tmp_path / "last.pt").samefile(tmp_path / "best.pt")


def test_a_model_of_another_version(tmp_path):
    small_trainer(tmp_path, epochs=1).run()
    checkpoint = load_checkpoint(tmp_path)
    for part, change in (
        ("model_args", {"depth": 3}),
        ("ema", {"class_embed.weight": torch.zeros(1, 1)}),
    ):
        with pytest.raises(CheckpointError, match="no model of this version"):
            load_model(checkpoint | {part: checkpoint[part] | change})


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"step": 1})
    with pytest.raises((AttributeError, pickle.PicklingError), match="pickle"):
        save_checkpoint(path, {"step": 2, "bad": lambda: None})
    assert torch.load(path, weights_only=True)["step"] == 1
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
@pytest.mark.parametrize("size", [10, 10_000_000])
def test_a_full_disk_is_named(tmp_path, size):
    path = tmp_path / "last.pt"
    path.write_bytes(b"old")
    path.with_name("last.pt.tmp").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"No space left on device: '.*last\.pt'"):
        save_checkpoint(path, {"weights": torch.zeros(size)})
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_a_disk_that_nothing_can_be_written_to_is_named(tmp_path, monkeypatch):
    """Nor can anything be removed from it."""

    def refuse(*given, **_):
        raise OSError(errno.EROFS, "Read-only file system", *map(str, given))

    for name in ("unlink", "write_text", "open"):
        monkeypatch.setattr(Path, name, refuse)
    path = tmp_path / "figures.json"
    named = rf"Read-only file system: '{path}'$"
    with pytest.raises(OSError, match=named), written_whole(path) as temporary:
        temporary.write_text("{}")
    with pytest.raises(OSError, match=named):
        check_writable(path)


def test_a_link_is_replaced_and_not_what_it_points_to(tmp_path):
    """A run that was rolled back by a link goes on without changing its best weights."""
    best, last = tmp_path / "best.pt", tmp_path / "last.pt"
    best.write_text("best")
    last.symlink_to(best)
    with written_whole(last) as temporary:
        temporary.write_text("later")
    assert best.read_text() == "best" and last.read_text() == "later" and not last.is_symlink()


def test_a_pipe_is_written_to():
    reading, writing = os.pipe()
    stream = Path(f"/dev/fd/{writing}")
    check_writable(stream)
    with written_whole(stream) as temporary:
        temporary.write_text("{}")
    os.close(writing)
    assert os.read(reading, 9) == b"{}"
    os.close(reading)


def test_looking_whether_a_file_can_be_written_leaves_nothing(tmp_path):
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    old.write_text("old")
    for path in (old, new):
        check_writable(path)
    assert old.read_text() == "old" and list(tmp_path.iterdir()) == [old]
    with pytest.raises(OSError, match="File name too long"):
        check_writable(tmp_path / ("n" * 300))


def test_errors_name_the_file(tmp_path):
    with pytest.raises(CheckpointError, match=r"none: no such file"):
        load_checkpoint(tmp_path / "none")
    (tmp_path / "text.pt").write_text("nothing")
    with pytest.raises(CheckpointError, match=r"text\.pt cannot be read"):
        load_checkpoint(tmp_path / "text.pt")
    torch.save({"a": 1}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match=r"other\.pt is not a checkpoint"):
        load_checkpoint(tmp_path / "other.pt")
    torch.save({"format": 99}, tmp_path / "future.pt")
    with pytest.raises(CheckpointError, match=r"future\.pt has format 99"):
        load_checkpoint(tmp_path / "future.pt")
    save_checkpoint(tmp_path / "part.pt", {"step": 1})
    with pytest.raises(CheckpointError, match=r"part\.pt is incomplete: it lacks model, "):
        load_checkpoint(tmp_path / "part.pt")
    entries = dict.fromkeys(ENTRIES)
    for config, kind in ((3, "int"), ([["model", "tiny"]], "list"), (None, "NoneType")):
        save_checkpoint(tmp_path / "odd.pt", {**entries, "config": config})
        with pytest.raises(CheckpointError, match=rf"odd\.pt holds a {kind} as its config"):
            load_checkpoint(tmp_path / "odd.pt")
    for config, said in (
        ({"model": "vit"}, "model is 'vit'"),
        ({"blur": 1, 2: 3}, "with options 2, blur"),
    ):
        save_checkpoint(tmp_path / "new.pt", {**entries, "config": config})
        with pytest.raises(CheckpointError, match=rf"new\.pt is from another .*{said}"):
            load_checkpoint(tmp_path / "new.pt")
    save_checkpoint(tmp_path / "whole.pt", {"weights": torch.randn(10000)})
    half = (tmp_path / "whole.pt").read_bytes()[:20000]
    (tmp_path / "half.pt").write_bytes(half)
    with pytest.raises(CheckpointError, match=r"half\.pt cannot be read"):
        load_checkpoint(tmp_path / "half.pt")
