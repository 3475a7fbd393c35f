// The inner loops of pairwise IoU, compiled once per instruction set like cpu/simd/kernels.h.
#pragma once

#include <cstdint>

#include "core/box.h"

namespace detr_fast::cpu {

// Boxes as five rows [5, M]: x0, y0, x1, y1, area.
template <class Real>
struct BoxColumns {
  const Real* rows;
  int64_t count;  // M
};

template <class Real>
struct IouKernels {
  // Writes to out [M] the IoU of `a` with each box.
  void (*row)(bool generalized, const Box<Real>& a, BoxColumns<Real> b, Real* out);
  // The gradients with respect to corners, from one row of the output's gradient [M]: that of `a`
  // is written to out_a [4], those of the boxes are added to out_b [4, M]. scratch: [4, M].
  void (*row_gradient)(bool generalized, const Box<Real>& a, BoxColumns<Real> b,
                       const Real* gradient, Real* out_a, Real* out_b, Real* scratch);
};

struct IouKernelSet {
  IouKernels<float> for_float;
  IouKernels<double> for_double;
};

}  // namespace detr_fast::cpu
