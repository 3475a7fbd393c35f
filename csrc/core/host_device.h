// Marks functions of core/ that kernels call as well.
#pragma once

#ifdef __CUDACC__
#define DETR_FAST_HD __host__ __device__
// For the parts of a kernel's body: large, but called once. Without it the compiler makes calls of
// them, whose registers it saves to memory.
#define DETR_FAST_KERNEL_PART __host__ __device__ __forceinline__
#else
#define DETR_FAST_HD
#define DETR_FAST_KERNEL_PART
#endif
