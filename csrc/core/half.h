// Conversion of half-precision numbers, held as their stored bits, to float32 and back.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/host_device.h"

namespace detr_fast {

struct Half {  // IEEE binary16
  uint16_t bits;
};
struct Bfloat {  // the upper half of a float
  uint16_t bits;
};

DETR_FAST_HD inline float float_of_bits(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

DETR_FAST_HD inline uint32_t bits_of_float(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}

DETR_FAST_HD inline float to_float(float x) { return x; }

DETR_FAST_HD inline float to_float(Bfloat x) {
  return float_of_bits(static_cast<uint32_t>(x.bits) << 16);
}

DETR_FAST_HD inline float to_float(Half x) {
#ifdef __CUDA_ARCH__
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(x.bits));
  return wide;
#else
  // Move the exponent and fraction into place, then multiply by 2^112: this shifts the exponent to
  // its new bias, denormals included. An exponent of all ones must stay all ones.
  const uint32_t special = (x.bits & 0x7c00u) == 0x7c00u ? 0x7f800000u : 0u;
  const float scaled = float_of_bits((x.bits & 0x7fffu) << 13) * 0x1p112f;
  return float_of_bits(bits_of_float(scaled) | special | (x.bits & 0x8000u) << 16);
#endif
}

// Rounds to nearest, ties to even.
DETR_FAST_HD inline void store(float* to, float x) { *to = x; }

DETR_FAST_HD inline void store(Bfloat* to, float x) {
  const uint32_t bits = bits_of_float(x);
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;  // rounding up could make it infinite
  to->bits = static_cast<uint16_t>(nan ? 0x7fc0u : (bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

DETR_FAST_HD inline void store(Half* to, float x) {
#ifdef __CUDA_ARCH__
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to->bits) : "f"(x));
#else
  const uint32_t bits = bits_of_float(x), sign = bits >> 16 & 0x8000u;
  uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) {
    magnitude = 0x7e00u;  // NaN
  } else if (magnitude < 0x38800000u) {
    // Below 2^-14: denormal. Adding 0.5 rounds to a multiple of 2^-24, a denormal's last bit.
    magnitude = bits_of_float(float_of_bits(magnitude) + 0.5f) - bits_of_float(0.5f);
  } else {
    magnitude = (magnitude + 0xfffu + (magnitude >> 13 & 1) - 0x38000000u) >> 13;
    if (magnitude > 0x7c00u) magnitude = 0x7c00u;  // infinite
  }
  to->bits = static_cast<uint16_t>(sign | magnitude);
#endif
}

}  // namespace detr_fast
