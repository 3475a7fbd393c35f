// A team's collective operations (cuda/team.cuh), run by an emulated block, as a Python module.
// Built for a GPU with single-instruction reductions, and for one without.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <vector>

#include "cuda/team.cuh"
#include "cuda_runtime.h"

namespace {

using detr_fast::Key;
constexpr int kWarps = 3, kThreads = kWarps * detr_fast::kWarpSize;

struct Found {
  Key<uint64_t> warp64, block64;
  Key<uint32_t> warp32, block32;
  uint32_t warp_sum, block_sum;
  float float_sum;
};

void kernel(const uint64_t* values, const uint32_t* indices, Found* found) {
  __shared__ detr_fast::cuda::Block<kWarps>::Memory exchange;
  detr_fast::cuda::Block<kWarps> block(exchange);
  const auto warp = block.warp();
  const int k = block.rank();
  const Key<uint64_t> wide = {values[k], indices[k]};
  const Key<uint32_t> narrow = {static_cast<uint32_t>(values[k]), indices[k]};
  Found& mine = found[k];
  mine.warp64 = warp.min(wide);
  mine.block64 = block.min(wide);
  mine.warp32 = warp.min(narrow);
  mine.block32 = block.min(narrow);
  mine.warp_sum = warp.sum(indices[k]);
  mine.block_sum = block.sum(indices[k]);
  mine.float_sum = warp.sum(static_cast<float>(indices[k]));
}

// Returns per thread: (value, index) of the least key of its warp and of the block, the same for
// 32-bit keys, and the sums of the indices: of the warp, of the block, and of the warp as floats.
std::vector<std::array<double, 11>> reduce(const std::vector<uint64_t>& values,
                                           const std::vector<uint32_t>& indices) {
  CHECK(values.size() == kThreads && indices.size() == kThreads);
  std::vector<Found> found(kThreads);
  emulated::launch([](auto... args) { kernel(args...); }, 1, kThreads, 0, nullptr)(
      values.data(), indices.data(), found.data());
  std::vector<std::array<double, 11>> rows;
  for (const Found& f : found)
    rows.push_back({static_cast<double>(f.warp64.value), static_cast<double>(f.warp64.index),
                    static_cast<double>(f.block64.value), static_cast<double>(f.block64.index),
                    static_cast<double>(f.warp32.value), static_cast<double>(f.warp32.index),
                    static_cast<double>(f.block32.value), static_cast<double>(f.block32.index),
                    static_cast<double>(f.warp_sum), static_cast<double>(f.block_sum),
                    static_cast<double>(f.float_sum)});
  return rows;
}

}  // namespace

PYBIND11_MODULE(EMULATED_NAME, m) { m.def("reduce", &reduce); }
