#include "cpu/dropout.h"

#include <algorithm>

#include "cpu/parallel.h"
#include "cpu/simd/kernels.h"

namespace detr_fast::cpu {

namespace {

const DropoutKernels<float>& kernels_of(float) { return kernels().dropout.for_float; }
const DropoutKernels<Bfloat>& kernels_of(Bfloat) { return kernels().dropout.for_bfloat; }

// Calls run(block, its first element, its number of elements) for all blocks; a thread takes
// several blocks at a time.
template <class Run>
void for_blocks(const DropoutInput& in, const Run& run) {
  constexpr int64_t kBlocksPerChunk = 16;
  const int64_t blocks = (in.count + kDropoutBlock - 1) / kDropoutBlock;
  const int64_t chunks = (blocks + kBlocksPerChunk - 1) / kBlocksPerChunk;
  parallel_for(chunks, in.count, in.threads, [&](int64_t chunk) {
    const int64_t end = std::min(blocks, (chunk + 1) * kBlocksPerChunk);
    for (int64_t b = chunk * kBlocksPerChunk; b < end; ++b)
      run(b, b * kDropoutBlock, std::min(kDropoutBlock, in.count - b * kDropoutBlock));
  });
}

}  // namespace

template <class T>
void dropout(const DropoutInput& in, const T* x, bool relu, T* out) {
  const auto& kernel = kernels_of(T());
  for_blocks(in, [&](int64_t block, int64_t at, int64_t n) {
    kernel.block(in, block, x + at, relu, out + at, n);
  });
}

template <class T>
void relu_dropout_backward(const DropoutInput& in, const T* gradient, const T* out, T* by_input) {
  const auto& kernel = kernels_of(T());
  for_blocks(in, [&](int64_t, int64_t at, int64_t n) {
    kernel.backward(in.scale, gradient + at, out + at, by_input + at, n);
  });
}

template void dropout(const DropoutInput&, const float*, bool, float*);
template void dropout(const DropoutInput&, const Bfloat*, bool, Bfloat*);
template void relu_dropout_backward(const DropoutInput&, const float*, const float*, float*);
template void relu_dropout_backward(const DropoutInput&, const Bfloat*, const Bfloat*, Bfloat*);

}  // namespace detr_fast::cpu
