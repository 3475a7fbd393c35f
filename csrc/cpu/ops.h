// The CPU ops: plain functions of addresses and sizes. Real is float or double.
#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/pair_cost.h"
#include "core/status.h"

namespace detr_fast::cpu {

// One cost matrix, contiguous [rows, cols], and where its min(rows, cols) pairs are written, with
// row indices ascending.
template <class Real>
struct Problem {
  const Real* cost;
  int64_t rows, cols;
  int64_t *row_index, *col_index;
};

// Solves every problem, on at most `threads` threads.
template <class Real>
Fault assign(const Problem<Real>* problems, int64_t count, bool maximize, int threads);

struct MatchInput {
  const void* const* logits;  // [L] addresses of [B, N, C]
  const void* const* boxes;   // [L] addresses of [B, N, 4] cxcywh
  // Both are kFloat64, or neither. With kFloat64, costs are computed in double, else in float.
  Dtype logits_dtype, boxes_dtype;
  int64_t layers, images, queries, classes;
  int64_t label_count;              // K: labels are 0..K-1. Focal: K = C, softmax: K = C - 1
  const int64_t* const* labels;     // [B] addresses of [M]
  const void* const* target_boxes;  // [B] addresses of [M, 4] cxcywh, float or double as above
  const int64_t* counts;            // [B] M
  PairCostOptions options;
  // If true, a pair without a finite cost is assigned only if no finite pair is left; else it is a
  // fault.
  bool nonfinite_last;
  int threads;  // at most; fewer if there is little work
};

// Matches every layer and image. For each layer and each image, writes to `index`, one after the
// other, min(N, M) query indices, ascending, and then the target of each.
Fault match(const MatchInput& in, int64_t* index);

// "avx512", "avx2" or "plain": the instruction set in use.
const char* simd_name();

}  // namespace detr_fast::cpu
