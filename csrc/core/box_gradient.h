// The derivatives of IoU and generalised IoU with respect to a box, for the backward passes.
#pragma once

#include "core/box.h"
#include "core/host_device.h"

namespace detr_fast {

template <class Real>
struct CornerGradient {
  Real x0, y0, x1, y1;
};

// The derivative of min(x, y) with respect to x; 0.5 where both are equal, as in torch.
template <class Real>
DETR_FAST_HD inline Real share_of_smaller(Real x, Real y) {
  return x < y ? Real(1) : x == y ? Real(0.5) : Real(0);
}

// The derivatives of pair_iou with respect to the corners of `a`; for `b`, swap the arguments.
// Where it is not differentiable, the result is that of torch for the formula written with minimum,
// maximum and relu: half to each of two equal edges, and boxes that only touch do not overlap.
template <bool kGeneralized, class Real>
DETR_FAST_HD inline CornerGradient<Real> pair_iou_gradient(const Box<Real>& a, const Box<Real>& b) {
  const Real zero = 0;
  const auto [overlap, both, hull] = pair_areas(a, b);
  // With respect to the areas of the intersection, of `a` and of the hull. IoU is overlap / both,
  // where both = area(a) + area(b) - overlap.
  const Real per_both = 1 / divisor(both);
  const Real fall = both > 0 ? overlap * per_both * per_both : zero;
  Real by_overlap = per_both + fall, by_area = -fall, by_hull = 0;
  if (kGeneralized) {
    const Real per_hull = 1 / divisor(hull);
    by_overlap -= per_hull;
    by_area += per_hull;
    by_hull = (hull > 0 ? (hull - both) * per_hull * per_hull : zero) - per_hull;
  }
  const Real overlap_w = smaller(a.x1, b.x1) - larger(a.x0, b.x0);
  const Real overlap_h = smaller(a.y1, b.y1) - larger(a.y0, b.y0);
  const Real by_overlap_w = overlap_w > 0 ? by_overlap * larger(overlap_h, zero) : zero;
  const Real by_overlap_h = overlap_h > 0 ? by_overlap * larger(overlap_w, zero) : zero;
  const Real by_hull_w = by_hull * (larger(a.y1, b.y1) - smaller(a.y0, b.y0));
  const Real by_hull_h = by_hull * (larger(a.x1, b.x1) - smaller(a.x0, b.x0));
  const Real by_w = by_area * (a.y1 - a.y0), by_h = by_area * (a.x1 - a.x0);
  const Real none = zero * (a.area + b.area);  // 0, or NaN where pair_iou is NaN
  return {
      none - by_overlap_w * share_of_smaller(b.x0, a.x0) -
          by_hull_w * share_of_smaller(a.x0, b.x0) - by_w,
      none - by_overlap_h * share_of_smaller(b.y0, a.y0) -
          by_hull_h * share_of_smaller(a.y0, b.y0) - by_h,
      none + by_overlap_w * share_of_smaller(a.x1, b.x1) +
          by_hull_w * share_of_smaller(b.x1, a.x1) + by_w,
      none + by_overlap_h * share_of_smaller(a.y1, b.y1) +
          by_hull_h * share_of_smaller(b.y1, a.y1) + by_h,
  };
}

// Converts derivatives with respect to corners to those with respect to cx, cy, w, h.
template <class Real>
DETR_FAST_HD inline void by_centre(const CornerGradient<Real>& g, Real out[4]) {
  const Real half = Real(0.5);
  out[0] = g.x0 + g.x1;
  out[1] = g.y0 + g.y1;
  out[2] = half * (g.x1 - g.x0);
  out[3] = half * (g.y1 - g.y0);
}

}  // namespace detr_fast
