// The matching of DETR by teams of threads (core/team.h), for all layers and images at once: first
// the cost of every pair, one tile of 32 queries per block, then the assignment, one problem per
// block. It does what the CPU version does (cpu/match.cpp), with two differences because the host
// does not wait for the GPU: the sizes may be known only on the device, and faults are stored for
// the host to read later.
//
// Faults are passed on in the costs: the cost of a faulty pair is NaN, with the reason in the NaN's
// bits. The assignment finds it, leaves the problem without a match and writes the first such pair
// to the problem's slot of `faults`.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/dtype.h"
#include "core/pair_cost.h"
#include "core/status.h"
#include "core/team.h"
#include "core/team_assignment.h"

namespace detr_fast {

// The kernels' argument, passed by value: at most 4 KiB.
struct TeamMatchInput {
  static constexpr int kLayers = 32, kImages = 256;  // at most, in one launch

  const void* logits[kLayers];  // [B, N, C] each
  const void* boxes[kLayers];   // [B, N, 4] cxcywh each
  Dtype boxes_dtype;
  int32_t layers, images;                 // of this launch
  int32_t first_layer, first_image;       // where this launch begins within the whole call
  int32_t all_images;                     // B
  int32_t queries, classes, label_count;  // N, C; labels are 0..label_count-1
  const int64_t* labels;                  // [T]
  const float* target_boxes;              // [T, 4] cxcywh
  int64_t targets;                        // T; targets from the last offset on are padding
  // Where each image's targets begin, and where the last image's end: `offsets` for the images of
  // this launch, or, if not null, `device_offsets` on the device for all B images.
  int32_t offsets[kImages + 1];
  const int32_t* device_offsets;  // [B + 1]
  PairCostOptionsOf<float> options;
  bool nonfinite_last;

  float* cost;           // [L, T * N], scratch
  int64_t* query_index;  // [L, T] the query of each target; -1 = none
  // Each image's min(N, M) queries, ascending, and then the target of each; or null. Those of an
  // image begin at its pair_starts within the layer's pairs_of_layer entries.
  int64_t* pairs;
  int64_t pairs_of_layer;
  int32_t pair_starts[kImages];
  uint64_t* faults;  // [L * B], 0 = none, else encode_fault; written only where it is 0
  // The solver's memory, if it does not fit into the block's own memory.
  char* memory;
  int64_t memory_of_problem;  // bytes per problem
  int64_t room;               // costs per problem that the block's own memory has space for

  DETR_FAST_KERNEL_PART int32_t offset(int32_t image) const {
    return device_offsets ? device_offsets[first_image + image] : offsets[image];
  }
  // The number, within the whole call, of the problem of this launch's layer and image.
  DETR_FAST_KERNEL_PART int64_t problem(int32_t layer, int32_t image) const {
    return static_cast<int64_t>(first_layer + layer) * all_images + first_image + image;
  }
  DETR_FAST_KERNEL_PART int64_t first_target(int32_t layer, int32_t image) const {
    return (first_layer + layer) * targets + offset(image);
  }
};

static_assert(sizeof(TeamMatchInput) <= 4096, "the limit of kernel arguments");

// The costs of one problem form a matrix with rows <= cols: the rows are targets, or, if there are
// more targets than queries, queries.
struct CostLayout {
  int32_t rows, cols;
  bool by_query;

