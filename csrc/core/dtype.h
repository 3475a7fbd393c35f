// The types of predictions. Python passes them as these numbers (ops/library.py).
#pragma once

namespace detr_fast {

enum class Dtype : int { kFloat32 = 0, kFloat16 = 1, kBfloat16 = 2, kFloat64 = 3 };

}  // namespace detr_fast
