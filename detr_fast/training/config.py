"""Everything that defines a training run, in one frozen dataclass."""

import math
import os
from dataclasses import asdict, dataclass, fields
from numbers import Integral, Real
from typing import Any, get_args, get_origin

from detr_fast.data.dataset import BOXES
from detr_fast.losses import BOX_LOSSES
from detr_fast.matching import FastMatcher
from detr_fast.models import MODELS
from detr_fast.models.builders import POSITION_ENCODINGS, TINY_BACKBONES
from detr_fast.models.detr import POSITION_AT
from detr_fast.models.queries import QUERY_MODES
from detr_fast.precision import AMP
from detr_fast.training.schedule import SCHEDULES

# What the paper trains with (section 4 and appendix A.4). The defaults of TrainConfig itself train
# a small model from scratch.
PAPER_DEFAULTS: dict[str, Any] = {
    "epochs": 300,
    "batch_size": 2,
    "lr": 1e-4,
    "clip": 0.1,
    "warmup_steps": 0,
    "schedule": "step",
    "lr_drop": 2 / 3,
    "ema": 0.0,
    "recipe": "detr",
    "num_queries": 100,
    "backbone_weights": "imagenet",
}
FINE_TUNING_RATE = 1e-5  # the paper's for a pretrained backbone; one without weights uses lr
RECIPES = ("small", "detr")
LOSS_PARTS = ("class", "bbox", "giou")
# Arguments of the model that only ablations change.
ABLATIONS = ("position_encoding", "position_at", "decoder_self_attention", "aux_loss")
TYPES = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "a string",
    tuple: "(height, width), two whole numbers",
}
PATHS = ("backbone_weights", "init_from")
MIN_IMAGE_SIZE = 32  # then the coarsest feature map, at stride 32, has one cell


