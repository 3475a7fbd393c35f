// The matching of DETR on the GPU, all layers and images: two kernels per launch, without waiting.
#include "core/team_match.h"
#include "cuda/ops.h"
#include "cuda/solver_memory.h"
#include "cuda/team.cuh"

namespace detr_fast::cuda {
namespace {

constexpr int kCostWarps = 4, kSolverWarps = 8;

template <class T>
__global__ void __launch_bounds__(kCostWarps* kWarpSize)
    pair_costs(const __grid_constant__ TeamMatchInput in) {
  __shared__ typename Block<kCostWarps>::Memory exchange;
  __shared__ Softmax<float> softmax[kTile];
  Block<kCostWarps> block(exchange);
  compute_costs<T>(block, in, static_cast<int32_t>(blockIdx.z), static_cast<int32_t>(blockIdx.y),
                   static_cast<int32_t>(blockIdx.x) * kTile, softmax);
}

// kShared: the solver's memory is in shared memory, and its loads are compiled as such.
template <bool kShared>
__global__ void __launch_bounds__(kSolverWarps* kWarpSize, resident_blocks(kSolverWarps, kShared))
    match_problems(const __grid_constant__ TeamMatchInput in, uint32_t solver_bytes) {
  extern __shared__ __align__(16) char shared[];
  __shared__ typename Block<kSolverWarps>::Memory exchange;
  Block<kSolverWarps> block(exchange);
  const int32_t layer = static_cast<int32_t>(blockIdx.y), image = static_cast<int32_t>(blockIdx.x);
  ProblemMatcher<Block<kSolverWarps>> matcher(block, in, layer, image);
  char* const memory =
      kShared ? shared : in.memory + in.problem(layer, image) * in.memory_of_problem;
  matcher.run(memory, reinterpret_cast<float*>(shared + solver_bytes));
}

}  // namespace

void match(const MatchInput& from, int device, Stream stream) {
  const DeviceGuard guard(device);
  const int64_t problems = from.layers * from.images;
  const int64_t rows = std::min(from.queries, from.most_targets);
  const int64_t cols = std::max(from.queries, from.most_targets);
  const SharedMemory memory(device, problems, kSolverWarps, false, rows, cols, sizeof(float));
  const auto match_kernel = memory.solver ? match_problems<true> : match_problems<false>;
  allow_shared_memory(reinterpret_cast<const void*>(match_kernel), device, memory.bytes);

  TeamMatchInput in = {};
  in.boxes_dtype = from.boxes_dtype;
  in.all_images = static_cast<int32_t>(from.images);
  in.queries = static_cast<int32_t>(from.queries);
  in.classes = static_cast<int32_t>(from.classes);
  in.options = to_single(from.options);
  in.label_count = in.classes - (in.options.class_cost == ClassCost::kSoftmax);
  in.labels = from.labels;
  in.target_boxes = from.target_boxes;
  in.targets = from.targets;
  in.device_offsets = from.device_offsets;
  in.nonfinite_last = from.nonfinite_last;
  in.cost = from.cost;
  in.query_index = from.query_index;
  in.pairs = from.pairs;
  in.faults = from.faults;
  in.memory = memory.solver ? nullptr : static_cast<char*>(from.memory);
  in.memory_of_problem = memory.solver ? 0 : solver_workspace(device, rows, cols);
  in.room = memory.room;
  for (int64_t b = 0; b < from.images; ++b)
    if (from.counts) in.pairs_of_layer += 2 * std::min(from.counts[b], from.queries);

  int64_t offset = 0, pair_start = 0;
  for (int64_t first = 0; first < from.images; first += TeamMatchInput::kImages) {
    in.first_image = static_cast<int32_t>(first);
    in.images =
        static_cast<int32_t>(std::min<int64_t>(from.images - first, TeamMatchInput::kImages));
    if (from.counts) {
      for (int32_t b = 0; b < in.images; ++b) {
        in.offsets[b] = static_cast<int32_t>(offset);
        in.pair_starts[b] = static_cast<int32_t>(pair_start);
        offset += from.counts[first + b];
        pair_start += 2 * std::min(from.counts[first + b], from.queries);
      }
      in.offsets[in.images] = static_cast<int32_t>(offset);
    }
    for (int64_t layer = 0; layer < from.layers; layer += TeamMatchInput::kLayers) {
      in.first_layer = static_cast<int32_t>(layer);
      in.layers =
          static_cast<int32_t>(std::min<int64_t>(from.layers - layer, TeamMatchInput::kLayers));
      for (int32_t k = 0; k < in.layers; ++k) {
        in.logits[k] = from.logits[layer + k];
        in.boxes[k] = from.boxes[layer + k];
      }
      const unsigned tiles = static_cast<unsigned>((from.queries + kTile - 1) / kTile);
      const unsigned images = static_cast<unsigned>(in.images);
      const unsigned layers = static_cast<unsigned>(in.layers);
      if (tiles > 0) {
        const auto kernel = from.logits_dtype == Dtype::kFloat16    ? pair_costs<Half>
                            : from.logits_dtype == Dtype::kBfloat16 ? pair_costs<Bfloat>
                                                                    : pair_costs<float>;
        kernel<<<dim3(tiles, images, layers), kCostWarps * kWarpSize, 0, stream_at(stream)>>>(in);
        check_launch("pair_costs");
      }
      match_kernel<<<dim3(images, layers), kSolverWarps * kWarpSize, memory.bytes,
                     stream_at(stream)>>>(in, static_cast<uint32_t>(memory.solver));
      check_launch("match_problems");
    }
  }
}

}  // namespace detr_fast::cuda
