// Shortest paths in reduced costs, by one team of threads: from a row without a column to a free
// column, and from a free column that has a price to one that needs none. Each link of such a path
// waits for the one before: what counts is how long one pass over a row takes, including finding
// its minimum among all threads.
#pragma once

#include <cstdint>

#include "core/host_device.h"
#include "core/team.h"
#include "core/team_problem.h"

namespace detr_fast {

// Every method is called by all threads of the team. A column j is looked after by the thread of
// rank j % size, a row i by that of rank i % size: it alone reads and writes the column's or row's
// distance and from, and, during a search, the dual variable that the search changes.
template <class Team, class Real>
class TeamSearch {
 public:
  DETR_FAST_KERNEL_PART TeamSearch(Team& team, const TeamProblem<Real>& problem,
                                   const SolverMemory& memory)
      : team_(team), problem_(problem), m_(memory) {
    forget_distances();
  }

  // Gives row `root` a column, others different ones, at the least cost; false if there is none.
  DETR_FAST_KERNEL_PART bool augment(int32_t root) {
    int32_t row = root, col = -1, visits = 0;
    double length = 0;
    for (;;) {
      note_visit(visits, row, col, length);
      // A visited column must not be reached again: v = -infinity makes every candidate infinite.
      if (col >= 0) hide(visits, col, m_.v);
      ++visits;

      const Real* const c = problem_.row(row);
      const double base = length - m_.u[row];
      double least = Problem::infinity();
      int32_t nearest = -1;
      for (int32_t j = team_.rank(); j < problem_.cols; j += team_.size()) {
        const double candidate = base + static_cast<double>(c[j]) - m_.v[j];
        const double distance = reach(j, candidate, row);
        if (distance < least || (distance == least && m_.comes_first(j, nearest))) {
          least = distance;
          nearest = j;
        }
      }
      Key<uint64_t> mine;
      if (nearest >= 0) mine = m_.key_of(least, nearest);
      const Key<uint64_t> found = team_.min(mine);
      length = number_of(found.value);
      if (!(length < Problem::infinity())) return false;
      col = SolverMemory::col_of(found);
      row = m_.row_of_col[col];
      if (row < 0) break;
    }
    team_.sync();
    for (int32_t k = team_.rank(); k < visits; k += team_.size()) {
      const double nearer = length - m_.visit_distance[k];
      m_.u[m_.visit_row[k]] += nearer;
      if (m_.visit_col[k] >= 0) m_.v[m_.visit_col[k]] = m_.visit_dual[k] - nearer;
    }
    forget_distances();
    if (team_.rank() == 0) hand_on_to(root, col);
    team_.sync();
    return true;
  }

  // A free column must cost nothing: v = 0. For each that has a price, a row takes it, or the price
  // goes, whatever leads to the least cost. The same search, with rows and columns exchanged; it
  // may end at each column that it has visited, which is free then.
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

  // Rows, or columns, that searches have visited.
  DETR_FAST_KERNEL_PART int32_t steps() const { return steps_; }

 private:
  using Problem = TeamProblem<Real>;

  DETR_FAST_KERNEL_PART void forget_distances() {
    for (int32_t j = team_.rank(); j < problem_.cols; j += team_.size())
      m_.distance[j] = Problem::infinity();
  }

  DETR_FAST_KERNEL_PART void note_visit(int32_t visit, int32_t row, int32_t col, double distance) {
    ++steps_;
    if (team_.rank() != 0) return;
    m_.visit_row[visit] = row;
    m_.visit_col[visit] = col;
    m_.visit_distance[visit] = distance;
  }

  DETR_FAST_KERNEL_PART void hide(int32_t visit, int32_t k, double* dual) {
    if (team_.rank() != k % team_.size()) return;
    m_.visit_dual[visit] = dual[k];
    dual[k] = -Problem::infinity();
    m_.distance[k] = Problem::infinity();
  }

  DETR_FAST_KERNEL_PART double reach(int32_t k, double candidate, int32_t from) {
    const double distance = m_.distance[k];
    if (!(candidate < distance)) return distance;
    m_.distance[k] = candidate;
    m_.from[k] = from;
    return candidate;
  }

  // Hands `col` to the row from which it was reached, that row's column to the row before it, and
  // so on to the root.
  DETR_FAST_KERNEL_PART void hand_on_to(int32_t root, int32_t col) {
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
    double length = 0, shortest = -m_.v[root];  // of the paths that end at a visited column
    for (;;) {
      note_visit(visits, row, col, length);
      if (row >= 0) hide(visits, row, m_.u);
      ++visits;

      const double base = length - m_.v[col];
      Key<uint64_t> nearest;
      for (int32_t i = team_.rank(); i < problem_.rows; i += team_.size()) {
        const double candidate = base + static_cast<double>(problem_.row(i)[col]) - m_.u[i];
        const Key<uint64_t> key = {ordered(reach(i, candidate, col)), static_cast<uint32_t>(i)};
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
    forget_distances();
    if (team_.rank() == 0 && last != root) take_back_from(last, root);
    team_.sync();
  }

  // The row that holds `col` leaves it for the column from which the row was reached, whose holder
  // leaves that one, and so on to the root.
  DETR_FAST_KERNEL_PART void take_back_from(int32_t col, int32_t root) {
    int32_t row = m_.row_of_col[col];
    m_.row_of_col[col] = -1;
    for (;;) {
      const int32_t taken = m_.from[row], holder = m_.row_of_col[taken];
      m_.row_of_col[taken] = row;
      m_.col_of_row[row] = taken;
      if (taken == root) return;
      row = holder;
    }
  }

  Team& team_;
  const Problem& problem_;
  const SolverMemory& m_;
  int32_t steps_ = 0;
};

}  // namespace detr_fast
