// Shortest augmenting paths in reduced costs (Dijkstra): from a row without a column to a free
// column, and from a free column with a price (v < 0) to a free row, or to a column that can become
// free with v = 0.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "core/aligned.h"
#include "core/assignment_state.h"
#include "core/scan.h"

namespace detr_fast {

// Scan: the loops over a row, with the interface of PlainScan.
template <class Real, class Scan>
class Search {
 public:
  Search(Scan scan, AssignmentState<Real>& state) : scan_(scan), state_(state) {}

  // The cheapest column for a row at the current prices.
  Minimum<double> nearest(int32_t row) {
    distance_.assign(state_.stride, kInfinity);
    return scan_.relax(state_.row(row), state_.v.data(), distance_.data(), state_.stride, 0.0,
                       state_.row_of_col.data());
  }

  // Gives row `root` a column at the least total cost, reassigning other rows where necessary.
  // Returns false if no column can be reached, which leaves the state undefined.
  bool augment(int32_t root) {
    return apply_shortest_path(
        root, {state_.u.data(), state_.col_of_row.data()},
        {state_.v.data(), state_.row_of_col.data()}, state_.stride,
        [this](int32_t i) { return state_.row(i); }, kInfinity);
  }

  // A free column must have v = 0. For each of `columns` (-1 = none) that is free but has v < 0,
  // either a row takes the column or v is reset to 0, whichever gives the lower total cost. The
  // same search as augment(), with rows and columns exchanged.
  void release(const std::vector<int32_t>& columns) {
    slot_of_col_.assign(state_.cols, -1);
    slots_ = 0;
    for (const int32_t j : columns)
      if (j >= 0 && state_.row_of_col[j] < 0 && state_.v[j] < 0)
        apply_shortest_path(
            j, {state_.v.data(), state_.row_of_col.data()},
            {state_.u.data(), state_.col_of_row.data()}, static_cast<int32_t>(state_.u.size()),
            [this](int32_t col) { return column(col); }, -state_.v[j]);
  }

 private:
  static constexpr double kInfinity = std::numeric_limits<double>::infinity();

  struct Side {
    double* dual;
    int32_t* partner;  // -1 = free
  };

  struct Visit {
    int32_t node;     // on the root's side
    int32_t through;  // the node's partner, via which it was reached; -1 for the root
    double distance;  // from the root to the partner
    double dual;      // of the partner, before the search
  };

  // Finds the shortest path from `root` to a free node on the other side, reassigns partners along
  // it and updates the duals. If `longest` is finite (the price of the root), the path may also end
  // at any visited node of the root's side, the root included, which then becomes free with a dual
  // of 0. costs(k) returns the costs of node k of the root's side, padded to n. Returns false if no
  // path exists.
  template <class Costs>
  bool apply_shortest_path(int32_t root, Side own, Side other, int32_t n, Costs costs,
                           double longest) {
    const bool may_stay_free = longest < kInfinity;
    distance_.assign(n, kInfinity);
    visits_.clear();
    visits_.push_back({root, -1, 0.0, 0.0});
    double length = 0, shortest = longest;
    // The shortest path ends at `end`, a free node on the other side, or, if that is -1, at the
    // node of visit `last`; visit 0 is the root, which then stays free.
    int32_t end = -1;
    size_t last = 0;
    for (;;) {
      const int32_t node = visits_.back().node;
      const Minimum<double> nearest = scan_.relax(costs(node), other.dual, distance_.data(), n,
                                                  length - own.dual[node], other.partner);
      if (!(nearest.value < shortest)) break;
      length = nearest.value;
      const int32_t next = other.partner[nearest.col];
      if (next < 0) {
        shortest = length;
        end = nearest.col;
        break;
      }
      if (may_stay_free && length - own.dual[next] < shortest) {
        shortest = length - own.dual[next];
        last = visits_.size();
      }
      visits_.push_back({next, nearest.col, length, other.dual[nearest.col]});
      // A visited node must not be reached again. A dual of -infinity makes every candidate
      // infinite, so the inner loop needs no mask.
      other.dual[nearest.col] = -kInfinity;
      distance_[nearest.col] = kInfinity;
    }
    if (end >= 0) {
      reassign_along_path(end, visits_.size(), own, other, costs);
    } else if (!may_stay_free) {
      return false;
    } else if (last > 0) {
      own.partner[visits_[last].node] = -1;
      reassign_along_path(visits_[last].through, last, own, other, costs);
    }
    for (const Visit& visit : visits_) {
      const double nearer = shortest - visit.distance;
      double& dual = own.dual[visit.node];
      dual += nearer;
      if (may_stay_free) dual = std::min(dual, 0.0);
      if (visit.through >= 0) other.dual[visit.through] = visit.dual - nearer;
    }
    if (may_stay_free && end < 0) own.dual[visits_[last].node] = 0;  // removes a rounding error
    return true;
  }

  // Pairs `node` of the other side with the node from which it was reached, that node's previous
  // partner with the node before it, and so on up to the root. relax() does not store where a
  // distance came from, as that would slow it down. For the few nodes on the path the predecessor
  // is searched for among the first `end` visits.
  template <class Costs>
  void reassign_along_path(int32_t node, size_t end, Side own, Side other, Costs costs) {
    for (;;) {
      const double dual = end < visits_.size() ? visits_[end].dual : other.dual[node];
      size_t best = 0;
      double least = kInfinity;
      for (size_t k = 0; k < end; ++k) {
        const Visit& visit = visits_[k];
        const double candidate = (visit.distance - own.dual[visit.node]) +
                                 static_cast<double>(costs(visit.node)[node]) - dual;
        if (candidate < least) {
          least = candidate;
          best = k;
        }
      }
      const Visit& from = visits_[best];
      other.partner[node] = from.node;
      own.partner[from.node] = node;
      if (best == 0) return;
      node = from.through;
      end = best;
    }
  }

  // A column's costs [padded rows], copied on first use, since only a few columns are needed. The
  // padding is infinite, so that a scan never reads the partners of those rows.
  const Real* column(int32_t col) {
    const size_t rows = state_.u.size();
    if (slot_of_col_[col] < 0) {
      slot_of_col_[col] = slots_++;
      Real* const out = grow(columns_, rows * slots_) + rows * slot_of_col_[col];
      for (int32_t i = 0; i < state_.rows; ++i) out[i] = state_.row(i)[col];
      std::fill(out + state_.rows, out + rows, std::numeric_limits<Real>::infinity());
    }
    return columns_.data() + rows * slot_of_col_[col];
  }

  Scan scan_;
  AssignmentState<Real>& state_;
  AlignedVector<double> distance_;  // of the shortest path found so far; infinity if visited
  std::vector<Visit> visits_;       // in the order of the search
  std::vector<int32_t> slot_of_col_;
  int32_t slots_ = 0;
  AlignedVector<Real> columns_;  // [slots, padded rows]
};

}  // namespace detr_fast
