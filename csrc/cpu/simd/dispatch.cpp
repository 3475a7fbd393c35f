// Chooses the instruction set: the best that this CPU and its operating system support.
#include <cstdlib>
#include <cstring>

#include "cpu/ops.h"
#include "cpu/simd/kernels.h"

namespace detr_fast::cpu {

extern const Kernels kernels_plain;
#ifdef DETR_FAST_X86
extern const Kernels kernels_avx2, kernels_avx512;
#endif

namespace {

const Kernels& choose() {
#ifdef DETR_FAST_X86
  const char* const cap = std::getenv("DETR_FAST_SIMD");
  const auto allowed = [cap](const char* name) {
    return !cap || !*cap || std::strcmp(cap, name) == 0;
  };
  __builtin_cpu_init();
  // Every processor with AVX2 has F16C as well.
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") &&
                          __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (has_avx512 && allowed("avx512")) return kernels_avx512;
  if (has_avx2 && (allowed("avx2") || allowed("avx512"))) return kernels_avx2;
#endif
  return kernels_plain;
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

const char* simd_name() { return kernels().name; }

}  // namespace detr_fast::cpu
