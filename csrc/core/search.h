// Shortest augmenting paths in reduced costs (Dijkstra): from a row without a column to a free
// column, and from a free column that has a price to one that needs none.
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

// Scan: the loops over a row, as PlainScan.
template <class Real, class Scan>
class Search {
 public:
  Search(Scan scan, AssignmentState<Real>& state) : scan_(scan), my_(state) {}

  // The column that is cheapest for a row at the present prices.
  Minimum<double> nearest(int32_t row) {
    distance_.assign(my_.stride, kInfinity);
    return scan_.relax(my_.row(row), my_.v.data(), distance_.data(), my_.stride, 0.0,
                       my_.row_of_col.data());
  }

  // Gives row `root` a column, others different ones, at the least cost; false if there is none,
  // which leaves the state undefined.
  bool augment(int32_t root) {
    return go(
        root, {my_.u.data(), my_.col_of_row.data()}, {my_.v.data(), my_.row_of_col.data()},
        my_.stride, [this](int32_t i) { return my_.row(i); }, kInfinity);
  }

  // A free column must cost nothing: v = 0. For each of `columns` (-1 = none) that has a price and
  // is free, a row takes it, or the price goes, whatever leads to the least cost. The same search,
  // with rows and columns exchanged.
  void release(const std::vector<int32_t>& columns) {
    slot_of_col_.assign(my_.cols, -1);
    slots_ = 0;
    for (const int32_t j : columns)
      if (j >= 0 && my_.row_of_col[j] < 0 && my_.v[j] < 0)
        go(
            j, {my_.v.data(), my_.row_of_col.data()}, {my_.u.data(), my_.col_of_row.data()},
            static_cast<int32_t>(my_.u.size()), [this](int32_t col) { return column(col); },
            -my_.v[j]);
  }

 private:
  static constexpr double kInfinity = std::numeric_limits<double>::infinity();

  struct Side {
    double* dual;
    int32_t* partner;  // -1 = free
  };

  struct Visit {
    int32_t node;     // on the root's side
    int32_t through;  // its partner, through which it was reached; -1 for the root
    double distance;  // of the partner
    double dual;      // of the partner, before the search
  };

  // From `root` to a free node on the other side. With a `longest` path, which is the price of the
  // root, the path may also end at any visited node that then is free and costs nothing.
  // costs(k) are those of node k of the root's side, padded to n.
  template <class Costs>
  bool go(int32_t root, Side mine, Side other, int32_t n, Costs costs, double longest) {
    const bool may_stay_free = longest < kInfinity;
    distance_.assign(n, kInfinity);
    visits_.clear();
    visits_.push_back({root, -1, 0.0, 0.0});
    double length = 0, shortest = longest;
    int32_t end = -1;  // where the shortest path ends: a free node on the other side, or else
    size_t last = 0;   // a visit; the first is the root, which stays free
    for (;;) {
      const int32_t node = visits_.back().node;
      const Minimum<double> found = scan_.relax(costs(node), other.dual, distance_.data(), n,
                                                length - mine.dual[node], other.partner);
      if (!(found.value < shortest)) break;
      length = found.value;
      const int32_t next = other.partner[found.col];
      if (next < 0) {
        shortest = length;
        end = found.col;
        break;
      }
      if (may_stay_free && length - mine.dual[next] < shortest) {
        shortest = length - mine.dual[next];
        last = visits_.size();
      }
      visits_.push_back({next, found.col, length, other.dual[found.col]});
      // A visited node must not be reached again: a dual of -infinity makes every candidate
      // infinite, which saves the inner loop a mask.
      other.dual[found.col] = -kInfinity;
      distance_[found.col] = kInfinity;
    }
    if (end >= 0) {
      hand_on(end, visits_.size(), mine, other, costs);
    } else if (!may_stay_free) {
      return false;
    } else if (last > 0) {
      mine.partner[visits_[last].node] = -1;
      hand_on(visits_[last].through, last, mine, other, costs);
    }
    for (const Visit& visit : visits_) {
      const double nearer = shortest - visit.distance;
      double& dual = mine.dual[visit.node];
      dual += nearer;
      if (may_stay_free) dual = std::min(dual, 0.0);
      if (visit.through >= 0) other.dual[visit.through] = visit.dual - nearer;
    }
    if (may_stay_free && end < 0) mine.dual[visits_[last].node] = 0;  // but for rounding, it is
    return true;
  }

  // Hands `node` of the other side to the one from which it was reached, that one's partner to the
  // one before it, and so on to the root. relax() does not store where a distance came from, which
  // would slow it down; the few nodes on the path look for it among the `end` visits before them.
  template <class Costs>
  void hand_on(int32_t node, size_t end, Side mine, Side other, Costs costs) {
    for (;;) {
      const double dual = end < visits_.size() ? visits_[end].dual : other.dual[node];
      size_t best = 0;
      double least = kInfinity;
      for (size_t k = 0; k < end; ++k) {
        const Visit& visit = visits_[k];
        const double candidate = (visit.distance - mine.dual[visit.node]) +
                                 static_cast<double>(costs(visit.node)[node]) - dual;
        if (candidate < least) {
          least = candidate;
          best = k;
        }
      }
      const Visit& from = visits_[best];
      other.partner[node] = from.node;
      mine.partner[from.node] = node;
      if (best == 0) return;
      node = from.through;
      end = best;
    }
  }

  // A column's costs [padded rows], of the few columns that are asked for. (In the padding they are
  // infinite, so that nobody asks whom these rows belong to.)
  const Real* column(int32_t col) {
    const size_t rows = my_.u.size();
    if (slot_of_col_[col] < 0) {
      slot_of_col_[col] = slots_++;
      Real* const out = grow(columns_, rows * slots_) + rows * slot_of_col_[col];
      for (int32_t i = 0; i < my_.rows; ++i) out[i] = my_.row(i)[col];
      std::fill(out + my_.rows, out + rows, std::numeric_limits<Real>::infinity());
    }
    return columns_.data() + rows * slot_of_col_[col];
  }

  Scan scan_;
  AssignmentState<Real>& my_;
  AlignedVector<double> distance_;  // of the shortest path so far; infinity if visited
  std::vector<Visit> visits_;       // in the order of the search
  std::vector<int32_t> slot_of_col_;
  int32_t slots_ = 0;
  AlignedVector<Real> columns_;  // [slots, padded rows]
};

}  // namespace detr_fast
