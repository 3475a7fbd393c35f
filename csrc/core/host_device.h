// Marks functions of core/ that are also called by kernels.
#pragma once

#ifdef __CUDACC__
#define DETR_FAST_HD __host__ __device__
// For parts of a kernel's body, which are large but called once. Without it the compiler emits
// calls to them and saves registers to memory around each.
#define DETR_FAST_KERNEL_PART __host__ __device__ __forceinline__
#else
#define DETR_FAST_HD
#define DETR_FAST_KERNEL_PART
#endif

// Before a loop: unroll it fully, or not at all.
#ifdef __CUDA_ARCH__
#define DETR_FAST_UNROLL _Pragma("unroll")
#define DETR_FAST_KEEP_LOOP _Pragma("unroll 1")
#else
#define DETR_FAST_UNROLL
#define DETR_FAST_KEEP_LOOP
#endif
