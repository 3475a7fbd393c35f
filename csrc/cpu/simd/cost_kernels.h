// The costs of one image's queries x targets (core/pair_cost.h has the formula in scalars), kWidth
// queries at a time: first their class costs, then, with their boxes in registers, one target after
// the other. Every cost is written once, in the solver's layout, and each target's least cost is
// recorded.
#pragma once

#include "cpu/simd/class_costs.h"
#include "cpu/simd/kernels.h"

namespace detr_fast::cpu {
namespace {

template <class T>
class PairCosts {
 public:
  explicit PairCosts(const PairCostInput& in)
      : in_(in),
        class_costs_(in),
        least_(in.scratch + class_cost_scratch(in.classes, in.distinct)),
        least_at_(least_ + in.count * kWidth) {}

  PairCostFault run() {
    PairCostFault fault = {PairCostFault::kNone, -1, -1};
    const bool is_focal = in_.options.class_cost == ClassCost::kFocal;
    int64_t overflowing = in_.count;  // the first target with a cost that is not finite
    has_usual_targets_ = in_.options.giou_added == 0 && in_.options.giou_lowest <= kSmallArea;
    for (int64_t m = 0; m < in_.count; ++m) has_usual_targets_ &= is_usual(in_.targets + 9 * m);
    for (int64_t m = 0; m < in_.count; ++m) {
      store(least_ + m * kWidth, splat(kInfinity));
      store(least_at_ + m * kWidth, bits_of<F>(splat(-1)));
    }
    for (int64_t first = 0; first < in_.queries; first += kWidth) {
      const int count =
          static_cast<int>(in_.queries - first < kWidth ? in_.queries - first : kWidth);
      const I lacking = class_costs_.compute(first, count);
      if (!in_.tolerant && first_true(lacking, count) < count)
        return {PairCostFault::kLogits, first + first_true(lacking, count), -1};
      load_boxes(first, count);
      // A comparison with NaN is false. The sum of magnitudes is infinite if one of them is.
      const F magnitude = absolute(cx_) + absolute(cy_) + absolute(w_) + absolute(h_);
      const I good = (magnitude <= kLargest) & (w_ >= 0.0f) & (h_ >= 0.0f);
      if (!in_.tolerant && fault.kind == PairCostFault::kNone && first_true(~good, count) < count)
        fault = {PairCostFault::kBox, first + first_true(~good, count), -1};
      // Of a focal cost, only the pairs whose logit is NaN are lost.
      const I invalid = is_focal ? ~good : ~good | lacking;
      usual_ = magnitude <= kLargeCoordinate;
      if (has_usual_targets_ && !true_lanes(~usual_ | ~good | lacking)) {
        add_boxes<true>(first, count, invalid);
      } else {
        add_boxes<false>(first, count, invalid);
      }
      if (in_.tolerant) {
        fault.lacks_costs |= first_true(overflow_ | invalid, count) < count;
      } else if (first_true(overflow_ & ~invalid, count) < count) {
        const int64_t target = find_overflow(first, count);
        if (target < overflowing) overflowing = target;
      }
    }
    pad();
    if (fault.kind == PairCostFault::kNone && overflowing < in_.count)
      fault = {PairCostFault::kCost, -1, overflowing};
    for (int64_t m = 0; m < in_.count; ++m) in_.minima[m] = minimum_of_target(m);
    return fault;
  }

 private:
  static constexpr float kLargest = 3.402823466e38f;
  static constexpr float kInfinity = __builtin_inff();
  // The product of two areas neither underflows nor overflows if both are at least kSmallArea and
  // the boxes' coordinates are within kLargeCoordinate.
  static constexpr float kSmallArea = 1e-14f, kLargeCoordinate = 1e8f;

  static int first_true(I mask, int count) {
    const uint32_t lanes = true_lanes(mask) & ((1u << count) - 1);
    return lanes ? __builtin_ctz(lanes) : count;
  }

  static bool is_usual(const float* t) {
    float magnitude = 0;
    for (int k = 0; k < 4; ++k) magnitude += __builtin_fabsf(t[k]);
    return t[8] >= kSmallArea && magnitude <= kLargeCoordinate;
  }

  void load_boxes(int64_t first, int count) {
    switch (in_.boxes_dtype) {
      case Dtype::kFloat16:
        return split_boxes(static_cast<const Half*>(in_.boxes) + 4 * first, count);
      case Dtype::kBfloat16:
        return split_boxes(static_cast<const Bfloat*>(in_.boxes) + 4 * first, count);
      default:
        return split_boxes(static_cast<const float*>(in_.boxes) + 4 * first, count);
    }
  }

  // Lanes beyond the last query repeat the first.
  template <class B>
  void split_boxes(const B* boxes, int count) {
    B copy[4 * kWidth];
    if (count < kWidth) {
      for (int k = 0; k < 4 * kWidth; ++k) copy[k] = boxes[k < 4 * count ? k : k % 4];
      boxes = copy;
    }
    F v[4];
    for (int k = 0; k < 4; ++k) v[k] = widen(boxes + k * kWidth);
    transpose_fours(v);
    cx_ = v[0];
    cy_ = v[1];
    w_ = v[2];
    h_ = v[3];
    x0_ = cx_ - 0.5f * w_;
    y0_ = cy_ - 0.5f * h_;
    x1_ = cx_ + 0.5f * w_;
    y1_ = cy_ + 0.5f * h_;
    area_ = (x1_ - x0_) * (y1_ - y0_);
  }