@dataclass(frozen=True)
class TrainConfig:
    """One training run. Rates are per optimizer step, sizes in pixels.

    Build it with ``TrainConfig.create``, which fills in the defaults of the model: those of the
    paper for the ResNets, those of training from scratch for ``tiny``. However it is built, its
    values are checked, and made plain: numpy numbers become Python's, and paths become strings.
    ``dataclasses.replace`` keeps ``lr_backbone`` and ``cache`` as they were.

    Raises:
        ValueError: an invalid value; the message names the field, the value and what is allowed.
    """

    data: str = "shapes"  # see detr_fast.data.open_dataset
    val_data: str | None = None  # default: the validation split of data
    train_split: str = "train"
    val_split: str = "val"
    model: str = "tiny"
    query_mode: str | None = None  # default: the model's own
    num_queries: int = 20
    stride: int | None = None  # of the tiny model's feature map; default: its own
    dropout: float | None = None  # of the transformer; default: the model's own
    position_encoding: str = "sine"  # "sine", "learned" or "none"
    position_at: str = "attention"  # where it is added: at every "attention" or at the "input"
    decoder_self_attention: bool = True
    aux_loss: bool = True  # train every decoder layer
    backbone_weights: str | None = None  # None, "imagenet" or a path
    boxes: str = "error"  # what to do with boxes outside their images: "error" or "clip"
    voc_origin: int = 0  # number of the first pixel in Pascal VOC files: 0 or 1
    init_from: str | None = None  # weights of the whole model to start from; see load_initial
    recipe: str = "small"  # image transforms: "small" or "detr"
    image_size: tuple[int, int] | None = None  # (height, width) of the small recipe; None: as is
    flip_vertical: bool = False  # small recipe: also flip upside down
    cache: bool | None = None  # keep decoded images in memory; default: whether cache_gb is given
    cache_gb: float | None = None  # GB for all processes of a machine; None: half of what is free
    decode: str = "cpu"  # "cuda": training JPEGs are decoded and transformed by the GPU
    draft: bool = True  # decode training JPEGs at a fraction of their size where that is enough
    pad_multiple: int = 1  # height and width of a batch are rounded up to multiples of this
    epochs: int = 6
    batch_size: int = 16  # images per process and forward pass
    accumulate: int = 1  # forward passes per optimizer step
    lr: float = 4e-4
    lr_backbone: float | None = None  # default: 1e-5 for a ResNet with weights, else lr
    weight_decay: float = 1e-4
    clip: float = 1.0  # largest gradient norm; 0 = no clipping
    warmup_steps: int = 200
    schedule: str = "step"  # "step" or "cosine"
    lr_drop: float = 0.8  # step schedule: share of the run after which the rates fall tenfold
    ema: float = 0.998  # decay of the averaged weights that are evaluated; 0 = none
    box_loss: str = "l1"
    eos_coef: float = 0.1
    cost_class: float = 1.0  # weights in the matching
    cost_bbox: float = 5.0
    cost_giou: float = 2.0
    weight_class: float = 1.0  # weights in the loss
    weight_bbox: float = 5.0
    weight_giou: float = 2.0
    amp: str = "auto"  # "none", "bf16", or "auto": bf16 where the hardware multiplies it faster
    compile: bool = False  # torch.compile for model and criterion
    cuda_graph: bool = False  # the whole step as one CUDA graph; images of one size
    checkpointing: bool = False  # gradient checkpointing: less memory, more time
    seed: int = 0
    workers: int | None = None  # processes that load images; None: see loader.default_workers
    eval_every: int = 1  # epochs
    log_every: int = 20  # optimizer steps

    @classmethod
    def create(cls, **options: Any) -> "TrainConfig":
        """Build a configuration from ``options``, with the model's defaults for the others.

        Raises:
            ValueError: an unknown option, or an invalid value.
        """
        known = {field.name for field in fields(cls)}
        for name in options:
            if name not in known:
                raise ValueError(f"unknown training option {name!r}")
        resnet = options.get("model", cls.model) != "tiny"
        values = {**(PAPER_DEFAULTS if resnet else {}), **options}
        if values.get("init_from") is not None and "backbone_weights" not in options:
            values["backbone_weights"] = None  # init_from has the backbone's as well
        return cls(**values)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TrainConfig":
        """Rebuild a configuration from ``to_dict``; what an older one lacks gets its default."""
        values = dict(values)
        if isinstance(values.get("image_size"), list):
            values["image_size"] = tuple(values["image_size"])
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values only, as checkpoints and JSON hold them."""
        return asdict(self)

    def matcher(self) -> FastMatcher:
        """Return the matcher used in training."""
        return FastMatcher(self.cost_class, self.cost_bbox, self.cost_giou)

    def model_args(self, num_classes: int) -> dict[str, Any]:
        """Return the arguments of the model's builder."""
        args: dict[str, Any] = {"num_classes": num_classes, "num_queries": self.num_queries}
        for name in ("query_mode", "dropout"):
            if getattr(self, name) is not None:
                args[name] = getattr(self, name)
        for name in ABLATIONS:
            if getattr(self, name) != getattr(type(self), name):
                args[name] = getattr(self, name)
        if self.model == "tiny":
            if self.stride is not None:
                args["stride"] = self.stride
        else:
            # Without weights there are no statistics to freeze, and every layer must learn.
            scratch = self.backbone_weights is None and self.init_from is None
            args["norm"] = "batch" if scratch else "frozen"
            # As in the published code, a rate of 0 freezes the backbone: no gradient is computed.
            args["trainable_layers"] = 5 if scratch else 3 if self.lr_backbone else 0
        return args

    def __post_init__(self) -> None:
        pretrained = self.init_from is not None or self.backbone_weights is not None
        rate = FINE_TUNING_RATE if self.model != "tiny" and pretrained else self.lr
        defaults = {"cache": self.cache_gb is not None, "lr_backbone": rate}
        for field in fields(self):
            value = getattr(self, field.name)
            value = defaults.get(field.name) if value is None else value
            object.__setattr__(self, field.name, _plain(field.name, value, field.type))
        self._check_numbers()
        self._check_choices()
        self._check_combinations()

    def _check_numbers(self) -> None:
        least = {
            **dict.fromkeys(("epochs", "batch_size", "accumulate", "num_queries"), 1),
            **dict.fromkeys(("eval_every", "log_every", "pad_multiple"), 1),
            **dict.fromkeys(("warmup_steps", "seed", "workers"), 0),
        }
        for name, minimum in least.items():
            value = getattr(self, name)
            if value is None:  # workers
                continue
            if value < minimum:
                raise ValueError(f"{name} is {value!r}, expected a whole number >= {minimum}")
            if value >= 2**63:
                raise ValueError(f"{name} is {value}, expected less than 2**63")
        costs, weights = ([f"{k}_{part}" for part in LOSS_PARTS] for k in ("cost", "weight"))
        for name in ("lr", "lr_backbone", "weight_decay", "clip", "eos_coef", *costs, *weights):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 0 or more")
        for names in (costs, weights):
            if not any(getattr(self, name) for name in names):
                raise ValueError(f"{', '.join(names)} are all 0, expected at least one above 0")
        if self.cache_gb is not None and not 0 < self.cache_gb < 1e9:
            raise ValueError(f"cache_gb is {self.cache_gb}, expected more than 0, less than 1e9")
        if self.image_size is not None:
            if len(self.image_size) != 2 or {type(side) for side in self.image_size} != {int}:
                raise ValueError(f"image_size is {self.image_size}, expected {TYPES[tuple]}")
            if min(self.image_size) < MIN_IMAGE_SIZE:
                raise ValueError(
                    f"image_size is {self.image_size}, expected at least {MIN_IMAGE_SIZE} for both"
                )
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}, expected 0 <= dropout < 1")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema is {self.ema}, expected 0 <= ema < 1")
        if not 0 < self.lr_drop <= 1:
            raise ValueError(f"lr_drop is {self.lr_drop}, expected 0 < lr_drop <= 1")

    def _check_choices(self) -> None:
        for name, choices in (
            ("boxes", BOXES),
            ("voc_origin", (0, 1)),
            ("model", tuple(MODELS)),
            ("recipe", RECIPES),
            ("decode", ("cpu", "cuda")),
            ("schedule", SCHEDULES),
            ("amp", AMP),
            ("box_loss", BOX_LOSSES),
            ("query_mode", (None, *QUERY_MODES)),
            ("stride", (None, *TINY_BACKBONES)),
            ("position_encoding", tuple(POSITION_ENCODINGS)),
            ("position_at", POSITION_AT),
        ):
            if getattr(self, name) not in choices:
                expected = ", ".join(str(choice) for choice in choices if choice is not None)
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected one of {expected}")

    def _check_combinations(self) -> None:
        specs = (self.data, self.val_data or "")
        if self.voc_origin and not any(spec.startswith("voc:") for spec in specs):
            which = f"{self.data} is not"
            if self.val_data:
                which = f"neither {self.data} nor {self.val_data} is"
            raise ValueError(f"voc_origin is 1, but {which} a Pascal VOC folder")
        if self.recipe == "detr" and (self.image_size is not None or self.flip_vertical):
            raise ValueError(
                "image_size and flip_vertical belong to the small recipe, but recipe is detr, the "
                "default of the ResNets"
            )
        if self.stride is not None and self.model != "tiny":
            raise ValueError(f"stride is an option of the tiny model, not of {self.model}")
        if self.backbone_weights is not None and self.model == "tiny":
            raise ValueError(
                "the tiny model has no pretrained backbone: leave out backbone_weights"
            )
        if self.backbone_weights is not None and self.init_from is not None:
            raise ValueError("init_from has the backbone's weights: leave out backbone_weights")


def _plain(name: str, value: Any, annotation: Any) -> Any:
    """Return a value as its field's type; refuse others: they would be misread, or fail later."""
    kinds = [get_origin(kind) or kind for kind in get_args(annotation) or (annotation,)]
    kind = kinds[0]  # the other one, if any, is NoneType
    if value is None:
        if type(None) in kinds:
            return None
    elif isinstance(value, bool):  # in Python a bool is also an int
        if kind is bool:
            return value
    elif kind is float and isinstance(value, Real):
        try:
            return float(value)
        except OverflowError:
            raise ValueError(f"{name} is beyond the range of a float, expected a number") from None
    elif kind is int and isinstance(value, Integral):
        return int(value)
    elif kind is str and isinstance(value, (str, os.PathLike) if name in PATHS else str):
        return str(os.fsdecode(value))
    elif kind is tuple and isinstance(value, tuple):
        whole = [isinstance(side, Integral) and not isinstance(side, bool) for side in value]
        return tuple(map(int, value)) if all(whole) else value  # else _check_numbers reports it
    raise ValueError(f"{name} is {value!r}, expected {TYPES[kind]}")
