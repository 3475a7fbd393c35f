// A team's collective operations (cuda/team.cuh), compiled for PTX_ARCHITECTURE.
#include <utility>

#include "cuda/team.cuh"
#include "reductions.h"
#include "runtime.h"

namespace ptx {
namespace {

using detr_fast::Key;
constexpr int kWarps = 3, kThreads = kWarps * detr_fast::kWarpSize;

struct Found {
  Key<uint64_t> warp64, block64;
  Key<uint32_t> warp32, block32;
  uint32_t warp_sum, block_sum;
  float float_sum;
};

template <int kArchitecture>
__global__ void reductions(const uint64_t* values, const uint32_t* indices, Found* found) {
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

template <class T>
std::pair<uint64_t, uint64_t> region(const std::vector<T>& of) {
  return {reinterpret_cast<uint64_t>(of.data()), sizeof(T) * of.size()};
}

}  // namespace

template <>
Rows reduce<PTX_ARCHITECTURE>(const std::vector<uint64_t>& values,
                              const std::vector<uint32_t>& indices) {
  std::vector<Found> found(kThreads);
  allow({region(values), region(indices), region(found)});
  reductions<PTX_ARCHITECTURE><<<1, kThreads>>>(values.data(), indices.data(), found.data());
  Rows rows;
  for (const Found& f : found)
    rows.push_back({static_cast<double>(f.warp64.value), static_cast<double>(f.warp64.index),
                    static_cast<double>(f.block64.value), static_cast<double>(f.block64.index),
                    static_cast<double>(f.warp32.value), static_cast<double>(f.warp32.index),
                    static_cast<double>(f.block32.value), static_cast<double>(f.block32.index),
                    static_cast<double>(f.warp_sum), static_cast<double>(f.block_sum),
                    static_cast<double>(f.float_sum)});
  return rows;
}

}  // namespace ptx
