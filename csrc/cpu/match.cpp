// The matching of DETR: for each decoder layer and image, the costs of its queries x targets,
// written directly in the solver's layout, and the assignment.
#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>
#include <vector>

#include "core/aligned.h"
#include "cpu/ops.h"
#include "cpu/problems.h"
#include "cpu/solver.h"

namespace detr_fast::cpu {
namespace {

bool is_box(double cx, double cy, double w, double h) {
  return std::isfinite(cx) && std::isfinite(cy) && std::isfinite(w) && std::isfinite(h) && w >= 0 &&
         h >= 0;
}

// The targets of one image, checked once and packed in the form that every layer's costs need.
template <class Real>
struct Targets {
  std::vector<int32_t> labels, label_of;  // distinct labels [D], each target's index into it [M]
  std::vector<Box<Real>> boxes;           // [M]
  int64_t count = 0;

  Fault load(const MatchInput& in, int64_t image, std::vector<int32_t>& slot_of_label) {
    count = in.counts[image];
    labels.clear();
    label_of.resize(count);
    boxes.resize(count);
    const int64_t* const label = in.labels[image];
    const Real* box = static_cast<const Real*>(in.target_boxes[image]);
    for (int64_t m = 0; m < count; ++m)
      if (label[m] < 0 || label[m] >= in.label_count) return {Status::kInvalidLabel, image, -1, m};
    for (int64_t m = 0; m < count; ++m, box += 4) {
      if (!is_box(box[0], box[1], box[2], box[3])) return {Status::kInvalidTargetBox, image, -1, m};
      boxes[m] = make_box(box[0], box[1], box[2], box[3]);
      int32_t& slot = slot_of_label[label[m]];
      if (slot < 0) {
        slot = static_cast<int32_t>(labels.size());
        labels.push_back(static_cast<int32_t>(label[m]));
      }
      label_of[m] = slot;
    }
    for (const int32_t l : labels) slot_of_label[l] = -1;
    return {};
  }
};

static_assert(sizeof(Box<float>) == 9 * sizeof(float), "read as nine floats by the kernels");

// Fills cost [M, padded(N)] and minima [M] for one layer and image. Some pairs may lack a cost,
// which is then infinity, if nonfinite_last.
Fault compute_costs(const MatchInput& in, int64_t layer, int64_t image,
                    const Targets<float>& targets, AlignedVector<float>& scratch, float* cost,
                    Minimum<float>* minima, bool& lacks_costs) {
  const auto element = [](const void* base, Dtype dtype, int64_t index) {
    return static_cast<const char*>(base) + index * (dtype == Dtype::kFloat32 ? 4 : 2);
  };
  const int64_t distinct = static_cast<int64_t>(targets.labels.size());
  const PairCostInput input = {
      element(in.logits[layer], in.logits_dtype, image * in.queries * in.classes),
      element(in.boxes[layer], in.boxes_dtype, image * in.queries * 4),
      in.logits_dtype,
      in.boxes_dtype,
      in.queries,
      in.classes,
      targets.labels.data(),
      distinct,
      targets.label_of.data(),
      &targets.boxes.data()->cx,
      targets.count,
      to_single(in.options),
      in.nonfinite_last,
      grow(scratch, pair_cost_scratch(in.classes, distinct, targets.count)),
      cost,
      minima};
  const PairCostFault fault = kernels().pair_costs(input);
  switch (fault.kind) {
    case PairCostFault::kLogits:
      return {Status::kInvalidLogits, -1, fault.query};
    case PairCostFault::kBox:
      return {Status::kInvalidBox, -1, fault.query};
    case PairCostFault::kCost:
      return {Status::kInvalidPairCost, -1, -1, fault.target};
    case PairCostFault::kNone:
      break;
  }
  lacks_costs = fault.lacks_costs;
  return {};
}

// The same in double and plain scalars, without minima: float64 predictions are meant for tests and
// gradient checks.
Fault compute_costs(const MatchInput& in, int64_t layer, int64_t image,
                    const Targets<double>& targets, AlignedVector<double>&, double* cost,
                    Minimum<double>*, bool& lacks_costs) {
  const int64_t classes = in.classes, stride = padded(in.queries);
  const double* logits = static_cast<const double*>(in.logits[layer]);
  const double* box = static_cast<const double*>(in.boxes[layer]);
  logits += image * in.queries * classes;
  box += image * in.queries * 4;
  PairCostOptions options = in.options;
  options.giou_lowest = std::max(options.giou_lowest, std::numeric_limits<double>::min());
  const bool focal = options.class_cost == ClassCost::kFocal;
  Fault overflow;
  std::fill(cost, cost + targets.count * stride, std::numeric_limits<double>::infinity());
  Fault bad_box;
  for (int64_t n = 0; n < in.queries; ++n, logits += classes, box += 4) {
    const Softmax<double> softmax = focal ? Softmax<double>{} : softmax_of(logits, classes);
    bool exists = focal || std::isfinite(softmax.scale);
    for (const int32_t label : targets.labels) exists &= !focal || !std::isnan(logits[label]);
    if (!exists && !in.nonfinite_last) return {Status::kInvalidLogits, -1, n};
    const bool boxed = is_box(box[0], box[1], box[2], box[3]);
    if (!boxed && bad_box.status == Status::kOk) bad_box = {Status::kInvalidBox, -1, n};
    if ((!exists && !focal) || !boxed) {  // of a focal cost, only NaN logits are lost
      lacks_costs = true;
      continue;
    }
    const Box<double> query = make_box(box[0], box[1], box[2], box[3]);
    for (int64_t m = 0; m < targets.count; ++m) {
      const double logit = logits[targets.labels[targets.label_of[m]]];
      const double class_cost =
          focal ? focal_cost(logit, options) : -std::exp(logit - softmax.max) * softmax.scale;
      const double sum =
          options.weight_class * class_cost + box_cost(query, targets.boxes[m], options);
      if (std::isfinite(sum))
        cost[m * stride + n] = sum;
      else if (overflow.status == Status::kOk || m < overflow.target)
        overflow = {Status::kInvalidPairCost, -1, -1, m};
    }
  }
  lacks_costs |= overflow.status != Status::kOk;
  if (in.nonfinite_last) return {};
  return bad_box.status != Status::kOk ? bad_box : overflow;
}

// Replaces infinite costs by a finite one so large that using fewer of them outweighs any saving
// elsewhere; at most the largest finite number.
template <class Real>
void rank_infinite_last(Real* cost, int64_t targets, int64_t queries) {
  constexpr Real kInfinity = std::numeric_limits<Real>::infinity();
  const int64_t stride = padded(queries);
  Real least = kInfinity, most = -kInfinity;
  for (int64_t m = 0; m < targets; ++m)
    for (int64_t n = 0; n < queries; ++n) {
      const Real x = cost[m * stride + n];
      if (x == kInfinity) continue;
      least = std::min(least, x);
      most = std::max(most, x);
    }
  Real last = 0;
  if (least <= most) {
    last = most + static_cast<Real>(targets + 1) * (most - least) + 1;
    if (!(last > most)) last = std::nextafter(most, kInfinity);  // adding 1 rounded to nothing
  }
  last = std::min(last, std::numeric_limits<Real>::max());
  for (int64_t m = 0; m < targets; ++m)
    for (int64_t n = 0; n < queries; ++n)
      if (cost[m * stride + n] == kInfinity) cost[m * stride + n] = last;
}

// All memory needed to match one problem. Each thread keeps it from call to call, as large as its
// largest block of costs, so that a training step does not request pages from the system again.
template <class Real>
struct Workspace {
  AlignedVector<Real> cost, transposed, scratch;
  std::vector<Minimum<Real>> minima;  // of each target
  Solver<Real> solver;

