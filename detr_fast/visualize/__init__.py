"""Pictures of what a DETR sees, decides and learns, and the numbers that they are drawn from.

Functions that begin with ``plot_`` or ``draw_`` return a ``PIL.Image``.
"""

from detr_fast.visualize.ablation import ablation_report, plot_ablation
from detr_fast.visualize.attention import AttentionRecord, attention_weights, record_attention
from detr_fast.visualize.attention_figures import (
    NoDetection,
    plot_decoder_attention,
    plot_encoder_attention,
)
from detr_fast.visualize.curves import plot_training
from detr_fast.visualize.dataset import plot_dataset
from detr_fast.visualize.detections import draw_detections
from detr_fast.visualize.figures import PALETTE
from detr_fast.visualize.heatmap import CellGrid, overlay
from detr_fast.visualize.matching import ImageMatching, explain_matching, plot_matching
from detr_fast.visualize.pictures import image_grid, scaled
from detr_fast.visualize.queries import (
    QueryPredictions,
    collect_predictions,
    effective_queries,
    plot_query_boxes,
    plot_query_use,
)

__all__ = [
    "PALETTE",
    "AttentionRecord",
    "CellGrid",
    "ImageMatching",
    "NoDetection",
    "QueryPredictions",
    "ablation_report",
    "attention_weights",
    "collect_predictions",
    "draw_detections",
    "effective_queries",
    "explain_matching",
    "image_grid",
    "overlay",
    "plot_ablation",
    "plot_dataset",
    "plot_decoder_attention",
    "plot_encoder_attention",
    "plot_matching",
    "plot_query_boxes",
    "plot_query_use",
    "plot_training",
    "record_attention",
    "scaled",
]
