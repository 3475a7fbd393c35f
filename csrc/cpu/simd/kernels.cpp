// Compiled once per instruction set, each time with a different DETR_FAST_KERNELS (CMakeLists.txt).
#include "cpu/simd/cost_kernels.h"
#include "cpu/simd/layout_kernels.h"
#include "cpu/simd/scan_kernels.h"

#define DETR_FAST_TEXT_OF(x) #x
#define DETR_FAST_TEXT(x) DETR_FAST_TEXT_OF(x)

namespace detr_fast::cpu {

extern const Kernels DETR_FAST_KERNELS = {DETR_FAST_TEXT(DETR_FAST_KERNELS),
                                          pair_costs,
                                          {scan_kernels<float>(), layout_kernels<float>()},
                                          {scan_kernels<double>(), layout_kernels<double>()}};

}  // namespace detr_fast::cpu
