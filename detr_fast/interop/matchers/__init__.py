"""Drop-in matchers with the constructors, calls and results of other projects' matchers, computed
by :class:`detr_fast.FastMatcher`.

Each module has its original's public names, so that only an import changes:

===================  ================================================  ==========================
module               original                                          class cost
===================  ================================================  ==========================
``detr``             facebookresearch/detr                             softmax
``deformable_detr``  fundamentalvision/Deformable-DETR                 focal
``dino``             IDEA-Research/DINO                                focal
``rtdetr``           lyuwenyu/RT-DETR (v2)                             focal or softmax
``dfine``            Peterande/D-FINE, Intellindust-AI-Lab/DEIM        focal or softmax
``rfdetr``           roboflow/rf-detr 1.11                             focal, query groups
``huggingface``      transformers 5 (``transformers.loss``)            softmax, focal, focal groups
``ultralytics``      ultralytics 8.4 (``models.utils.ops``)            focal or softmax
===================  ================================================  ==========================

Indices equal the original's wherever its best assignment is unique in the arithmetic of both. The
remaining differences:

- Half precision. Costs are computed in float32, whatever the predictions' precision. RF-DETR's own
  matcher, under autocast in bfloat16, decides near-ties differently: fewer than 1 of 100 pairs, for
  random predictions (``test_rfdetr_under_autocast``).
- Focal costs of confident queries. The originals compute ``log(1 - p + 1e-8)`` from a p rounded to
  float32: at a logit of 12, 1 - p has two digits left, at 17 none. Here it comes from the logit,
  and the choice equals that of the formula in float64 (``test_confident_queries_are_told_apart``).
- Boxes without area. Where both boxes of a pair have none, an unguarded GIoU is 0/0 and the
  original's cost NaN; here the term is 0.
- Input that an original accepts silently, or rejects by an ``assert`` on the whole batch, is a
  ``ValueError`` that names the image, the entry and the value: a negative label, a target box that
  is not finite, a box of negative width or height (no model here predicts one), weights all 0.

Each original's own treatment of predictions that are not finite is kept, and documented at its
class. Only such predictions take this slow path in plain torch.
"""
