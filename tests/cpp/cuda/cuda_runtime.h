// The part of CUDA that csrc/cuda uses, for a host without a GPU: the launchers and kernels compile
// as C++ (translate.py) and run. Blocks run one after the other, in shuffled order; a block's
// threads are the fibers of emulated_team.h, also shuffled. Launches must respect the limits of two
// devices, an H200 and a small GPU. Dynamic shared memory is filled with NaN at first, and ends at
// an inaccessible page.
//
// Not covered: speed, the code that nvcc generates, memory ordering, streams; a kernel that did not
// request more than 48 KiB of shared memory after another kernel did; the limit on a block's static
// shared memory.
#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "emulated_team.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __shared__ static
#define __grid_constant__
#define __launch_bounds__(...)
#define CUDART_VERSION 13000
#define threadIdx (::emulated::thread_index())
#define blockIdx (::emulated::block_index)
#define gridDim (::emulated::grid_size)

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

using cudaStream_t = struct CUstream_st*;

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorInvalidDevice = 101,
};

enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrMaxSharedMemoryPerMultiprocessor = 81,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
};

enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };

namespace emulated {

struct Device {
  int multiprocessors, shared_of_block, shared_of_multiprocessor;
};
constexpr Device kDevices[] = {{132, 227 << 10, 228 << 10}, {20, 99 << 10, 100 << 10}};
constexpr int kDeviceCount = sizeof kDevices / sizeof kDevices[0];
constexpr size_t kSharedWithoutAsking = 48 << 10;
constexpr size_t kMostOfArguments = 32764;

inline detr_fast::Fibers fibers;
inline std::unique_ptr<detr_fast::Meeting> block;
inline std::vector<std::unique_ptr<detr_fast::Meeting>> warps;
inline dim3 block_index, grid_size;
inline char* shared = nullptr;  // of the running block
inline cudaError_t last_error = cudaSuccess;
inline int device = 0;
inline size_t most_shared[kDeviceCount];  // the most that any kernel has been allowed
inline uint32_t seed = 0;
inline int64_t launches = 0;

inline dim3 thread_index() { return dim3(static_cast<unsigned>(fibers.current()), 0, 0); }
inline char* shared_memory() { return shared; }

// Calls see(lane, value) with every lane's value, once all lanes of the warp have passed theirs.
template <class T, class See>
void in_warp(unsigned mask, int operation, T value, See see) {
  CHECK(mask == 0xffffffffu);
  const int thread = fibers.current();
  warps[thread / detr_fast::kWarpSize]->exchange(thread % detr_fast::kWarpSize, operation, value,
                                                 see);
}

// Memory whose last byte is followed by an inaccessible page.
class Guarded {
 public:
  explicit Guarded(size_t bytes) : bytes_((bytes + 15) / 16 * 16) {
    size_ = (bytes_ + kPage - 1) / kPage * kPage + kPage;
    start_ = static_cast<char*>(
        mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    CHECK(start_ != MAP_FAILED);
    CHECK(mprotect(start_ + size_ - kPage, kPage, PROT_NONE) == 0);
  }
  ~Guarded() { munmap(start_, size_); }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;

  char* begin() const { return start_ + size_ - kPage - bytes_; }
  void spoil() const { memset(begin(), 0xff, bytes_); }  // floats: NaN

 private:
  static constexpr size_t kPage = 4096;
  size_t bytes_, size_;
  char* start_;
};

template <class Kernel>
class Launch {
 public:
  Launch(Kernel kernel, dim3 grid, dim3 threads, size_t shared_bytes)
      : kernel_(kernel), grid_(grid), threads_(threads), shared_bytes_(shared_bytes) {}

  template <class... Args>
  void operator()(Args... args) const {
    static_assert((sizeof(Args) + ... + 0) <= kMostOfArguments, "too large for kernel arguments");
    ++launches;
    const cudaError_t error = verdict();
    if (error != cudaSuccess) {
      last_error = error;
      return;
    }
    std::vector<dim3> blocks;
    for (unsigned z = 0; z < grid_.z; ++z)
      for (unsigned y = 0; y < grid_.y; ++y)
        for (unsigned x = 0; x < grid_.x; ++x) blocks.emplace_back(x, y, z);
    std::shuffle(blocks.begin(), blocks.end(), std::mt19937(++seed));
    const int threads = static_cast<int>(threads_.x);
    block = std::make_unique<detr_fast::Meeting>(fibers, 0, threads);
    warps.clear();
    for (int first = 0; first < threads; first += detr_fast::kWarpSize)
      warps.push_back(std::make_unique<detr_fast::Meeting>(
          fibers, first, std::min(detr_fast::kWarpSize, threads - first)));
    const Guarded memory(shared_bytes_);
    shared = memory.begin();
    grid_size = grid_;
    for (const dim3& at : blocks) {
      block_index = at;
      memory.spoil();
      fibers.run(threads, ++seed, [&](int) { kernel_(args...); });
    }
    shared = nullptr;
  }

