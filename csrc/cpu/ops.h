// The CPU ops: plain functions of addresses and sizes. Real is float or double.
#pragma once

#include <cstdint>

#include "core/pair_cost.h"
#include "core/status.h"

namespace detr_fast::cpu {

// One cost matrix: contiguous [rows, cols].
template <class Real>
struct Problem {
  const Real* cost;
  int64_t rows, cols;
};

// Solves every problem; writes min(rows, cols) pairs for each, one problem after the other, row
// indices ascending.
template <class Real>
Fault assign(const Problem<Real>* problems, int64_t count, bool maximize, int64_t* row_index,
             int64_t* col_index);

template <class Real>
struct MatchInput {
  const Real* const* logits;  // [L] addresses of [B, N, C], C = K + 1
  const Real* const* boxes;   // [L] addresses of [B, N, 4] cxcywh
  int64_t layers, images, queries, classes;
  const int64_t* labels;     // [T] each in 0..K-1
  const Real* target_boxes;  // [T, 4] cxcywh, finite, no negative width or height
  const int64_t* offsets;    // [B + 1] image b owns targets offsets[b]..offsets[b + 1]
  PairWeights<Real> weights;
};

// Matches every layer and image. Both outputs are [L, S], S = sum of min(N, M_b): image after
// image, query indices ascending, target indices counted within their image.
template <class Real>
Fault match(const MatchInput<Real>& in, int64_t* query_index, int64_t* target_index);

}  // namespace detr_fast::cpu
