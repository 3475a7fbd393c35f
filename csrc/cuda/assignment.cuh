// linear_sum_assignment on the GPU: one block per problem. assignment_*.cu compile it, each for one
// kind of cost: a kernel takes long, and several files compile at the same time.
#pragma once

#include <algorithm>
#include <type_traits>

#include "cuda/ops.h"
#include "cuda/solver_memory.h"
#include "cuda/team.cuh"

namespace detr_fast::cuda {

inline constexpr int kWarps = 8;
// Where many more problems wait than can run at once, blocks of few warps solve more of them at the
// same time: all warps share the rows, but the searches of small problems use only one. It must
// also be that shared memory allows as many warps as with larger blocks.
inline constexpr int kFewWarps = 2;
inline constexpr int64_t kManyRounds = 4;  // of as many problems as can run at once

template <class Real>
struct Problem {
  const Real* cost;  // [rows, cols]
  int32_t rows, cols;
  int64_t start;  // of its pairs
  bool transposed;
};

// Problems of one shape, contiguous in memory: any number in one launch.
template <class Real>
struct Batch {
  const Real* cost;
  int32_t rows, cols;
  bool transposed;

  DETR_FAST_KERNEL_PART Problem<Real> operator[](int64_t p) const {
    return {cost + p * rows * cols, rows, cols, p * rows, transposed};
  }
};

// Problems of any shapes: as many as fit into a kernel's arguments, 4 KB, or 32 KB since CUDA 12.1.
inline constexpr bool kLargeArguments = CUDART_VERSION >= 12010;

template <class Real>
struct Ragged {
  static constexpr int kMost = kLargeArguments ? 512 : 128;

  const Real* cost[kMost];
  int32_t rows[kMost], cols[kMost];
  int64_t start[kMost];
  bool transposed[kMost];

  DETR_FAST_KERNEL_PART Problem<Real> operator[](int64_t p) const {
    return {cost[p], rows[p], cols[p], start[p], transposed[p]};
  }
};

static_assert(sizeof(Ragged<double>) <= (kLargeArguments ? 32000 : 4000),
              "the limit of kernel arguments, less the others");

struct Output {
  int64_t *row_index, *col_index;  // [pairs]
  int32_t* status;                 // [problems]
};

// The solver's memory if it does not fit into a block's own, and how the block's own is divided.
struct Memory {
  char* workspace;
  int64_t of_problem;
  int64_t room;
  uint32_t solver_bytes;
};

// kShared: the solver's memory is in shared memory, and its loads are compiled as such.
template <class Real, class Problems, int kWarps, bool kShared>
__global__ void __launch_bounds__(kWarps* kWarpSize, resident_blocks(kWarps, kShared))
    assign_problem(const __grid_constant__ Problems problems, Output out, Memory memory) {
  extern __shared__ __align__(16) char shared[];
  __shared__ typename Block<kWarps>::Memory exchange;
  Block<kWarps> block(exchange);
  const int64_t p = static_cast<int64_t>(blockIdx.x);
  const Problem<Real> problem = problems[p];
  const int32_t rows = problem.rows, cols = problem.cols;
  const SolverMemory parts(kShared ? shared : memory.workspace + p * memory.of_problem, rows, cols);
  TeamSolver<Block<kWarps>, Real> solver(
      block, parts, reinterpret_cast<Real*>(shared + memory.solver_bytes), memory.room);
  const Status status = solver.solve(problem.cost, rows, cols, cols);
  if (block.rank() == 0) out.status[p] = static_cast<int32_t>(status);
  int64_t* const row_index = out.row_index + problem.start;
  int64_t* const col_index = out.col_index + problem.start;
  if (status != Status::kOk || !problem.transposed) {
    for (int32_t i = block.rank(); i < rows; i += block.size()) {
      row_index[i] = i;
      col_index[i] = status == Status::kOk ? solver.col_of_row(i) : i;
    }
    return;
  }
  int32_t* const row_of_col = parts.from;  // no longer needed by the solver
  for (int32_t j = block.rank(); j < cols; j += block.size()) row_of_col[j] = -1;
  block.sync();
  for (int32_t i = block.rank(); i < rows; i += block.size()) row_of_col[solver.col_of_row(i)] = i;
  block.sync();
  if (block.warp_index() != 0) return;
  compact(
      block.warp(), cols, [&](int32_t j) { return row_of_col[j] >= 0; },
      [&](int32_t k, int32_t j) {
        row_index[k] = j;
        col_index[k] = row_of_col[j];
      });
}

// Launches kernels of blocks of kWarps warps, for problems of at most rows x cols, of which `most`
// in one launch, all of that size if `one_size`.
template <class Real, int kWarps>
class Launcher {
 public:
  Launcher(void* workspace, int64_t most, bool one_size, int64_t rows, int64_t cols, int device,
           Stream stream)
      : shared_(device, most, kWarps, one_size, rows, cols, sizeof(Real)),
        device_(device),
        stream_(stream) {
    memory_.workspace = static_cast<char*>(workspace);
    memory_.of_problem = shared_.solver ? 0 : solver_workspace(device, rows, cols);
    memory_.room = shared_.room;
    memory_.solver_bytes = static_cast<uint32_t>(shared_.solver);
  }

