// The cost of matching a query to a target (Carion et al. 2020, section 3.1 and appendix A.2):
//   cost = -weight_class * p_query(label) + weight_bbox * |box - box'|_1 - weight_giou * GIoU
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "core/box.h"

namespace detr_fast {

template <class Real>
struct PairWeights {
  Real cls, bbox, giou;
};

// exp(x) for x <= 0 (NaN stays NaN), as straight-line code that a compiler can vectorise, unlike a
// call of expf. x = n ln2 + r with |r| <= ln2 / 2; Taylor to the 7th power leaves 5e-9, and the
// result is within 2 units in the last place. Below x = -87.3, before the results turn denormal, it
// stays at 1.2e-38.
inline float exp_nonpositive(float x) {
  const float lowest = -87.3f;
  const float clamped = x < lowest ? lowest : x;
  const float shift = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer in the low bits
  const float shifted = clamped * 1.44269504f + shift;
  const float n = shifted - shift;
  const float r = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.0f / 5040;
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  uint32_t bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = (bits + 127) << 23;  // 2^n: the integer part's low bits, moved into the exponent
  float power;
  std::memcpy(&power, &bits, sizeof power);
  return p * power;
}

inline double exp_nonpositive(double x) { return std::exp(x); }

// Softmax numerators exp(x - max) of one query into `numerators` [classes]; returns 1 / their sum,
// which is NaN where the softmax does not exist.
template <class Real>
inline Real softmax_numerators(const Real* logits, int64_t classes, Real* numerators) {
  constexpr int kLanes = 8;  // independent partial results, so that the loops need not run in order
  Real highest[kLanes], sum[kLanes];
  for (int k = 0; k < kLanes; ++k) {
    highest[k] = -std::numeric_limits<Real>::infinity();
    sum[k] = 0;
  }
  const int64_t whole = classes - classes % kLanes;
  for (int64_t c = 0; c < whole; c += kLanes)
    for (int k = 0; k < kLanes; ++k) highest[k] = larger(highest[k], logits[c + k]);
  for (int64_t c = whole; c < classes; ++c) highest[0] = larger(highest[0], logits[c]);
  for (int k = 1; k < kLanes; ++k) highest[0] = larger(highest[0], highest[k]);

  for (int64_t c = 0; c < classes; ++c) numerators[c] = exp_nonpositive(logits[c] - highest[0]);
  for (int64_t c = 0; c < whole; c += kLanes)
    for (int k = 0; k < kLanes; ++k) sum[k] += numerators[c + k];
  for (int64_t c = whole; c < classes; ++c) sum[0] += numerators[c];
  for (int k = 1; k < kLanes; ++k) sum[0] += sum[k];
  return Real(1) / sum[0];
}

// The part of a pair's cost that depends on the boxes.
template <class Real>
inline Real box_cost(const Box<Real>& a, const Box<Real>& b, const PairWeights<Real>& weights) {
  const Real distance =
      std::fabs(a.cx - b.cx) + std::fabs(a.cy - b.cy) + std::fabs(a.w - b.w) + std::fabs(a.h - b.h);
  return weights.bbox * distance - weights.giou * generalized_iou(a, b);
}

}  // namespace detr_fast
