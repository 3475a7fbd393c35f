// Vectors of the widest registers that this translation unit is compiled for: 16 floats or 8
// doubles with AVX-512, half as many with AVX2, a quarter otherwise (SSE2, NEON). Arithmetic,
// comparison and selection use the compiler's vector extension; intrinsics only do what it cannot
// express.
//
// kernels.cpp, which includes this, is compiled once per instruction set, as are
// box_iou_kernels.cpp and dropout_kernels.cpp. Everything here is therefore in an unnamed
// namespace, and an inline function of another header may be called only if the compiler inlines it
// (a test looks at the object files): the linker would keep a single copy, possibly one that an
// older CPU cannot run.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
// GCC 12 and earlier warn about the deliberately undefined operands inside.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif

namespace detr_fast::cpu {
namespace {

#if defined(__AVX512F__)
constexpr int kWidth = 16;
#elif defined(__AVX2__)
constexpr int kWidth = 8;
#else
constexpr int kWidth = 4;
#endif

// Floats, doubles, and integers as wide as each; comparisons return these integers (-1 = true).
typedef float F __attribute__((vector_size(4 * kWidth)));
typedef int32_t I __attribute__((vector_size(4 * kWidth)));
typedef double D __attribute__((vector_size(4 * kWidth)));
typedef int64_t L __attribute__((vector_size(4 * kWidth)));

template <class Real>
struct VectorOf;
template <>
struct VectorOf<float> {
  using type = F;
};
template <>
struct VectorOf<double> {
  using type = D;
};
// Integers as wide as a Real.
template <class Real>
struct IndexOf;
template <>
struct IndexOf<float> {
  using type = I;
  using lane = int32_t;
};
template <>
struct IndexOf<double> {
  using type = L;
  using lane = int64_t;
};
template <class Real>
using Vec = typename VectorOf<Real>::type;
template <class Real>
constexpr int kLanes = 4 * kWidth / static_cast<int>(sizeof(Real));

#define DETR_FAST_INLINE [[gnu::always_inline]] inline

template <class V, class Real>
DETR_FAST_INLINE V load(const Real* x) {
  V v;
  std::memcpy(&v, x, sizeof v);
  return v;
}

template <class V, class Real>
DETR_FAST_INLINE void store(Real* x, V v) {
  std::memcpy(x, &v, sizeof v);
}

DETR_FAST_INLINE F splat(float x) { return x - F{}; }
DETR_FAST_INLINE D splat(double x) { return x - D{}; }
DETR_FAST_INLINE I splat(int32_t x) { return x - I{}; }
DETR_FAST_INLINE L splat(int64_t x) { return x - L{}; }

// 0, 1, 2, ...
template <class Real>
DETR_FAST_INLINE typename IndexOf<Real>::type lane_numbers() {
  typename IndexOf<Real>::type lanes;
  for (int k = 0; k < kLanes<Real>; ++k) lanes[k] = k;
  return lanes;
}

template <class To, class From>
DETR_FAST_INLINE To bits_of(From v) {
  To to;
  static_assert(sizeof to == sizeof v);
  std::memcpy(&to, &v, sizeof to);
  return to;
}

DETR_FAST_INLINE F absolute(F v) { return bits_of<F>(bits_of<I>(v) & 0x7fffffff); }

// a < b ? a : b (maximum: a > b ? a : b), so b where either is NaN. With intrinsics, because GCC 12
// does not compile it to one instruction.
#if defined(__AVX512F__)
DETR_FAST_INLINE F minimum(F a, F b) { return (F)_mm512_min_ps((__m512)a, (__m512)b); }
DETR_FAST_INLINE D minimum(D a, D b) { return (D)_mm512_min_pd((__m512d)a, (__m512d)b); }
DETR_FAST_INLINE F maximum(F a, F b) { return (F)_mm512_max_ps((__m512)a, (__m512)b); }
DETR_FAST_INLINE D maximum(D a, D b) { return (D)_mm512_max_pd((__m512d)a, (__m512d)b); }
#elif defined(__AVX2__)
DETR_FAST_INLINE F minimum(F a, F b) { return (F)_mm256_min_ps((__m256)a, (__m256)b); }
DETR_FAST_INLINE D minimum(D a, D b) { return (D)_mm256_min_pd((__m256d)a, (__m256d)b); }
DETR_FAST_INLINE F maximum(F a, F b) { return (F)_mm256_max_ps((__m256)a, (__m256)b); }
DETR_FAST_INLINE D maximum(D a, D b) { return (D)_mm256_max_pd((__m256d)a, (__m256d)b); }
#else
DETR_FAST_INLINE F minimum(F a, F b) { return a < b ? a : b; }
DETR_FAST_INLINE D minimum(D a, D b) { return a < b ? a : b; }
DETR_FAST_INLINE F maximum(F a, F b) { return a > b ? a : b; }
DETR_FAST_INLINE D maximum(D a, D b) { return a > b ? a : b; }
#endif

// The larger of a >= 0 and |b|.
DETR_FAST_INLINE F largest_magnitude(F a, F b) {
#if defined(__AVX512F__)
  return (F)_mm512_range_ps((__m512)a, (__m512)b, 0b1011);
#else
  return maximum(a, absolute(b));
#endif
}

// The minimum or maximum across the lanes of one vector.
#if defined(__AVX512F__)
DETR_FAST_INLINE float lowest(F v) { return _mm512_reduce_min_ps((__m512)v); }
DETR_FAST_INLINE double lowest(D v) { return _mm512_reduce_min_pd((__m512d)v); }
DETR_FAST_INLINE float highest(F v) { return _mm512_reduce_max_ps((__m512)v); }
#else
template <class Real, class V, class Combine>
DETR_FAST_INLINE Real fold(V v, Combine combine) {
  constexpr int kCount = sizeof(V) / sizeof(Real);
  Real x[kCount];
  store(x, v);
  for (int half = kCount / 2; half > 0; half /= 2)
    for (int k = 0; k < half; ++k) x[k] = combine(x[k], x[k + half]);
  return x[0];
}
DETR_FAST_INLINE float lowest(F v) {
  return fold<float>(v, [](float a, float b) { return a < b ? a : b; });
}
DETR_FAST_INLINE double lowest(D v) {
  return fold<double>(v, [](double a, double b) { return a < b ? a : b; });
}
DETR_FAST_INLINE float highest(F v) {
  return fold<float>(v, [](float a, float b) { return a > b ? a : b; });
}
#endif

// equal_lanes: a bit for each lane in which the vectors are equal. true_lanes: for each true lane.
#if defined(__AVX512F__)
DETR_FAST_INLINE uint32_t equal_lanes(F a, F b) {
  return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_EQ_OQ);
}
DETR_FAST_INLINE uint32_t equal_lanes(D a, D b) {
  return _mm512_cmp_pd_mask((__m512d)a, (__m512d)b, _CMP_EQ_OQ);
}
DETR_FAST_INLINE uint32_t true_lanes(I mask) { return _mm512_movepi32_mask((__m512i)mask); }
#elif defined(__AVX2__)
DETR_FAST_INLINE uint32_t equal_lanes(F a, F b) {
  return _mm256_movemask_ps(_mm256_cmp_ps((__m256)a, (__m256)b, _CMP_EQ_OQ));
}
DETR_FAST_INLINE uint32_t equal_lanes(D a, D b) {
  return _mm256_movemask_pd(_mm256_cmp_pd((__m256d)a, (__m256d)b, _CMP_EQ_OQ));
}
DETR_FAST_INLINE uint32_t true_lanes(I mask) { return _mm256_movemask_ps((__m256)mask); }
#else
template <class V>
DETR_FAST_INLINE uint32_t sign_bits(V mask) {
  uint32_t bits = 0;
  for (unsigned k = 0; k < sizeof(V) / sizeof mask[0]; ++k)
    bits |= static_cast<uint32_t>(mask[k] & 1) << k;
  return bits;
}
DETR_FAST_INLINE uint32_t equal_lanes(F a, F b) { return sign_bits(a == b); }
DETR_FAST_INLINE uint32_t equal_lanes(D a, D b) { return sign_bits(a == b); }
DETR_FAST_INLINE uint32_t true_lanes(I mask) { return sign_bits(mask); }
#endif

// Loads kLanes<double> numbers and converts them to double.
DETR_FAST_INLINE D load_wide(const double* x) { return load<D>(x); }
DETR_FAST_INLINE D load_wide(const float* x) {
#if defined(__AVX512F__)
  return (D)_mm512_cvtps_pd(_mm256_loadu_ps(x));
#elif defined(__AVX2__)
  return (D)_mm256_cvtps_pd(_mm_loadu_ps(x));
#else
  return D{x[0], x[1]};
#endif
}

// x[index[k]] in each lane k.
DETR_FAST_INLINE F gather(const float* x, const int32_t* index) {
#if defined(__AVX512F__)
  return (F)_mm512_i32gather_ps(_mm512_loadu_si512(index), x, 4);
#elif defined(__AVX2__)
  return (F)_mm256_i32gather_ps(x, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(index)), 4);
#else
  return F{x[index[0]], x[index[1]], x[index[2]], x[index[3]]};
#endif
}

}  // namespace
}  // namespace detr_fast::cpu
