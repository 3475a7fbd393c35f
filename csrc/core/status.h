// What a computation reports to its caller: plain codes, which Python turns into exceptions that
// name the place. Nothing in core/, cpu/ or cuda/ throws or prints.
#pragma once

#include <cstdint>

namespace detr_fast {

enum class Status : int {
  kOk = 0,
  kInvalidCost,       // a cost is NaN, or minus infinity
  kInfeasible,        // no complete assignment with a finite total exists
  kTooLarge,          // more rows or columns than an index counts
  kInvalidLabel,      // a target's label is not one of the classes
  kInvalidTargetBox,  // a target's box is not finite, or has a negative width or height
  kInvalidLogits,     // a query has no class cost: NaN, or for softmax +inf or nothing but -inf
  kInvalidBox,        // a predicted box is not finite, or has a negative width or height
  kInvalidPairCost,   // finite input whose cost overflows
  kOutOfMemory,
};

// The first fault of a call. `problem` counts assignment problems (in FastMatcher: layer * images +
// image); `query` and `target` are -1 where they mean nothing.
struct Fault {
  Status status = Status::kOk;
  int64_t problem = -1;
  int64_t query = -1;
  int64_t target = -1;
};

}  // namespace detr_fast
