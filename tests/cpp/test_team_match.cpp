// The GPU version of the matching, run by emulated warps and blocks: costs against the formula in
// double, assignments proven optimal, faults reported at the right place.
#include <string>

#include "core/team_match.h"
#include "emulated_team.h"
#include "problems.h"

using namespace detr_fast;

namespace {

// One call: L layers, B images, the targets of each image, and everything a launch needs.
struct Call {
  int32_t layers, images, queries, classes;
  std::vector<int32_t> counts;
  bool focal = false, tolerant = false, sizes_on_device = false;
  int64_t spare = 0;  // padding after the last image's targets
  int64_t room = 0;
  uint64_t earlier_fault = 0;                     // in every slot, when the call begins
  std::vector<std::vector<float>> logits, boxes;  // [L][B * N * C], [L][B * N * 4]
  std::vector<int64_t> labels;
  std::vector<float> target_boxes;

  std::vector<float> cost;
  std::vector<int64_t> query_index, pairs;
  std::vector<uint64_t> faults;

  int64_t all_targets() const {
    int64_t sum = spare;
    for (const int32_t count : counts) sum += count;
    return sum;
  }
  int32_t offset(int32_t image) const {
    int32_t sum = 0;
    for (int32_t b = 0; b < image; ++b) sum += counts[b];
    return sum;
  }
  int32_t label_count() const { return focal ? classes : classes - 1; }

  Call(int32_t l, int32_t n, int32_t c, std::vector<int32_t> m, std::mt19937& random)
      : layers(l), images(static_cast<int32_t>(m.size())), queries(n), classes(c), counts(m) {
    std::uniform_real_distribution<float> uniform(0.05f, 0.95f);
    std::normal_distribution<float> normal(0, 2);
    logits.assign(layers, std::vector<float>(static_cast<size_t>(images) * n * c));
    boxes.assign(layers, std::vector<float>(static_cast<size_t>(images) * n * 4));
    for (int32_t k = 0; k < layers; ++k) {
      for (float& x : logits[k]) x = normal(random);
      for (float& x : boxes[k]) x = uniform(random);
    }
    labels.resize(all_targets());
    target_boxes.resize(all_targets() * 4);
    for (int64_t& x : labels) x = random() % (c - 1);
    for (float& x : target_boxes) x = uniform(random);
  }

  TeamMatchInput input() {
    TeamMatchInput in = {};
    for (int32_t k = 0; k < layers; ++k) {
      in.logits[k] = logits[k].data();
      in.boxes[k] = boxes[k].data();
    }
    in.boxes_dtype = Dtype::kFloat32;
    in.layers = layers;
    in.images = in.all_images = images;
    in.queries = queries;
    in.classes = classes;
    in.label_count = label_count();
    in.labels = labels.data();
    in.target_boxes = target_boxes.data();
    in.targets = all_targets();
    int32_t start = 0;
    for (int32_t b = 0; b < images; ++b) {
      in.offsets[b] = offset(b);
      in.pair_starts[b] = start;
      start += 2 * std::min(counts[b], queries);
    }
    in.offsets[images] = offset(images);
    in.pairs_of_layer = start;
    in.options =
        to_single({1, 5, 2, focal ? ClassCost::kFocal : ClassCost::kSoftmax, 0.25, 2, 1e-8, 0, 0});
    in.nonfinite_last = tolerant;
    in.room = room;
    return in;
  }

