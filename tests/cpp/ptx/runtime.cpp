// The part of the CUDA runtime that csrc/cuda and nvcc's code for launches use, in place of
// NVIDIA's: a launch runs the kernel's PTX (block.h) and throws if that finds something undefined.
// There are two devices, an H200 and a small GPU.
#include "runtime.h"

#include <cuda_runtime_api.h>

#include <cstring>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "block.h"

namespace ptx {
namespace {

struct Device {
  int multiprocessors, shared_of_block, shared_of_multiprocessor;
};

constexpr Device kDevices[] = {{132, 227 << 10, 228 << 10}, {20, 99 << 10, 100 << 10}};
constexpr int kDeviceCount = sizeof kDevices / sizeof kDevices[0];
constexpr uint32_t kSharedWithoutAsking = 48 << 10;

struct Function {
  Kernel kernel;
  uint32_t most_shared[kDeviceCount];  // dynamic, in bytes
  int64_t launches = 0;
};

struct Configuration {
  dim3 grid, threads;
  size_t shared;
};

struct State {
  std::map<std::string, std::unique_ptr<Function>> by_name;
  std::map<const void*, Function*> by_host_function;
  Regions regions;
  Configuration configuration;
  cudaError_t last_error = cudaSuccess;
  int device = 0;
  int64_t launches = 0;
  std::string unreadable;  // why not all kernels could be read
};

State& state() {
  static State state;
  return state;
}

// The container that nvcc makes of PTX: a header and entries, each with a header of its own.
struct FatBinary {
  uint32_t magic, version;
  const char* data;
};

struct FatHeader {
  uint32_t magic;
  uint16_t version, header_bytes;
  uint64_t bytes;
};

struct FatEntry {
  uint16_t kind, version;
  uint32_t header_bytes;
  uint64_t bytes;
};

void register_kernels(const FatBinary& binary) {
  constexpr uint16_t kPtx = 1;
  FatHeader header;
  memcpy(&header, binary.data, sizeof header);
  const char* at = binary.data + header.header_bytes;
  const char* const end = at + header.bytes;
  while (at < end) {
    FatEntry entry;
    memcpy(&entry, at, sizeof entry);
    at += entry.header_bytes;
    if (entry.kind == kPtx) {
      for (Kernel& kernel : read(std::string(at, strnlen(at, entry.bytes)))) {
        auto function = std::make_unique<Function>(Function{std::move(kernel), {}});
        for (uint32_t& most : function->most_shared)
          most = kSharedWithoutAsking - function->kernel.static_shared;
        state().by_name[function->kernel.name] = std::move(function);
      }
    }
    at += entry.bytes;
  }
}

bool is_possible(const Function& function, const Configuration& c) {
  const bool has_blocks = c.grid.x > 0 && c.grid.y > 0 && c.grid.z > 0;
  return has_blocks && c.grid.x <= 0x7fffffffu && c.grid.y <= 65535 && c.grid.z <= 65535 &&
         c.threads.x > 0 && c.threads.x <= function.kernel.most_threads && c.threads.y == 1 &&
         c.threads.z == 1;
}

}  // namespace

void allow(const std::vector<std::pair<uint64_t, uint64_t>>& regions) {
  state().regions = Regions(regions.begin(), regions.end());
}

int64_t launches() { return state().launches; }

std::map<std::string, int64_t> launches_by_kernel() {
  std::map<std::string, int64_t> result;
  for (const auto& [name, function] : state().by_name) result[readable(name)] = function->launches;
  return result;
}

int current_device() { return state().device; }

}  // namespace ptx

using ptx::kDeviceCount;
using ptx::kDevices;
using ptx::state;

