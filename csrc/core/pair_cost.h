// The cost of matching a query to a target (Carion et al. 2020, section 3.1 and appendix A.2):
//   cost = weight_class * class_cost(label) + weight_bbox * |box - box'|_1 - weight_giou * GIoU
// where class_cost is minus the softmax probability, or the focal cost of Deformable DETR.
// Here: the options of that formula, and it in plain scalars, which float64 predictions use and the
// vectorised float32 form (cpu/simd/cost_kernels.h) is tested against.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "core/box.h"

namespace detr_fast {

enum class ClassCost : int { kSoftmax = 0, kFocal = 1 };

struct PairCostOptions {
  double weight_class, weight_bbox, weight_giou;
  ClassCost class_cost;
  double alpha, gamma, eps;        // of the focal cost
  double giou_added, giou_lowest;  // see GiouGuard
};

// 1 / (sum of exp(x - max)) of one query, with its max; NaN where the softmax does not exist.
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

// The change of the sigmoid focal loss if the query had this class (Zhu et al. 2021; Lin et al.
// 2017): positive part minus negative part. 1 - p is computed from the logit and does not round to
// 0 where p rounds to 1.
inline double focal_cost(double logit, const PairCostOptions& options) {
  const double e = std::exp(-std::fabs(logit));
  const double high = 1 / (1 + e), low = e / (1 + e);
  const double p = logit < 0 ? low : high, q = logit < 0 ? high : low;  // q = 1 - p
  const double positive = -options.alpha * std::pow(q, options.gamma) * std::log(p + options.eps);
  const double negative =
      -(1 - options.alpha) * std::pow(p, options.gamma) * std::log(q + options.eps);
  return positive - negative;
}

// The part of a pair's cost that depends on the boxes.
inline double box_cost(const Box<double>& a, const Box<double>& b, const PairCostOptions& options) {
  const double distance =
      std::fabs(a.cx - b.cx) + std::fabs(a.cy - b.cy) + std::fabs(a.w - b.w) + std::fabs(a.h - b.h);
  const GiouGuard<double> guard = {options.giou_added, options.giou_lowest};
  return options.weight_bbox * distance - options.weight_giou * generalized_iou(a, b, guard);
}

}  // namespace detr_fast
