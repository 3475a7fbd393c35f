// What a computation reports to its caller: plain codes, which Python turns into exceptions that
// name the place. Nothing in core/, cpu/ or cuda/ prints, or throws because of its input; cuda/
// throws where CUDA reports an error.
#pragma once

#include <cstdint>

namespace detr_fast {

enum class Status : int {
  kOk = 0,
  kInvalidCost,       // a cost is NaN, or minus infinity
  kInfeasible,        // no complete assignment with a finite total exists
  kTooLarge,          // more rows or columns than an int32 index can count
  kInvalidLabel,      // a target's label is not one of the classes
  kInvalidTargetBox,  // a target's box is not finite, or has a negative width or height
  kInvalidLogits,     // a query has no class cost: NaN, or for softmax +inf or only -inf
  kInvalidBox,        // a predicted box is not finite, or has a negative width or height
  kInvalidPairCost,   // the cost of finite input overflows
  kOutOfMemory,
};

// The first fault of a call. `problem` is the index of the assignment problem (in FastMatcher:
// layer * images + image); `query` and `target` are -1 where they do not apply.
struct Fault {
  Status status = Status::kOk;
  int64_t problem = -1;
  int64_t query = -1;
  int64_t target = -1;
};

}  // namespace detr_fast
