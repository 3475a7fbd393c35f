// The assignment problem solved by a team of threads: the GPU version of core/assignment.h, with
// the same rows (targets), columns (queries), dual variables and invariants, in three steps:
//   1. greedy start: every row takes its cheapest column, unless an earlier row takes the same one;
//   2. if rows are left, an auction (core/team_auction.h), whose prices approximate the duals;
//   3. shortest paths (core/team_search.h) for the rows that still have no column.
// In steps 1 and 2 all warps of a block share the rows. Step 3 is a chain in which each step waits
// for the previous one. A single warp needs no barrier for that, and is used up to kWarpColumns
// columns. Step 1 copies the costs to the block's own memory, if they fit.
//
// The two versions are separate sources: the CPU version uses vector instructions and allocates
// memory as needed, while here every step is a collective operation of a team, and the caller
// provides the memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "core/host_device.h"
#include "core/status.h"
#include "core/team.h"
#include "core/team_auction.h"
#include "core/team_problem.h"
#include "core/team_search.h"

namespace detr_fast {

// Every method is called by all threads of the block, unless it takes another team as an argument.
template <class Block, class Real>
class TeamSolver {
 public:
  // Up to this many columns, one warp runs the chain of step 3. Estimated from 12 cycles for each
  // further column of a thread, against 150 for a barrier and the exchange between warps.
  static constexpr int32_t kWarpColumns = 320;

  // `room`: fast memory (the block's own) for `room_size` costs; room_size may be 0.
  DETR_FAST_KERNEL_PART TeamSolver(Block& block, const SolverMemory& memory, Real* room,
                                   int64_t room_size, int32_t warp_columns = kWarpColumns)
      : block_(block),
        m_(memory),
        room_(room),
        room_size_(room_size),
        warp_columns_(warp_columns) {}

  // Solves cost [rows, stride], of which the first `cols` columns are used; rows <= cols. +infinity
  // forbids a pair. If the result is kOk, col_of_row(i) is then the column of row i.
  DETR_FAST_KERNEL_PART Status solve(const Real* cost, int32_t rows, int32_t cols, int32_t stride) {
    problem_ = {cost, rows, cols, stride};
    rounds_ = steps_ = 0;
    const bool fits = static_cast<int64_t>(rows) * cols <= room_size_;
    assign_cheapest<false>(fits);
    const int32_t free = m_.shared[SolverMemory::kFree];
    const Status status = static_cast<Status>(m_.shared[SolverMemory::kStatus]);
    if (status != Status::kOk || free == 0) return status;
    return fits ? auction_and_search<true>(free) : auction_and_search<false>(free);
  }

  DETR_FAST_KERNEL_PART int32_t col_of_row(int32_t row) const { return m_.col_of_row[row]; }

  // The length of the chain: rounds of the auction, and rows and columns visited by searches. Steps
  // are valid in the threads that searched, which always include the first warp.
  DETR_FAST_KERNEL_PART int32_t rounds() const { return rounds_; }
  DETR_FAST_KERNEL_PART int32_t steps() const { return steps_; }

 private:
  using Problem = TeamProblem<Real>;

  // Setting u to the row's minimum keeps all reduced costs >= 0. Of several rows with the same
  // cheapest column, the first takes it. Uses v = 0, or, if kPriced, the prices set by an auction.
  // If `copies` (not if kPriced), the costs are copied to room_ as well.
  template <bool kPriced>
  DETR_FAST_KERNEL_PART void assign_cheapest(bool copies = false) {
    using Value = std::conditional_t<kPriced, double, Real>;
    for (int32_t j = block_.rank(); j < problem_.cols; j += block_.size()) {
      m_.row_of_col[j] = kNobody;
      if (!kPriced) m_.v[j] = 0;
    }
    if (block_.rank() == 0) m_.shared[SolverMemory::kStatus] = static_cast<int32_t>(Status::kOk);
    block_.sync();

    const auto warp = block_.warp();
    for (int32_t i = block_.warp_index(); i < problem_.rows; i += block_.warps()) {
      const Real* const c = problem_.row(i);
      Real* const copy = copies ? room_ + static_cast<size_t>(i) * problem_.cols : nullptr;
      OrderedKey<Value> least;
      bool invalid = false;
      for_own<kPriced ? 4 : 5>(
          warp, problem_.cols,
          [&](int32_t j) {
            Value value = c[j];
            if constexpr (kPriced) value -= m_.v[j];
            return value;
          },
          [&](int32_t j, Value value) {
            if (copies) copy[j] = static_cast<Real>(value);
            invalid |= !(value > -Problem::infinity());
            const auto key = ordered(value);
            if (key < least.value) least = {key, static_cast<uint32_t>(j)};
          });
      invalid = warp.ballot(invalid) != 0;
      least = warp.min(least);
      if (warp.rank() != 0) continue;
      const double cheapest = static_cast<double>(number_of(least.value));
      if (invalid) {
        block_.lower(&m_.shared[SolverMemory::kStatus], kInvalidFirst);
      } else if (!(cheapest < Problem::infinity())) {
        block_.lower(&m_.shared[SolverMemory::kStatus], kInfeasibleNext);
      } else {
        m_.u[i] = cheapest;
        m_.col_of_row[i] = static_cast<int32_t>(least.index);
        block_.lower(&m_.row_of_col[least.index], i);
      }
    }
    block_.sync();
    if (m_.shared[SolverMemory::kStatus] < 0) {
      const int32_t code = m_.shared[SolverMemory::kStatus];
      block_.sync();
      if (block_.rank() == 0) {
        m_.shared[SolverMemory::kStatus] = static_cast<int32_t>(
            code == kInvalidFirst ? Status::kInvalidCost : Status::kInfeasible);
        m_.shared[SolverMemory::kFree] = problem_.rows;
      }
      block_.sync();
      return;  // never if kPriced: the problem has passed this check, and prices keep costs finite
    }
    for (int32_t i = block_.rank(); i < problem_.rows; i += block_.size())
      if (m_.row_of_col[m_.col_of_row[i]] != i) m_.col_of_row[i] = -1;
    block_.sync();
    for (int32_t j = block_.rank(); j < problem_.cols; j += block_.size())
      if (m_.row_of_col[j] == kNobody) m_.row_of_col[j] = -1;
    if (block_.warp_index() == 0) {
      const int32_t free = compact(
          warp, problem_.rows, [&](int32_t i) { return m_.col_of_row[i] < 0; },
          [&](int32_t k, int32_t i) { m_.free_rows[k] = i; });
      if (warp.rank() == 0) m_.shared[SolverMemory::kFree] = free;
    }
    block_.sync();
  }

