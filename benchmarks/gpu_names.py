"""How rows of a GPU name what was timed: what writes them and what reads them agree on these.

Nothing is imported: the report is written before there is a build.
"""

# Column `what`.
MATCHING = "matching"
ASSIGNMENT = "assignment"
RAGGED = "assignment, M differs"
NEW_SIZES = "assignment, a largest M that was not there before"
LOSSES = "box losses, forward and backward"
IOU = "generalised IoU of all pairs, forward and backward"

# Column `variant`, or how it begins.
PACKED, LISTS = "FastMatcher, packed", "FastMatcher, lists"
SOLVER = "linear_sum_assignment"
BOX_LOSSES = "box_losses"
PUBLISHED_LOSSES = "published criterion's"
TORCH_ASSIGNMENT = "torch-linear-assignment"
TORCHVISION = "torchvision, image by image"
IOU_OP = "generalized_box_iou"
OURS = ("FastMatcher", SOLVER, BOX_LOSSES, IOU_OP)

# Column `variant` of training steps.
EAGER, COMPILED, GRAPHED = "detr_fast", "detr_fast compiled", "detr_fast CUDA graph"
PUBLISHED, TRANSFORMERS = "published formula", "transformers"
