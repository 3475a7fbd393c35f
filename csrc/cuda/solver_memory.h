// Where a block keeps the assignment solver's memory. The host decides it for a whole launch.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "core/team_assignment.h"
#include "cuda/launch.h"

namespace detr_fast::cuda {

// How many blocks a multiprocessor runs at once, if shared memory allows it: launch bounds of the
// kernels, which use up to 128 registers per thread. With a higher bound they would spill
// registers. So would, even with 2 blocks, the kernels whose solver's memory is not shared memory,
// because of its 64-bit addresses.
constexpr int kResidentBlocks = 2;
constexpr int resident_blocks(bool shared) { return shared ? kResidentBlocks : 1; }

// A block's shared memory holds SolverMemory, if that fits, followed by `room` costs.
struct SharedMemory {
  size_t solver;  // bytes; 0: the solver's memory is in the workspace
  size_t bytes;   // total
  int64_t room;   // costs

  // For `problems` problems of at most rows x cols in one launch. More shared memory per block
  // makes each step of the search faster, but lets fewer problems run at once. All problems should
  // run at once, as far as kResidentBlocks per multiprocessor allow.
  SharedMemory(int device, int64_t problems, int64_t rows, int64_t cols, size_t size_of_cost) {
    constexpr size_t kReserved = 3 << 10;  // the block's static memory and the system's, per block
    const int64_t processors = device_attribute(cudaDevAttrMultiProcessorCount, device);
    const int64_t resident = std::min<int64_t>(
        std::max<int64_t>((problems + processors - 1) / processors, 1), kResidentBlocks);
    const size_t of_processor =
        device_attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor, device);
    const size_t of_block = max_shared_memory(device) - kReserved;
    const size_t share = std::min(of_block, of_processor / resident - kReserved);
    const size_t needed = (SolverMemory::bytes(rows, cols) + 15) / 16 * 16;
    solver = needed <= of_block ? needed : 0;
    const size_t left = share > solver ? share - solver : 0;
    room = static_cast<int64_t>(std::min(left / size_of_cost, static_cast<size_t>(rows * cols)));
    bytes = solver + room * size_of_cost;
  }
};

// Bytes of workspace that each problem needs in addition to the block's shared memory.
inline int64_t solver_workspace(int device, int64_t rows, int64_t cols) {
  const SharedMemory shared(device, 1, rows, cols, sizeof(float));
  return shared.solver ? 0 : (SolverMemory::bytes(rows, cols) + 15) / 16 * 16;
}

}  // namespace detr_fast::cuda