  // Steps 2 and 3. Compiled twice: if the costs are in the block's own memory, the compiler knows
  // that the loads on which the chain waits come from there.
  template <bool kCopied>
  DETR_FAST_KERNEL_PART Status auction_and_search(int32_t free) {
    if (kCopied) {
      problem_.cost = room_;
      problem_.stride = problem_.cols;
    }
    for (bool may_bid = true;; may_bid = false) {
      if (may_bid) free = run_auction(free);
      if (problem_.cols > warp_columns_) {
        search(block_, free);
      } else if (block_.warp_index() == 0) {
        const auto warp = block_.warp();
        search(warp, free);
      }
      block_.sync();
      const Status status = static_cast<Status>(m_.shared[SolverMemory::kStatus]);
      if (!may_bid || rounds_ == 0 || (status == Status::kOk && is_precise())) return status;
      block_.sync();
      assign_cheapest<false>();
      free = m_.shared[SolverMemory::kFree];
      block_.sync();
    }
  }

  // Step 2. A few rounds with step = 0 are enough if most rows prefer different columns. If many
  // prefer the same ones, even after these rounds or, without them, if more than half of the rows
  // are free, then rounds with step > 0 find rough prices; at these all rows choose again, and the
  // rows then without a column bid once more with step = 0.
  DETR_FAST_KERNEL_PART int32_t run_auction(int32_t free) {
    TeamAuction<Block, Real> auction(block_, problem_, m_);
    const double gap = auction.typical_gap(free);
    if (!(gap > 0)) return free;
    // A price much larger than the gaps would make other rows' bids lose the digits in which their
    // costs differ.
    const double most = kMostGaps * gap, step = kStep * gap;
    const int32_t few = problem_.rows / 16, rounds = problem_.rows + kMoreRounds;
    if (free <= problem_.rows / 2 || free <= few + kFewFree)
      free = auction.run_exact(free, most, kExactRounds);
    if (free > few + kFewFree && (most + step) * rounds < kHighestPrice) {
      auction.run_rough(free, step, most, rounds, few);
      assign_cheapest<true>();
      free = auction.run_exact(m_.shared[SolverMemory::kFree], most, kLastRounds);
    }
    rounds_ = auction.rounds();
    return free;
  }

  // A cost minus a price is rounded to the precision of the price. If the costs of the assignment
  // are so small beside the prices that this may affect it, the result is not precise enough.
  DETR_FAST_KERNEL_PART bool is_precise() {
    Key<uint64_t> lowest_v, dearest;
    for (int32_t j = block_.rank(); j < problem_.cols; j += block_.size()) {
      const Key<uint64_t> key = {ordered(m_.v[j]), 0};
      if (key < lowest_v) lowest_v = key;
    }
    for (int32_t i = block_.rank(); i < problem_.rows; i += block_.size()) {
      const double cost = static_cast<double>(problem_.row(i)[m_.col_of_row[i]]);
      const Key<uint64_t> key = {ordered(cost < 0 ? cost : -cost), 0};
      if (key < dearest) dearest = key;
    }
    const double highest_price = -number_of(block_.min(lowest_v).value);
    return kRounding * highest_price <= kMostLost * -number_of(block_.min(dearest).value);
  }

  // Step 3, by one team.
  template <class Team>
  DETR_FAST_KERNEL_PART void search(Team& team, int32_t free) {
    TeamSearch<Team, Real> paths(team, problem_, m_);
    for (int32_t k = 0; k < free; ++k) {
      if (paths.augment(m_.free_rows[k])) continue;
      if (team.rank() == 0)
        m_.shared[SolverMemory::kStatus] = static_cast<int32_t>(Status::kInfeasible);
      return;
    }
    if (rounds_ > 0) paths.release_priced_columns();
    steps_ = paths.steps();
  }

  // Lower than every Status, and an invalid cost before an infeasible row.
  static constexpr int32_t kInvalidFirst = -2, kInfeasibleNext = -1;

  // Chosen by counting bids, rounds and steps, with 20 to 300 rows, for random costs and for DETR's
  // costs from untrained to trained models: benchmarks/chain.py.
  static constexpr int32_t kExactRounds = 8, kLastRounds = 16, kMoreRounds = 64, kFewFree = 8;
  static constexpr double kStep = 0.25, kMostGaps = 16;
  static constexpr double kHighestPrice = sizeof(Real) == sizeof(float) ? 0x1p126 : 0x1p1022;
  static constexpr double kRounding = 0x1p-52, kMostLost = 1e-12;

  Block& block_;
  const SolverMemory& m_;
  Real* const room_;
  const int64_t room_size_;
  const int32_t warp_columns_;
  Problem problem_{};
  int32_t rounds_ = 0, steps_ = 0;
};

}  // namespace detr_fast
