// Shortest paths in reduced costs, by one team of threads: from a row without a column to a free
// column, and from a free column with a price (v < 0) to a column that can become free with v = 0.
// Each step of such a path waits for the previous one, so what matters is the time of one pass over
// a row, including the minimum over all threads.
#pragma once

#include <cstdint>

#include "core/host_device.h"
#include "core/team.h"
#include "core/team_problem.h"

namespace detr_fast {

// Every method is called by all threads of the team. Column j is owned by the thread of rank
// j % size, and row i by that of rank i % size: only the owner reads and writes its distance and
// from, and, during a search, the dual variable that the search changes.
template <class Team, class Real>
class TeamSearch {
 public:
  DETR_FAST_KERNEL_PART TeamSearch(Team& team, const TeamProblem<Real>& problem,
                                   const SolverMemory& memory)
      : team_(team), problem_(problem), m_(memory) {
    reset_distances();
  }

  // Gives row `root` a column at the least total cost, reassigning other rows where necessary.
  // Returns false if no column can be reached.
  DETR_FAST_KERNEL_PART bool augment(int32_t root) {
    int32_t row = root, col = -1, visits = 0;
    double length = 0;
    for (;;) {
      record_visit(visits, row, col, length);
      // A visited column must not be reached again: v = -infinity makes every candidate infinite.
      if (col >= 0) mark_visited(visits, col, m_.v);
      ++visits;

      const Real* const c = problem_.row(row);
      const double base = length - m_.u[row];
      double least = Problem::infinity();
      int32_t nearest = -1;
      for_own<kAhead>(
          team_, problem_.cols,
          [&](int32_t j) {
            const double candidate = base + static_cast<double>(c[j]) - m_.v[j];
            return Reached{candidate, m_.distance[j]};
          },
          [&](int32_t j, Reached reached) {
            const double distance = relax(j, reached, row);
            if (distance == least && m_.comes_first(j, nearest)) nearest = j;
            nearest = distance < least ? j : nearest;
            least = distance < least ? distance : least;
          });
      Key<uint64_t> key;
      if (nearest >= 0) key = m_.key_of(least, nearest);
      key = team_.min(key);
      length = number_of(key.value);
      if (!(length < Problem::infinity())) return false;
      col = SolverMemory::col_of(key);
      row = m_.row_of_col[col];
      if (row < 0) break;
    }
    team_.sync();
    for (int32_t k = team_.rank(); k < visits; k += team_.size()) {
      const double nearer = length - m_.visit_distance[k];
      m_.u[m_.visit_row[k]] += nearer;
      if (m_.visit_col[k] >= 0) m_.v[m_.visit_col[k]] = m_.visit_dual[k] - nearer;
    }
    reset_distances();
    if (team_.rank() == 0) reassign_along_path(root, col);
    team_.sync();
    return true;
  }

  // A free column must have v = 0. For each free column with v < 0, either a row takes it or v is
  // reset to 0, whichever gives the lower total cost. The same search as augment(), with rows and
  // columns exchanged; it may end at any column that it has visited, which then becomes free.
  DETR_FAST_KERNEL_PART void release_priced_columns() {
    for (int32_t after = 0;;) {
      Key<uint32_t> next;
      for (int32_t j = team_.rank(); j < problem_.cols; j += team_.size())
        if (j >= after && !m_.is_held(j) && m_.v[j] < 0 && static_cast<uint32_t>(j) < next.value)
          next = {static_cast<uint32_t>(j), 0};
      next = team_.min(next);
      if (next.value == Key<uint32_t>().value) return;
      after = static_cast<int32_t>(next.value);
      release(after);
      ++after;
    }
  }

  // The number of rows and columns that all searches have visited.
  DETR_FAST_KERNEL_PART int32_t steps() const { return steps_; }

 private:
  using Problem = TeamProblem<Real>;
  static constexpr int32_t kAhead = 4;

  DETR_FAST_KERNEL_PART void reset_distances() {
    for (int32_t j = team_.rank(); j < problem_.cols; j += team_.size())
      m_.distance[j] = Problem::infinity();
  }

