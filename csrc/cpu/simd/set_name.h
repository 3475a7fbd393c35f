// The names of what is compiled once per instruction set: DETR_FAST_OF_SET(kernels) is kernels_avx2
// where CMakeLists.txt defines DETR_FAST_SET as avx2.
#pragma once

#define DETR_FAST_JOIN_NAMES(a, b) a##_##b
#define DETR_FAST_JOIN(a, b) DETR_FAST_JOIN_NAMES(a, b)
#define DETR_FAST_OF_SET(name) DETR_FAST_JOIN(name, DETR_FAST_SET)

#define DETR_FAST_QUOTE_NAME(name) #name
#define DETR_FAST_QUOTE(name) DETR_FAST_QUOTE_NAME(name)
#define DETR_FAST_SET_NAME DETR_FAST_QUOTE(DETR_FAST_SET)
