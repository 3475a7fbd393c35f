// Functions of one or two numbers.
#pragma once

#include "core/host_device.h"

namespace detr_fast {

template <class Real>
DETR_FAST_HD inline Real magnitude(Real x) {
  return x < 0 ? -x : x;
}

// Of numbers that are not NaN, unlike smaller() and larger() of core/box.h. One instruction each
// for floats.
DETR_FAST_HD inline float lesser(float a, float b) {
#ifdef __CUDA_ARCH__
  return fminf(a, b);
#else
  return a < b ? a : b;
#endif
}
DETR_FAST_HD inline double lesser(double a, double b) { return a < b ? a : b; }

template <class Real>
DETR_FAST_HD Real greater(Real a, Real b) {
  return -lesser(-a, -b);
}

}  // namespace detr_fast
