// Box maths on scalars, written without branches so that a loop over boxes becomes vector code.
#pragma once

#include "core/host_device.h"

namespace detr_fast {

// If either is NaN, both functions return b.
template <class Real>
DETR_FAST_HD inline Real smaller(Real a, Real b) {
  return a < b ? a : b;
}

template <class Real>
DETR_FAST_HD inline Real larger(Real a, Real b) {
  return a > b ? a : b;
}

template <class Real>
struct Box {
  Real cx, cy, w, h;
  Real x0, y0, x1, y1, area;  // follow from the above
};

template <class Real>
DETR_FAST_HD inline Box<Real> make_box(Real cx, Real cy, Real w, Real h) {
  const Real half = Real(0.5);
  const Real x0 = cx - half * w, y0 = cy - half * h, x1 = cx + half * w, y1 = cy + half * h;
  return {cx, cy, w, h, x0, y0, x1, y1, (x1 - x0) * (y1 - y0)};
}

template <class Real>
DETR_FAST_HD inline Box<Real> make_box_of_corners(Real x0, Real y0, Real x1, Real y1) {
  const Real half = Real(0.5), w = x1 - x0, h = y1 - y0;
  return {x0 + half * w, y0 + half * h, w, h, x0, y0, x1, y1, w * h};
}

// The areas from which IoU and generalised IoU are computed.
template <class Real>
struct PairAreas {
  Real overlap, both, hull;  // of the intersection, the union, the smallest box around both
};

template <class Real>
DETR_FAST_HD inline PairAreas<Real> pair_areas(const Box<Real>& a, const Box<Real>& b) {
  const Real zero = 0;
  const Real overlap_w = larger(smaller(a.x1, b.x1) - larger(a.x0, b.x0), zero);
  const Real overlap_h = larger(smaller(a.y1, b.y1) - larger(a.y0, b.y0), zero);
  const Real overlap = overlap_w * overlap_h;
  const Real both = a.area + b.area - overlap;
  const Real hull =
      (larger(a.x1, b.x1) - smaller(a.x0, b.x0)) * (larger(a.y1, b.y1) - smaller(a.y0, b.y0));
  return {overlap, both, hull};
}

// Guards the divisions in generalised IoU: each divides by max(x + added, lowest). Published code
// differs in this.
//   none   added 0, lowest the smallest normal number: a zero denominator, whose numerator is also
//          zero, gives 0, and no other quotient changes
//   eps    added eps, lowest as for none
//   clamp  added 0, lowest eps
template <class Real>
struct GiouGuard {
  Real added, lowest;
};

// Generalised IoU (Rezatofighi et al. 2019), in [-1, 1]. If both boxes have zero area, the IoU is
// 0/0 and counts as 0; if they also lie on one line, the hull is empty and its term counts as 0.
// So two different points give -1, or 0 if they lie on one horizontal or vertical line, and
// coincident points give 0. No pair of boxes with finite areas gives NaN.
template <class Real>
DETR_FAST_HD inline Real generalized_iou(const Box<Real>& a, const Box<Real>& b,
                                         const GiouGuard<Real>& guard) {
  const auto [overlap, both, hull] = pair_areas(a, b);
  return overlap / larger(both + guard.added, guard.lowest) -
         (hull - both) / larger(hull + guard.added, guard.lowest);
}

// What to divide by for an area, such that 0/0 gives 0.
template <class Real>
DETR_FAST_HD inline Real divisor(Real area) {
  return area > 0 ? area : Real(1);
}

// IoU in [0, 1], or generalised IoU as above, without a guard. NaN if a coordinate is NaN or
// infinite, which minimum and maximum alone would hide, or if areas overflow.
template <bool kGeneralized, class Real>
DETR_FAST_HD inline Real pair_iou(const Box<Real>& a, const Box<Real>& b) {
  const auto [overlap, both, hull] = pair_areas(a, b);
  Real iou = overlap / divisor(both) + Real(0) * (a.area + b.area);
  if (kGeneralized) iou -= (hull - both) / divisor(hull);
  return iou;
}

}  // namespace detr_fast
