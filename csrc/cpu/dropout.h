// Dropout whose mask is a function of a seed and the element's place: nothing to store, and the
// backward pass draws the same again.
#pragma once

#include <cstdint>

#include "core/half.h"

namespace detr_fast::cpu {

struct DropoutInput {
  int64_t count;  // elements
  uint64_t seed;
  uint32_t threshold;  // of 65536 elements so many are dropped, on average
  float scale;         // of those kept
  int threads;
};

// out [count] = scale * x where kept, else 0. T is float or Bfloat. With `relu`, of max(x, 0).
template <class T>
void dropout(const DropoutInput& in, const T* x, bool relu, T* out);

// The gradient of dropout with `relu` by its input: scale * gradient where `out` is above 0.
template <class T>
void relu_dropout_backward(const DropoutInput& in, const T* gradient, const T* out, T* by_input);

// The inner loops, compiled once per instruction set. A block has kDropoutBlock elements, the last
// one fewer.
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
