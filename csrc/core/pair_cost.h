// The cost of matching a query to a target (Carion et al. 2020, section 3.1 and appendix A.2):
//   cost = weight_class * class_cost(label) + weight_bbox * |box - box'|_1 - weight_giou * GIoU
// where class_cost is minus the softmax probability, or the focal cost of Deformable DETR.
// This file has the options of that formula, and the formula in plain scalars, used by the GPU and,
// for float64 predictions, by the CPU. The vectorised float32 version (cpu/simd/cost_kernels.h) is
// tested against it.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "core/box.h"

namespace detr_fast {

enum class ClassCost : int { kSoftmax = 0, kFocal = 1 };

template <class Real>
struct PairCostOptionsOf {
  Real weight_class, weight_bbox, weight_giou;
  ClassCost class_cost;
  Real alpha, gamma, eps;        // of the focal cost
  Real giou_added, giou_lowest;  // see GiouGuard
};
using PairCostOptions = PairCostOptionsOf<double>;

// Converted to float for the kernels. giou_lowest must not become 0, which would give 0/0.
inline PairCostOptionsOf<float> to_single(const PairCostOptions& o) {
  const auto single = [](double x) { return static_cast<float>(x); };
  return {single(o.weight_class),
          single(o.weight_bbox),
          single(o.weight_giou),
          o.class_cost,
          single(o.alpha),
          single(o.gamma),
          single(o.eps),
          single(o.giou_added),
          larger(single(o.giou_lowest), std::numeric_limits<float>::min())};
}

// For one query: the max of its logits, and scale = 1 / (sum of exp(x - max)); NaN if the softmax
// does not exist.
template <class Real>
struct Softmax {
  Real max, scale;
};

inline Softmax<double> softmax_of(const double* logits, int64_t classes) {
  double max = -std::numeric_limits<double>::infinity(), sum = 0;
  for (int64_t c = 0; c < classes; ++c) max = larger(max, logits[c]);
  for (int64_t c = 0; c < classes; ++c) sum += std::exp(logits[c] - max);
  return {max, 1 / sum};
}

// The change in the sigmoid focal loss if the query had this class (Zhu et al. 2021; Lin et al.
// 2017): positive part minus negative part. 1 - p is computed from the logit, so it does not round
// to 0 where p rounds to 1.
template <class Real>
DETR_FAST_HD inline Real focal_cost(Real logit, const PairCostOptionsOf<Real>& options) {
  const Real one = 1;
  const Real e = std::exp(-std::fabs(logit));
  const Real high = one / (one + e), low = e / (one + e);
  const Real p = logit < 0 ? low : high, q = logit < 0 ? high : low;  // q = 1 - p
  const Real positive = -options.alpha * std::pow(q, options.gamma) * std::log(p + options.eps);
  const Real negative =
      -(one - options.alpha) * std::pow(p, options.gamma) * std::log(q + options.eps);
  return positive - negative;
}

// The part of a pair's cost that depends on the boxes.
template <class Real>
DETR_FAST_HD inline Real box_cost(const Box<Real>& a, const Box<Real>& b,
                                  const PairCostOptionsOf<Real>& options) {
  const Real distance =
      std::fabs(a.cx - b.cx) + std::fabs(a.cy - b.cy) + std::fabs(a.w - b.w) + std::fabs(a.h - b.h);
  const GiouGuard<Real> guard = {options.giou_added, options.giou_lowest};
  return options.weight_bbox * distance - options.weight_giou * generalized_iou(a, b, guard);
}

}  // namespace detr_fast
