// The box losses and the wanted classes by threads of a GPU (core/team.h). Sums are taken in an
// order that is always the same, and a query looks for its target instead of being written to by
// it: no atomics, and the same bits in every run.
#pragma once

#include "core/box_loss.h"
#include "core/team.h"

namespace detr_fast {

// The sums of one layer, by a team whose size is a power of two. `partial` is the team's memory,
// one for each thread; partial[0] is the result, once the team has returned from here.
template <class Team, class T>
DETR_FAST_KERNEL_PART void sum_box_losses(const Team& team, const BoxLossInput<T>& in,
                                          int64_t layer, BoxLoss<RealOf<T>>* partial) {
  BoxLoss<RealOf<T>> sum;
  for (int64_t t = team.rank(); t < in.matched.targets; t += team.size()) {
    const int64_t place = in.matched.place_of(layer, t);
    if (place < 0) continue;
    const auto loss =
        pair_loss(load_box(in.boxes + place * 4), load_box(in.target_boxes + t * 4), in.kind);
    sum.coordinates += loss.coordinates;
    sum.giou += loss.giou;
  }
  partial[team.rank()] = sum;
  team.sync();
  for (int half = team.size() / 2; half > 0; half /= 2) {
    if (team.rank() < half) {
      partial[team.rank()].coordinates += partial[team.rank() + half].coordinates;
      partial[team.rank()].giou += partial[team.rank() + half].giou;
    }
    team.sync();
  }
}

// The gradient of one query's box, written to the boxes' gradient [L, B, N, 4]; `by` are the
// layer's.
template <class T>
DETR_FAST_KERNEL_PART void query_gradient(const BoxLossInput<T>& in, int64_t layer, int64_t image,
                                          int64_t query, const BoxLoss<RealOf<T>>& by,
                                          T* gradient) {
  const Matched& m = in.matched;
  const int64_t* const query_index = m.query_index + layer * m.targets;
  const int64_t place = m.place(layer, image, query) * 4;
  RealOf<T> sum[4] = {0, 0, 0, 0};
  for (int64_t t = m.begin(image), end = m.end(image); t < end; ++t)
    if (query_index[t] == query)
      add_pair_gradient(load_box(in.boxes + place), load_box(in.target_boxes + t * 4), in.kind, by,
                        sum);
  for (int k = 0; k < 4; ++k) store(gradient + place + k, sum[k]);
}

// The class that a query should have: its target's label, of several targets' the last one's;
// `no_object` without a target, or with one whose label is not in 0..no_object-1.
DETR_FAST_KERNEL_PART int64_t wanted_class(const Matched& m, const int64_t* labels,
                                           int64_t no_object, int64_t layer, int64_t image,
                                           int64_t query) {
  const int64_t* const query_index = m.query_index + layer * m.targets;
  int64_t wanted = no_object;
  for (int64_t t = m.begin(image), end = m.end(image); t < end; ++t)
    if (query_index[t] == query) wanted = labels[t];
  return wanted < 0 || wanted >= no_object ? no_object : wanted;
}

}  // namespace detr_fast
