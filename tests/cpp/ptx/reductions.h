#pragma once

#include <array>
#include <cstdint>
#include <vector>

namespace ptx {

using Rows = std::vector<std::array<double, 11>>;

// Returns per thread: (value, index) of the least key of its warp and of the block, the same for
// 32-bit keys, and the sums of the indices: of the warp, of the block, and of the warp as floats.
// On a GPU with single-instruction reductions, and on one without.
template <int kArchitecture>
Rows reduce(const std::vector<uint64_t>& values, const std::vector<uint32_t>& indices);

template <>
Rows reduce<900>(const std::vector<uint64_t>& values, const std::vector<uint32_t>& indices);
template <>
Rows reduce<750>(const std::vector<uint64_t>& values, const std::vector<uint32_t>& indices);

}  // namespace ptx