  // Matches one layer and image; writes min(N, M) query indices, ascending, then their targets.
  Fault run(const MatchInput& in, int64_t layer, int64_t image, const Targets<Real>& targets,
            int64_t* index) {
    const int64_t queries = in.queries, count = targets.count;
    grow(cost, static_cast<size_t>(count) * padded(queries));
    minima.resize(count);
    bool lacks_costs = false;  // of some pairs
    Fault fault =
        compute_costs(in, layer, image, targets, scratch, cost.data(), minima.data(), lacks_costs);
    if (fault.status != Status::kOk) {
      fault.problem = layer * in.images + image;
      return fault;
    }
    if (lacks_costs) rank_infinite_last(cost.data(), count, queries);
    const Status status = solve(lacks_costs, count, queries);
    if (status != Status::kOk) return {status, layer * in.images + image};
    const std::vector<int32_t>& target_of =
        count > queries ? solver.col_of_row() : solver.row_of_col();
    int64_t* target_index = index + std::min(count, queries);
    for (int64_t n = 0; n < queries; ++n) {
      if (target_of[n] < 0) continue;
      *index++ = n;
      *target_index++ = target_of[n];
    }
    return {};
  }

 private:
  Status solve(bool changed, int64_t targets, int64_t queries) {
    const int64_t stride = padded(queries);
    const bool has_minima = std::is_same_v<Real, float> && !changed;
    if (targets <= queries)
      return solver.solve(cost.data(), targets, queries, stride,
                          has_minima ? minima.data() : nullptr);
    // The solver requires rows <= cols: queries become the rows.
    const int64_t row_stride = padded(targets);
    transposed.assign(static_cast<size_t>(queries) * row_stride,
                      std::numeric_limits<Real>::infinity());
    for (int64_t m = 0; m < targets; ++m)
      for (int64_t n = 0; n < queries; ++n) transposed[n * row_stride + m] = cost[m * stride + n];
    return solver.solve(transposed.data(), queries, targets, row_stride);
  }
};

template <class Real>
Fault match_in(const MatchInput& in, int64_t* index) {
  std::vector<Targets<Real>> targets(in.images);
  std::vector<int32_t> slot_of_label(std::max<int64_t>(in.label_count, 0), -1);
  for (int64_t image = 0; image < in.images; ++image) {
    const Fault fault = targets[image].load(in, image, slot_of_label);
    if (fault.status != Status::kOk) return fault;
  }
  std::vector<int64_t> start(in.images + 1, 0);  // where an image's output begins within a layer's
  int64_t entries = 0;
  for (int64_t image = 0; image < in.images; ++image) {
    const int64_t pairs = std::min(in.counts[image], in.queries);
    start[image + 1] = start[image] + 2 * pairs;
    if (pairs > 0) entries += in.queries * (in.classes + 8 * in.counts[image]);
  }
  return solve_all(in.layers * in.images, in.layers * entries, in.threads,
                   [&](int64_t problem) -> Fault {
                     const int64_t layer = problem / in.images, image = problem % in.images;
                     if (start[image + 1] == start[image]) return {};
                     thread_local Workspace<Real> workspace;
                     return workspace.run(in, layer, image, targets[image],
                                          index + layer * start[in.images] + start[image]);
                   });
}

}  // namespace

Fault match(const MatchInput& in, int64_t* index) {
  return in.logits_dtype == Dtype::kFloat64 ? match_in<double>(in, index)
                                            : match_in<float>(in, index);
}

}  // namespace detr_fast::cpu