  DETR_FAST_KERNEL_PART CostLayout(int32_t queries, int32_t count)
      : rows(count > queries ? queries : count),
        cols(count > queries ? count : queries),
        by_query(count > queries) {}
  DETR_FAST_KERNEL_PART int64_t at(int32_t query, int32_t target) const {
    return by_query ? static_cast<int64_t>(query) * cols + target
                    : static_cast<int64_t>(target) * cols + query;
  }
};

DETR_FAST_HD inline float nan_with(Status status) {
  return float_of_bits(0x7fc00000u | static_cast<uint32_t>(status));
}

DETR_FAST_HD inline Status status_of_nan(float x) {
  return static_cast<Status>(bits_of_float(x) & 0xffu);
}

DETR_FAST_HD inline bool is_finite(float x) { return x - x == 0; }

DETR_FAST_HD inline bool is_box(const Box<float>& b) {
  return is_finite(b.cx) && is_finite(b.cy) && is_finite(b.w) && is_finite(b.h) && b.w >= 0 &&
         b.h >= 0;
}

template <class T>
DETR_FAST_HD inline Box<float> load_box_at(const void* boxes, int64_t index) {
  const T* const b = static_cast<const T*>(boxes) + 4 * index;
  return make_box(to_float(b[0]), to_float(b[1]), to_float(b[2]), to_float(b[3]));
}

DETR_FAST_HD inline Box<float> load_box_at(const void* boxes, Dtype dtype, int64_t index) {
  switch (dtype) {
    case Dtype::kFloat16:
      return load_box_at<Half>(boxes, index);
    case Dtype::kBfloat16:
      return load_box_at<Bfloat>(boxes, index);
    default:
      return load_box_at<float>(boxes, index);
  }
}

// Computes the softmax of one query by one warp; every thread gets the result.
template <class T, class Warp>
DETR_FAST_KERNEL_PART Softmax<float> softmax_by_warp(const Warp& warp, const T* logits,
                                                     int32_t classes) {
  Key<uint32_t> least;  // of the negated logits, to find the largest logit
  bool invalid = false;
  for (int32_t c = warp.rank(); c < classes; c += kWarpSize) {
    const float x = to_float(logits[c]);
    invalid |= x != x;
    const Key<uint32_t> key = {ordered(-x), 0};
    if (key < least) least = key;
  }
  const float max = -number_of(warp.min(least).value);
  float sum = 0;
  for (int32_t c = warp.rank(); c < classes; c += kWarpSize)
    sum += std::exp(to_float(logits[c]) - max);
  sum = warp.sum(sum);
  // If a logit is +inf, or all are -inf, x - max is NaN.
  const bool exists = warp.ballot(invalid) == 0 && is_finite(max) && is_finite(sum);
  return {max, exists ? 1 / sum : nan_with(Status::kInvalidLogits)};
}

constexpr int kTile = kWarpSize;  // queries of a tile, one per lane

// Computes the costs of one tile of queries with all targets of their image. `softmax` [kTile] is
// in the block's own memory.
template <class T, class Block>
DETR_FAST_KERNEL_PART void compute_costs(Block& block, const TeamMatchInput& in, int32_t layer,
                                         int32_t image, int32_t first_query,
                                         Softmax<float>* softmax) {
  const int32_t begin = in.offset(image), count = in.offset(image + 1) - begin;
  if (count <= 0) return;
  const auto warp = block.warp();
  const int64_t first = static_cast<int64_t>(in.first_image + image) * in.queries + first_query;
  const int32_t left = in.queries - first_query, tile = left < kTile ? left : kTile;
  const T* const logits = static_cast<const T*>(in.logits[layer]) + first * in.classes;
  const bool focal = in.options.class_cost == ClassCost::kFocal;
  if (!focal) {
    for (int32_t k = block.warp_index(); k < tile; k += block.warps()) {
      const Softmax<float> of_query = softmax_by_warp(warp, logits + k * in.classes, in.classes);
      if (warp.rank() == 0) softmax[k] = of_query;
    }
    block.sync();
  }

  const int32_t k = warp.rank();
  if (k >= tile) return;
  const int32_t n = first_query + k;
  const Box<float> box = load_box_at(in.boxes[layer], in.boxes_dtype, first + k);
  const Softmax<float> of_query = focal ? Softmax<float>{0, 0} : softmax[k];
  const bool boxed = is_box(box);
  const CostLayout layout(in.queries, count);
  float* const cost = in.cost + in.first_target(layer, image) * in.queries;
  for (int32_t m = block.warp_index(); m < count; m += block.warps()) {
    const int64_t label = in.labels[begin + m];
    const Box<float> target = load_box_at<float>(in.target_boxes, static_cast<int64_t>(begin) + m);
    float result;
    if (label < 0 || label >= in.label_count) {
      result = nan_with(Status::kInvalidLabel);
    } else if (!is_box(target)) {
      result = nan_with(Status::kInvalidTargetBox);
    } else {
      const float logit = to_float(logits[static_cast<int64_t>(k) * in.classes + label]);
      const float class_cost =
          focal ? focal_cost(logit, in.options) : -std::exp(logit - of_query.max) * of_query.scale;
      result = in.options.weight_class * class_cost + box_cost(box, target, in.options);
      const bool exists = focal ? logit == logit : of_query.scale == of_query.scale;
      if (!exists || !boxed || !is_finite(result)) {
        const Status status = !exists  ? Status::kInvalidLogits
                              : !boxed ? Status::kInvalidBox
                                       : Status::kInvalidPairCost;
        result = in.nonfinite_last ? float_of_bits(0x7f800000u) : nan_with(status);
      }
    }
    cost[layout.at(n, m)] = result;
  }
}

// Packs a fault into 64 bits: status 8 bits, query + 1 and target + 1 28 bits each; larger numbers
// become 2^28 - 1.
DETR_FAST_HD inline uint64_t encode_fault(Status status, int64_t query, int64_t target) {
  constexpr int64_t kMost = (int64_t(1) << 28) - 1;
  const uint64_t q = static_cast<uint64_t>(query + 1 < kMost ? query + 1 : kMost);
  const uint64_t t = static_cast<uint64_t>(target + 1 < kMost ? target + 1 : kMost);
  return static_cast<uint64_t>(status) << 56 | q << 28 | t;
}

// Solves one problem's assignment and writes the results. All methods are called by all threads of
// the block.
template <class Block>
class ProblemMatcher {
 public:
  DETR_FAST_KERNEL_PART ProblemMatcher(Block& block, const TeamMatchInput& in, int32_t layer,
                                       int32_t image)
      : block_(block),
        in_(in),
        layer_(layer),
        image_(image),
        count_(in.offset(image + 1) - in.offset(image)),
        layout_(in.queries, count_),
        cost_(in.cost + in.first_target(layer, image) * in.queries),
        query_index_(in.query_index + in.first_target(layer, image)) {}

