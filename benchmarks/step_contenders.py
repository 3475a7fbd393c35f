"""The training steps that are compared: same weights, same inputs, same precision."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.baselines.published_criterion import (
    WEIGHTS,
    PublishedCriterion,
    published_step,
)
from benchmarks.baselines.published_detr import PublishedDETR
from benchmarks.gpu_names import COMPILED, EAGER, GRAPHED, PUBLISHED, TRANSFORMERS
from detr_fast.losses import SetCriterion
from detr_fast.models import MODELS
from detr_fast.precision import amp_dtype, autocast
from detr_fast.training.clock import PhaseClock
from detr_fast.training.graph import GraphedStep
from detr_fast.training.optimizer import make_optimizer
from detr_fast.training.step import TrainStep

CLASSES, QUERIES, CLIP = 91, 100, 0.1


@dataclass(frozen=True)
class Case:
    """What is trained, in which precision."""

    model: str
    size: tuple[int, int]  # height, width
    batch: int
    amp: str
    padded: bool
    seed: int
    device: torch.device

    def inputs(self) -> tuple[Tensor, Tensor, list[dict[str, Tensor]]]:
        """Images [B, 3, H, W], mask [B, H, W], and 1 to 20 targets for each image."""
        g = torch.Generator().manual_seed(self.seed)
        images = torch.randn(self.batch, 3, *self.size, generator=g)
        mask = torch.zeros(self.batch, *self.size, dtype=torch.bool)
        if self.padded:  # all but the first, to 3/4 of the width
            mask[1:, :, self.size[1] * 3 // 4 :] = True
            images[mask[:, None].expand_as(images)] = 0
        targets = []
        for _ in range(self.batch):
            m = int(torch.randint(1, 21, (), generator=g))
            labels = torch.randint(0, CLASSES, (m,), generator=g)
            sides = 0.05 + 0.4 * torch.rand(m, 2, generator=g)
            centres = sides / 2 + (1 - sides) * torch.rand(m, 2, generator=g)
            targets.append({"labels": labels, "boxes": torch.cat([centres, sides], 1)})
        move = self.device
        targets = [{k: v.to(move) for k, v in target.items()} for target in targets]
        return images.to(move), mask.to(move), targets

    def built(self) -> nn.Module:
        torch.manual_seed(self.seed)
        return MODELS[self.model](CLASSES, QUERIES, trainable_layers=3)


class Contender:
    """A model with all that its training step needs."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.images, self.mask, self.targets = case.inputs()
        self.amp = amp_dtype(case.amp, case.device)
        self.clock = PhaseClock(case.device)
        self.model = self.build().to(case.device).train()
        self.trained = [p for p in self.model.parameters() if p.requires_grad]

    def build(self) -> nn.Module:
        raise NotImplementedError

    def step(self) -> None:
        """One training step, marking its phases."""
        raise NotImplementedError

    def losses(self) -> dict[str, Tensor]:
        """The losses of the last decoder layer, without dropout."""
        raise NotImplementedError

    def total(self) -> float:
        """The loss of the last decoder layer, by which contenders are compared."""
        self.model.eval()
        with torch.no_grad():
            losses = self.losses()
        self.model.train()
        return sum(weight * losses[name].item() for name, weight in WEIGHTS.items())

    def timed(self, steps: int) -> dict[str, float]:
        """Some steps; seconds of each phase per step."""
        self.clock.start()
        for _ in range(steps):
            self.step()
        return {phase: seconds / steps for phase, seconds in self.clock.stop().items()}

    def autocast(self):
        return autocast(self.case.device, self.amp)


class Ours(Contender):
    compiled = False
    divisible = True  # a clock can be called inside; not in compiled code, nor in a CUDA graph

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self.criterion = SetCriterion(CLASSES).to(case.device)
        optimizer = make_optimizer(self.model, 1e-4, 1e-5, 1e-4)
        self.train_step = TrainStep(
            self.model, self.criterion, optimizer, case.device, self.amp, CLIP, self.compiled
        )
        if self.divisible:
            matcher = self.criterion.matcher
            matcher.match_packed = self.clock.around(matcher.match_packed, "match", "loss")
        # As a loader hands it over: no mask where nothing is padded.
        self.batch = (self.images, self.mask if case.padded else None, self.targets)

    def build(self) -> nn.Module:
        return self.case.built().to(memory_format=torch.channels_last)

    def step(self) -> None:
        self.train_step([self.batch], self.clock.mark)

    def losses(self) -> dict[str, Tensor]:
        with self.autocast():
            outputs = self.model(*self.batch[:2])
        return self.criterion(outputs, self.targets)