  // Adds the box costs and writes the costs of `count` queries. kUsual: all boxes are finite, the
  // product of any two areas is a normal number, and the GIoU's divisions need no guard.
  template <bool kUsual>
  void add_boxes(int64_t first, int count, I invalid) {
    const int64_t stride = padded(in_.queries);
    const I exists = lane_numbers<float>() < count,
            query = lane_numbers<float>() + static_cast<int32_t>(first);
    const F added = splat(in_.options.giou_added), lowest_area = splat(in_.options.giou_lowest);
    const float* const class_costs = class_costs_.costs();
    F nothing = splat(0.0f);  // becomes NaN where a cost was not finite
    for (int64_t m = 0; m < in_.count; ++m) {
      const float* const t = in_.targets + 9 * m;
      const F distance =
          absolute(cx_ - t[0]) + absolute(cy_ - t[1]) + absolute(w_ - t[2]) + absolute(h_ - t[3]);
      const F tx0 = splat(t[4]), ty0 = splat(t[5]), tx1 = splat(t[6]), ty1 = splat(t[7]);
      const F zero = splat(0.0f);
      const F overlap = maximum(minimum(x1_, tx1) - maximum(x0_, tx0), zero) *
                        maximum(minimum(y1_, ty1) - maximum(y0_, ty0), zero);
      const F both = area_ + t[8] - overlap;
      const F hull =
          (maximum(x1_, tx1) - minimum(x0_, tx0)) * (maximum(y1_, ty1) - minimum(y0_, ty0));
      F giou;
      if constexpr (kUsual) {
        giou = difference_of_ratios(overlap, both, hull - both, hull);
      } else {
        const F a = maximum(both + added, lowest_area), b = maximum(hull + added, lowest_area);
        giou = is_usual(t) & usual_ ? difference_of_ratios(overlap, a, hull - both, b)
                                    : overlap / a - (hull - both) / b;
      }
      F cost = load<F>(class_costs + in_.label_of[m] * kWidth) +
               in_.options.weight_bbox * distance - in_.options.weight_giou * giou;
      nothing += cost * 0.0f;
      if constexpr (!kUsual)
        if (in_.tolerant)
          cost = (~(absolute(cost) <= kLargest) | invalid) ? splat(kInfinity) : cost;
      if (count < kWidth) cost = exists ? cost : splat(kInfinity);
      store(in_.cost + m * stride + first, cost);
      const F least = load<F>(least_ + m * kWidth);
      const F at = load<F>(least_at_ + m * kWidth);
      store(least_at_ + m * kWidth, cost < least ? bits_of<F>(query) : at);
      store(least_ + m * kWidth, minimum(cost, least));
    }
    overflow_ = nothing != nothing;
  }

  // a / b - c / d, with one division.
  DETR_FAST_INLINE static F difference_of_ratios(F a, F b, F c, F d) {
    return (a * d - c * b) / (b * d);
  }

  // Fills the columns of the padding that no vector of queries has written.
  void pad() {
    const int64_t stride = padded(in_.queries);
    for (int64_t n = (in_.queries + kWidth - 1) / kWidth * kWidth; n < stride; n += kWidth)
      for (int64_t m = 0; m < in_.count; ++m) store(in_.cost + m * stride + n, splat(kInfinity));
  }

  int64_t find_overflow(int64_t first, int count) const {
    for (int64_t m = 0; m < in_.count; ++m)
      for (int k = 0; k < count; ++k) {
        const float x = in_.cost[m * padded(in_.queries) + first + k];
        if (!(__builtin_fabsf(x) <= kLargest)) return m;
      }
    return in_.count;
  }

  Minimum<float> minimum_of_target(int64_t m) const {
    const F least = load<F>(least_ + m * kWidth);
    const float value = lowest(least);
    int32_t query[kWidth], first = -1;
    std::memcpy(query, least_at_ + m * kWidth, sizeof query);
    if (value < kInfinity)
      for (uint32_t lanes = equal_lanes(least, splat(value)); lanes != 0; lanes &= lanes - 1) {
        const int32_t n = query[__builtin_ctz(lanes)];
        if (first < 0 || n < first) first = n;
      }
    return {value, first};
  }

  const PairCostInput& in_;
  ClassCosts<T> class_costs_;
  float* const least_;     // [M, kWidth] the least costs so far
  float* const least_at_;  // [M, kWidth] their queries, as the bits of int32
  bool has_usual_targets_ = false;
  F cx_, cy_, w_, h_, x0_, y0_, x1_, y1_, area_;
  I usual_, overflow_;
};

PairCostFault pair_costs(const PairCostInput& in) {
  switch (in.logits_dtype) {
    case Dtype::kFloat16:
      return PairCosts<Half>(in).run();
    case Dtype::kBfloat16:
      return PairCosts<Bfloat>(in).run();
    default:
      return PairCosts<float>(in).run();
  }
}

}  // namespace
}  // namespace detr_fast::cpu
