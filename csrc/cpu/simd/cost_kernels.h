// The costs of one image's queries x targets (core/pair_cost.h has the formula in scalars), kWidth
// queries at a time: their class costs for each distinct label of the image, then, their boxes kept
// in registers, one target after the other. Every cost is written once, into the solver's layout.
#pragma once

#include "cpu/simd/kernels.h"
#include "cpu/simd/math.h"

namespace detr_fast::cpu {
namespace {

struct Half {
  uint16_t bits;
};
struct Bfloat {
  uint16_t bits;
};

DETR_FAST_INLINE F widen(const float* x) { return load<F>(x); }
DETR_FAST_INLINE F widen(const Bfloat* x) {
  typedef uint16_t Short __attribute__((vector_size(2 * kWidth)));
  return bits_of<F>(__builtin_convertvector(load<Short>(x), I) << 16);
}
DETR_FAST_INLINE F widen(const Half* x) {
#if defined(__AVX512F__)
  return (F)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)));
#elif defined(__AVX2__)
  return (F)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x)));
#else
  // Move the exponent and fraction into place, then multiply by 2^112: this shifts the exponent to
  // its new bias, denormals included. An exponent of all ones must stay all ones.
  typedef uint16_t Short __attribute__((vector_size(2 * kWidth)));
  const I bits = __builtin_convertvector(load<Short>(x), I);
  const F scaled = bits_of<F>((bits & 0x7fff) << 13) * 0x1p112f;
  const I special = (bits & 0x7c00) == 0x7c00;
  return bits_of<F>(bits_of<I>(scaled) | (special & 0x7f800000) | ((bits & 0x8000) << 16));
#endif
}

template <class T>
DETR_FAST_INLINE float widen_one(const T* x) {
  T copy[kWidth] = {*x};
  return widen(copy)[0];
}
DETR_FAST_INLINE float widen_one(const float* x) { return *x; }

DETR_FAST_INLINE I lane_numbers() {
  I lanes;
  for (int k = 0; k < kWidth; ++k) lanes[k] = k;
  return lanes;
}

// Calls use(c, x, counts) for vectors of a row of logits: x from column c on, `counts` true in
// lanes that no earlier vector had. The last vector reaches back into the one before it.
template <class T, class Use>
DETR_FAST_INLINE void for_each_vector(const T* row, int64_t classes, Use use) {
  int64_t c = 0;
  for (; c + kWidth <= classes; c += kWidth) use(c, widen(row + c), splat(-1));
  const int32_t rest = static_cast<int32_t>(classes - c);
  if (rest == 0) return;
  if (classes >= kWidth) {
    use(classes - kWidth, widen(row + classes - kWidth), lane_numbers() >= kWidth - rest);
  } else {
    T copy[kWidth] = {};
    for (int32_t k = 0; k < rest; ++k) copy[k] = row[k];
    use(0, widen(copy), lane_numbers() < rest);
  }
}

template <class T>
class PairCosts {
 public:
  explicit PairCosts(const PairCostInput& in)
      : in_(in),
        row_(in.classes + kWidth),
        numerators_(in.scratch),
        class_costs_(in.scratch + kWidth * row_) {}

  PairCostFault run() {
    PairCostFault fault = {PairCostFault::kNone, -1, -1};
    int64_t overflowing = in_.count;  // the first target with a cost that is not finite
    for (int64_t first = 0; first < in_.queries; first += kWidth) {
      const int count =
          static_cast<int>(in_.queries - first < kWidth ? in_.queries - first : kWidth);
      I invalid = in_.focal ? focal_costs(first, count) : softmax_costs(first, count);
      if (!in_.tolerant && first_true(invalid, count) < count)
        return {PairCostFault::kLogits, first + first_true(invalid, count), -1};
      load_boxes(first, count);
      // NaN in a comparison is false. The sum of magnitudes is infinite if one is.
      const F magnitude = absolute(cx_) + absolute(cy_) + absolute(w_) + absolute(h_);
      const I good = (magnitude <= kLargest) & (w_ >= 0.0f) & (h_ >= 0.0f);
      if (!in_.tolerant && fault.kind == PairCostFault::kNone && first_true(~good, count) < count)
        fault = {PairCostFault::kBox, first + first_true(~good, count), -1};
      invalid |= ~good;
      const int64_t target = box_costs(first, count, invalid);
      if (target < overflowing) overflowing = target;
    }
    if (fault.kind == PairCostFault::kNone && overflowing < in_.count && !in_.tolerant)
      fault = {PairCostFault::kCost, -1, overflowing};
    return fault;
  }

 private:
  static constexpr float kLargest = 3.402823466e38f;
  static constexpr float kInfinity = __builtin_inff();

  static int first_true(I mask, int count) {
    const uint32_t lanes = true_lanes(mask) & ((1u << count) - 1);
    return lanes ? __builtin_ctz(lanes) : count;
  }

  const T* logits(int64_t query) const {
    return static_cast<const T*>(in_.logits) + query * in_.classes;
  }

