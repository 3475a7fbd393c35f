// The loops of core/scan.h on vectors. Rows are padded with infinity to a multiple of 16.
#pragma once

#include "core/scan.h"
#include "cpu/simd/kernels.h"
#include "cpu/simd/vec.h"

namespace detr_fast::cpu {
namespace {

// The first free column for which equal() has a bit set, or the first column if none is free.
// equal(j) returns one bit for each of the kCount columns from j on.
template <int kCount, class Equal>
DETR_FAST_INLINE int32_t find_column(int32_t n, const int32_t* owner, Equal equal) {
  int32_t first = -1;
  for (int32_t j = 0; j < n; j += kCount) {
    uint32_t lanes = equal(j);
    while (lanes != 0) {
      const int32_t col = j + __builtin_ctz(lanes);
      if (owner[col] < 0) return col;
      if (first < 0) first = col;
      lanes &= lanes - 1;
    }
  }
  return first;
}

template <class Real>
Minimum<Real> row_minimum(const Real* c, int32_t n, const int32_t* owner) {
  using V = Vec<Real>;
  constexpr int kCount = kLanes<Real>;
  const Real infinity = static_cast<Real>(__builtin_inf());
  V least = splat(infinity), least2 = least;  // two chains, to hide the latency of minimum()
  int32_t j = 0;
  for (; j + 2 * kCount <= n; j += 2 * kCount) {
    least = minimum(load<V>(c + j), least);
    least2 = minimum(load<V>(c + j + kCount), least2);
  }
  if (j < n) least = minimum(load<V>(c + j), least);
  const Real value = lowest(minimum(least, least2));
  if (value == infinity) return {infinity, -1};
  const V value_lanes = splat(value);
  return {value, find_column<kCount>(n, owner, [&](int32_t k) {
            return equal_lanes(load<V>(c + k), value_lanes);
          })};
}

template <class Real>
Minimum<double> relax(const Real* c, const double* v, double* distance, int32_t n, double base,
                      const int32_t* owner) {
  constexpr int kCount = kLanes<double>;
  const D start = splat(base);
  D least = splat(__builtin_inf()), least2 = least;
  for (int32_t j = 0; j < n; j += 2 * kCount) {
    const D a = minimum(start + load_wide(c + j) - load<D>(v + j), load<D>(distance + j));
    const D b = minimum(start + load_wide(c + j + kCount) - load<D>(v + j + kCount),
                        load<D>(distance + j + kCount));
    store(distance + j, a);
    store(distance + j + kCount, b);
    least = minimum(a, least);
    least2 = minimum(b, least2);
  }
  const double value = lowest(minimum(least, least2));
  if (value == __builtin_inf()) return {value, -1};
  const D value_lanes = splat(value);
  return {value, find_column<kCount>(n, owner, [&](int32_t j) {
            return equal_lanes(load<D>(distance + j), value_lanes);
          })};
}

// Keeps the two smallest values: `least` becomes the smaller of x and `least`, and `next` the
// smaller of `next` and the other.
template <class V>
DETR_FAST_INLINE void keep_two(V x, V& least, V& next) {
  next = minimum(maximum(x, least), next);
  least = minimum(x, least);
}

template <class Real>
Offer<Real> cheapest(const Real* c, const Real* price, int32_t n, const int32_t* owner) {
  using V = Vec<Real>;
  constexpr int kCount = kLanes<Real>;
  const Real infinity = static_cast<Real>(__builtin_inf());
  V least = splat(infinity), next = least, least2 = least, next2 = least;
  int32_t j = 0;
  for (; j + 2 * kCount <= n; j += 2 * kCount) {
    keep_two(load<V>(c + j) + load<V>(price + j), least, next);
    keep_two(load<V>(c + j + kCount) + load<V>(price + j + kCount), least2, next2);
  }
  if (j < n) keep_two(load<V>(c + j) + load<V>(price + j), least, next);
  keep_two(least2, least, next);
  const Real cost = lowest(least);
  if (cost == infinity) return {infinity, infinity, -1};
  const V cost_lanes = splat(cost);
  const auto equal = [&](int32_t k) {
    return equal_lanes(load<V>(c + k) + load<V>(price + k), cost_lanes);
  };
  // One lane's least is the cost; the least of another lane may be the second.
  Real others[kCount];
  store(others, least);
  others[__builtin_ctz(equal_lanes(least, cost_lanes))] = infinity;
  const Real second = lowest(minimum(minimum(next, next2), load<V>(others)));
  if (second == cost) return {cost, second, find_column<kCount>(n, owner, equal)};
  uint32_t lanes = 0;
  for (j = -kCount; lanes == 0;) lanes = equal(j += kCount);
  return {cost, second, j + __builtin_ctz(lanes)};
}

template <class Real>
constexpr ScanKernels<Real> scan_kernels() {
  return {row_minimum<Real>, relax<Real>, cheapest<Real>};
}

}  // namespace
}  // namespace detr_fast::cpu
