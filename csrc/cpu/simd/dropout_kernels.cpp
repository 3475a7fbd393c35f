// Compiled once per instruction set, each time with a different DETR_FAST_SET (CMakeLists.txt).
#include "cpu/dropout.h"
#include "cpu/simd/set_name.h"

namespace detr_fast::cpu {
namespace {

constexpr int64_t kHalf = kDropoutBlock / 2;

// A 32-bit mixing function (xor-shift and multiply, after the finalizer of MurmurHash3). One half
// of the seed is added before the mixing, the other half in the middle, so that the sequences of
// two seeds are not shifted copies of each other.
inline uint32_t random_bits(uint32_t place, uint32_t seed_low, uint32_t seed_high) {
  uint32_t x = place * 0x9e3779b9u + seed_low;
  x = (x ^ (x >> 16)) * 0x7feb352du;
  x = (x ^ (x >> 15)) + seed_high;
  x = (x ^ (x >> 16)) * 0x846ca68bu;
  return x ^ (x >> 16);
}

template <bool kRelu, class T>
inline void apply(const uint32_t* __restrict__ bits, int shift, uint32_t threshold, float scale,
                  const T* __restrict__ x, T* __restrict__ out, int64_t n) {
  for (int64_t k = 0; k < n; ++k) {
    const float factor = (bits[k] >> shift & 0xffffu) >= threshold ? scale : 0.0f;
    const float value = to_float(x[k]);
    store(out + k, (kRelu && value < 0 ? 0.0f : value) * factor);
  }
}

template <class T>
void block(const DropoutInput& in, int64_t block, const T* x, bool relu, T* out, int64_t n) {
  uint32_t bits[kHalf];
  const auto low = static_cast<uint32_t>(in.seed), high = static_cast<uint32_t>(in.seed >> 32);
  const auto first = static_cast<uint32_t>(block * kHalf);
  for (uint32_t k = 0; k < kHalf; ++k) bits[k] = random_bits(first + k, low, high);
  // Two elements share a word: its lower half is for the block's first half, its upper half for the
  // second.
  const auto run = relu ? apply<true, T> : apply<false, T>;
  run(bits, 0, in.threshold, in.scale, x, out, n < kHalf ? n : kHalf);
  if (n > kHalf) run(bits, 16, in.threshold, in.scale, x + kHalf, out + kHalf, n - kHalf);
}

template <class T>
void backward(float scale, const T* __restrict__ gradient, const T* __restrict__ out,
              T* __restrict__ by_input, int64_t n) {
  for (int64_t k = 0; k < n; ++k)
    store(by_input + k, to_float(gradient[k]) * (to_float(out[k]) > 0 ? scale : 0.0f));
}

}  // namespace

extern const DropoutKernelSet DETR_FAST_OF_SET(dropout) = {{block<float>, backward<float>},
                                                           {block<Bfloat>, backward<Bfloat>}};

}  // namespace detr_fast::cpu
