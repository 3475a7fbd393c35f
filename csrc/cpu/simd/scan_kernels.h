// The loops of core/scan.h on vectors. Rows are padded with infinity to a multiple of 16.
#pragma once

#include "core/scan.h"
#include "cpu/simd/kernels.h"
#include "cpu/simd/vec.h"

namespace detr_fast::cpu {
namespace {

// The first column j with x(j) == value for a vector of columns, a free one if there is one.
template <int kCount, class Equal>
DETR_FAST_INLINE int32_t find_column(int32_t n, const int32_t* owner, Equal equal) {
  int32_t found = -1;
  for (int32_t j = 0; j < n; j += kCount) {
    uint32_t lanes = equal(j);
    while (lanes != 0) {
      const int32_t col = j + __builtin_ctz(lanes);
      if (owner[col] < 0) return col;
      if (found < 0) found = col;
      lanes &= lanes - 1;
    }
  }
  return found;
}

template <class Real>
Minimum<Real> row_minimum(const Real* c, int32_t n, const int32_t* owner) {
  using V = Vec<Real>;
  constexpr int kCount = kLanes<Real>;
  const Real infinity = static_cast<Real>(__builtin_inf());
  V least = splat(infinity), least2 = least;  // two chains hide the latency of minimum()
  int32_t j = 0;
  for (; j + 2 * kCount <= n; j += 2 * kCount) {
    least = minimum(load<V>(c + j), least);
    least2 = minimum(load<V>(c + j + kCount), least2);
  }
  if (j < n) least = minimum(load<V>(c + j), least);
  const Real value = lowest(minimum(least, least2));
  if (value == infinity) return {infinity, -1};
  const V wanted = splat(value);
  return {value, find_column<kCount>(
                     n, owner, [&](int32_t k) { return equal_lanes(load<V>(c + k), wanted); })};
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
  const D wanted = splat(value);
  return {value, find_column<kCount>(n, owner, [&](int32_t j) {
            return equal_lanes(load<D>(distance + j), wanted);
          })};
}

template <class Real>
void accumulate(const Real* c, Real least, Real most, int32_t n, Real* sum) {
  using V = Vec<Real>;
  const V from = splat(least), cap = splat(most);
  for (int32_t j = 0; j < n; j += kLanes<Real>)
    store(sum + j, load<V>(sum + j) + minimum(load<V>(c + j) - from, cap));
}

template <class Real>
int32_t count_up_to(const Real* c, Real limit, int32_t n) {
  using V = Vec<Real>;
  int32_t count = 0;
#if defined(__AVX512F__)
  const V most = splat(limit);
  for (int32_t j = 0; j < n; j += kLanes<Real>)
    count += __builtin_popcount(lanes_up_to(load<V>(c + j), most));
#else
  typename IndexOf<Real>::type counts = {};
  for (int32_t j = 0; j < n; j += kLanes<Real>) counts -= load<V>(c + j) <= limit;
  for (int k = 0; k < kLanes<Real>; ++k) count += static_cast<int32_t>(counts[k]);
#endif
  return count;
}

template <class Real>
Real least_sum(const Real* c, const Real* d, int32_t n) {
  using V = Vec<Real>;
  V least = splat(static_cast<Real>(__builtin_inf()));
  for (int32_t j = 0; j < n; j += kLanes<Real>)
    least = minimum(load<V>(c + j) + load<V>(d + j), least);
  return lowest(least);
}

template <class Real>
void mark_up_to(const Real* c, Real limit, int32_t n, Real* keep) {
  using V = Vec<Real>;
  for (int32_t j = 0; j < n; j += kLanes<Real>)
    store(keep + j, minimum(load<V>(c + j) - limit, load<V>(keep + j)));
}

template <class Real>
constexpr ScanKernels<Real> scan_kernels() {
  return {row_minimum<Real>, relax<Real>,     accumulate<Real>,
          count_up_to<Real>, least_sum<Real>, mark_up_to<Real>};
}

}  // namespace
}  // namespace detr_fast::cpu