 private:
  cudaError_t verdict() const {
    const bool sound = grid_.x > 0 && grid_.y > 0 && grid_.z > 0 && grid_.x <= 0x7fffffffu &&
                       grid_.y <= 65535 && grid_.z <= 65535 && threads_.x > 0 &&
                       threads_.x <= 1024 && threads_.y == 1 && threads_.z == 1;
    if (!sound) return cudaErrorInvalidConfiguration;
    const size_t most = std::max(kSharedWithoutAsking, most_shared[device]);
    return shared_bytes_ <= most ? cudaSuccess : cudaErrorInvalidValue;
  }

  const Kernel kernel_;
  const dim3 grid_, threads_;
  const size_t shared_bytes_;
};

template <class Kernel>
Launch<Kernel> launch(Kernel kernel, dim3 grid, dim3 threads, size_t shared_bytes, cudaStream_t) {
  return {kernel, grid, threads, shared_bytes};
}

}  // namespace emulated

inline void __syncthreads() { ::emulated::block->sync(::emulated::fibers.current()); }

inline void __syncwarp() {
  const int thread = ::emulated::fibers.current();
  ::emulated::warps[thread / detr_fast::kWarpSize]->sync(thread % detr_fast::kWarpSize);
}

inline unsigned __ballot_sync(unsigned mask, bool x) {
  unsigned all = 0;
  ::emulated::in_warp(mask, detr_fast::Meeting::kBallot, x,
                      [&](int lane, bool y) { all |= static_cast<unsigned>(y) << lane; });
  return all;
}

inline unsigned __reduce_min_sync(unsigned mask, unsigned x) {
  unsigned least = x;
  ::emulated::in_warp(mask, detr_fast::Meeting::kMin, x,
                      [&](int, unsigned y) { least = std::min(least, y); });
  return least;
}

inline unsigned __reduce_add_sync(unsigned mask, unsigned x) {
  unsigned sum = 0;
  ::emulated::in_warp(mask, detr_fast::Meeting::kSum, x, [&](int, unsigned y) { sum += y; });
  return sum;
}

template <class T>
T __shfl_xor_sync(unsigned mask, T x, int step) {
  const int wanted = (::emulated::fibers.current() % detr_fast::kWarpSize) ^ step;
  T found = x;
  ::emulated::in_warp(mask, detr_fast::Meeting::kFloatSum, x, [&](int lane, T y) {
    if (lane == wanted) found = y;
  });
  return found;
}

inline int atomicMin(int* x, int value) {
  const int before = *x;
  *x = std::min(before, value);
  return before;
}

inline const char* cudaGetErrorString(cudaError_t) { return "the emulated launch is invalid"; }

inline const char* cudaGetErrorName(cudaError_t error) {
  return error == cudaErrorInvalidConfiguration ? "cudaErrorInvalidConfiguration"
         : error == cudaErrorInvalidDevice      ? "cudaErrorInvalidDevice"
                                                : "cudaErrorInvalidValue";
}

inline cudaError_t cudaGetLastError() {
  const cudaError_t error = ::emulated::last_error;
  ::emulated::last_error = cudaSuccess;
  return error;
}

inline cudaError_t cudaGetDevice(int* device) {
  *device = ::emulated::device;
  return cudaSuccess;
}

inline cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= ::emulated::kDeviceCount) return cudaErrorInvalidDevice;
  ::emulated::device = device;
  return cudaSuccess;
}

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  if (device < 0 || device >= ::emulated::kDeviceCount) return cudaErrorInvalidDevice;
  const ::emulated::Device& of = ::emulated::kDevices[device];
  *value = attribute == cudaDevAttrMultiProcessorCount            ? of.multiprocessors
           : attribute == cudaDevAttrMaxSharedMemoryPerBlockOptin ? of.shared_of_block
                                                                  : of.shared_of_multiprocessor;
  return cudaSuccess;
}

inline cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int value) {
  const int device = ::emulated::device;
  if (value > ::emulated::kDevices[device].shared_of_block) return cudaErrorInvalidValue;
  size_t& most = ::emulated::most_shared[device];
  most = std::max(most, static_cast<size_t>(value));
  return cudaSuccess;
}

inline cudaError_t cudaDriverGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
