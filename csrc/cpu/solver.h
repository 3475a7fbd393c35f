// The assignment solver with the row scans for this CPU.
#pragma once

#include <type_traits>

#include "core/assignment.h"
#include "cpu/simd/kernels.h"

namespace detr_fast::cpu {

template <class Real>
const KernelsOf<Real>& kernels_of() {
  if constexpr (std::is_same_v<Real, float>)
    return kernels().for_float;
  else
    return kernels().for_double;
}

template <class Real>
struct SimdScan : ScanKernels<Real> {
  SimdScan() : ScanKernels<Real>(kernels_of<Real>().scan) {}
};

template <class Real>
using Solver = AssignmentSolver<Real, SimdScan<Real>>;

}  // namespace detr_fast::cpu
