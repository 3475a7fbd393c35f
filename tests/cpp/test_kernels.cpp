// The kernels of one instruction set, given as argument and in DETR_FAST_SIMD: scans and layouts
// against the scalar version, the solver built on them, costs at the edges of their arrays.
#include <cstring>

#include "core/aligned.h"
#include "core/box.h"
#include "cpu/solver.h"
#include "problems.h"

using namespace detr_fast;
using namespace detr_fast::cpu;

namespace {

template <class Real>
void check_scans(std::mt19937& random) {
  const ScanKernels<Real>& scan = kernels_of<Real>().scan;
  for (const int64_t cols : {1, 15, 16, 17, 31, 48, 100, 333}) {
    const int32_t n = static_cast<int32_t>(padded(cols));
    for (const Family family : {Family::kRandom, Family::kIntegers, Family::kForbidden}) {
      const Matrix<Real> matrix = make_matrix<Real>(family, 1, cols, n, random);
      const Real* const c = matrix.cost.data();
      std::vector<int32_t> owner(n, -1);
      std::vector<double> v(n, 0), distance(n, 2.0), expected(n, 2.0);
      for (int64_t j = 0; j < cols; ++j) {
        if (random() % 2) owner[j] = 0, v[j] = -static_cast<double>(random() % 3);
      }
      const auto a = scan.row_minimum(c, n, owner.data());
      const auto b = PlainScan<Real>::row_minimum(c, n, owner.data());
      CHECK(a.value == b.value && a.col == b.col);
      const auto r = scan.relax(c, v.data(), distance.data(), n, 0.5, owner.data());
      const auto s = PlainScan<Real>::relax(c, v.data(), expected.data(), n, 0.5, owner.data());
      CHECK(r.value == s.value && r.col == s.col && distance == expected);
      const std::vector<Real> price(v.rbegin(), v.rend());
      const auto x = scan.cheapest(c, price.data(), n, owner.data());
      const auto y = PlainScan<Real>::cheapest(c, price.data(), n, owner.data());
      CHECK(x.cost == y.cost && x.next == y.next && x.col == y.col);
    }
  }
}

template <class Real>
void check_layouts(Family family, std::mt19937& random) {
  const LayoutKernels<Real>& layout = kernels_of<Real>().layout;
  for (const int64_t rows : {1, 2, 5, 16, 30, 77})
    for (const int64_t cols : {1, 3, 8, 15, 16, 33, 64, 100}) {
      // Exactly as large as the matrix, so that reading beyond it is detected.
      const Matrix<Real> matrix = make_matrix<Real>(family, rows, cols, cols, random);
      const Real* const c = matrix.cost.data();
      for (const Real sign : {Real(1), Real(-1)}) {
        std::vector<Minimum<Real>> of_rows(rows), of_cols(cols);
        const bool any_infinite = [&] {
          for (const Real x : matrix.cost)
            if (!std::isfinite(x)) return true;
          return false;
        }();
        const Inspection a = layout.row_minima(c, rows, cols, sign, of_rows.data());
        const Inspection b = layout.col_minima(c, rows, cols, sign, of_cols.data());
        CHECK(a.invalid == b.invalid && a.invalid == (sign < 0 && any_infinite));
        if (sign < 0) continue;
        for (int64_t i = 0; i < rows; ++i) {
          const std::vector<int32_t> owner(cols, 0);
          const auto expected =
              PlainScan<Real>::row_minimum(c + i * cols, static_cast<int32_t>(cols), owner.data());
          CHECK(of_rows[i].value == expected.value && of_rows[i].col == expected.col);
        }
        for (int64_t j = 0; j < cols; ++j) {
          Minimum<Real> expected = {std::numeric_limits<Real>::infinity(), -1};
          for (int64_t i = 0; i < rows; ++i)
            if (matrix(i, j) < expected.value) expected = {matrix(i, j), static_cast<int32_t>(i)};
          CHECK(of_cols[j].value == expected.value && of_cols[j].col == expected.col);
        }
      }
      std::vector<Real> copy(rows * padded(cols)), transposed(cols * padded(rows));
      layout.copy_rows(c, rows, cols, 2, copy.data(), padded(cols));
      layout.transpose(c, rows, cols, 2, transposed.data(), padded(rows));
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 0; j < cols; ++j) {
          CHECK(copy[i * padded(cols) + j] == 2 * matrix(i, j));
          CHECK(transposed[j * padded(rows) + i] == 2 * matrix(i, j));
        }
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = cols; j < padded(cols); ++j) CHECK(std::isinf(copy[i * padded(cols) + j]));
      for (int64_t j = 0; j < cols; ++j)
        for (int64_t i = rows; i < padded(rows); ++i)
          CHECK(std::isinf(transposed[j * padded(rows) + i]));
    }
}

