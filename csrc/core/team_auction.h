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
// and a row's column may cost up to `step` more than its cheapest one. Such rounds only serve
// to find prices, so they compute in the precision of the costs.
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

  // The geometric mean (approximate), over the free rows where it is a positive float, of the cost
  // difference between a row's second cheapest and cheapest column; 0 if there is no such row.
  DETR_FAST_KERNEL_PART double typical_gap(int32_t free) {
    const auto warp = block_.warp();
    uint32_t sum = 0, count = 0;
    for (int32_t k = block_.warp_index(); k < free; k += block_.warps()) {
      const auto offer = best_offer<WithoutPrices>(warp, m_.free_rows[k]);
      const float gap = static_cast<float>(offer.next - offer.cost);
      if (warp.rank() != 0 || !(gap > 0 && gap < static_cast<float>(Problem::infinity()))) continue;
      // The bits of a float, read as an integer, approximate its logarithm. The lower bits are
      // dropped, or the sum would overflow.
      sum += bits_of_float(gap) >> kDroppedBits;
      ++count;
    }
    sum = block_.sum(sum);
    count = block_.sum(count);
    return count == 0 ? 0 : static_cast<double>(float_of_bits(sum / count << kDroppedBits));
  }

  // Runs at most `rounds` rounds with step = 0, in which no bid raises a price by more than `most`.
  // `free` is the number of free rows; returns the number that remain.
  DETR_FAST_KERNEL_PART int32_t run_exact(int32_t free, double most, int32_t rounds) {
    return run<Exact>(free, 0, most, rounds, 0);
  }

  // Runs at most `rounds` rounds with step > 0, until at most `few` rows are free, for the prices
  // alone: neither u nor the assignment fits v afterwards.
  DETR_FAST_KERNEL_PART void run_rough(int32_t free, double step, double most, int32_t rounds,
                                       int32_t few) {
    Real* const v = Rough::v(m_);
    for (int32_t j = block_.rank(); j < problem_.cols; j += block_.size())
      v[j] = static_cast<Real>(m_.v[j]);
    run<Rough>(free, static_cast<Real>(step), static_cast<Real>(most), rounds, few);
    for (int32_t j = block_.rank(); j < problem_.cols; j += block_.size()) m_.v[j] = v[j];
  }

  DETR_FAST_KERNEL_PART int32_t rounds() const { return rounds_; }

 private:
  using Problem = TeamProblem<Real>;

  // How a phase computes: with v as the searches do, with a rough v, or with v = 0; and how many
  // columns of a lane it loads at once, as the registers allow.
  struct Exact {
    using Value = double;
    static constexpr bool kIsExact = true, kHasPrices = true;
    static constexpr int32_t kAhead = 4;
    static DETR_FAST_KERNEL_PART double* v(const SolverMemory& m) { return m.v; }
  };
  struct Rough {
    using Value = Real;
    static constexpr bool kIsExact = false, kHasPrices = true;
    static constexpr int32_t kAhead = 4;
    static DETR_FAST_KERNEL_PART Real* v(const SolverMemory& m) {
      return reinterpret_cast<Real*>(m.distance);
    }
  };
  struct WithoutPrices {
    using Value = Real;
    static constexpr bool kIsExact = false, kHasPrices = false;
    static constexpr int32_t kAhead = 1;
  };

  template <class Value>
  struct Offer {
    int32_t col;
    Value cost, next;  // of `col` and of the second cheapest column, at the current prices
  };

  // Reused memory, beside Rough::v. Per column: its first bidder, as a position among the free
  // rows. Per such position: the column that the row bids for (-1 = none), and that column's v if
  // the bid wins.
  DETR_FAST_KERNEL_PART int32_t* first_bid() const { return m_.from; }
  DETR_FAST_KERNEL_PART int32_t* bid_col() const { return m_.visit_col; }
  DETR_FAST_KERNEL_PART double* bid_v() const { return m_.visit_distance; }

  template <class Phase>
  DETR_FAST_KERNEL_PART int32_t run(int32_t free, typename Phase::Value step,
                                    typename Phase::Value most, int32_t rounds, int32_t few) {
    for (int32_t j = block_.rank(); j < problem_.cols; j += block_.size()) first_bid()[j] = kNobody;
    block_.sync();
    for (int32_t round = 0; round < rounds && free > few; ++round) {
      bid<Phase>(free, step, most);
      block_.sync();
      if (block_.warp_index() == 0) {
        const auto warp = block_.warp();
        const int32_t left = settle_bids<Phase>(warp, free);
        if (warp.rank() == 0) m_.shared[SolverMemory::kFree] = left;
      }
      block_.sync();
      free = m_.shared[SolverMemory::kFree];
      ++rounds_;
    }
    return free;
  }

  template <class Phase, class Warp>
  DETR_FAST_KERNEL_PART Offer<typename Phase::Value> best_offer(const Warp& warp,
                                                                int32_t row) const {
    using Value = typename Phase::Value;
    const Real* const c = problem_.row(row);
    const auto reduced_cost = [&](int32_t j) {
      Value value = static_cast<Value>(c[j]);
      if constexpr (Phase::kHasPrices) value -= Phase::v(m_)[j];
      return value;
    };
    Value cost = static_cast<Value>(Problem::infinity()), next = cost;
    int32_t col = -1;
    // Without branches, which the lanes of a warp would take one after the other.
    for_own<Phase::kAhead>(warp, problem_.cols, reduced_cost, [&](int32_t j, Value reduced) {
      const bool is_less = reduced < cost;
      next = lesser(next, is_less ? cost : reduced);
      cost = is_less ? reduced : cost;
      col = is_less ? j : col;
    });
    OrderedKey<Value> best = warp.min(OrderedKey<Value>{ordered(cost), static_cast<uint32_t>(col)});
    const int32_t best_col = static_cast<int32_t>(best.index);
    const auto second = warp.least(ordered(col == best_col ? next : cost));
    // Of columns that cost the same, a free one comes before one that a row holds, and then the
    // first. Integer costs often tie.
    if (Phase::kIsExact && second == best.value && best_col >= 0 && m_.is_held(best_col)) {
      uint32_t free = ~uint32_t(0);
      for (int32_t j = warp.rank(); j < problem_.cols; j += kWarpSize)
        if (ordered(reduced_cost(j)) == best.value && !m_.is_held(j))
          free = static_cast<uint32_t>(j) < free ? static_cast<uint32_t>(j) : free;
      free = warp.least(free);
      if (free != ~uint32_t(0)) best.index = free;
    }
    return {static_cast<int32_t>(best.index), number_of(best.value), number_of(second)};
  }

  template <class Phase>
  DETR_FAST_KERNEL_PART void bid(int32_t free, typename Phase::Value step,
                                 typename Phase::Value most) {
    using Value = typename Phase::Value;
    const auto warp = block_.warp();
    for (int32_t k = block_.warp_index(); k < free; k += block_.warps()) {
      const int32_t row = m_.free_rows[k];
      const auto offer = best_offer<Phase>(warp, row);
      if (warp.rank() != 0) continue;
      bid_col()[k] = -1;
      if (offer.col < 0) continue;  // a rough price made all costs infinite
      const Value v = Phase::v(m_)[offer.col];
      Value raise = lesser(offer.next - offer.cost, most) + step;
      if (Phase::kIsExact)
        m_.u[row] = offer.cost;
      else  // not so little that the numbers would stay what they are, unless that is too much
        raise = greater(
            raise, lesser(most + step, kSmallest * greater(magnitude(offer.cost), magnitude(v))));
      // With a raise of 0, the row that loses the column would bid for it again in the next round.
      const bool bids = raise > 0 || !m_.is_held(offer.col);
      if (!bids) continue;
      bid_col()[k] = offer.col;
      bid_v()[k] = v - raise;
      block_.lower(&first_bid()[offer.col], k);
    }
  }

  // Gives each column to its first bidder, and writes down the rows that are free now: those that
  // got none, and those that lost theirs. Returns how many they are.
  template <class Phase, class Warp>
  DETR_FAST_KERNEL_PART int32_t settle_bids(const Warp& warp, int32_t free) {
    int32_t left = 0;
    for (int32_t first = 0; first < free; first += kWarpSize) {
      const int32_t k = first + warp.rank();
      const int32_t row = k < free ? m_.free_rows[k] : -1, col = k < free ? bid_col()[k] : -1;
      const bool wins = col >= 0 && first_bid()[col] == k;
      warp.sync();  // others may be about to read what is overwritten now
      const int32_t remains = wins ? exchange<Phase>(row, col, bid_v()[k]) : row;
      if (wins) first_bid()[col] = kNobody;
      const uint32_t mask = warp.ballot(remains >= 0);
      if (remains >= 0) m_.free_rows[left + bits_below(mask, warp.rank())] = remains;
      left += count_bits(mask);
      warp.sync();
    }
    return left;
  }

  // Gives `col` to `row`; returns the row that held it, or -1.
  template <class Phase>
  DETR_FAST_KERNEL_PART int32_t exchange(int32_t row, int32_t col, double v) {
    const int32_t holder = m_.row_of_col[col];
    if (holder >= 0) m_.col_of_row[holder] = -1;
    if (Phase::kIsExact) m_.u[row] += m_.v[col] - v;
    Phase::v(m_)[col] = static_cast<typename Phase::Value>(v);
    m_.row_of_col[col] = row;
    m_.col_of_row[row] = col;
    return holder;
  }

  static constexpr int kDroppedBits = 20;  // leaves 3 bits of the mantissa
  static constexpr Real kSmallest = sizeof(Real) == sizeof(float) ? 0x1p-21 : 0x1p-50;

  Block& block_;
  const Problem& problem_;
  const SolverMemory& m_;
  int32_t rounds_ = 0;
};

}  // namespace detr_fast
