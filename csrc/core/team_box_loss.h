// The box losses and the queries' target classes, computed by threads of a GPU (core/team.h). Sums
// are always taken in the same order, and each query looks for its target instead of targets
// writing to their queries: no atomics, and the same bits in every run.
#pragma once

#include "core/box_loss.h"
#include "core/team.h"

namespace detr_fast {

// Computes the sums of one layer by a team whose size is a power of two. `partial` is memory that
// the team shares, with one element per thread; the result is in partial[0] when this returns.
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

// Writes the gradient of one query's box to the boxes' gradient [L, B, N, 4]; `by` holds the
// gradients of the layer's two sums.
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

// The class that a query should have: the label of its target, or of the last one if it has
// several; `no_object` if it has no target, or if the label is not in 0..no_object-1.
DETR_FAST_KERNEL_PART int64_t wanted_class(const Matched& m, const int64_t* labels,
                                           int64_t no_object, int64_t layer, int64_t image,
                                           int64_t query) {
  const int64_t* const query_index = m.query_index + layer * m.targets;
  int64_t label = no_object;
  for (int64_t t = m.begin(image), end = m.end(image); t < end; ++t)
    if (query_index[t] == query) label = labels[t];
  return label < 0 || label >= no_object ? no_object : label;
}

}  // namespace detr_fast
