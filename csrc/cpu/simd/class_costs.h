// The class costs of kWidth queries, from their logits (core/pair_cost.h has the formulas in
// scalars): minus the softmax probability, or the focal cost, of each distinct label of an image.
#pragma once

#include "cpu/simd/kernels.h"
#include "cpu/simd/math.h"
#include "cpu/simd/transpose.h"
#include "cpu/simd/widen.h"

namespace detr_fast::cpu {
namespace {

// Calls use(k, c, x, counts) for the vectors of kRows rows of logits; c is a multiple of kWidth and
// x is row k from column c on. If the row's length is not a multiple of kWidth, its last vector
// starts earlier, so that it ends with the row. `counts` is true in lanes that no earlier vector
// had.
template <int kRows, class T, class Use>
DETR_FAST_INLINE void for_each_vector(const T* logits, int64_t classes, Use use) {
  int64_t c = 0;
  for (; c + kWidth <= classes; c += kWidth)
    for (int k = 0; k < kRows; ++k) use(k, c, widen(logits + k * classes + c), splat(-1));
  const int32_t rest = static_cast<int32_t>(classes - c);
  if (rest == 0) return;
  const I counts =
      classes >= kWidth ? lane_numbers<float>() >= kWidth - rest : lane_numbers<float>() < rest;
  for (int k = 0; k < kRows; ++k) {
    const T* const row = logits + k * classes;
    if (classes >= kWidth) {
      use(k, c, widen(row + classes - kWidth), counts);
    } else {
      T copy[kWidth] = {};
      for (int32_t j = 0; j < rest; ++j) copy[j] = row[j];
      use(k, c, widen(copy), counts);
    }
  }
}

template <class T>
class ClassCosts {
 public:
  explicit ClassCosts(const PairCostInput& in)
      : in_(in),
        row_((in.classes + kWidth - 1) / kWidth * kWidth),
        reach_(in.classes < kWidth ? 0 : static_cast<int32_t>(row_ - in.classes)),
        numerators_(in.scratch),
        costs_(numerators_ + kWidth * row_) {}

  // Computes the costs [D, kWidth] of `count` queries from `first` on; returns a mask of the
  // queries that lack one: with softmax, all of theirs; focal, those that are NaN.
  I compute(int64_t first, int count) {
    return in_.options.class_cost == ClassCost::kFocal ? focal(first, count)
                                                       : softmax(first, count);
  }

  // The costs of the queries computed last.
  const float* costs() const { return costs_; }

 private:
  const T* logits(int64_t query) const {
    return static_cast<const T*>(in_.logits) + query * in_.classes;
  }

  // The position of a class in a row of numerators.
  int64_t place(int32_t label) const { return label < row_ - kWidth ? label : label + reach_; }

  I softmax(int64_t first, int count) {
    F sums[kWidth] = {}, extreme = splat(0.0f);
    int k = 0;
    for (; k + 4 <= count; k += 4) extreme = numerators<4>(first, k, sums, extreme);
    for (; k < count; ++k) extreme = numerators<1>(first, k, sums, extreme);
    F sum = totals(sums);
    const I exists = lane_numbers<float>() < count;
    if (!(highest(extreme) <= 80.0f) || true_lanes(~(sum <= kLargest) & exists))
      sum = careful_numerators(first, count);
    const F factor = -in_.options.weight_class / (exists ? sum : splat(1.0f));
    // Transposing all numerators instead, a square at a time, is no faster with fewer than 40
    // labels, and less than 2 % faster with 50.
    int32_t offset[kWidth];
    for (k = 0; k < kWidth; ++k) offset[k] = static_cast<int32_t>((k < count ? k : 0) * row_);
    for (int64_t d = 0; d < in_.distinct; ++d)
      store(costs_ + d * kWidth, factor * gather(numerators_ + place(in_.labels[d]), offset));
    return ~(sum <= kLargest) & exists;
  }

  // Computes the numerators of kRows queries from first + k on, and their sums by lane. Returns the
  // largest of `extreme` and the logits' magnitudes, by lane. Logits are usually within the range
  // of exp, so no pass subtracts their maximum.
  template <int kRows>
  DETR_FAST_INLINE F numerators(int64_t first, int k, F* sums, F extreme) {
    F sum[kRows] = {};
    float* const out = numerators_ + k * row_;
    for_each_vector<kRows>(logits(first + k), in_.classes, [&](int i, int64_t c, F x, I counts) {
      extreme = largest_magnitude(extreme, x);
      const F e = exp_in_range(x);
      store(out + i * row_ + c, e);
      sum[i] += bits_of<F>(bits_of<I>(e) & counts);
    });
    for (int i = 0; i < kRows; ++i) sums[k + i] = sum[i];
    return extreme;
  }

  // The same for logits of any magnitude, for `count` queries from `first` on. Returns the sums:
  // NaN where the softmax does not exist.
  F careful_numerators(int64_t first, int count) {
    F sums[kWidth] = {};
    for (int k = 0; k < count; ++k) {
      const T* const row = logits(first + k);
      F most = splat(-kInfinity);
      for_each_vector<1>(row, in_.classes, [&](int, int64_t, F x, I counts) {
        most = maximum(most, counts ? x : splat(-kInfinity));
      });
      const F max = splat(highest(most));
      for_each_vector<1>(row, in_.classes, [&](int, int64_t c, F x, I counts) {
        const F e = exp_nonpositive(x - max);
        store(numerators_ + k * row_ + c, e);
        sums[k] += bits_of<F>(bits_of<I>(e) & counts);
      });
    }
    return totals(sums);
  }

  // Reads only the logits of the image's labels. NaN has no cost; an infinite logit is a
  // probability of 0 or 1.
  I focal(int64_t first, int count) {
    I invalid = splat(0);
    for (int64_t d = 0; d < in_.distinct; ++d) {
      float lane[kWidth];
      for (int k = 0; k < kWidth; ++k)
        lane[k] = widen_one(logits(first + (k < count ? k : 0)) + in_.labels[d]);
      const F x = load<F>(lane);
      invalid |= x != x;
      const F e = exp_nonpositive(-absolute(x));
      const F high = 1.0f / (1.0f + e), low = e * high;
      const F p = x < 0.0f ? low : high, q = x < 0.0f ? high : low;  // q = 1 - p
      // As in core/pair_cost.h. eps keeps the logarithms finite.
      const F positive =
          -in_.options.alpha * power(q, in_.options.gamma) * log_positive(p + in_.options.eps);
      const F negative = (in_.options.alpha - 1.0f) * power(p, in_.options.gamma) *
                         log_positive(q + in_.options.eps);
      const F cost = in_.options.weight_class * (positive - negative);
      store(costs_ + d * kWidth, x != x ? splat(__builtin_nanf("")) : cost);
    }
    return invalid;
  }

  static constexpr float kLargest = 3.402823466e38f;
  static constexpr float kInfinity = __builtin_inff();

  const PairCostInput& in_;
  const int64_t row_;        // C, rounded up to whole vectors
  const int32_t reach_;      // by how many columns the last vector starts earlier
  float* const numerators_;  // [kWidth, row_]
  float* const costs_;       // [D, kWidth]
};

}  // namespace
}  // namespace detr_fast::cpu