  void run(int warps, uint32_t seed) {
    TeamMatchInput in = input();
    std::vector<int32_t> offsets(in.offsets, in.offsets + images + 1);
    if (sizes_on_device) {
      in.device_offsets = offsets.data();
      std::fill(in.offsets, in.offsets + images + 1, -1000000);
    } else {
      pairs.assign(layers * in.pairs_of_layer, -7);
      in.pairs = pairs.data();
    }
    cost.assign(layers * in.targets * queries, 12345.0f);
    query_index.assign(layers * in.targets, -7);
    faults.assign(layers * images, earlier_fault);
    in.cost = cost.data();
    in.query_index = query_index.data();
    in.faults = faults.data();
    for (int32_t layer = 0; layer < layers; ++layer)
      for (int32_t image = 0; image < images; ++image) {
        for (int32_t first = 0; first < queries; first += kTile) {
          std::unique_ptr<Softmax<float>[]> softmax(new Softmax<float>[kTile]);
          emulate(warps, ++seed, [&](EmulatedBlock& block) {
            compute_costs<float>(block, in, layer, image, first, softmax.get());
          });
        }
        const CostLayout layout(queries, counts[image]);
        std::unique_ptr<double[]> memory(
            new double[(SolverMemory::bytes(layout.rows, layout.cols) + 7) / 8]);
        std::unique_ptr<float[]> space(new float[room]);
        emulate(warps, ++seed, [&](EmulatedBlock& block) {
          ProblemMatcher<EmulatedBlock> matcher(block, in, layer, image);
          matcher.run(memory.get(), space.get());
        });
      }
  }

  double expected_cost(int32_t layer, int32_t image, int32_t n, int32_t m) const {
    const int64_t query = static_cast<int64_t>(image) * queries + n, target = offset(image) + m;
    const float* const x = &logits[layer][query * classes];
    const std::vector<double> row(x, x + classes);
    const PairCostOptions options = {
        1, 5, 2, ClassCost::kSoftmax, 0.25, 2, 1e-8, 0, std::numeric_limits<double>::min()};
    const auto box = [](const float* b) { return make_box<double>(b[0], b[1], b[2], b[3]); };
    const Softmax<double> softmax = softmax_of(row.data(), classes);
    const double logit = row[labels[target]];
    const double class_cost =
        focal ? focal_cost(logit, options) : -std::exp(logit - softmax.max) * softmax.scale;
    return class_cost +
           box_cost(box(&boxes[layer][query * 4]), box(&target_boxes[target * 4]), options);
  }

  void check_costs() const {
    for (int32_t layer = 0; layer < layers; ++layer)
      for (int32_t image = 0; image < images; ++image) {
        const CostLayout layout(queries, counts[image]);
        const float* const block = cost.data() + (layer * all_targets() + offset(image)) * queries;
        for (int32_t n = 0; n < queries; ++n)
          for (int32_t m = 0; m < counts[image]; ++m)
            CHECK(std::fabs(block[layout.at(n, m)] - expected_cost(layer, image, n, m)) < 1e-4);
      }
  }

