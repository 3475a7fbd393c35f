// The teams of core/team.h on a GPU.
#pragma once

#include <cuda_runtime.h>

#include "core/team.h"

namespace detr_fast::cuda {

class Warp {
 public:
  __device__ int rank() const { return static_cast<int>(threadIdx.x) % kWarpSize; }
  __device__ int size() const { return kWarpSize; }
  __device__ void sync() const { __syncwarp(); }
  __device__ uint32_t ballot(bool x) const { return __ballot_sync(kAll, x); }

  // For 64-bit values, 32-bit reductions run one after the other: on the upper half, on the lower
  // half of those that tie, and on the index of those that still tie.
  template <class U>
  __device__ Key<U> min(Key<U> key) const {
#if __CUDA_ARCH__ >= 800
    const U value = least(key.value);
    return {value, least(key.value == value ? key.index : ~0u)};
#else
    return min_by_shuffles(key);
#endif
  }

  __device__ uint32_t least(uint32_t x) const {
#if __CUDA_ARCH__ >= 800
    return __reduce_min_sync(kAll, x);
#else
    return min_by_shuffles(Key<uint32_t>{x, 0}).value;
#endif
  }

  __device__ uint64_t least(uint64_t x) const {
    const uint32_t high = static_cast<uint32_t>(x >> 32);
    const uint32_t least_high = least(high);
    const uint32_t least_low = least(high == least_high ? static_cast<uint32_t>(x) : ~0u);
    return static_cast<uint64_t>(least_high) << 32 | least_low;
  }

  __device__ uint32_t sum(uint32_t x) const {
#if __CUDA_ARCH__ >= 800
    return __reduce_add_sync(kAll, x);
#else
    for (int step = kWarpSize / 2; step > 0; step /= 2) x += __shfl_xor_sync(kAll, x, step);
    return x;
#endif
  }

  __device__ float sum(float x) const {
    for (int step = kWarpSize / 2; step > 0; step /= 2) x += __shfl_xor_sync(kAll, x, step);
    return x;
  }

 private:
  static constexpr unsigned kAll = 0xffffffffu;

  template <class U>
  __device__ static Key<U> min_by_shuffles(Key<U> key) {
    for (int step = kWarpSize / 2; step > 0; step /= 2) {
      Key<U> other;
      other.value = __shfl_xor_sync(kAll, key.value, step);
      other.index = __shfl_xor_sync(kAll, key.index, step);
      if (other < key) key = other;
    }
    return key;
  }
};

// All threads of a block of kWarps warps, one-dimensional.
template <int kWarps>
class Block {
 public:
  // What the warps exchange. There are two buffers, used in turn: a value is read after the barrier
  // that follows its write, and overwritten only after the next barrier.
  struct Memory {
    uint64_t values[2][kWarps];
    uint32_t indices[2][kWarps];
  };

  __device__ explicit Block(Memory& memory) : memory_(memory) {}
  __device__ int rank() const { return static_cast<int>(threadIdx.x); }
  __device__ int size() const { return kWarps * kWarpSize; }
  __device__ void sync() const { __syncthreads(); }
  __device__ Warp warp() const { return {}; }
  __device__ int warp_index() const { return rank() / kWarpSize; }
  __device__ int warps() const { return kWarps; }

  __device__ Key<uint64_t> min(Key<uint64_t> key) {
    turn_ ^= 1;
    key = warp().min(key);
    if (warp().rank() == 0) {
      memory_.values[turn_][warp_index()] = key.value;
      memory_.indices[turn_][warp_index()] = key.index;
    }
    sync();
    key = {};
    if (warp().rank() < kWarps)
      key = {memory_.values[turn_][warp().rank()], memory_.indices[turn_][warp().rank()]};
    return warp().min(key);
  }

  __device__ Key<uint32_t> min(Key<uint32_t> key) {
    const Key<uint64_t> wide = min(Key<uint64_t>{key.value, key.index});
    return {static_cast<uint32_t>(wide.value), wide.index};
  }

  __device__ uint32_t sum(uint32_t x) {
    turn_ ^= 1;
    x = warp().sum(x);
    if (warp().rank() == 0) memory_.indices[turn_][warp_index()] = x;
    sync();
    return warp().sum(warp().rank() < kWarps ? memory_.indices[turn_][warp().rank()] : 0u);
  }

  __device__ void lower(int32_t* x, int32_t value) const { atomicMin(x, value); }

 private:
  Memory& memory_;
  int turn_ = 0;
};

}  // namespace detr_fast::cuda
