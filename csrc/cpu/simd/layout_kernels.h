// From a caller's contiguous matrix to the solver's rows: one pass checks it and finds the minimum
// of each row or column, which is enough for an easy problem; a hard one also needs a padded copy.
#pragma once

#include "cpu/simd/kernels.h"
#include "cpu/simd/vec.h"

namespace detr_fast::cpu {
namespace {

// The running minima of kCount vectors, where each came from, and whether any entry was invalid or
// huge.
template <class Real, int kCount>
struct RunningMinima {
  using V = Vec<Real>;
  using Index = typename IndexOf<Real>::type;

  V value[kCount];
  Index index[kCount];
  Index valid = Index{} - 1, huge = Index{};

  RunningMinima() {
    for (int k = 0; k < kCount; ++k) {
      value[k] = splat(static_cast<Real>(__builtin_inf()));
      index[k] = Index{} - 1;
    }
  }

  DETR_FAST_INLINE void add(int k, V x, Index from) {
    valid &= x > -kInfinity;  // false for NaN
    if constexpr (sizeof(Real) == 8) huge |= ((x > kHuge) & (x < kInfinity)) | (x < -kHuge);
    index[k] = x < value[k] ? from : index[k];
    value[k] = minimum(x, value[k]);
  }

  Inspection inspection() const {
    bool is_valid = true, is_huge = false;
    for (int k = 0; k < kLanes<Real>; ++k) {
      is_valid &= valid[k] != 0;
      is_huge |= huge[k] != 0;
    }
    return {!is_valid, is_huge};
  }

