// Prices for columns that several rows want, by an auction: D. P. Bertsekas, "The auction
// algorithm: a distributed relaxation method for the assignment problem", Annals of Operations
// Research 14 (1988), one bid after the other. core/team_auction.h is the form for many threads.
//
// A column's price is -v. A row without a column bids for its cheapest one, up to where the next
// cheapest would cost the same (but not by far more than rows differ elsewhere) and `step` more,
// and gets it; who held it is free again. Prices only rise, and only those of columns that are held
// from then on. What comes out is where to start from, for searches that make it exact: no more
// than the prices is kept.
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

// Scan: the loops over a row, as PlainScan.
template <class Real, class Scan>
class Auction {
 public:
  Auction(Scan scan, AssignmentState<Real>& state) : scan_(scan), my_(state) {}

  // Lowers v and returns true; who holds a column is undefined then. Where the costs give no reason
  // for a step it returns false, and nothing has changed.
  bool run() {
    price_.assign(my_.stride, Real(0));
    highest_ = 0;
    const double gap = typical_gap();
    if (!(gap > 0 && gap < std::numeric_limits<Real>::max() * kRoom)) return false;
    const Real most = Real(kMostGaps * gap);
    if (my_.rows == my_.cols) {
      // Every column will be held, at whatever price: first large steps, then finer ones.
      for (const double step : {3.0, 0.3, 0.02})
        if (!sell(Real(step * gap), most)) break;
    } else {
      // A finer second auction would leave columns with a price that nobody wants to pay.
      sell(Real(kStep * gap), most);
    }
    for (int32_t j = 0; j < my_.cols; ++j) my_.v[j] = -static_cast<double>(price_[j]);
    return true;
  }

  double highest_price() const { return static_cast<double>(highest_); }

  // What each row [rows] bought in the end, -1 for nothing.
  const std::vector<int32_t>& sold() const { return sold_; }

  // The column that is cheapest for a row at these prices, -1 if rounding leaves that open: each
  // sum may be wrong by half an epsilon of itself, and twice that is asked for.
  int32_t cheapest(int32_t row) {
    const Offer<Real> offer = offer_to(row);
    const Real rounding =
        std::numeric_limits<Real>::epsilon() * (std::abs(offer.next) + std::abs(offer.cost));
    return offer.next - offer.cost > rounding ? offer.col : -1;
  }

 private:
  // How much dearer a row's second cheapest column is than its cheapest, on (geometric) average,
  // where there is a difference; 0 if there is none anywhere.
  double typical_gap() {
    double sum = 0;
    int32_t count = 0;
    for (int32_t i = 0; i < my_.rows; ++i) {
      const Offer<Real> offer = offer_to(i);
      const double gap = static_cast<double>(offer.next) - static_cast<double>(offer.cost);
      if (!(gap > 0 && gap < std::numeric_limits<double>::infinity())) continue;
      sum += std::log2(gap);
      ++count;
    }
    return count == 0 ? 0 : std::exp2(sum / count);
  }

  Offer<Real> offer_to(int32_t row) {
    return scan_.cheapest(my_.row(row), price_.data(), my_.stride, my_.row_of_col.data());
  }

  // Until every row holds a column, or too many have bid: false, and there may be none for all. The
  // row that has waited longest bids, so that a few that outbid each other keep nobody waiting.
  bool sell(Real step, Real most) {
    my_.forget_assignment();
    sold_.assign(my_.rows, -1);
    bidders_.resize(my_.rows);
    for (int32_t i = 0; i < my_.rows; ++i) bidders_[i] = i;
    int32_t waiting = my_.rows, next = 0, last = 0;
    for (int64_t bids = int64_t{kMostBids} * my_.rows; waiting > 0; --bids) {
      if (bids == 0) return false;
      const int32_t row = bidders_[next];
      if (++next == my_.rows) next = 0;
      --waiting;
      const Offer<Real> offer = offer_to(row);
      if (offer.col < 0) continue;  // its sums overflowed
      Real& price = price_[offer.col];
      price += std::min(offer.next - offer.cost, most) + step;
      highest_ = std::max(highest_, price);
      const int32_t holder = my_.row_of_col[offer.col];
      if (holder >= 0) {
        sold_[holder] = -1;
        bidders_[last] = holder;
        if (++last == my_.rows) last = 0;
        ++waiting;
      }
      my_.row_of_col[offer.col] = row;
      sold_[row] = offer.col;
    }
    return true;
  }

  static constexpr int kMostBids = 16;                  // per row
  static constexpr double kStep = 1.5, kMostGaps = 16;  // in typical gaps
  static constexpr double kRoom = 0x1p-32;              // for prices to rise

  Scan scan_;
  AssignmentState<Real>& my_;
  AlignedVector<Real> price_;  // [stride]
  Real highest_ = 0;
  std::vector<int32_t> bidders_;  // [rows] in a ring
  std::vector<int32_t> sold_;     // [rows]
};

}  // namespace detr_fast
