// Compiled once per instruction set, each time with a different DETR_FAST_SET (CMakeLists.txt).
#include "cpu/simd/cost_kernels.h"
#include "cpu/simd/layout_kernels.h"
#include "cpu/simd/scan_kernels.h"
#include "cpu/simd/set_name.h"

namespace detr_fast::cpu {

extern const IouKernelSet DETR_FAST_OF_SET(iou);
extern const DropoutKernelSet DETR_FAST_OF_SET(dropout);

extern const Kernels DETR_FAST_OF_SET(kernels) = {
    DETR_FAST_SET_NAME,
    pair_costs,
    {scan_kernels<float>(), layout_kernels<float>()},
    {scan_kernels<double>(), layout_kernels<double>()},
    DETR_FAST_OF_SET(iou),
    DETR_FAST_OF_SET(dropout)};

}  // namespace detr_fast::cpu
