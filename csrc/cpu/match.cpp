// The matching of DETR: for each decoder layer and image, the cost of its own queries x targets
// block, written straight into the solver's layout, and its assignment.
#include <cmath>
#include <limits>
#include <vector>

#include "core/assignment.h"
#include "core/pair_cost.h"
#include "cpu/ops.h"

namespace detr_fast::cpu {
namespace {

// One image's predicted boxes, each member of Box an array [N] of its own, so that the loop over
// queries is vector code.
template <class Real>
class QueryBoxes {
 public:
  explicit QueryBoxes(int64_t queries) : n_(queries), memory_(9 * queries) {}

  // Returns the first query whose box is not finite or has a negative side, or -1.
  int64_t load(const Real* boxes) {
    for (int64_t n = 0; n < n_; ++n) {
      const Real* const b = boxes + 4 * n;
      const bool finite =
          std::isfinite(b[0]) && std::isfinite(b[1]) && std::isfinite(b[2]) && std::isfinite(b[3]);
      if (!finite || b[2] < 0 || b[3] < 0) return n;
      const Box<Real> box = make_box(b[0], b[1], b[2], b[3]);
      const Real members[] = {box.cx, box.cy, box.w,  box.h,   box.x0,
                              box.y0, box.x1, box.y1, box.area};
      for (int k = 0; k < 9; ++k) memory_[k * n_ + n] = members[k];
    }
    return -1;
  }

  Box<Real> operator[](int64_t n) const {
    const Real* const m = memory_.data() + n;
    return {m[0],      m[n_],     m[2 * n_], m[3 * n_], m[4 * n_],
            m[5 * n_], m[6 * n_], m[7 * n_], m[8 * n_]};
  }

 private:
  int64_t n_;
  std::vector<Real> memory_;
};

template <class Real>
class Matcher {
 public:
  explicit Matcher(const MatchInput<Real>& in)
      : in_(in), boxes_(in.queries), numerators_(in.classes) {}

  // Fills block_ [M, N] for one layer and image.
  Fault compute_costs(const Real* logits, const Real* boxes, int64_t first, int64_t targets) {
    const int64_t queries = in_.queries, classes = in_.classes;
    const int64_t* const labels = in_.labels + first;
    block_.resize(static_cast<size_t>(targets) * queries);

    // Class cost. Each query's softmax is normalised once; only its M labels' entries are kept.
    for (int64_t n = 0; n < queries; ++n) {
      const Real scale = softmax_numerators(logits + n * classes, classes, numerators_.data());
      if (!std::isfinite(scale)) return {Status::kInvalidLogits, -1, n};
      const Real factor = -in_.weights.cls * scale;
      for (int64_t m = 0; m < targets; ++m)
        block_[m * queries + n] = factor * numerators_[labels[m]];
    }

    // Box costs, one target against all queries.
    const int64_t bad_box = boxes_.load(boxes);
    if (bad_box >= 0) return {Status::kInvalidBox, -1, bad_box};
    for (int64_t m = 0; m < targets; ++m) {
      const Real* const t = in_.target_boxes + 4 * (first + m);
      if (!add_box_costs(t, block_.data() + m * queries))
        return {Status::kInvalidPairCost, -1, -1, m};
    }
    return {};
  }

  // Assigns block_ and writes min(N, M) pairs, query indices ascending.
  Fault assign_block(int64_t targets, int64_t* query_index, int64_t* target_index) {
    const int64_t queries = in_.queries;
    const bool more_targets = targets > queries;
    const Real* cost = block_.data();
    if (more_targets) {  // the solver wants rows <= cols: queries become the rows
      transposed_.resize(block_.size());
      for (int64_t m = 0; m < targets; ++m)
        for (int64_t n = 0; n < queries; ++n)
          transposed_[n * targets + m] = block_[m * queries + n];
      cost = transposed_.data();
    }
    const int64_t rows = smaller(targets, queries), cols = larger(targets, queries);
    const Status status = solver_.solve(cost, rows, cols);
    if (status != Status::kOk) return {status};
    const auto& target_of = more_targets ? solver_.col_of_row : solver_.row_of_col;
    for (int64_t n = 0; n < queries; ++n) {
      if (target_of[n] < 0) continue;
      *query_index++ = n;
      *target_index++ = target_of[n];
    }
    return {};
  }

 private:
  // Returns false if a cost is not finite.
  bool add_box_costs(const Real* target, Real* __restrict row) {
    const Box<Real> box = make_box(target[0], target[1], target[2], target[3]);
    const PairWeights<Real> weights = in_.weights;
    int bad = 0;
    for (int64_t n = 0; n < in_.queries; ++n) {
      const Real cost = row[n] + box_cost(boxes_[n], box, weights);
      row[n] = cost;
      bad |= !(std::fabs(cost) <= std::numeric_limits<Real>::max());
    }
    return bad == 0;
  }

  const MatchInput<Real>& in_;
  QueryBoxes<Real> boxes_;
  std::vector<Real> numerators_, block_, transposed_;
  AssignmentSolver<Real> solver_;
};

}  // namespace

template <class Real>
Fault match(const MatchInput<Real>& in, int64_t* query_index, int64_t* target_index) {
  Matcher<Real> matcher(in);
  for (int64_t layer = 0; layer < in.layers; ++layer) {
    for (int64_t image = 0; image < in.images; ++image) {
      const int64_t first = in.offsets[image], targets = in.offsets[image + 1] - first;
      if (targets == 0 || in.queries == 0) continue;
      const Real* const logits = in.logits[layer] + image * in.queries * in.classes;
      const Real* const boxes = in.boxes[layer] + image * in.queries * 4;
      Fault fault = matcher.compute_costs(logits, boxes, first, targets);
      if (fault.status == Status::kOk)
        fault = matcher.assign_block(targets, query_index, target_index);
      if (fault.status != Status::kOk) {
        fault.problem = layer * in.images + image;
        return fault;
      }
      const int64_t pairs = smaller(targets, in.queries);
      query_index += pairs;
      target_index += pairs;
    }
  }
  return {};
}

template Fault match(const MatchInput<float>&, int64_t*, int64_t*);
template Fault match(const MatchInput<double>&, int64_t*, int64_t*);

}  // namespace detr_fast::cpu