extern "C" {

void** __cudaRegisterFatBinary(void* binary) {
  try {
    ptx::register_kernels(*static_cast<const ptx::FatBinary*>(binary));
  } catch (const std::runtime_error& error) {
    state().unreadable = error.what();  // while the module is loaded, nobody would catch it
  }
  return nullptr;
}

void __cudaRegisterFatBinaryEnd(void**) {}

void __cudaUnregisterFatBinary(void**) {}

void __cudaRegisterFunction(void**, const char* host_function, char*, const char* name, int, uint3*,
                            uint3*, dim3*, dim3*, int*) {
  const auto found = state().by_name.find(name);
  if (found != state().by_name.end()) state().by_host_function[host_function] = found->second.get();
}

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 threads, size_t shared, CUstream_st*) {
  state().configuration = {grid, threads, shared};
  return 0;
}

cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* threads, size_t* shared, void* stream) {
  const ptx::Configuration& from = state().configuration;
  *grid = from.grid;
  *threads = from.threads;
  *shared = from.shared;
  *static_cast<cudaStream_t*>(stream) = nullptr;
  return cudaSuccess;
}

cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* host_function) {
  if (!state().unreadable.empty()) throw std::runtime_error(state().unreadable);
  *kernel = reinterpret_cast<cudaKernel_t>(state().by_host_function.at(host_function));
  return cudaSuccess;
}

cudaError_t __cudaLaunchKernel(cudaKernel_t handle, dim3 grid, dim3 threads, void** arguments,
                               size_t shared, cudaStream_t) {
  auto& now = state();
  ++now.launches;
  auto& function = *reinterpret_cast<ptx::Function*>(handle);
  if (!is_possible(function, {grid, threads, shared}))
    return now.last_error = cudaErrorInvalidConfiguration;
  if (shared > function.most_shared[now.device]) return now.last_error = cudaErrorInvalidValue;
  std::vector<char> parameters(function.kernel.parameter_bytes);
  for (size_t k = 0; k < function.kernel.parameters.size(); ++k) {
    const ptx::Parameter& parameter = function.kernel.parameters[k];
    memcpy(&parameters[parameter.offset], arguments[k], parameter.bytes);
  }
  ++function.launches;
  ptx::run({function.kernel,
            {grid.x, grid.y, grid.z},
            threads.x,
            static_cast<uint32_t>(shared),
            std::move(parameters),
            now.regions},
           static_cast<uint32_t>(now.launches));
  return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void* host_function, cudaFuncAttribute which, int bytes) {
  if (which != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;  // only for speed
  if (!state().unreadable.empty()) throw std::runtime_error(state().unreadable);
  ptx::Function& function = *state().by_host_function.at(host_function);
  const int device = state().device;
  if (bytes + static_cast<int>(function.kernel.static_shared) > kDevices[device].shared_of_block)
    return cudaErrorInvalidValue;
  function.most_shared[device] = static_cast<uint32_t>(bytes);
  return cudaSuccess;
}

cudaError_t cudaGetLastError() {
  const cudaError_t error = state().last_error;
  state().last_error = cudaSuccess;
  return error;
}

const char* cudaGetErrorName(cudaError_t error) {
  return error == cudaErrorInvalidConfiguration ? "cudaErrorInvalidConfiguration"
         : error == cudaErrorInvalidDevice      ? "cudaErrorInvalidDevice"
                                                : "cudaErrorInvalidValue";
}

const char* cudaGetErrorString(cudaError_t) { return "the emulated launch is invalid"; }

cudaError_t cudaGetDevice(int* device) {
  *device = state().device;
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= kDeviceCount) return cudaErrorInvalidDevice;
  state().device = device;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  if (device < 0 || device >= kDeviceCount) return cudaErrorInvalidDevice;
  const ptx::Device& of = kDevices[device];
  *value = attribute == cudaDevAttrMultiProcessorCount            ? of.multiprocessors
           : attribute == cudaDevAttrMaxSharedMemoryPerBlockOptin ? of.shared_of_block
                                                                  : of.shared_of_multiprocessor;
  return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}

}  // extern "C"
