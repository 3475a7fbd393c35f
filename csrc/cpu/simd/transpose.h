// Transposes of vectors in registers.
#pragma once

#include "cpu/simd/vec.h"

namespace detr_fast::cpu {
namespace {

#if defined(__AVX2__)
// Within each quarter of 4 floats (each half, with AVX2), v[i][j] becomes v[j][i].
DETR_FAST_INLINE void transpose_quarters(F* v) {
#if defined(__AVX512F__)
  const __m512 a = (__m512)v[0], b = (__m512)v[1], c = (__m512)v[2], d = (__m512)v[3];
  const __m512d ab = _mm512_castps_pd(_mm512_unpacklo_ps(a, b)),
                cd = _mm512_castps_pd(_mm512_unpacklo_ps(c, d)),
                AB = _mm512_castps_pd(_mm512_unpackhi_ps(a, b)),
                CD = _mm512_castps_pd(_mm512_unpackhi_ps(c, d));
  v[0] = (F)_mm512_unpacklo_pd(ab, cd);
  v[1] = (F)_mm512_unpackhi_pd(ab, cd);
  v[2] = (F)_mm512_unpacklo_pd(AB, CD);
  v[3] = (F)_mm512_unpackhi_pd(AB, CD);
#else
  const __m256 a = (__m256)v[0], b = (__m256)v[1], c = (__m256)v[2], d = (__m256)v[3];
  const __m256d ab = _mm256_castps_pd(_mm256_unpacklo_ps(a, b)),
                cd = _mm256_castps_pd(_mm256_unpacklo_ps(c, d)),
                AB = _mm256_castps_pd(_mm256_unpackhi_ps(a, b)),
                CD = _mm256_castps_pd(_mm256_unpackhi_ps(c, d));
  v[0] = (F)_mm256_unpacklo_pd(ab, cd);
  v[1] = (F)_mm256_unpackhi_pd(ab, cd);
  v[2] = (F)_mm256_unpacklo_pd(AB, CD);
  v[3] = (F)_mm256_unpackhi_pd(AB, CD);
#endif
}
#endif

#if defined(__AVX512F__)
DETR_FAST_INLINE F even_quarters(F a, F b) {
  return (F)_mm512_shuffle_f32x4((__m512)a, (__m512)b, 0x88);
}
DETR_FAST_INLINE F odd_quarters(F a, F b) {
  return (F)_mm512_shuffle_f32x4((__m512)a, (__m512)b, 0xdd);
}
#elif defined(__AVX2__)
DETR_FAST_INLINE F low_halves(F a, F b) {
  return (F)_mm256_permute2f128_ps((__m256)a, (__m256)b, 0x20);
}
DETR_FAST_INLINE F high_halves(F a, F b) {
  return (F)_mm256_permute2f128_ps((__m256)a, (__m256)b, 0x31);
}
#endif

// v[i][j] becomes v[j][i].
DETR_FAST_INLINE void transpose_square(F (&v)[kWidth]) {
#if defined(__AVX512F__)
  F w[16];
  for (int k = 0; k < 16; k += 4) transpose_quarters(v + k);
  for (int k = 0; k < 4; ++k)
    for (int half = 0; half < 16; half += 8) {
      w[half + k] = even_quarters(v[half + k], v[half + k + 4]);
      w[half + k + 4] = odd_quarters(v[half + k], v[half + k + 4]);
    }
  for (int k = 0; k < 8; ++k) {
    v[k] = even_quarters(w[k], w[k + 8]);
    v[k + 8] = odd_quarters(w[k], w[k + 8]);
  }
#elif defined(__AVX2__)
  for (int k = 0; k < 8; k += 4) transpose_quarters(v + k);
  for (int k = 0; k < 4; ++k) {
    const F low = v[k], high = v[k + 4];
    v[k] = low_halves(low, high);
    v[k + 4] = high_halves(low, high);
  }
#else
  const F a = v[0], b = v[1], c = v[2], d = v[3];
  for (int k = 0; k < 4; ++k) v[k] = F{a[k], b[k], c[k], d[k]};
#endif
}

// kWidth consecutive groups of four floats become four vectors: one of all first elements, one of
// all second elements, and so on.
DETR_FAST_INLINE void transpose_fours(F (&v)[4]) {
#if defined(__AVX512F__)
  const F a = even_quarters(v[0], v[1]), b = odd_quarters(v[0], v[1]);
  const F c = even_quarters(v[2], v[3]), d = odd_quarters(v[2], v[3]);
  v[0] = even_quarters(a, c);
  v[1] = even_quarters(b, d);
  v[2] = odd_quarters(a, c);
  v[3] = odd_quarters(b, d);
  transpose_quarters(v);
#elif defined(__AVX2__)
  const F a = low_halves(v[0], v[2]), b = high_halves(v[0], v[2]);
  const F c = low_halves(v[1], v[3]), d = high_halves(v[1], v[3]);
  v[0] = a;
  v[1] = b;
  v[2] = c;
  v[3] = d;
  transpose_quarters(v);
#else
  transpose_square(v);
#endif
}

// The sum of each vector's lanes; that of v[i] is in lane i.
DETR_FAST_INLINE F totals(F (&v)[kWidth]) {
  transpose_square(v);
  for (int half = kWidth / 2; half > 0; half /= 2)
    for (int k = 0; k < half; ++k) v[k] += v[k + half];
  return v[0];
}

}  // namespace
}  // namespace detr_fast::cpu
