// What tests ask of the emulated CUDA runtime.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace ptx {

// Memory that kernels may access from now on: first address, bytes.
void allow(const std::vector<std::pair<uint64_t, uint64_t>>& regions);

int64_t launches();  // so far
std::map<std::string, int64_t> launches_by_kernel();
int current_device();

}  // namespace ptx
