#pragma once

namespace detr_fast::cpu {

enum class Dtype : int { kFloat32 = 0, kFloat16 = 1, kBfloat16 = 2, kFloat64 = 3 };

}  // namespace detr_fast::cpu
