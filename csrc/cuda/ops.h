// The CUDA launchers, declared without CUDA headers because the bindings include this file.
//
// A launcher is a plain function of device pointers, sizes, a device index and a stream (a
// cudaStream_t as an integer, as torch provides it). It makes the device current for the call,
// launches into the stream, checks the launch and returns without waiting. It allocates nothing, so
// that it can be captured into a CUDA graph. It throws std::runtime_error if CUDA reports an error.
#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/pair_cost.h"

namespace detr_fast::cuda {

// The stream's address; 0 is the default stream.
using Stream = uintptr_t;

// Versions as CUDA counts them: 1000 * major + 10 * minor.
int runtime_version();  // linked into this module
int driver_version();   // the newest CUDA that the installed driver runs; 0 without a driver

struct AssignmentInput {
  int64_t problems;  // P
  // `cost`, `rows`, `cols` and `transposed` have P entries each; or, if is_batch, one entry each
  // for all problems, whose costs are [P, rows, cols].
  bool is_batch;
  const void* const* cost;         // addresses of contiguous [rows, cols]
  const int32_t *rows, *cols;      // rows <= cols
  const bool* transposed;          // whether these columns are the caller's rows
  int64_t *row_index, *col_index;  // [sum of rows], written: the caller's, in order of its rows
  int32_t* status;                 // [P], written: a Status; if not kOk, pair k is (k, k)
  void* memory;  // [P * assignment_workspace(device, most rows, most cols)] bytes, or null if 0
};

// Solves every problem. Costs are float or double.
void assign(const AssignmentInput& in, bool is_double, int device, Stream stream);

// Bytes of device memory that each problem of a call needs, for the largest of its sizes: 0 if a
// block's shared memory is enough.
int64_t assignment_workspace(int device, int64_t rows, int64_t cols);

struct MatchInput {
  const void* const* logits;        // [L] addresses of [B, N, C]
  const void* const* boxes;         // [L] addresses of [B, N, 4] cxcywh
  Dtype logits_dtype, boxes_dtype;  // not float64
  int64_t layers, images, queries, classes;
  const int64_t* labels;      // [T]
  const float* target_boxes;  // [T, 4] cxcywh
  int64_t targets;            // T; if the images have fewer, the rest is padding
  // The number of targets of each image, [B] on the host; or, if `counts` is null, where each
  // image's targets begin and the last image's end, [B + 1] on the device.
  const int64_t* counts;
  const int32_t* device_offsets;
  int64_t most_targets;  // of one image, at most
  PairCostOptions options;
  bool nonfinite_last;
  float* cost;           // [L * T * N], scratch
  int64_t* query_index;  // [L, T], written: each target's query, or -1
  // For each layer and each image, min(N, M) queries, ascending, and then their targets. May be
  // null, and must be if `counts` is null.
  int64_t* pairs;
  // [L * B] in memory that the device can write and the host can read: encode_fault for a problem
  // that has no match, written only where it is 0.
  uint64_t* faults;
  void* memory;  // [L * B * assignment_workspace(device, min(N, most), max(N, most))], or null if 0
};

// Matches every layer and image.
void match(const MatchInput& in, int device, Stream stream);

}  // namespace detr_fast::cuda
