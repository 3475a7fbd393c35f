// What the bindings share: addresses as integers, and options in the form that Python passes.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <tuple>
#include <vector>

#include "core/pair_cost.h"

namespace detr_fast {

using Address = uintptr_t;
using Addresses = std::vector<Address>;

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

inline std::vector<const void*> pointers(const Addresses& addresses) {
  std::vector<const void*> all;
  all.reserve(addresses.size());
  for (const Address a : addresses) all.push_back(at<const void>(a));
  return all;
}

// (class, bbox, giou), whether focal, (alpha, gamma, eps), (giou_added, giou_lowest)
using CostOptions = std::tuple<std::tuple<double, double, double>, bool,
                               std::tuple<double, double, double>, std::tuple<double, double>>;

inline PairCostOptions pair_cost_options(const CostOptions& cost) {
  const auto& [weights, focal, focal_options, giou] = cost;
  PairCostOptions options;
  std::tie(options.weight_class, options.weight_bbox, options.weight_giou) = weights;
  options.class_cost = focal ? ClassCost::kFocal : ClassCost::kSoftmax;
  std::tie(options.alpha, options.gamma, options.eps) = focal_options;
  std::tie(options.giou_added, options.giou_lowest) = giou;
  return options;
}

// Fills the submodule `cuda` with the GPU versions of the ops, under the names of the CPU versions.
void define_cuda(pybind11::module_ m);

// Define the ops on boxes, and their GPU versions in the submodule.
void define_boxes(pybind11::module_& m);
void define_cuda_boxes(pybind11::module_& m);

void define_dropout(pybind11::module_& m);

}  // namespace detr_fast