  // Fills class_costs_ [D, kWidth] for queries first...; returns which have no softmax.
  I softmax_costs(int64_t first, int count) {
    F sums[kWidth], extreme = splat(0.0f);
    for (int k = 0; k < count; ++k) {
      float* const out = numerators_ + k * row_;
      F sum = splat(0.0f);
      // Most logits are within the range of exp: no pass over them to subtract their maximum.
      for_each_vector(logits(first + k), in_.classes, [&](int64_t c, F x, I counts) {
        extreme = maximum(extreme, absolute(x));
        const F e = exp_in_range(x);
        store(out + c, e);
        sum += bits_of<F>(bits_of<I>(e) & counts);
      });
      sums[k] = sum;
    }
    float scale[kWidth];
    for (int k = 0; k < count; ++k) scale[k] = total(sums[k]);
    for (int k = count; k < kWidth; ++k) scale[k] = 1;
    F sum = load<F>(scale);
    const bool in_range = highest(extreme) <= 80.0f;
    const I doubtful = ~(sum <= kLargest);
    if (!in_range || true_lanes(doubtful)) {
      for (int k = 0; k < count; ++k)
        scale[k] = careful_numerators(first + k, numerators_ + k * row_);
      sum = load<F>(scale);
    }
    int32_t offset[kWidth];
    for (int k = 0; k < kWidth; ++k) offset[k] = static_cast<int32_t>((k < count ? k : 0) * row_);
    const F factor = -in_.weight_class / sum;
    for (int64_t d = 0; d < in_.distinct; ++d)
      store(class_costs_ + d * kWidth, factor * gather(numerators_ + in_.labels[d], offset));
    return ~(sum <= kLargest);
  }

  // As the loop above, for logits of any size. Returns the sum: NaN if there is no softmax.
  float careful_numerators(int64_t query, float* out) {
    F most = splat(-kInfinity), sum = splat(0.0f);
    for_each_vector(logits(query), in_.classes, [&](int64_t, F x, I counts) {
      most = maximum(most, counts ? x : splat(-kInfinity));
    });
    const F max = splat(highest(most));
    for_each_vector(logits(query), in_.classes, [&](int64_t c, F x, I counts) {
      const F e = exp_nonpositive(x - max);
      store(out + c, e);
      sum += bits_of<F>(bits_of<I>(e) & counts);
    });
    return total(sum);
  }

  // The focal cost, at the image's labels alone; returns which queries have a logit that is NaN.
  // (An infinite logit is a probability of 0 or 1.)
  I focal_costs(int64_t first, int count) {
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
      const F positive = -in_.alpha * power(q, in_.gamma) * log_positive(p + in_.eps);
      const F negative = (in_.alpha - 1.0f) * power(p, in_.gamma) * log_positive(q + in_.eps);
      store(class_costs_ + d * kWidth, in_.weight_class * (positive - negative));
    }
    return invalid;
  }

  void load_boxes(int64_t first, int count) {
    switch (in_.boxes_dtype) {
      case Dtype::kFloat16:
        return transpose_boxes(static_cast<const Half*>(in_.boxes) + 4 * first, count);
      case Dtype::kBfloat16:
        return transpose_boxes(static_cast<const Bfloat*>(in_.boxes) + 4 * first, count);
      default:
        return transpose_boxes(static_cast<const float*>(in_.boxes) + 4 * first, count);
    }
  }

  template <class B>
  void transpose_boxes(const B* boxes, int count) {
    float member[4][kWidth];
    for (int k = 0; k < kWidth; ++k)
      for (int m = 0; m < 4; ++m) member[m][k] = widen_one(boxes + 4 * (k < count ? k : 0) + m);
    cx_ = load<F>(member[0]);
    cy_ = load<F>(member[1]);
    w_ = load<F>(member[2]);
    h_ = load<F>(member[3]);
    x0_ = cx_ - 0.5f * w_;
    y0_ = cy_ - 0.5f * h_;
    x1_ = cx_ + 0.5f * w_;
    y1_ = cy_ + 0.5f * h_;
    area_ = (x1_ - x0_) * (y1_ - y0_);
  }

  // Adds the box costs and writes `count` queries' costs; returns the first target with a cost that
  // is not finite.
  int64_t box_costs(int64_t first, int count, I invalid) {
    const int64_t stride = padded(in_.queries);
    const F padding = splat(kInfinity);
    const I exists = lane_numbers() < count;
    const bool any_invalid = true_lanes(invalid & exists) != 0;
    const F added = splat(in_.giou_added), least = splat(in_.giou_lowest);
    I overflow = splat(0);
    int64_t overflowing = in_.count;
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
      const F giou =
          overlap / maximum(both + added, least) - (hull - both) / maximum(hull + added, least);
      F cost = load<F>(class_costs_ + in_.label_of[m] * kWidth) + in_.weight_bbox * distance -
               in_.weight_giou * giou;
      const I infinite = ~(absolute(cost) <= kLargest);
      if (any_invalid || in_.tolerant) {
        cost = (infinite | invalid) ? padding : cost;
      }
      overflow |= infinite;
      if (count < kWidth) cost = exists ? cost : padding;
      store(in_.cost + m * stride + first, cost);
    }
    if (true_lanes(overflow & exists & ~invalid) != 0) overflowing = find_overflow(first, count);
    // The rest of the row's padding, where a vector is narrower than the alignment.
    if (first + kWidth >= in_.queries)
      for (int64_t n = first + kWidth; n < stride; n += kWidth)
        for (int64_t m = 0; m < in_.count; ++m) store(in_.cost + m * stride + n, padding);
    return overflowing;
  }

  int64_t find_overflow(int64_t first, int count) const {
    for (int64_t m = 0; m < in_.count; ++m)
      for (int k = 0; k < count; ++k) {
        const float x = in_.cost[m * padded(in_.queries) + first + k];
        if (!(__builtin_fabsf(x) <= kLargest)) return m;
      }
    return in_.count;
  }

  const PairCostInput& in_;
  const int64_t row_;         // floats between two queries' numerators
  float* const numerators_;   // [kWidth, row_]
  float* const class_costs_;  // [D, kWidth]
  F cx_, cy_, w_, h_, x0_, y0_, x1_, y1_, area_;
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
