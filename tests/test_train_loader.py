"""Batches for training: the same ones whatever loads them."""

import torch

from detr_fast.data import Shapes, fixed_eval, small_train
from detr_fast.training.loader import TrainLoader


def batches(workers: int = 0, first: int = 0, rank: int = 0, world: int = 1) -> list:
    data = Shapes(24, image_size=48, seed=0, transforms=small_train(None), fresh=True)
    loader = TrainLoader(data, 4, seed=1, workers=workers, rank=rank, world_size=world)
    return [images for images, _, _ in loader.epoch(2, first_batch=first)]


def test_the_same_whatever_the_workers_and_wherever_it_starts():
    expected = batches()
    assert len(expected) == 6
    for found in (batches(workers=2), batches(workers=1)):
        assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    later = batches(first=4)
    assert all(torch.equal(a, b) for a, b in zip(expected[4:], later, strict=True))


def test_transforms_differ_from_epoch_to_epoch():
    data = Shapes(8, image_size=48, seed=0, transforms=small_train(None))
    loader = TrainLoader(data, 8, seed=1, workers=0)
    first, second = (next(iter(loader.epoch(epoch)))[0].sum((1, 2, 3)) for epoch in (0, 1))
    assert not torch.allclose(first.sort().values, second.sort().values)


def test_does_not_touch_the_random_state_of_training():
    before = torch.get_rng_state()
    batches()
    assert torch.equal(before, torch.get_rng_state())


def test_processes_share_the_images():
    data = Shapes(24, image_size=48)
    seen = []
    for rank in range(3):
        loader = TrainLoader(data, 4, seed=1, workers=0, rank=rank, world_size=3)
        loader.batches.epoch = 5
        seen += [index for batch in loader.batches for _, index in batch]
    assert sorted(seen) == list(range(24))


def test_fewer_images_than_a_batch():
    loader = TrainLoader(Shapes(3, image_size=48), 8, seed=1, workers=0)
    assert [len(batch) for batch in loader.batches] == [3]


def test_seed_and_epoch_decide_order_and_transforms():
    data = Shapes(8, image_size=48, transforms=small_train(None))
    orders, sums = [list(range(8))], []
    for seed, epoch in ((1, 0), (1, 1), (2, 0)):
        loader = TrainLoader(data, 8, seed=seed, workers=0)
        sums.append(next(iter(loader.epoch(epoch))).images.sum((1, 2, 3)).sort().values)
        orders += [[index for _, index in batch] for batch in loader.batches]
    assert len({tuple(order) for order in orders}) == 4
    assert len({tuple(s.tolist()) for s in sums}) == 3


def test_no_two_images_share_their_random_numbers():
    class Dice(Shapes):
        def __getitem__(self, index):
            image, target = super().__getitem__(index)
            return torch.full_like(image, float(torch.rand(()))), target

    data = Dice(8, image_size=48, transforms=fixed_eval(None))
    images, _, _ = next(iter(TrainLoader(data, 8, seed=1, workers=0).epoch(0)))
    assert len(set(images[:, 0, 0, 0].tolist())) == 8
