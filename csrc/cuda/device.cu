#include "cuda/launch.h"
#include "cuda/ops.h"

namespace detr_fast::cuda {

int runtime_version() { return CUDART_VERSION; }

int driver_version() {
  int version = 0;
  check(cudaDriverGetVersion(&version), "cudaDriverGetVersion");
  return version;
}

}  // namespace detr_fast::cuda
