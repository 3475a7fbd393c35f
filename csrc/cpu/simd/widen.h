// Loads float32, float16 and bfloat16 from memory as vectors of floats.
#pragma once

#include "core/half.h"
#include "cpu/simd/vec.h"

namespace detr_fast::cpu {
namespace {

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

}  // namespace
}  // namespace detr_fast::cpu