  bool all_resident() const { return shared_.all_resident; }

  // `first` is the number of problems launched before.
  template <class Problems>
  void run(const Problems& problems, int64_t count, Output out, int64_t first = 0) const {
    shared_.solver ? run_with<true>(problems, count, out, first)
                   : run_with<false>(problems, count, out, first);
  }

  template <bool kShared, class Problems>
  void run_with(const Problems& problems, int64_t count, Output out, int64_t first = 0) const {
    const auto kernel = &assign_problem<Real, Problems, kWarps, kShared>;
    allow_shared_memory(reinterpret_cast<const void*>(kernel), device_, shared_.bytes);
    Memory memory = memory_;
    memory.workspace += first * memory.of_problem;
    out.status += first;
    kernel<<<static_cast<unsigned>(count), kWarps * kWarpSize, shared_.bytes, stream_at(stream_)>>>(
        problems, out, memory);
    check_launch("assign_problem");
  }

 private:
  const SharedMemory shared_;
  const int device_;
  const Stream stream_;
  Memory memory_{};
};

// Launches for problems of one shape.
template <class Real>
void assign_batch(const AssignmentInput& in, Output out, int device, Stream stream) {
  const Batch<Real> batch = {static_cast<const Real*>(in.cost[0]), in.rows[0], in.cols[0],
                             in.transposed[0]};
  if constexpr (std::is_same_v<Real, float>) {  // only: each kernel takes long to compile
    const int64_t at_once = resident_blocks(kWarps, true) *
                            int64_t(device_attribute(cudaDevAttrMultiProcessorCount, device));
    const bool is_small = batch.cols <= TeamSolver<Block<kFewWarps>, Real>::kWarpColumns;
    if (is_small && in.problems >= kManyRounds * at_once) {
      const Launcher<Real, kFewWarps> few(nullptr, in.problems, true, batch.rows, batch.cols,
                                          device, stream);
      if (few.all_resident()) return few.template run_with<true>(batch, in.problems, out);
    }
  }
  Launcher<Real, kWarps>(in.memory, in.problems, true, batch.rows, batch.cols, device, stream)
      .run(batch, in.problems, out);
}

// Launches for problems of any shapes.
template <class Real>
void assign_ragged(const AssignmentInput& in, Output out, int device, Stream stream) {
  const int64_t most = std::min<int64_t>(in.problems, Ragged<Real>::kMost);
  const int64_t rows = *std::max_element(in.rows, in.rows + in.problems);
  const int64_t cols = *std::max_element(in.cols, in.cols + in.problems);
  const Launcher<Real, kWarps> launcher(in.memory, most, false, rows, cols, device, stream);
  Ragged<Real> part = {};
  int64_t start = 0;
  for (int64_t first = 0; first < in.problems; first += most) {
    const int64_t count = std::min(in.problems - first, most);
    for (int64_t k = 0; k < count; ++k) {
      part.cost[k] = static_cast<const Real*>(in.cost[first + k]);
      part.rows[k] = in.rows[first + k];
      part.cols[k] = in.cols[first + k];
      part.transposed[k] = in.transposed[first + k];
      part.start[k] = start;
      start += part.rows[k];
    }
    launcher.run(part, count, out, first);
  }
}

}  // namespace detr_fast::cuda
