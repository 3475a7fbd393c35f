// Kernels in PTX, as nvcc writes it, read into instructions that block.h runs.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace ptx {

constexpr int kLanes = 32;
using Lanes = uint32_t;  // a set of a warp's lanes, one bit each
constexpr Lanes kAllLanes = ~0u;

class Warp;
struct Instruction;

// Does what an instruction says for some lanes of a warp.
using Execute = void (*)(Warp& warp, const Instruction& instruction, Lanes lanes);

// How an instruction moves the lanes on. kWarpBarrier and kTogether wait for all lanes of their
// mask; the latter then exchanges values.
enum class Flow : uint8_t { kNext, kBranch, kReturn, kBlockBarrier, kWarpBarrier, kTogether };

enum class Space : uint8_t { kParameters, kShared, kGlobal };
enum class Access : uint8_t { kRead, kWrite, kAtomic, kVolatileRead, kVolatileWrite };

// In the source, and where the function there is inlined.
struct Place {
  uint32_t file = 0, line = 0, calling_file = 0, calling_line = 0;
};

// Registers, constants and special registers are numbered alike; predicates are 0 or 1.
struct Instruction {
  Execute execute = nullptr;
  Flow flow = Flow::kNext;
  int32_t guard = -1;  // the predicate of the lanes for which it is executed; -1: for all
  bool guard_negated = false;
  std::array<uint32_t, 4> outputs{}, inputs{};
  uint32_t target = 0;  // of a branch
  uint32_t mask = 0;    // the register of the lanes that are waited for

  // Of memory: `count` values of `bytes` each at address inputs[0] + offset.
  Space space = Space::kGlobal;
  Access access = Access::kRead;
  uint8_t bytes = 0, count = 1;
  bool is_signed = false;
  int64_t offset = 0;

  Place place;
};

struct Parameter {
  uint32_t offset, bytes;
};

struct Kernel {
  std::string name;
  std::vector<Parameter> parameters;
  uint32_t parameter_bytes = 0;
  uint32_t most_threads = 1024;  // __launch_bounds__
  uint32_t static_shared = 0;    // bytes; dynamic shared memory begins there
  uint32_t registers = 0;
  std::vector<std::pair<uint32_t, uint64_t>> constants;  // register, value
  std::map<std::string, uint32_t> special;               // %tid.x and so on: register
  std::vector<Instruction> code;
  std::map<uint32_t, std::string> files;

  std::string describe(const Place& place) const;
};

// A kernel's name in C++, without its arguments.
std::string readable(const std::string& name);

// Throws std::runtime_error for anything that it does not know.
std::vector<Kernel> read(const std::string& text);

// The meaning of an arithmetic instruction such as "add.s32"; null if it is not known.
Execute arithmetic(const std::string& name);

// Those that exchange values between lanes, such as "redux.sync.min.u32"; null likewise.
Execute exchange(const std::string& name);

Execute halves(bool apart);  // a 64-bit register taken apart, or put together
Execute load();
Execute store();
Execute atomic(const std::string& name);  // "min.s32"

}  // namespace ptx
