// Dropout whose mask is a function of a seed and the element's position: no mask is stored, and the
// backward pass computes the same mask again.
#pragma once

#include <cstdint>

#include "core/half.h"

namespace detr_fast::cpu {

struct DropoutInput {
  int64_t count;  // elements
  uint64_t seed;
  uint32_t threshold;  // how many of 65536 elements are dropped, on average
  float scale;         // of the elements that are kept
  int threads;
};

// out [count] = scale * x where kept, else 0; with `relu`, max(x, 0) replaces x. T is float or
// Bfloat.
template <class T>
void dropout(const DropoutInput& in, const T* x, bool relu, T* out);

// The gradient of dropout with `relu` with respect to its input: scale * gradient where `out` > 0,
// else 0.
template <class T>
void relu_dropout_backward(const DropoutInput& in, const T* gradient, const T* out, T* by_input);

// The inner loops, compiled once per instruction set. A block has kDropoutBlock elements; the last
// one may have fewer.
constexpr int64_t kDropoutBlock = 1024;

template <class T>
struct DropoutKernels {
  void (*block)(const DropoutInput& in, int64_t block, const T* x, bool relu, T* out, int64_t n);
  void (*backward)(float scale, const T* gradient, const T* out, T* by_input, int64_t n);
};

struct DropoutKernelSet {
  DropoutKernels<float> for_float;
  DropoutKernels<Bfloat> for_bfloat;
};

}  // namespace detr_fast::cpu
