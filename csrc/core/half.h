// Half-precision numbers as the bits that they are stored as, and float32 from them.
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

}  // namespace detr_fast
