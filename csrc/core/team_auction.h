// Finds prices for contested columns by an auction: D. P. Bertsekas, "The auction algorithm: a
// distributed relaxation method for the assignment problem", Annals of Operations Research 14
// (1988). All rows without a column bid at the same time, one warp for each. A team can do this in
// parallel, unlike a search for one shortest path.
//
// A column's price is -v. A row bids for its cheapest column: it raises the price by the difference
// to its next cheapest column plus `step`. Of several bidders the first among the free rows gets
// the column, and the row that held it becomes free again. Prices only rise, and only those of
// columns that stay held from then on. With step = 0, every row that holds a column holds its
// cheapest one: the invariants of core/assignment.h hold, as after a search. But rows that bid for
// the same columns then outbid each other by tiny amounts. With step > 0 fewer rounds are needed,
// and a row's column may cost up to `step` more than its cheapest one.
#pragma once

#include <cstdint>

#include "core/host_device.h"
#include "core/team.h"
#include "core/team_problem.h"

namespace detr_fast {

// Every method is called by all threads of the block.
template <class Block, class Real>
class TeamAuction {
 public:
  DETR_FAST_KERNEL_PART TeamAuction(Block& block, const TeamProblem<Real>& problem,
                                    const SolverMemory& memory)
      : block_(block), problem_(problem), m_(memory) {}

  // The geometric mean (approximate), over the free rows where it is positive and finite, of the
  // cost difference between a row's second cheapest and cheapest column; 0 if there is no such row.
  DETR_FAST_KERNEL_PART double typical_gap(int32_t free) {
    const auto warp = block_.warp();
    uint32_t sum = 0, count = 0;
    for (int32_t k = block_.warp_index(); k < free; k += block_.warps()) {
      const Offer offer = best_offer(warp, m_.free_rows[k]);
      const double gap = offer.next - offer.cost;
      if (warp.rank() != 0 || !(gap > 0 && gap < Problem::infinity())) continue;
      // The bits of a float, read as an integer, approximate its logarithm. The lower bits are
      // dropped, or the sum would overflow.
      sum += bits_of_float(static_cast<float>(gap)) >> kDroppedBits;
      ++count;
    }
    block_.sync();  // a thread that continues may overwrite what others are still reading
    sum = block_.sum(sum);
    count = block_.sum(count);
    return count == 0 ? 0 : static_cast<double>(float_of_bits(sum / count << kDroppedBits));
  }

  // Runs at most `rounds` rounds; no bid raises a price by more than most + step. `free` is the
  // number of free rows; returns the number that remain.
  DETR_FAST_KERNEL_PART int32_t run(int32_t free, double step, double most, int32_t rounds) {
    for (int32_t j = block_.rank(); j < problem_.cols; j += block_.size()) first_bid()[j] = kNobody;
    block_.sync();
    for (int32_t round = 0; round < rounds && free > 0; ++round) {
      bid(free, step, most);
      block_.sync();
      for (int32_t k = block_.rank(); k < free; k += block_.size()) settle_bid(k);
      block_.sync();
      free = gather_free_rows(free);
      ++rounds_;
    }
    return free;
  }

  DETR_FAST_KERNEL_PART int32_t rounds() const { return rounds_; }

 private:
  using Problem = TeamProblem<Real>;
  struct Offer {
    int32_t col;
    double cost, next;  // of `col` and of the second cheapest column, at the current prices
  };

  // Reused memory. Per column: its first bidder, as a position among the free rows. Per such
  // position: the column that the row bids for (-1 = none), that column's v if the bid wins, and
  // the row that is free after the round (-1 = none).
  DETR_FAST_KERNEL_PART int32_t* first_bid() const { return m_.from; }
  DETR_FAST_KERNEL_PART int32_t* bid_col() const { return m_.visit_col; }
  DETR_FAST_KERNEL_PART double* bid_v() const { return m_.visit_distance; }
  DETR_FAST_KERNEL_PART int32_t* next_free() const { return m_.visit_row; }

  template <class Warp>
  DETR_FAST_KERNEL_PART Offer best_offer(const Warp& warp, int32_t row) const {
    const Real* const c = problem_.row(row);
    double cost = Problem::infinity(), next = cost;
    int32_t col = -1;
    for (int32_t j = warp.rank(); j < problem_.cols; j += kWarpSize) {
      const double reduced = static_cast<double>(c[j]) - m_.v[j];
      if (reduced < cost || (reduced == cost && m_.comes_first(j, col))) {
        next = cost;
        cost = reduced;
        col = j;
      } else if (reduced < next) {
        next = reduced;
      }
    }
    Key<uint64_t> best;
    if (col >= 0) best = m_.key_of(cost, col);
    best = warp.min(best);
    const int32_t best_col = SolverMemory::col_of(best);
    const Key<uint64_t> second = warp.min(Key<uint64_t>{ordered(col == best_col ? next : cost), 0});
    return {best_col, number_of(best.value), number_of(second.value)};
  }

  DETR_FAST_KERNEL_PART void bid(int32_t free, double step, double most) {
    const auto warp = block_.warp();
    for (int32_t k = block_.warp_index(); k < free; k += block_.warps()) {
      const int32_t row = m_.free_rows[k];
      const Offer offer = best_offer(warp, row);
      if (warp.rank() != 0) continue;
      const double gap = offer.next - offer.cost, raise = (gap < most ? gap : most) + step;
      m_.u[row] = offer.cost;
      // With a raise of 0, the row that loses the column would bid for it again in the next round.
      const bool bids = raise > 0 || !m_.is_held(offer.col);
      bid_col()[k] = bids ? offer.col : -1;
      if (!bids) continue;
      bid_v()[k] = m_.v[offer.col] - raise;
      block_.lower(&first_bid()[offer.col], k);
    }
  }

  DETR_FAST_KERNEL_PART void settle_bid(int32_t k) {
    const int32_t row = m_.free_rows[k], col = bid_col()[k];
    next_free()[k] = row;
    if (col < 0 || first_bid()[col] != k) {
      bid_col()[k] = -1;
      return;
    }
    const int32_t holder = m_.row_of_col[col];
    if (holder >= 0) m_.col_of_row[holder] = -1;
    next_free()[k] = holder;
    m_.u[row] += m_.v[col] - bid_v()[k];
    m_.v[col] = bid_v()[k];
    m_.row_of_col[col] = row;
    m_.col_of_row[row] = col;
  }

  DETR_FAST_KERNEL_PART int32_t gather_free_rows(int32_t free) {
    for (int32_t k = block_.rank(); k < free; k += block_.size())
      if (bid_col()[k] >= 0) first_bid()[bid_col()[k]] = kNobody;
    if (block_.warp_index() == 0) {
      const auto warp = block_.warp();
      const int32_t left = compact(
          warp, free, [&](int32_t k) { return next_free()[k] >= 0; },
          [&](int32_t position, int32_t k) { m_.free_rows[position] = next_free()[k]; });
      if (warp.rank() == 0) m_.shared[SolverMemory::kFree] = left;
    }
    block_.sync();
    return m_.shared[SolverMemory::kFree];
  }

  static constexpr int kDroppedBits = 20;  // leaves 3 bits of the mantissa

  Block& block_;
  const Problem& problem_;
  const SolverMemory& m_;
  int32_t rounds_ = 0;
};

}  // namespace detr_fast
