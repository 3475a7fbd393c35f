// exp and log on vectors of floats. The coefficients minimise the maximum relative error; they were
// fitted for this file.
#pragma once

#include "cpu/simd/vec.h"

namespace detr_fast::cpu {
namespace {

#if defined(__AVX2__)
// Entry (n modulo kWidth) of the table of exp_in_range, for each lane's n.
DETR_FAST_INLINE I table_entry(I n) {
#if defined(__AVX512F__)
  const I table = {0x3f800000, 0x3f7daac3, 0x3f7b95c2, 0x3f79c3d3, 0x3f7837f0, 0x3f76f532,
                   0x3f75fed7, 0x3f75583f, 0x3f7504f3, 0x3f7508a4, 0x3f75672a, 0x3f76248c,
                   0x3f7744fd, 0x3f78ccdf, 0x3f7ac0c7, 0x3f7d257d};
  return (I)_mm512_permutexvar_epi32((__m512i)n, (__m512i)table);
#else
  const I table = {0x3f800000, 0x3f7b95c2, 0x3f7837f0, 0x3f75fed7,
                   0x3f7504f3, 0x3f75672a, 0x3f7744fd, 0x3f7ac0c7};
  return (I)_mm256_permutevar8x32_epi32((__m256i)table, (__m256i)n);
#endif
}
#endif

// e^x, to 2 units in the last place for |x| <= 20 and to 5 for |x| <= 87.3; NaN stays NaN.
DETR_FAST_INLINE F exp_in_range(F x) {
  const F shift = splat(12582912.0f);  // 1.5 * 2^23: adding it leaves an integer in the low bits
#if defined(__AVX2__)
  // x = n ln2 / kWidth + r. For k = n modulo kWidth, the table holds the bits of 2^(k / kWidth)
  // minus the k that adding n to the exponent's bits adds once more. One constant is enough for
  // ln2, whose float is off by only 3e-9: with fused multiply-add, r is off by 3e-9 x.
  const F shifted = x * (1.44269504f * kWidth) + shift;
  const F n = shifted - shift;
  const F r = x - n * (0.693147182f / kWidth);
  F p = r * 0.1666685938835144f + 0.5000646114349365f;  // off by at most 2.6e-8
  p = (p * r) * r + r;
  const I bits = bits_of<I>(shifted);
  const F power = bits_of<F>(table_entry(bits) + (bits << (kWidth == 16 ? 19 : 20)));
  return power * p + power;
#else
  // x = n ln2 + r, |r| <= ln2 / 2.
  const F shifted = x * 1.44269504f + shift;
  const F n = shifted - shift;
  const F r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  F p = r * 0.0013814539415761828f + 0.00836874544620514f;  // off by at most 3.1e-9
  p = p * r + 0.04166838899254799f;
  p = p * r + 0.1666652113199234f;
  p = p * r + 0.4999999403953552f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  return p * bits_of<F>((bits_of<I>(shifted) + 127) << 23);  // 2^n: its exponent bits
#endif
}

// e^x for x <= 0. Below -87.3, where results would soon be denormal, it stays at 1.2e-38.
DETR_FAST_INLINE F exp_nonpositive(F x) {
  return exp_in_range(maximum(splat(-87.3f), x));  // in this argument order NaN stays NaN
}

// ln(x) for normal x > 0, to 2 units in the last place. x = 2^n (1 + t), sqrt(1/2) <= 1 + t.
DETR_FAST_INLINE F log_positive(F x) {
  const int32_t root = 0x3f3504f3;  // the bits of sqrt(1/2)
  const I above = bits_of<I>(x) - root;
  const I n = above >> 23;
  const F t = bits_of<F>((above & 0x7fffff) + root) - 1.0f;
  F p = t * 0.06746640801429749f - 0.11675652116537094f;  // off by at most 7.5e-10
  p = p * t + 0.11888162046670914f;
  p = p * t - 0.1240558922290802f;
  p = p * t + 0.14219552278518677f;
  p = p * t - 0.1666799634695053f;
  p = p * t + 0.2000211924314499f;
  p = p * t - 0.25000008940696716f;
  p = p * t + 0.3333331346511841f;
  const F exponent = __builtin_convertvector(n, F);
  const F square = t * t;
  // ln2 in two parts. The larger has few significant bits, so that its product with n is exact.
  return exponent * 0.693359375f + (t + (square * (p * t - 0.5f) + exponent * -2.12194440e-4f));
}

// x^y for 0 <= x <= 1 and y >= 0.
DETR_FAST_INLINE F power(F x, float y) {
  if (y == 2.0f) return x * x;
  if (y == 0.0f) return splat(1.0f);
  return exp_nonpositive(y * log_positive(maximum(x, splat(1.2e-38f))));
}

}  // namespace
}  // namespace detr_fast::cpu
