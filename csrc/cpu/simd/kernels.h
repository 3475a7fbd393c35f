// The inner loops, compiled once per instruction set, and the choice among them at run time.
#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/pair_cost.h"
#include "core/scan.h"
#include "cpu/dropout.h"
#include "cpu/simd/box_iou_kernels.h"

namespace detr_fast::cpu {

// The costs of one image's queries x targets, in float32.
struct PairCostInput {
  const void* logits;  // [N, C]
  const void* boxes;   // [N, 4] cxcywh
  Dtype logits_dtype, boxes_dtype;
  int64_t queries, classes;
  const int32_t* labels;  // [D] the image's distinct labels
  int64_t distinct;
  const int32_t* label_of;  // [M] index into labels
  const float* targets;     // [M, 9] cx, cy, w, h, x0, y0, x1, y1, area
  int64_t count;            // M
  PairCostOptionsOf<float> options;
  bool tolerant;           // a pair without a finite cost gets infinity and is no fault
  float* scratch;          // [pair_cost_scratch(C, D, M)]
  float* cost;             // [M, padded(N)], written; infinity in the padding
  Minimum<float>* minima;  // [M], written: each target's least cost and its first query
};

inline constexpr int64_t class_cost_scratch(int64_t classes, int64_t distinct) {
  return kRowAlignment * (classes + kRowAlignment + distinct);
}

inline constexpr int64_t pair_cost_scratch(int64_t classes, int64_t distinct, int64_t count) {
  return class_cost_scratch(classes, distinct) + kRowAlignment * 2 * count;
}

// The first fault. Logits come before boxes and boxes before costs; lower queries come first.
struct PairCostFault {
  enum Kind { kNone, kLogits, kBox, kCost } kind;
  int64_t query;             // of kLogits and kBox
  int64_t target;            // of kCost
  bool lacks_costs = false;  // of some pairs, whose cost is infinity: only if tolerant
};

// The functions of PlainScan; n must be a multiple of kRowAlignment.
template <class Real>
struct ScanKernels {
  Minimum<Real> (*row_minimum)(const Real* c, int32_t n, const int32_t* owner);
  Minimum<double> (*relax)(const Real* c, const double* v, double* distance, int32_t n, double base,
                           const int32_t* owner);
  Offer<Real> (*cheapest)(const Real* c, const Real* price, int32_t n, const int32_t* owner);
};

struct Inspection {
  bool invalid;  // an entry is NaN or minus infinity
  bool huge;     // an entry is a double beyond +-1e300
};

// Functions of a contiguous matrix [rows, cols], whose entries they multiply by `sign` or `factor`.
template <class Real>
struct LayoutKernels {
  // Finds the first minimum of each row [rows] or column [cols].
  Inspection (*row_minima)(const Real* cost, int64_t rows, int64_t cols, Real sign,
                           Minimum<Real>* out);
  Inspection (*col_minima)(const Real* cost, int64_t rows, int64_t cols, Real sign,
                           Minimum<Real>* out);
  // Copies to `out` [rows, stride], or transposes to `out` [cols, stride]; each row of `out` is
  // padded with infinity.
  void (*copy_rows)(const Real* cost, int64_t rows, int64_t cols, Real factor, Real* out,
                    int64_t stride);
  void (*transpose)(const Real* cost, int64_t rows, int64_t cols, Real factor, Real* out,
                    int64_t stride);
};

template <class Real>
struct KernelsOf {
  ScanKernels<Real> scan;
  LayoutKernels<Real> layout;
};

struct Kernels {
  const char* name;
  PairCostFault (*pair_costs)(const PairCostInput& in);
  KernelsOf<float> for_float;
  KernelsOf<double> for_double;
  const IouKernelSet& iou;
  const DropoutKernelSet& dropout;
};

// The best set that this CPU supports; DETR_FAST_SIMD=plain|avx2|avx512 in the environment limits
// it.
const Kernels& kernels();

}  // namespace detr_fast::cpu
