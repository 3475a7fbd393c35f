// Where a block keeps the assignment solver's memory. The host decides it for a whole launch.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "core/team_assignment.h"
#include "cuda/launch.h"

namespace detr_fast::cuda {

// How many warps a multiprocessor runs at once, if shared memory allows it: launch bounds of the
// kernels, which use up to 128 registers per thread. With a higher bound they would spill
// registers. So would, even with 16 warps, the kernels whose solver's memory is not shared memory,
// because of its 64-bit addresses.
constexpr int kResidentWarps = 16;
constexpr int resident_blocks(int warps, bool shared) {
  return kResidentWarps / warps / (shared ? 1 : 2);
}

// A block's shared memory holds SolverMemory, if that fits, followed by `room` costs.
struct SharedMemory {
  size_t solver;      // bytes; 0: the solver's memory is in the workspace
  size_t bytes;       // total
  int64_t room;       // costs
  bool all_resident;  // whether as many blocks run at once as registers allow, or as there are

  // For blocks of `warps` warps that solve `problems` problems of at most rows x cols in one
  // launch, all of that size if `one_size`. More shared memory per block makes each step of the
  // search faster, but lets fewer problems run at once. All problems should run at once, as far as
  // kResidentWarps per multiprocessor allow.
  SharedMemory(int device, int64_t problems, int warps, bool one_size, int64_t rows, int64_t cols,
               size_t size_of_cost) {
    constexpr size_t kReserved = 3 << 10;  // the block's static memory and the system's, per block
    const int64_t processors = device_attribute(cudaDevAttrMultiProcessorCount, device);
    const int64_t resident =
        std::min<int64_t>(std::max<int64_t>((problems + processors - 1) / processors, 1),
                          resident_blocks(warps, true));
    const size_t of_processor =
        device_attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor, device);
    const size_t of_block = max_shared_memory(device) - kReserved;
    const size_t share = std::min(of_block, of_processor / resident - kReserved);
    const size_t needed = (SolverMemory::bytes(rows, cols) + 15) / 16 * 16;
    solver = needed <= of_block ? needed : 0;
    const size_t left = share > solver ? share - solver : 0;
    const int64_t fitting = static_cast<int64_t>(left / size_of_cost);
    // What no problem can use is better left to the cache, which has the costs then.
    room = fitting >= rows * cols ? rows * cols : one_size ? 0 : fitting;
    bytes = solver + room * size_of_cost;
    all_resident = needed <= share;
  }
};

// Bytes of workspace that each problem needs in addition to the block's shared memory.
inline int64_t solver_workspace(int device, int64_t rows, int64_t cols) {
  const SharedMemory shared(device, 1, kResidentWarps, true, rows, cols, sizeof(float));
  return shared.solver ? 0 : (SolverMemory::bytes(rows, cols) + 15) / 16 * 16;
}

}  // namespace detr_fast::cuda