 private:
  // Above this, a sum of path lengths could overflow a double and make a feasible problem look
  // infeasible. Floats are far below it.
  static constexpr Real kHuge = static_cast<Real>(sizeof(Real) == 8 ? 1e300 : 1);
  static constexpr Real kInfinity = static_cast<Real>(__builtin_inf());
};

// Loads a vector at x, where `left` elements exist; reads no others.
template <class Real>
DETR_FAST_INLINE Vec<Real> load_within(const Real* x, int64_t left) {
  if (left >= kLanes<Real>) return load<Vec<Real>>(x);
  Real copy[kLanes<Real>];
  for (int k = 0; k < kLanes<Real>; ++k) copy[k] = x[k < left ? k : 0];
  return load<Vec<Real>>(copy);
}

// The matrix is seldom in a near cache, and the processor's own prefetching stops at each page.
// Prefetching this many bytes ahead, a double matrix of 900 columns takes two thirds of the time.
constexpr int64_t kAhead = 4096;

template <class Real>
Inspection row_minima(const Real* cost, int64_t rows, int64_t cols, Real sign, Minimum<Real>* out) {
  constexpr int kCount = kLanes<Real>;
  using Lane = typename IndexOf<Real>::lane;
  const auto lanes = lane_numbers<Real>();
  Inspection all = {false, false};
  for (int64_t i = 0; i < rows; ++i, cost += cols) {
    RunningMinima<Real, 1> minima;
    int64_t j = 0;
    for (; j + kCount <= cols; j += kCount) {
      __builtin_prefetch(cost + j + kAhead / sizeof(Real));
      minima.add(0, sign * load<Vec<Real>>(cost + j), lanes + static_cast<Lane>(j));
    }
    if (j < cols && cols >= kCount) {  // overlaps the previous vector
      j = cols - kCount;
      minima.add(0, sign * load<Vec<Real>>(cost + j), lanes + static_cast<Lane>(j));
    } else if (j < cols) {  // lanes beyond the row repeat its first entry, and rank after it
      minima.add(0, sign * load_within(cost, cols), lanes);
    }
    const Inspection of_row = minima.inspection();
    all.invalid |= of_row.invalid;
    all.huge |= of_row.huge;
    const Real value = lowest(minima.value[0]);
    Lane col = -1;
    uint32_t at = equal_lanes(minima.value[0], splat(value));
    if (value < static_cast<Real>(__builtin_inf())) {
      for (; at != 0; at &= at - 1) {
        const Lane j_of_lane = minima.index[0][__builtin_ctz(at)];
        if (col < 0 || j_of_lane < col) col = j_of_lane;
      }
    }
    out[i] = {value, static_cast<int32_t>(col)};
  }
  return all;
}

// The minima of the columns first..first + kVectors * kLanes - 1 over all rows. Lanes beyond the
// last column read entries of the rows below, which belong to the matrix too.
template <int kVectors, class Real>
DETR_FAST_INLINE Inspection panel_minima(const Real* cost, int64_t rows, int64_t cols,
                                         int64_t first, Real sign, Minimum<Real>* out) {
  constexpr int kCount = kLanes<Real>;
  using Lane = typename IndexOf<Real>::lane;
  RunningMinima<Real, kVectors> minima;
  typename IndexOf<Real>::type row = {};
  const int64_t size = rows * cols;
  int64_t i = 0;
  const int64_t reach = first + kVectors * kCount;  // beyond the row's start
  for (; i * cols + reach <= size && i < rows; ++i, row += 1) {
    // The matrix is seldom in a near cache, and the processor's own prefetching does not follow the
    // steps from row to row: without this, problems from memory take 15 % longer.
    if (first == 0)
      for (int64_t j = 0; j < cols; j += 64 / static_cast<int64_t>(sizeof(Real)))
        __builtin_prefetch(cost + i * cols + j + 2048 / sizeof(Real));
    for (int k = 0; k < kVectors; ++k)
      minima.add(k, sign * load<Vec<Real>>(cost + i * cols + first + k * kCount), row);
  }
  for (; i < rows; ++i, row += 1)
    for (int k = 0; k < kVectors; ++k) {
      const int64_t at = i * cols + first + k * kCount;
      minima.add(k, sign * load_within(cost + at, size - at), row);
    }
  for (int k = 0; k < kVectors; ++k)
    for (int lane = 0; lane < kCount; ++lane) {
      const int64_t j = first + k * kCount + lane;
      if (j < cols)
        out[j] = {minima.value[k][lane], static_cast<int32_t>(Lane(minima.index[k][lane]))};
    }
  return minima.inspection();
}

template <class Real>
Inspection col_minima(const Real* cost, int64_t rows, int64_t cols, Real sign, Minimum<Real>* out) {
  constexpr int kCount = kLanes<Real>;
  Inspection all = {false, false};
  for (int64_t first = 0; first < cols;) {
    const int64_t vectors = (cols - first + kCount - 1) / kCount;
    Inspection of_panel;
    int64_t width = 4;  // vectors
    if (vectors >= 4) {
      of_panel = panel_minima<4>(cost, rows, cols, first, sign, out);
    } else if (vectors >= 2) {
      of_panel = panel_minima<2>(cost, rows, cols, first, sign, out);
      width = 2;
    } else {
      of_panel = panel_minima<1>(cost, rows, cols, first, sign, out);
      width = 1;
    }
    all.invalid |= of_panel.invalid;
    all.huge |= of_panel.huge;
    first += width * kCount;
  }
  return all;
}

template <class Real>
DETR_FAST_INLINE void pad(Real* row, int64_t n, int64_t stride) {
  for (int64_t j = n; j < stride; ++j) row[j] = static_cast<Real>(__builtin_inf());
}

template <class Real>
void copy_rows(const Real* cost, int64_t rows, int64_t cols, Real factor, Real* out,
               int64_t stride) {
  for (int64_t i = 0; i < rows; ++i, cost += cols, out += stride) {
    for (int64_t j = 0; j < cols; ++j) out[j] = factor * cost[j];
    pad(out, cols, stride);
  }
}

// Transposes 4 x 4 entries of `in`, whose rows are `in_stride` apart, to 4 x 4 entries of `out`.
template <class Real>
DETR_FAST_INLINE void transpose_tile(const Real* in, int64_t in_stride, Real factor, Real* out,
                                     int64_t out_stride) {
  for (int i = 0; i < 4; ++i)
    for (int j = 0; j < 4; ++j) out[j * out_stride + i] = factor * in[i * in_stride + j];
}
#if defined(__SSE2__)
DETR_FAST_INLINE void transpose_tile(const float* in, int64_t in_stride, float factor, float* out,
                                     int64_t out_stride) {
  const __m128 f = _mm_set1_ps(factor);
  __m128 a = _mm_mul_ps(f, _mm_loadu_ps(in)), b = _mm_mul_ps(f, _mm_loadu_ps(in + in_stride)),
         c = _mm_mul_ps(f, _mm_loadu_ps(in + 2 * in_stride)),
         d = _mm_mul_ps(f, _mm_loadu_ps(in + 3 * in_stride));
  _MM_TRANSPOSE4_PS(a, b, c, d);
  _mm_storeu_ps(out, a);
  _mm_storeu_ps(out + out_stride, b);
  _mm_storeu_ps(out + 2 * out_stride, c);
  _mm_storeu_ps(out + 3 * out_stride, d);
}
DETR_FAST_INLINE void transpose_tile(const double* in, int64_t in_stride, double factor,
                                     double* out, int64_t out_stride) {
  const __m128d f = _mm_set1_pd(factor);
  for (int i = 0; i < 4; i += 2)
    for (int j = 0; j < 4; j += 2) {
      const __m128d a = _mm_mul_pd(f, _mm_loadu_pd(in + i * in_stride + j));
      const __m128d b = _mm_mul_pd(f, _mm_loadu_pd(in + (i + 1) * in_stride + j));
      _mm_storeu_pd(out + j * out_stride + i, _mm_unpacklo_pd(a, b));
      _mm_storeu_pd(out + (j + 1) * out_stride + i, _mm_unpackhi_pd(a, b));
    }
}
#endif

template <class Real>
void transpose(const Real* cost, int64_t rows, int64_t cols, Real factor, Real* out,
               int64_t stride) {
  const int64_t whole_rows = rows / 4 * 4, whole_cols = cols / 4 * 4;
  // 16 rows at a time, so that a line of `out` is filled while it is in the nearest cache.
  for (int64_t top = 0; top < whole_rows; top += 16) {
    const int64_t bottom = top + 16 < whole_rows ? top + 16 : whole_rows;
    for (int64_t j = 0; j < whole_cols; j += 4)
      for (int64_t i = top; i < bottom; i += 4)
        transpose_tile(cost + i * cols + j, cols, factor, out + j * stride + i, stride);
    for (int64_t j = whole_cols; j < cols; ++j)
      for (int64_t i = top; i < bottom; ++i) out[j * stride + i] = factor * cost[i * cols + j];
  }
  for (int64_t j = 0; j < cols; ++j) {
    for (int64_t i = whole_rows; i < rows; ++i) out[j * stride + i] = factor * cost[i * cols + j];
    pad(out + j * stride, rows, stride);
  }
}

template <class Real>
constexpr LayoutKernels<Real> layout_kernels() {
  return {row_minima<Real>, col_minima<Real>, copy_rows<Real>, transpose<Real>};
}

}  // namespace
}  // namespace detr_fast::cpu