// A separate call for each query must give the same bits as one call for all; every array is
// exactly as large as required.
void check_costs(std::mt19937& random) {
  std::uniform_real_distribution<float> uniform(0, 1);
  for (const int64_t queries : {1, 7, 16, 33})
    for (const int64_t classes : {2, 7, 16, 21, 92})
      for (const bool focal : {false, true})
        for (const Dtype dtype : {Dtype::kFloat32, Dtype::kFloat16, Dtype::kBfloat16}) {
          const size_t width = dtype == Dtype::kFloat32 ? 4 : 2;
          std::vector<char> logits(queries * classes * width);
          for (int64_t k = 0; k < queries * classes; ++k) {
            const float x = 4 * uniform(random) - 2;
            const uint16_t half = static_cast<uint16_t>(0x3000 + random() % 0x1000);  // 0.1 to 2
            std::memcpy(logits.data() + k * width,
                        width == 4 ? static_cast<const void*>(&x) : &half, width);
          }
          std::vector<float> boxes(queries * 4), targets;
          for (float& x : boxes) x = uniform(random);
          const std::vector<int32_t> labels = {0, static_cast<int32_t>(classes) - 1};
          const std::vector<int32_t> label_of = {0, 1, 1};
          for (int m = 0; m < 3; ++m) {
            const Box<float> box =
                make_box(uniform(random), uniform(random), uniform(random), uniform(random));
            targets.insert(targets.end(), &box.cx, &box.cx + 9);
          }
          const auto costs = [&](int64_t first, int64_t count) {
            const auto kind = focal ? ClassCost::kFocal : ClassCost::kSoftmax;
            const auto options = to_single({1, 5, 2, kind, 0.25, 2, 1e-8, 0, 0});
            AlignedVector<float> scratch(pair_cost_scratch(classes, 2, 3));
            AlignedVector<float> cost(3 * padded(count), -1.0f);
            Minimum<float> minima[3];
            const PairCostInput in = {logits.data() + first * classes * width,
                                      boxes.data() + 4 * first,
                                      dtype,
                                      Dtype::kFloat32,
                                      count,
                                      classes,
                                      labels.data(),
                                      2,
                                      label_of.data(),
                                      targets.data(),
                                      3,
                                      options,
                                      false,
                                      scratch.data(),
                                      cost.data(),
                                      minima};
            CHECK(kernels().pair_costs(in).kind == PairCostFault::kNone);
            const std::vector<int32_t> owner(padded(count), 0);
            for (int m = 0; m < 3; ++m) {
              const auto expected =
                  PlainScan<float>::row_minimum(cost.data() + m * padded(count),
                                                static_cast<int32_t>(padded(count)), owner.data());
              CHECK(minima[m].value == expected.value && minima[m].col == expected.col);
            }
            return cost;
          };
          const AlignedVector<float> all = costs(0, queries);
          for (int64_t m = 0; m < 3; ++m)
            for (int64_t n = queries; n < padded(queries); ++n)
              CHECK(std::isinf(all[m * padded(queries) + n]));
          for (int64_t n = 0; n < queries; ++n) {
            const AlignedVector<float> one = costs(n, 1);
            for (int64_t m = 0; m < 3; ++m) {
              CHECK(std::isfinite(one[m * padded(1)]));
              CHECK(one[m * padded(1)] == all[m * padded(queries) + n]);
            }
          }
        }
}

}  // namespace

int main(int argc, char** argv) {
  CHECK(argc == 2);
  if (std::strcmp(kernels().name, argv[1]) != 0) {
    std::printf("this CPU runs %s, not %s\n", kernels().name, argv[1]);
    return 77;
  }
  std::mt19937 random(2);
  check_scans<float>(random);
  check_scans<double>(random);
  for (const Family family : {Family::kForbidden, Family::kIntegers}) {  // the latter: ties
    check_layouts<float>(family, random);
    check_layouts<double>(family, random);
  }
  check_costs(random);
  Solver<float> solver_of_floats;
  check_solver<float>(solver_of_floats, kRowAlignment, 3, 220);
  Solver<double> solver_of_doubles;
  check_solver<double>(solver_of_doubles, kRowAlignment, 3, 220);
}
