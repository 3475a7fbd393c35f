// linear_sum_assignment on the GPU: one block per problem.
#include "cuda/ops.h"
#include "cuda/solver_memory.h"
#include "cuda/team.cuh"

namespace detr_fast::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kProblems = 128;  // of one launch

template <class Real>
struct Input {
  const Real* cost[kProblems];
  int32_t rows[kProblems], cols[kProblems];  // rows <= cols
  int64_t start[kProblems];                  // of the problem's pairs
  bool transposed[kProblems];                // whether the caller's rows are these columns
  int64_t *row_index, *col_index;            // [pairs]
  int32_t* status;                           // [problems]
  char* memory;
  int64_t memory_of_problem;
  int64_t room;
  uint32_t solver_bytes;
};

template <class Real>
__global__ void __launch_bounds__(kWarps* kWarpSize, kResidentBlocks)
    assign(const __grid_constant__ Input<Real> in) {
  extern __shared__ __align__(16) char shared[];
  __shared__ typename Block<kWarps>::Memory exchange;
  Block<kWarps> block(exchange);
  const int p = static_cast<int>(blockIdx.x);
  const int32_t rows = in.rows[p], cols = in.cols[p];
  const SolverMemory parts(in.memory ? in.memory + p * in.memory_of_problem : shared, rows, cols);
  TeamSolver<Block<kWarps>, Real> solver(
      block, parts, reinterpret_cast<Real*>(shared + in.solver_bytes), in.room);
  const Status status = solver.solve(in.cost[p], rows, cols, cols);
  if (block.rank() == 0) in.status[p] = static_cast<int32_t>(status);
  int64_t* const row_index = in.row_index + in.start[p];
  int64_t* const col_index = in.col_index + in.start[p];
  if (status != Status::kOk || !in.transposed[p]) {
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

template <class Real>
void launch(const AssignmentInput& from, int device, Stream stream) {
  int64_t most_rows = 0, most_cols = 0;
  for (int64_t p = 0; p < from.problems; ++p) {
    most_rows = std::max<int64_t>(most_rows, from.rows[p]);
    most_cols = std::max<int64_t>(most_cols, from.cols[p]);
  }
  const SharedMemory memory(device, from.problems, most_rows, most_cols, sizeof(Real));
  const void* const kernel = reinterpret_cast<const void*>(&assign<Real>);
  allow_shared_memory(kernel, device, memory.bytes);
  Input<Real> in = {};
  in.row_index = from.row_index;
  in.col_index = from.col_index;
  in.memory_of_problem = memory.solver ? 0 : solver_workspace(device, most_rows, most_cols);
  in.room = memory.room;
  in.solver_bytes = static_cast<uint32_t>(memory.solver);
  int64_t start = 0;
  for (int64_t first = 0; first < from.problems; first += kProblems) {
    const int64_t count = std::min<int64_t>(from.problems - first, kProblems);
    for (int64_t p = 0; p < count; ++p) {
      in.cost[p] = static_cast<const Real*>(from.cost[first + p]);
      in.rows[p] = from.rows[first + p];
      in.cols[p] = from.cols[first + p];
      in.transposed[p] = from.transposed[first + p];
      in.start[p] = start;
      start += in.rows[p];
    }
    in.status = from.status + first;
    in.memory =
        memory.solver ? nullptr : static_cast<char*>(from.memory) + first * in.memory_of_problem;
    assign<Real>
        <<<static_cast<unsigned>(count), kWarps * kWarpSize, memory.bytes, stream_at(stream)>>>(in);
    check_launch("assign");
  }
}

}  // namespace

void assign(const AssignmentInput& in, bool is_double, int device, Stream stream) {
  if (in.problems == 0) return;
  const DeviceGuard guard(device);
  is_double ? launch<double>(in, device, stream) : launch<float>(in, device, stream);
}

int64_t assignment_workspace(int device, int64_t rows, int64_t cols) {
  return solver_workspace(device, rows, cols);
}

}  // namespace detr_fast::cuda