class Compiled(Ours):
    compiled = True
    divisible = False


class Graphed(Ours):
    """The whole step as one CUDA graph; it has no phases."""

    divisible = False

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self.graphed = GraphedStep(self.train_step, capacity=20 * case.batch)

    def step(self) -> None:
        self.graphed(self.batch)


class Published(Contender):
    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self.criterion = PublishedCriterion(CLASSES).to(case.device)
        names = {id(p): name for name, p in self.model.named_parameters()}
        groups = [
            {"params": [p for p in self.trained if ("backbone" in names[id(p)]) == of_backbone]}
            for of_backbone in (False, True)
        ]
        groups[1]["lr"] = 1e-5
        self.optimizer = torch.optim.AdamW(groups, lr=1e-4, weight_decay=1e-4)
        matcher = self.criterion.matcher
        matcher.forward = self.clock.around(matcher.forward, "match", "loss")

    def build(self) -> nn.Module:
        model = PublishedDETR(self.case.model, CLASSES, QUERIES)
        model.load_state_dict(self.case.built().state_dict())
        return model

    def forward(self) -> dict:
        with self.autocast():
            outputs = self.model(self.images, self.mask)
        return {  # the criterion in float32
            "aux_outputs": [
                {name: value.float() for name, value in layer.items()}
                for layer in outputs["aux_outputs"]
            ],
            **{name: outputs[name].float() for name in ("pred_logits", "pred_boxes")},
        }

    def step(self) -> None:
        published_step(
            self.model, self.criterion, self.optimizer, self.forward, self.targets, self.clock.mark
        )

    def losses(self) -> dict[str, Tensor]:
        return self.criterion(self.forward(), self.targets)


class Transformers(Contender):
    """As its Trainer runs it: its own loss under autocast, fused AdamW; auxiliary losses on.

    Its defaults leave out the dropout of attention weights and of the hidden layers.
    """

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-4, weight_decay=1e-4, fused=True)
        self.pixel_mask = (~self.mask).long()
        self.labels = [{"class_labels": t["labels"], "boxes": t["boxes"]} for t in self.targets]

    def build(self) -> nn.Module:
        from transformers.loss import loss_for_object_detection as library

        from benchmarks.baselines import transformers_detr

        state = self.case.built().state_dict()
        model = transformers_detr.build(self.case.model, state, CLASSES, QUERIES)
        model.loss_function = self.clock.around(model.loss_function, "loss", "forward")
        clock = self.clock

        original = getattr(library.HungarianMatcher, "original", library.HungarianMatcher)

        class Matcher(original):
            """Marks its time; the library makes one for every batch, by this name."""

            def forward(self, outputs: dict, targets: list[dict]) -> list:
                return clock.around(super().forward, "match", "loss")(outputs, targets)

        Matcher.original = original
        library.HungarianMatcher = Matcher
        return model

    def step(self) -> None:
        with self.autocast():
            loss = self.model(self.images, self.pixel_mask, labels=self.labels).loss
        loss.backward()
        self.clock.mark("backward")
        nn.utils.clip_grad_norm_(self.trained, CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.clock.mark("optimizer")

    def losses(self) -> dict[str, Tensor]:
        # With auxiliary losses the library normalises the last layer twice.
        self.model.config.auxiliary_loss = False
        with self.autocast():
            outputs = self.model(self.images, self.pixel_mask, labels=self.labels)
        self.model.config.auxiliary_loss = True
        return outputs.loss_dict


CONTENDERS = {
    PUBLISHED: Published,
    TRANSFORMERS: Transformers,
    EAGER: Ours,
    COMPILED: Compiled,
    GRAPHED: Graphed,
}
IMPOSSIBLE = {"cpu": (GRAPHED,), "cuda": ()}  # by kind of device