  // `memory` has space for the SolverMemory of a problem of this size, `room` for in_.room costs.
  DETR_FAST_KERNEL_PART void run(void* memory, float* room) {
    if (image_ == in_.images - 1) clear_padding();
    if (count_ <= 0) return;
    for (int32_t m = block_.rank(); m < count_; m += block_.size()) query_index_[m] = -1;
    if (layout_.rows == 0) return;
    const SolverMemory parts(memory, layout_.rows, layout_.cols);
    if (in_.nonfinite_last) rank_infinite_last();
    TeamSolver<Block, float> solver(block_, parts, room, in_.room);
    const Status status = solver.solve(cost_, layout_.rows, layout_.cols, layout_.cols);
    if (status == Status::kOk) {
      write(parts, solver);
    } else {
      report(status);
      if (in_.pairs) write_placeholder();
    }
  }

 private:
  // Marks the padding after the last image's targets as unmatched: a fixed capacity is seldom full.
  DETR_FAST_KERNEL_PART void clear_padding() {
    if (in_.first_image + in_.images != in_.all_images) return;
    for (int64_t t = in_.offset(in_.images) + block_.rank(); t < in_.targets; t += block_.size())
      in_.query_index[(in_.first_layer + layer_) * in_.targets + t] = -1;
  }

