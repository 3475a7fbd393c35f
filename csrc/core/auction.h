// Finds prices for contested columns by an auction: D. P. Bertsekas, "The auction algorithm: a
// distributed relaxation method for the assignment problem", Annals of Operations Research 14
// (1988). One bid at a time; core/team_auction.h is the version for many threads.
//
// A column's price is -v. A row without a column bids for its cheapest column: it raises the price
// by the difference to its next cheapest column (limited to a multiple of the typical difference)
// plus `step`, and gets the column; the row that held it becomes free again. Prices only rise, and
// only those of columns that stay held from then on. The result is a starting point for searches
// that make it exact: they use the prices and the list of columns bought, not the assignment.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "core/aligned.h"
#include "core/assignment_state.h"
#include "core/scan.h"

namespace detr_fast {

// Scan: the loops over a row, with the interface of PlainScan.
template <class Real, class Scan>
class Auction {
 public:
  Auction(Scan scan, AssignmentState<Real>& state) : scan_(scan), state_(state) {}

  // Lowers v and returns true; the assignment is undefined afterwards. Returns false, with the
  // state unchanged, if the costs do not determine a step.
  bool run() {
    price_.assign(state_.stride, Real(0));
    highest_ = 0;
    const double gap = typical_gap();
    if (!(gap > 0 && gap < std::numeric_limits<Real>::max() * kRoom)) return false;
    const Real most_gap = Real(kMostGaps * gap);
    if (state_.rows == state_.cols) {
      // Every column ends up held, whatever its price: use large steps first, then finer ones.
      for (const double step : {3.0, 0.3, 0.02})
        if (!run_bidding(Real(step * gap), most_gap)) break;
    } else {
      // A finer second auction would leave columns free at a price that no row will pay.
      run_bidding(Real(kStep * gap), most_gap);
    }
    for (int32_t j = 0; j < state_.cols; ++j) state_.v[j] = -static_cast<double>(price_[j]);
    return true;
  }

  double highest_price() const { return static_cast<double>(highest_); }

  // The column that each row [rows] holds when the auction ends; -1 = none.
  const std::vector<int32_t>& bought_cols() const { return bought_cols_; }

  // The cheapest column for a row at these prices, or -1 if rounding leaves that undecided: each
  // sum has a relative error of up to half an epsilon, and the margin required is twice that.
  int32_t cheapest(int32_t row) {
    const Offer<Real> offer = offer_to(row);
    const Real rounding =
        std::numeric_limits<Real>::epsilon() * (std::abs(offer.next) + std::abs(offer.cost));
    return offer.next - offer.cost > rounding ? offer.col : -1;
  }

 private:
  // The geometric mean, over the rows where it is positive and finite, of the cost difference
  // between a row's second cheapest and cheapest column; 0 if there is no such row.
  double typical_gap() {
    double sum = 0;
    int32_t count = 0;
    for (int32_t i = 0; i < state_.rows; ++i) {
      const Offer<Real> offer = offer_to(i);
      const double gap = static_cast<double>(offer.next) - static_cast<double>(offer.cost);
      if (!(gap > 0 && gap < std::numeric_limits<double>::infinity())) continue;
      sum += std::log2(gap);
      ++count;
    }
    return count == 0 ? 0 : std::exp2(sum / count);
  }

  Offer<Real> offer_to(int32_t row) {
    return scan_.cheapest(state_.row(row), price_.data(), state_.stride, state_.row_of_col.data());
  }

  // Takes bids until every row holds a column. Returns false after too many bids; a complete
  // assignment may then not exist. The row that has waited longest bids next, so that a few rows
  // outbidding each other do not hold up the rest.
  bool run_bidding(Real step, Real most_gap) {
    state_.clear_assignment();
    bought_cols_.assign(state_.rows, -1);
    bidders_.resize(state_.rows);
    for (int32_t i = 0; i < state_.rows; ++i) bidders_[i] = i;
    int32_t waiting = state_.rows, next = 0, last = 0;
    for (int64_t bids = int64_t{kMostBids} * state_.rows; waiting > 0; --bids) {
      if (bids == 0) return false;
      const int32_t row = bidders_[next];
      if (++next == state_.rows) next = 0;
      --waiting;
      const Offer<Real> offer = offer_to(row);
      if (offer.col < 0) continue;  // the row's sums overflowed
      Real& price = price_[offer.col];
      price += std::min(offer.next - offer.cost, most_gap) + step;
      highest_ = std::max(highest_, price);
      const int32_t holder = state_.row_of_col[offer.col];
      if (holder >= 0) {
        bought_cols_[holder] = -1;
        bidders_[last] = holder;
        if (++last == state_.rows) last = 0;
        ++waiting;
      }
      state_.row_of_col[offer.col] = row;
      bought_cols_[row] = offer.col;
    }
    return true;
  }

  static constexpr int kMostBids = 16;                  // per row
  static constexpr double kStep = 1.5, kMostGaps = 16;  // in typical gaps
  static constexpr double kRoom = 0x1p-32;              // for prices to rise

  Scan scan_;
  AssignmentState<Real>& state_;
  AlignedVector<Real> price_;  // [stride]
  Real highest_ = 0;
  std::vector<int32_t> bidders_;      // [rows], a ring buffer
  std::vector<int32_t> bought_cols_;  // [rows]
};

}  // namespace detr_fast