  // Every problem's result is optimal for the computed costs, and the result's two forms agree.
  void check_matches() const {
    int64_t at = 0;
    for (int32_t layer = 0; layer < layers; ++layer) {
      const int64_t layer_begin = layer * all_targets();
      for (int32_t image = 0; image < images; ++image) {
        const int32_t count = counts[image];
        const CostLayout layout(queries, count);
        const int64_t begin = layer_begin + offset(image);
        Matrix<float> matrix(layout.rows, layout.cols, layout.cols);
        std::copy_n(cost.data() + begin * queries, matrix.cost.size(), matrix.cost.begin());
        std::vector<int32_t> col_of_row(layout.rows, -1);
        int32_t matched = 0;
        for (int32_t m = 0; m < count; ++m) {
          const int64_t n = query_index[begin + m];
          CHECK(n >= -1 && n < queries);
          if (n < 0) continue;
          ++matched;
          int32_t& col = col_of_row[layout.by_query ? n : m];
          CHECK(col == -1);
          col = static_cast<int32_t>(layout.by_query ? m : n);
        }
        CHECK(matched == layout.rows);
        CHECK(layout.rows == 0 || is_optimal(matrix, col_of_row));
        if (pairs.empty()) continue;
        for (int32_t k = 0; k < layout.rows; ++k) {
          const int64_t n = pairs[at + k], m = pairs[at + layout.rows + k];
          CHECK(k == 0 || n > pairs[at + k - 1]);
          CHECK(query_index[begin + m] == n);
        }
        at += 2 * layout.rows;
      }
      for (int64_t t = offset(images); t < all_targets(); ++t)
        CHECK(query_index[layer_begin + t] == -1);
    }
    CHECK(at == static_cast<int64_t>(pairs.size()));
    for (const uint64_t fault : faults) CHECK(fault == 0);
  }
};

void check_answers() {
  std::mt19937 random(3);
  uint32_t seed = 0;
  for (const int32_t queries : {1, 7, 32, 70})
    for (const int32_t classes : {2, 40})
      for (const bool focal : {false, true})
        for (const int64_t room : {0, 5000}) {
          Call call(2, queries, classes, {3, 0, queries + 5, 6}, random);
          call.focal = focal;
          call.room = room;
          call.sizes_on_device = room == 0;
          call.spare = room == 0 ? 9 : 0;
          call.run(room == 0 ? 1 : 3, seed += 1000);
          if (!call.sizes_on_device) CHECK(!call.pairs.empty());
          call.check_costs();
          call.check_matches();
        }
  Call nothing(1, 0, 5, {2, 0}, random);
  nothing.run(2, 1);
  nothing.check_matches();
}

void check_faults() {
  const float kNan = NAN, kInf = INFINITY;
  struct Case {
    const char* what;
    Status status;
    int64_t query, target;
  };
  for (const Case& expected :
       {Case{"label", Status::kInvalidLabel, 0, 2},
        Case{"negative label", Status::kInvalidLabel, 0, 2},
        Case{"target box", Status::kInvalidTargetBox, 0, 2},
        Case{"nan logit", Status::kInvalidLogits, 5, 0},
        Case{"inf logit", Status::kInvalidLogits, 5, 0}, Case{"box", Status::kInvalidBox, 5, 0},
        Case{"negative side", Status::kInvalidBox, 5, 0},
        Case{"overflow", Status::kInvalidPairCost, 5, 0}})
    for (const bool tolerant : {false, true}) {
      std::mt19937 random(4);
      Call call(2, 40, 6, {4, 4, 4}, random);
      call.tolerant = tolerant;
      const std::string what = expected.what;
      const int64_t query = 1 * 40 + 5, target = 4 + 2;  // image 1
      float* const box = &call.boxes[1][query * 4];
      if (what == "label") call.labels[target] = 5;
      if (what == "negative label") call.labels[target] = -1;
      if (what == "target box") call.target_boxes[target * 4 + 3] = -0.5f;
      if (what == "nan logit") call.logits[1][query * 6 + 3] = kNan;
      if (what == "inf logit") call.logits[1][query * 6 + 3] = kInf;
      if (what == "box") box[1] = kInf;
      if (what == "negative side") box[2] = -0.1f;
      if (what == "overflow") box[2] = 3e38f;
      call.run(2, 77);
      const bool of_target = expected.target == 2;
      if (tolerant && !of_target) {  // the targets get other queries
        for (const uint64_t fault : call.faults) CHECK(fault == 0);
        for (int m = 0; m < 4; ++m) {
          const int64_t n = call.query_index[12 + 4 + m];
          CHECK(n >= 0 && n != 5);
        }
        continue;
      }
      for (int problem = 0; problem < 6; ++problem) {
        const bool faulty = problem == 4 || (of_target && problem == 1);
        const uint64_t fault = encode_fault(expected.status, expected.query, expected.target);
        CHECK(call.faults[problem] == (faulty ? fault : 0));
        for (int m = 0; m < 4; ++m) {
          CHECK((call.query_index[problem * 4 + m] == -1) == faulty);
          if (faulty)
            CHECK(call.pairs[problem * 8 + m] == m && call.pairs[problem * 8 + 4 + m] == m);
        }
      }
    }
}

// Where the rows of costs are queries: as many pairs as queries, and a place all the same.
void check_faults_of_few_queries() {
  for (const bool of_target : {false, true}) {
    std::mt19937 random(5);
    Call call(1, 3, 6, {7, 7}, random);
    if (of_target)
      call.labels[7 + 6] = 5;
    else
      call.boxes[0][(3 + 2) * 4] = NAN;
    call.run(2, 78);
    CHECK(call.faults[0] == 0);
    CHECK(call.faults[1] == (of_target ? encode_fault(Status::kInvalidLabel, 0, 6)
                                       : encode_fault(Status::kInvalidBox, 2, 0)));
    for (int m = 0; m < 7; ++m) CHECK(call.query_index[7 + m] == -1);
    for (int k = 0; k < 3; ++k) CHECK(call.pairs[6 + k] == k && call.pairs[6 + 3 + k] == k);
  }
}

// The host has not read it yet: the first fault is the one to report.
void check_earlier_fault_stays() {
  std::mt19937 random(6);
  Call call(1, 9, 6, {4, 4}, random);
  call.earlier_fault = encode_fault(Status::kInvalidLogits, 1, 2);
  call.boxes[0][3 * 4] = NAN;
  call.run(2, 79);
  for (const uint64_t fault : call.faults) CHECK(fault == call.earlier_fault);
}

void check_last() {
  std::mt19937 random(7);
  // With the pair of query 2 and target 0, the two others would be at their targets.
  Call call(1, 3, 3, {3}, random);
  call.focal = call.tolerant = true;
  const auto put = [](float* box, float cx) {
    for (int k = 0; k < 4; ++k) box[k] = k == 0 ? cx : k == 1 ? 0.5f : 0.1f;
  };
  for (int k = 0; k < 3; ++k) {
    put(&call.boxes[0][k * 4], k == 1 ? 0.9f : 0.1f);
    put(&call.target_boxes[k * 4], k == 1 ? 0.1f : 0.9f);
    call.labels[k] = k;
  }
  std::fill(call.logits[0].begin(), call.logits[0].end(), 0.0f);
  for (const int k : {0 * 3 + 2, 1 * 3 + 0, 2 * 3 + 0, 2 * 3 + 1}) call.logits[0][k] = NAN;
  call.run(2, 80);
  CHECK((call.query_index == std::vector<int64_t>{0, 1, 2}));

  // A number beyond the largest cost would be infinite, and both queries are needed.
  Call large(1, 2, 3, {2}, random);
  large.tolerant = true;
  large.logits[0][0] = NAN;
  for (int k = 0; k < 2; ++k) {
    put(&large.boxes[0][k * 4], k == 0 ? 0.5f : 3e37f);
    put(&large.target_boxes[k * 4], k == 0 ? 0.5f : 3e37f);
  }
  large.run(2, 81);
  CHECK((large.query_index == std::vector<int64_t>{0, 1}));
  CHECK(large.faults[0] == 0);
}

void check_half() {
  const auto half = [](uint16_t bits) { return to_float(Half{bits}); };
  CHECK(half(0x3c00) == 1 && half(0xc000) == -2 && half(0x7bff) == 65504 &&
        half(0x0001) == 0x1p-24f);
  CHECK(half(0x7c00) == INFINITY && half(0xfc00) == -INFINITY && std::isnan(half(0x7e00)));
  CHECK(std::signbit(half(0x8000)) && half(0x8000) == 0);
  CHECK(to_float(Bfloat{0x3f80}) == 1 && to_float(Bfloat{0xff80}) == -INFINITY);
  // NaN stays NaN, whatever its other bits are.
  for (const uint32_t bits : {0x7f800001u, 0x7fc00000u, 0x7fffffffu, 0xff800001u, 0xffffffffu}) {
    Half half_nan;
    Bfloat bfloat_nan;
    store(&half_nan, float_of_bits(bits));
    store(&bfloat_nan, float_of_bits(bits));
    CHECK(std::isnan(to_float(half_nan)) && std::isnan(to_float(bfloat_nan)));
  }
}

}  // namespace

int main() {
  check_answers();
  check_faults();
  check_faults_of_few_queries();
  check_earlier_fault_stays();
  check_last();
  check_half();
}
