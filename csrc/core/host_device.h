// Marks functions that CUDA kernels call too.
#pragma once

#ifdef __CUDACC__
#define DETR_FAST_HD __host__ __device__
#else
#define DETR_FAST_HD
#endif