  DETR_FAST_KERNEL_PART void record_visit(int32_t visit, int32_t row, int32_t col,
                                          double distance) {
    ++steps_;
    if (team_.rank() != 0) return;
    m_.visit_row[visit] = row;
    m_.visit_col[visit] = col;
    m_.visit_distance[visit] = distance;
  }

  DETR_FAST_KERNEL_PART void mark_visited(int32_t visit, int32_t k, double* dual) {
    if (team_.rank() != k % team_.size()) return;
    m_.visit_dual[visit] = dual[k];
    dual[k] = -Problem::infinity();
    m_.distance[k] = Problem::infinity();
  }

  // A distance that a visit offers, and the least so far.
  struct Reached {
    double candidate, distance;
  };

  DETR_FAST_KERNEL_PART double relax(int32_t k, const Reached& reached, int32_t from) {
    const bool is_nearer = reached.candidate < reached.distance;
    if (is_nearer) {
      m_.distance[k] = reached.candidate;
      m_.from[k] = from;
    }
    return is_nearer ? reached.candidate : reached.distance;
  }

  // Assigns `col` to the row from which it was reached, that row's previous column to the row
  // before it, and so on up to row `root`.
  DETR_FAST_KERNEL_PART void reassign_along_path(int32_t root, int32_t col) {
    for (;;) {
      const int32_t row = m_.from[col], next = m_.col_of_row[row];
      m_.row_of_col[col] = row;
      m_.col_of_row[row] = col;
      if (row == root) return;
      col = next;
    }
  }

  DETR_FAST_KERNEL_PART void release(int32_t root) {
    int32_t row = -1, col = root, last = root, visits = 0;
    double length = 0, shortest = -m_.v[root];  // of paths that end at a visited column
    for (;;) {
      record_visit(visits, row, col, length);
      if (row >= 0) mark_visited(visits, row, m_.u);
      ++visits;

      const double base = length - m_.v[col];
      Key<uint64_t> nearest;
      for (int32_t i = team_.rank(); i < problem_.rows; i += team_.size()) {
        const double candidate = base + static_cast<double>(problem_.row(i)[col]) - m_.u[i];
        const double distance = relax(i, {candidate, m_.distance[i]}, col);
        const Key<uint64_t> key = {ordered(distance), static_cast<uint32_t>(i)};
        if (key < nearest) nearest = key;
      }
      nearest = team_.min(nearest);
      length = number_of(nearest.value);
      if (!(length < shortest)) break;
      row = static_cast<int32_t>(nearest.index);
      col = m_.col_of_row[row];
      if (length - m_.v[col] < shortest) {
        shortest = length - m_.v[col];
        last = col;
      }
    }
    team_.sync();
    for (int32_t k = team_.rank(); k < visits; k += team_.size()) {
      const double nearer = shortest - m_.visit_distance[k];
      const double v = m_.v[m_.visit_col[k]] + nearer;
      m_.v[m_.visit_col[k]] = m_.visit_col[k] == last || v > 0 ? 0 : v;
      if (m_.visit_row[k] >= 0) m_.u[m_.visit_row[k]] = m_.visit_dual[k] - nearer;
    }
    reset_distances();
    if (team_.rank() == 0 && last != root) release_along_path(last, root);
    team_.sync();
  }

  // Frees `col`: the row that holds it takes the column from which it was reached, the row that
  // held that column takes the column before it, and so on up to column `root`.
  DETR_FAST_KERNEL_PART void release_along_path(int32_t col, int32_t root) {
    int32_t row = m_.row_of_col[col];
    m_.row_of_col[col] = -1;
    for (;;) {
      const int32_t next_col = m_.from[row], holder = m_.row_of_col[next_col];
      m_.row_of_col[next_col] = row;
      m_.col_of_row[row] = next_col;
      if (next_col == root) return;
      row = holder;
    }
  }

  Team& team_;
  const Problem& problem_;
  const SolverMemory& m_;
  int32_t steps_ = 0;
};

}  // namespace detr_fast
