// Kernels of one block or two with one fault each, and one without: the emulation has to tell.
#include <cuda_runtime.h>

#include "broken.h"

namespace ptx {
namespace {

constexpr int kThreads = 64;
constexpr unsigned kWarp = 0xffffffffu;

struct Fault {
  const char* name;
  void (*kernel)(int*);
  int blocks = 1;
};

__device__ int here() { return static_cast<int>(threadIdx.x); }

// Exchanges values between warps, between lanes and between blocks, in the order it takes.
__global__ void nothing(int* memory) {
  __shared__ int values[kThreads], least, same;
  const int t = here();
  values[t] = t;
  if (t == 0) least = kThreads;
  same = 7;
  __syncthreads();
  const int other = values[kThreads - 1 - t];
  atomicMin(&least, other);
  __syncthreads();
  values[t] = other + least;
  __syncwarp();
  const int neighbour = values[t ^ 1];
  __syncwarp();
  values[t] = neighbour + static_cast<int>(__reduce_min_sync(kWarp, threadIdx.x)) + same;
  atomicMin(memory + kThreads, values[t]);
  if (blockIdx.x == 0) memory[t] = values[t];
}

__global__ void no_barrier_of_the_block(int* memory) {
  __shared__ int values[kThreads];
  values[here()] = here();
  __syncwarp();
  memory[here()] = values[kThreads - 1 - here()];
}

__global__ void no_barrier_of_the_warp(int* memory) {
  __shared__ int values[kThreads];
  values[here()] = here();
  memory[here()] = values[here() ^ 1];
}

__global__ void a_ballot_for_a_barrier(int* memory) {
  __shared__ int values[kThreads];
  values[here()] = here();
  const unsigned all = __ballot_sync(kWarp, memory[here()] == 0);
  memory[here()] = values[here() ^ 1] + static_cast<int>(all);
}

__global__ void overwritten_before_it_is_read(int* memory) {
  __shared__ int values[kThreads];
  values[here()] = here();
  __syncthreads();
  const int other = values[kThreads - 1 - here()];
  values[here()] = other + 1;
  memory[here()] = other;
}

__global__ void blocks_write_the_same(int* memory) {
  memory[here()] = static_cast<int>(blockIdx.x) + 1;
}

__global__ void a_block_reads_what_another_writes(int* memory) {
  if (blockIdx.x == 0)
    memory[here()] = 1;
  else
    memory[kThreads + here()] = memory[here()];
}

__global__ void atomic_and_not(int* memory) {
  __shared__ int least;
  if (here() == 0) least = kThreads;
  __syncthreads();
  atomicMin(&least, here());
  memory[here()] = least;
}

__global__ void never_written(int* memory) {
  __shared__ int values[kThreads];
  if (here() > 0) values[here()] = here();
  __syncthreads();
  memory[here()] = values[here()];
}

__global__ void outside_of_the_block(int* memory) {
  __shared__ int values[kThreads];
  values[here()] = here();
  __syncthreads();
  memory[here()] = values[here() + memory[kThreads] + 1];
}

__global__ void outside_of_memory(int* memory) { memory[kMemory - kThreads + 1 + here()] = 1; }

__global__ void not_aligned(int* memory) {
  *reinterpret_cast<double*>(memory + 1 + 2 * here()) = 1;
}

__global__ void a_barrier_for_some(int* memory) {
  if (here() < 16) __syncthreads();
  memory[here()] = 1;
}

__global__ void a_lane_returns(int* memory) {
  if (here() == 3) return;
  __syncwarp();
  memory[here()] = 1;
}

__global__ void a_warp_returns(int* memory) {
  if (here() >= 32) return;
  __syncthreads();
  memory[here()] = 1;
}

__global__ void lanes_at_two_places(int* memory) {
  memory[here()] = threadIdx.x % 32 < 16 ? static_cast<int>(__ballot_sync(kWarp, threadIdx.x > 5))
                                         : static_cast<int>(__reduce_min_sync(kWarp, threadIdx.x));
}

__global__ void lanes_that_never_come(int* memory) {
  if (threadIdx.x % 2) __syncwarp();
  memory[here()] = 1;
}

constexpr Fault kFaults[] = {
    {"nothing", nothing, 2},
    {"no_barrier_of_the_block", no_barrier_of_the_block},
    {"no_barrier_of_the_warp", no_barrier_of_the_warp},
    {"a_ballot_for_a_barrier", a_ballot_for_a_barrier},
    {"overwritten_before_it_is_read", overwritten_before_it_is_read},
    {"blocks_write_the_same", blocks_write_the_same, 2},
    {"a_block_reads_what_another_writes", a_block_reads_what_another_writes, 2},
    {"atomic_and_not", atomic_and_not},
    {"never_written", never_written},
    {"outside_of_the_block", outside_of_the_block},
    {"outside_of_memory", outside_of_memory},
    {"not_aligned", not_aligned},
    {"a_barrier_for_some", a_barrier_for_some},
    {"a_lane_returns", a_lane_returns},
    {"a_warp_returns", a_warp_returns},
    {"lanes_at_two_places", lanes_at_two_places},
    {"lanes_that_never_come", lanes_that_never_come},
};

}  // namespace

std::vector<int> run_broken(const std::string& name) {
  std::vector<int> memory(kMemory);
  allow({{reinterpret_cast<uint64_t>(memory.data()), sizeof(int) * kMemory}});
  for (const Fault& fault : kFaults)
    if (name == fault.name) fault.kernel<<<fault.blocks, kThreads>>>(memory.data());
  return memory;
}

}  // namespace ptx
