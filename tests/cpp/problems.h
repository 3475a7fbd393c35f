// Assignment problems of several kinds, and a proof that a result is optimal.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "check.h"

namespace detr_fast {

template <class Real>
struct Matrix {
  int64_t rows, cols, stride;
  std::vector<Real> cost;  // [rows, stride], infinity in the padding

  Matrix(int64_t m, int64_t n, int64_t s)
      : rows(m), cols(n), stride(s), cost(m * s, std::numeric_limits<Real>::infinity()) {}
  Real& operator()(int64_t i, int64_t j) { return cost[i * stride + j]; }
  Real operator()(int64_t i, int64_t j) const { return cost[i * stride + j]; }
};

enum class Family { kRandom, kInitial, kCrowded, kTrained, kIntegers, kConstant, kForbidden };
constexpr Family kFamilies[] = {Family::kRandom,   Family::kInitial,  Family::kCrowded,
                                Family::kTrained,  Family::kIntegers, Family::kConstant,
                                Family::kForbidden};

template <class Real>
Matrix<Real> make_matrix(Family family, int64_t rows, int64_t cols, int64_t stride,
                         std::mt19937& random) {
  Matrix<Real> matrix(rows, cols, stride);
  std::uniform_real_distribution<Real> uniform(0, 1);
  std::vector<Real> of_row(rows), of_col(cols);
  for (Real& x : of_row) x = uniform(random);
  for (Real& x : of_col) x = uniform(random);
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < cols; ++j) {
      const Real x = uniform(random);
      Real& cost = matrix(i, j);
      switch (family) {
        case Family::kRandom:
          cost = x - Real(0.5);
          break;
        case Family::kInitial:
          cost = of_row[i] + of_col[j] + Real(1e-3) * x;
          break;
        case Family::kCrowded:  // boxes on a line: all rows prefer the first or the last columns
          cost = std::abs(3 * of_row[i] - of_col[j] - 1) + Real(1e-2) * x;
          break;
        case Family::kTrained:
          cost = i * 7 % cols == j ? x : 3 + x;
          break;
        case Family::kIntegers:
          cost = std::floor(4 * x);
          break;
        case Family::kConstant:
          cost = Real(3.5);
          break;
        case Family::kForbidden:
          cost = x < Real(0.5) ? std::numeric_limits<Real>::infinity() : x;
      }
    }
  return matrix;
}

// Complementary slackness: whether dual variables exist that prove that no other assignment is
// cheaper. They are computed by Bellman-Ford relaxations over columns, which converge if and only
// if no exchange of columns along a cycle, or along a path to a free column, lowers the total.
template <class Real>
bool is_optimal(const Matrix<Real>& matrix, const std::vector<int32_t>& col_of_row) {
  const double kTolerance = 1e-9;
  std::vector<double> v(matrix.cols, 0.0);
  std::vector<char> held(matrix.cols, 0);
  for (const int32_t col : col_of_row) held[col] = 1;
  for (int64_t round = 0; round <= matrix.rows + 1; ++round) {
    bool changed = false;
    for (int64_t i = 0; i < matrix.rows; ++i) {
      const double u = static_cast<double>(matrix(i, col_of_row[i])) - v[col_of_row[i]];
      for (int64_t j = 0; j < matrix.cols; ++j) {
        const double slack = static_cast<double>(matrix(i, j)) - u - v[j];
        if (slack >= -kTolerance) continue;
        if (!held[j]) return false;  // v of a free column must stay 0
        v[j] += slack;
        changed = true;
      }
    }
    if (!changed) return true;
  }
  return false;
}

// Whether every row can have an allowed column of its own, by augmenting paths.
template <class Real>
bool is_feasible(const Matrix<Real>& matrix) {
  std::vector<int64_t> owner(matrix.cols, -1);
  for (int64_t root = 0; root < matrix.rows; ++root) {
    std::vector<char> seen(matrix.cols, 0);
    const auto reach = [&](const auto& self, int64_t i) -> bool {
      for (int64_t j = 0; j < matrix.cols; ++j) {
        if (seen[j] || !std::isfinite(matrix(i, j))) continue;
        seen[j] = 1;
        if (owner[j] >= 0 && !self(self, owner[j])) continue;
        owner[j] = i;
        return true;
      }
      return false;
    };
    if (!reach(reach, root)) return false;
  }
  return true;
}

// Solves problems of every family and size with `solver` and proves each result optimal.
template <class Real, class Solver>
void check_solver(Solver& solver, int64_t alignment, int repeats = 3, int64_t most_rows = 40) {
  std::mt19937 random(1);
  int proven = 0, infeasible = 0;
  for (const Family family : kFamilies)
    for (const int64_t rows : {1, 2, 5, 17, 40, 80, 220})
      for (const int64_t more : {0, 1, 7, 60, 200})
        for (int repeat = 0; repeat < repeats; ++repeat) {
          const int64_t cols = rows + more;
          if (rows > most_rows) continue;
          const int64_t stride = (cols + alignment - 1) / alignment * alignment;
          const Matrix<Real> matrix = make_matrix<Real>(family, rows, cols, stride, random);
          const Status status = solver.solve(matrix.cost.data(), rows, cols, stride);
          CHECK((status == Status::kOk) == is_feasible(matrix));
          if (status != Status::kOk) {
            CHECK(status == Status::kInfeasible);
            ++infeasible;
            continue;
          }
          for (int64_t i = 0; i < rows; ++i) {
            CHECK(solver.col_of_row()[i] >= 0 && solver.col_of_row()[i] < cols);
            CHECK(solver.row_of_col()[solver.col_of_row()[i]] == i);
          }
          CHECK(is_optimal(matrix, solver.col_of_row()));
          ++proven;
        }
  CHECK(proven > 110 * repeats && infeasible > repeats);
}

}  // namespace detr_fast
