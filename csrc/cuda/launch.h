// What every launcher needs: errors turned into exceptions, a guard that makes a device current,
// and shared memory beyond 48 KiB. For .cu files only.
#pragma once

#include <cuda_runtime.h>

#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>

#include "cuda/ops.h"

namespace detr_fast::cuda {

// Throws std::runtime_error with the call's name and CUDA's text if `error` is an error. CUDA's
// last error is cleared first, or the next launch would report it again.
inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();
  throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error) + " (" +
                           cudaGetErrorName(error) + ")");
}

// After a kernel's <<<>>>: throws if it could not be launched. Does not wait for it to run.
inline void check_launch(const char* kernel) { check(cudaGetLastError(), kernel); }

inline cudaStream_t stream_at(Stream stream) { return reinterpret_cast<cudaStream_t>(stream); }

// Makes a device current, and restores the previous one at the end of the scope.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    check(cudaGetDevice(&previous_), "cudaGetDevice");
    if (device == previous_) return;
    check(cudaSetDevice(device), "cudaSetDevice");
    changed_ = true;
  }
  ~DeviceGuard() {
    if (changed_) cudaSetDevice(previous_);  // unchecked: this device was current before
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int previous_ = 0;
  bool changed_ = false;
};

// An attribute of a device, cached because cudaDeviceGetAttribute is slow.
inline int device_attribute(cudaDeviceAttr attribute, int device) {
  static std::mutex mutex;
  static std::map<std::pair<int, int>, int> cache;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto [entry, is_new] = cache.try_emplace({static_cast<int>(attribute), device}, 0);
  if (!is_new) return entry->second;
  const cudaError_t error = cudaDeviceGetAttribute(&entry->second, attribute, device);
  if (error != cudaSuccess) cache.erase(entry);
  check(error, "cudaDeviceGetAttribute");
  return entry->second;
}

// The maximum dynamic shared memory of a block, in bytes.
inline int max_shared_memory(int device) {
  return device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
}

// Allows a kernel to be launched with `bytes` of dynamic shared memory on `device`, which must be
// current. Needed only beyond 48 KiB, and then only if the kernel was not yet allowed as much on
// that device. Throws if the device has less; check max_shared_memory() first.
inline void allow_shared_memory(const void* kernel, int device, size_t bytes) {
  constexpr size_t kAlwaysAllowed = 48 * 1024;
  if (bytes <= kAlwaysAllowed) return;
  static std::mutex mutex;
  static std::map<std::pair<const void*, int>, size_t> allowed;
  const std::lock_guard<std::mutex> lock(mutex);
  size_t& most = allowed[{kernel, device}];
  if (bytes <= most) return;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(bytes)),
        "cudaFuncSetAttribute(MaxDynamicSharedMemorySize)");
  // All of the multiprocessor's, so that as many blocks as that allows run at once.
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                             cudaSharedmemCarveoutMaxShared),
        "cudaFuncSetAttribute(PreferredSharedMemoryCarveout)");
  most = bytes;
}

}  // namespace detr_fast::cuda