  // Replaces infinite costs by a finite one so large that using fewer of them outweighs any saving
  // elsewhere.
  DETR_FAST_KERNEL_PART void rank_infinite_last() {
    const int64_t entries = static_cast<int64_t>(layout_.rows) * layout_.cols;
    const float infinity = float_of_bits(0x7f800000u);
    Key<uint32_t> least, most;  // most: the least complement
    uint32_t infinite = 0;
    for (int64_t k = block_.rank(); k < entries; k += block_.size()) {
      const float x = cost_[k];
      infinite |= x == infinity;
      if (!is_finite(x)) continue;
      if (ordered(x) < least.value) least = {ordered(x), 0};
      if (~ordered(x) < most.value) most = {~ordered(x), 0};
    }
    if (block_.sum(infinite) == 0) return;
    least = block_.min(least);
    most = block_.min(most);
    float last = 0;
    if (~most.value >= least.value) {
      const float low = number_of(least.value), high = number_of(~most.value);
      last = high + static_cast<float>(count_ + 1) * (high - low) + 1;
      if (!(last > high)) last = number_of(ordered(high) + 1);  // the next number
      if (!is_finite(last)) last = 3.402823466e38f;
    }
    for (int64_t k = block_.rank(); k < entries; k += block_.size())
      if (cost_[k] == infinity) cost_[k] = last;
  }

  DETR_FAST_KERNEL_PART int64_t* pairs() const {
    return in_.pairs + (in_.first_layer + layer_) * in_.pairs_of_layer + in_.pair_starts[image_];
  }

  template <class Solver>
  DETR_FAST_KERNEL_PART void write(const SolverMemory& parts, const Solver& solver) {
    int64_t* const query = in_.pairs ? pairs() : nullptr;
    int64_t* const target = in_.pairs ? query + layout_.rows : nullptr;
    if (layout_.by_query) {
      for (int32_t n = block_.rank(); n < layout_.rows; n += block_.size()) {
        const int32_t m = solver.col_of_row(n);
        query_index_[m] = n;
        if (!query) continue;
        query[n] = n;
        target[n] = m;
      }
      return;
    }
    int32_t* const target_of = parts.from;  // [N], no longer needed by the solver
    if (query)
      for (int32_t n = block_.rank(); n < layout_.cols; n += block_.size()) target_of[n] = -1;
    block_.sync();
    for (int32_t m = block_.rank(); m < layout_.rows; m += block_.size()) {
      const int32_t n = solver.col_of_row(m);
      query_index_[m] = n;
      if (query) target_of[n] = m;
    }
    block_.sync();
    if (!query || block_.warp_index() != 0) return;
    compact(
        block_.warp(), layout_.cols, [&](int32_t n) { return target_of[n] >= 0; },
        [&](int32_t k, int32_t n) {
          query[k] = n;
          target[k] = target_of[n];
        });
  }

  // The host expects lists of a fixed length: without a match, pair k with k.
  DETR_FAST_KERNEL_PART void write_placeholder() {
    for (int32_t k = block_.rank(); k < layout_.rows; k += block_.size())
      pairs()[k] = pairs()[layout_.rows + k] = k;
  }

  // Reports the first pair whose cost is NaN, in row-major order, or else `status` alone.
  DETR_FAST_KERNEL_PART void report(Status status) {
    Key<uint64_t> first;
    const uint64_t entries = static_cast<uint64_t>(layout_.rows) * layout_.cols;
    for (uint64_t k = block_.rank(); k < entries && first.value > k; k += block_.size())
      if (!(cost_[k] == cost_[k])) first = {k, 0};
    first = block_.min(first);
    if (block_.rank() != 0) return;
    int64_t row = -1, col = -1;
    if (first.value < entries) {
      status = status_of_nan(cost_[first.value]);
      row = static_cast<int64_t>(first.value) / layout_.cols;
      col = static_cast<int64_t>(first.value) % layout_.cols;
    }
    volatile uint64_t* const slot = in_.faults + in_.problem(layer_, image_);
    if (*slot != 0) return;
    *slot = layout_.by_query ? encode_fault(status, row, col) : encode_fault(status, col, row);
  }

  Block& block_;
  const TeamMatchInput& in_;
  const int32_t layer_, image_, count_;
  const CostLayout layout_;
  float* const cost_;
  int64_t* const query_index_;
};

}  // namespace detr_fast
