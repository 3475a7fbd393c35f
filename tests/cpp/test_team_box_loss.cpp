// The GPU version of the box losses and the queries' target classes, run by emulated blocks and
// query by query, against the CPU version.
#include <cmath>
#include <random>
#include <vector>

#include "core/team_box_loss.h"
#include "cpu/box_ops.h"
#include "emulated_team.h"

using namespace detr_fast;

namespace {

// A matching with everything that a matching may contain: unmatched targets, indices out of range,
// images without targets, padding after the last image's targets.
struct Case {
  std::vector<int64_t> query_index, labels, wide_offsets;
  std::vector<int32_t> offsets;
  Matched matched = {};

  Case(std::mt19937& random, int64_t layers, int64_t images, int64_t queries, bool wide,
       bool sensible) {
    const auto below = [&](int64_t n) { return static_cast<int64_t>(random() % (n + 1)); };
    wide_offsets.push_back(0);
    for (int64_t b = 0; b < images; ++b) wide_offsets.push_back(wide_offsets.back() + below(9));
    const int64_t targets = wide_offsets.back() + below(5);
    query_index.resize(layers * targets);
    for (int64_t layer = 0; layer < layers; ++layer)
      for (int64_t b = 0; b < images; ++b) {
        // Consecutive queries from a random start, so that no query has two targets.
        const int64_t start = below(queries);
        for (int64_t t = wide_offsets[b]; t < wide_offsets[b + 1]; ++t) {
          const int64_t k = t - wide_offsets[b];
          query_index[layer * targets + t] =
              k >= queries || random() % 8 == 0 ? -1 : (start + k) % queries;
        }
      }
    for (int64_t t = wide_offsets.back(); t < targets; ++t)
      for (int64_t layer = 0; layer < layers; ++layer) query_index[layer * targets + t] = 0;
    for (int64_t& q : query_index)
      if (random() % 16 == 0) q = random() % 2 ? queries : -(int64_t(1) << 40);
    for (int64_t t = 0; t < targets; ++t) labels.push_back(below(8) - 1);
    if (!sensible)  // as a broken caller might pass them: no access may be out of bounds
      for (int64_t& offset : wide_offsets) offset = below(3 * targets + 3) - targets;
    offsets.assign(wide_offsets.begin(), wide_offsets.end());
    matched.query_index = query_index.data();
    matched.image_offsets = wide ? static_cast<const void*>(wide_offsets.data()) : offsets.data();
    matched.offsets_are_int64 = wide;
    matched.layers = layers;
    matched.images = images;
    matched.queries = queries;
    matched.targets = targets;
  }
};

template <class Real>
bool near(Real a, Real b) {
  return std::fabs(a - b) <= (sizeof(Real) == 4 ? 1e-4 : 1e-11) * (1 + std::fabs(b));
}

template <class Work>
void for_queries(const Matched& m, Work work) {
  for (int64_t layer = 0; layer < m.layers; ++layer)
    for (int64_t image = 0; image < m.images; ++image)
      for (int64_t query = 0; query < m.queries; ++query) work(layer, image, query);
}

// A number that T represents exactly.
template <class T>
RealOf<T> number(std::mt19937& random) {
  T x;
  store(&x, static_cast<RealOf<T>>(random() % 65 / 64.0));
  return to_real(x);
}

template <class T>
void check_losses(std::mt19937& random, const Case& c, int warps, bool sensible) {
  using Real = RealOf<T>;
  const Matched& m = c.matched;
  const int64_t places = m.layers * m.images * m.queries;
  std::vector<T> boxes(places * 4), gradient(places * 4), expected_gradient(places * 4);
  std::vector<Real> targets(m.targets * 4);
  for (T& x : boxes) store(&x, number<T>(random));
  for (Real& x : targets) x = number<T>(random);
  for (const auto kind : {CoordinateLoss::kL1, CoordinateLoss::kSmoothL1}) {
    const BoxLossInput<T> in = {m, boxes.data(), targets.data(), kind};
    std::vector<Real> coordinates(m.layers), giou(m.layers);
    std::vector<BoxLoss<Real>> by(m.layers);
    std::vector<Real> by_both;
    for (auto& [c1, g1] : by) {
      by_both.push_back(c1 = number<float>(random));
      by_both.push_back(g1 = number<float>(random));
    }
    cpu::box_losses(in, coordinates.data(), giou.data());
    cpu::box_losses_backward(in, by_both.data(), 2, by_both.data() + 1, 2,
                             expected_gradient.data());
    for (int64_t layer = 0; layer < m.layers; ++layer) {
      BoxLoss<Real> first;
      for (uint32_t seed = 1; seed <= 3; ++seed) {
        std::vector<BoxLoss<Real>> partial(warps * kWarpSize);
        emulate(warps, seed,
                [&](EmulatedBlock& block) { sum_box_losses(block, in, layer, partial.data()); });
        CHECK(near(partial[0].coordinates, coordinates[layer]));
        CHECK(near(partial[0].giou, giou[layer]));
        if (seed == 1) first = partial[0];
        CHECK(partial[0].coordinates == first.coordinates && partial[0].giou == first.giou);
      }
    }
    for_queries(m, [&](int64_t layer, int64_t image, int64_t query) {
      query_gradient(in, layer, image, query, by[layer], gradient.data());
    });
    // With nonsensical offsets an image may get targets of another, and the two versions differ.
    for (int64_t k = 0; sensible && k < places * 4; ++k)
      CHECK(near(to_real(gradient[k]), to_real(expected_gradient[k])));
  }
}

void check_classes(const Case& c, bool sensible) {
  const Matched& m = c.matched;
  std::vector<int64_t> expected(m.layers * m.images * m.queries);
  cpu::target_classes(m, c.labels.data(), 6, expected.data());
  for_queries(m, [&](int64_t layer, int64_t image, int64_t query) {
    const int64_t found = wanted_class(m, c.labels.data(), 6, layer, image, query);
    CHECK(found >= 0 && found <= 6);
    if (sensible) CHECK(found == expected[m.place(layer, image, query)]);
  });
}

}  // namespace

int main() {
  std::mt19937 random(1);
  for (int round = 0; round < 60; ++round) {
    const bool sensible = round % 4 != 0;
    const Case c(random, 1 + round % 3, 1 + random() % 20, 1 + random() % 12, round % 2, sensible);
    const int warps = 1 << round % 4;
    check_losses<float>(random, c, warps, sensible);
    check_losses<double>(random, c, warps, sensible);
    check_losses<Half>(random, c, warps, sensible);
    check_losses<Bfloat>(random, c, warps, sensible);
    check_classes(c, sensible);
  }
}
