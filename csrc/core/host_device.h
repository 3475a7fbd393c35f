// Marks a function of core/ that kernels call as well.
#pragma once

#ifdef __CUDACC__
#define DETR_FAST_HD __host__ __device__
#else
#define DETR_FAST_HD
#endif
