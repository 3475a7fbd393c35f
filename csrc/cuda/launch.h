// What every launcher needs: errors as exceptions, the device made current, shared memory beyond
// 48 KiB. For .cu files only.
#pragma once

#include <cuda_runtime.h>

#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>

#include "cuda/ops.h"

namespace detr_fast::cuda {

// Throws std::runtime_error with the call's name and CUDA's text. The error is forgotten then, or
// the next launch would report it as its own.
inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();
  throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error) + " (" +
                           cudaGetErrorName(error) + ")");
}

// After a kernel's <<<>>>: throws if it could not be launched. Does not wait for it to run.
inline void check_launch(const char* kernel) { check(cudaGetLastError(), kernel); }

inline cudaStream_t stream_at(Stream stream) { return reinterpret_cast<cudaStream_t>(stream); }

// Makes a device current, and the previous one again at the end of the scope.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    check(cudaGetDevice(&previous_), "cudaGetDevice");
    if (device == previous_) return;
    check(cudaSetDevice(device), "cudaSetDevice");
    changed_ = true;
  }
  ~DeviceGuard() {
    if (changed_) cudaSetDevice(previous_);  // it was current before: what could fail was reported
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int previous_ = 0;
  bool changed_ = false;
};

// An attribute of a device, asked for once: cudaDeviceGetAttribute takes its time.
inline int device_attribute(cudaDeviceAttr attribute, int device) {
  static std::mutex mutex;
  static std::map<std::pair<int, int>, int> known;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto [entry, is_new] = known.try_emplace({static_cast<int>(attribute), device}, 0);
  if (!is_new) return entry->second;
  const cudaError_t error = cudaDeviceGetAttribute(&entry->second, attribute, device);
  if (error != cudaSuccess) known.erase(entry);
  check(error, "cudaDeviceGetAttribute");
  return entry->second;
}

// The most bytes of dynamic shared memory that a block can ask for.
inline int max_shared_memory(int device) {
  return device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
}

// Lets a kernel be launched with so many bytes of dynamic shared memory on the current device,
// `device`. Only beyond 48 KiB is there anything to do, and then once per kernel, device and size
// that grew. Throws if that is more than the device has: ask max_shared_memory() first.
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
  most = bytes;
}

}  // namespace detr_fast::cuda
