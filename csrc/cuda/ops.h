// The CUDA launchers, in types that need no CUDA header: bindings.cpp includes this file.
//
// A launcher is a plain function of device pointers, sizes, a device index and a stream (a
// cudaStream_t as torch hands it out: a number). It makes the device current for the call, launches
// into the stream, checks the launch and returns without waiting. It allocates nothing, so that it
// can be captured into a CUDA graph. It throws std::runtime_error where CUDA reports an error.
#pragma once

#include <cstdint>

namespace detr_fast::cuda {

// The stream's address; 0 is the default stream.
using Stream = uintptr_t;

// Versions as CUDA counts them: 1000 * major + 10 * minor.
int runtime_version();  // linked into this module
int driver_version();   // the newest CUDA that the installed driver runs; 0 without a driver

}  // namespace detr_fast::cuda
