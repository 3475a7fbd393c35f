#include "block.h"

#include <algorithm>
#include <stdexcept>

namespace ptx {
namespace {

int first_of(Lanes lanes) { return __builtin_ctz(lanes); }

bool is_write(Access access) {
  return access == Access::kWrite || access == Access::kAtomic || access == Access::kVolatileWrite;
}

}  // namespace

Warp::Warp(Block& block, uint8_t index)
    : block_(block),
      kernel_(block.launch_.kernel),
      index_(index),
      registers_(static_cast<size_t>(kernel_.registers) * kLanes) {
  for (const auto& [slot, value] : kernel_.constants)
    for (int lane = 0; lane < kLanes; ++lane) set(slot, lane, value);
}

void Warp::start(Size block_index) {
  const Launch& launch = block_.launch_;
  const uint32_t first = index_ * kLanes;
  for (const auto& [name, slot] : kernel_.special)
    for (uint32_t lane = 0; lane < kLanes; ++lane) {
      const uint32_t value = name == "%tid.x"      ? first + lane
                             : name == "%laneid"   ? lane
                             : name == "%ntid.x"   ? launch.threads
                             : name == "%ctaid.x"  ? block_index.x
                             : name == "%ctaid.y"  ? block_index.y
                             : name == "%ctaid.z"  ? block_index.z
                             : name == "%nctaid.x" ? launch.grid.x
                             : name == "%nctaid.y" ? launch.grid.y
                                                   : launch.grid.z;
      set(slot, static_cast<int>(lane), value);
    }
  const uint32_t lanes = std::min<uint32_t>(launch.threads - first, kLanes);
  alive_ = lanes == kLanes ? kAllLanes : (Lanes{1} << lanes) - 1;
  at_barrier_ = waiting_ = 0;
  next_.fill(0);
  step_ = ++block_.steps_;
}

void Warp::advance() {
  for (;;) {
    const Lanes ready = alive_ & ~at_barrier_ & ~waiting_;
    if (!ready) break;
    run(choose(ready));
  }
  if (waiting_) {
    const int lane = first_of(waiting_);
    fail(kernel_.code[next_[lane]], lane, "waits for lanes that never come");
  }
}

void Warp::pass_barrier() {
  at_barrier_ = 0;
  step_ = ++block_.steps_;
}

// Lanes that have parted may run in any order. Mostly the ones that are furthest behind run until
// they join others; sometimes any run, as far as they come.
Warp::Group Warp::choose(Lanes ready) {
  uint32_t least = ~0u, pick = 0;
  const bool any = block_.random_() % 8 == 0;
  const uint32_t skip =
      any ? block_.random_() % static_cast<uint32_t>(__builtin_popcount(ready)) : 0;
  uint32_t seen = 0;
  for (Lanes rest = ready; rest; rest &= rest - 1) {
    const uint32_t at = next_[first_of(rest)];
    least = std::min(least, at);
    if (seen++ == skip) pick = at;
  }
  Group group = {0, any ? pick : least, ~0u};
  for (Lanes rest = ready; rest; rest &= rest - 1) {
    const int lane = first_of(rest);
    if (next_[lane] == group.at)
      group.lanes |= Lanes{1} << lane;
    else if (!any)
      group.until = std::min(group.until, next_[lane]);
  }
  return group;
}

void Warp::run(Group group) {
  auto [lanes, at, until] = group;
  while (at < until) {
    const Instruction& in = kernel_.code[at];
    const Lanes active = guarded(in, lanes);
    switch (in.flow) {
      case Flow::kNext:
        if (active) in.execute(*this, in, active);
        ++at;
        break;
      case Flow::kBranch:
        if (active && active != lanes) {
          leave(active, in.target);
          return leave(lanes & ~active, at + 1);
        }
        at = active ? in.target : at + 1;
        break;
      case Flow::kReturn:
        alive_ &= ~active;
        lanes &= ~active;
        if (!lanes) return;
        ++at;
        break;
      case Flow::kBlockBarrier:
        leave(lanes, at + 1);
        at_barrier_ |= active;
        return;
      case Flow::kWarpBarrier:
      case Flow::kTogether:
        leave(lanes, at);
        if (active != lanes) leave(lanes & ~active, at + 1);
        if (const Lanes all = active ? gather(in, active) : 0) {
          if (in.flow == Flow::kTogether) in.execute(*this, in, all);
          if (in.flow == Flow::kWarpBarrier) step_ = ++block_.steps_;
          for (Lanes rest = all; rest; rest &= rest - 1) ++next_[first_of(rest)];
        }
        return;
    }
  }
  leave(lanes, at);
}

// The lanes that go on together, once all of the instruction's mask are there; before that none.
Lanes Warp::gather(const Instruction& instruction, Lanes lanes) {
  const Lanes wanted = get<uint32_t>(instruction.mask, first_of(lanes));
  if (wanted != kAllLanes) fail(instruction, first_of(lanes), "is for a part of the warp");
  waiting_ |= lanes;
  for (Lanes rest = waiting_; rest; rest &= rest - 1) {
    const Instruction& other = kernel_.code[next_[first_of(rest)]];
    const bool fits = &other == &instruction ||
                      (instruction.flow == Flow::kWarpBarrier && other.flow == Flow::kWarpBarrier);
    if (!fits)
      fail(instruction, first_of(rest),
           "meets lanes that wait at " + kernel_.describe(other.place));
  }
  if (waiting_ != wanted) return 0;
  waiting_ = 0;
  return wanted;
}

Lanes Warp::guarded(const Instruction& instruction, Lanes lanes) const {
  if (instruction.guard < 0) return lanes;
  Lanes set = 0;
  for (int lane = 0; lane < kLanes; ++lane)
    set |= static_cast<Lanes>(get<bool>(static_cast<uint32_t>(instruction.guard), lane)) << lane;
  return lanes & (instruction.guard_negated ? ~set : set);
}

void Warp::leave(Lanes lanes, uint32_t at) {
  for (Lanes rest = lanes; rest; rest &= rest - 1) next_[first_of(rest)] = at;
}

char* Warp::memory(const Instruction& instruction, int lane, const char* stored) {
  const uint64_t base = instruction.space == Space::kShared
                            ? get<uint32_t>(instruction.inputs[0], lane)
                            : get<uint64_t>(instruction.inputs[0], lane);
  const Moment now = {block_.number_, block_.phase_, step_, index_, static_cast<uint8_t>(lane)};
  return block_.memory(instruction, *this, lane, now,
                       base + static_cast<uint64_t>(instruction.offset), stored);
}

void Warp::fail(const Instruction& instruction, int lane, const std::string& what) const {
  const Size& at = block_.index_;
  throw std::runtime_error(kernel_.describe(instruction.place) + ", " + readable(kernel_.name) +
                           ", block (" + std::to_string(at.x) + ", " + std::to_string(at.y) + ", " +
                           std::to_string(at.z) + "), thread " +
                           std::to_string(index_ * kLanes + lane) + ": " + what);
}

Block::Block(const Launch& launch, uint32_t seed)
    : launch_(launch), random_(seed), parameters_(launch.parameters) {
  shared_.resize((launch.kernel.static_shared + 15) / 16 * 16 + launch.dynamic_shared);
  const uint32_t warps = (launch.threads + kLanes - 1) / kLanes;
  warps_.reserve(warps);
  for (uint32_t k = 0; k < warps; ++k) warps_.emplace_back(*this, static_cast<uint8_t>(k));
}

void Block::run(Size index) {
  index_ = index;
  shared_shadows_ = Shadows();
  ++number_;
  ++phase_;
  for (Warp& warp : warps_) warp.start(index);
  std::vector<Warp*> order;
  for (Warp& warp : warps_) order.push_back(&warp);
  for (;;) {
    std::shuffle(order.begin(), order.end(), random_);
    for (Warp* warp : order) warp->advance();
    bool waits = false, missing = false;
    for (const Warp& warp : warps_) {
      waits |= warp.at_barrier() != 0;
      missing |= warp.alive() != warp.at_barrier() || warp.alive() != kAllLanes;
    }
    if (!waits) return;
    if (missing) {
      const std::string name = readable(launch_.kernel.name);
      throw std::runtime_error(name + ": a barrier of the block that not all threads reach");
    }
    ++phase_;
    for (Warp& warp : warps_) warp.pass_barrier();
  }
}

char* Block::memory(const Instruction& instruction, const Warp& warp, int lane, Moment now,
                    uint64_t address, const char* stored) {
  const uint64_t bytes = uint64_t{instruction.bytes} * instruction.count;
  if (address % bytes != 0) warp.fail(instruction, lane, "the address is not aligned");
  if (instruction.space == Space::kParameters) {
    if (address + bytes > parameters_.size())
      warp.fail(instruction, lane, "reads outside of the kernel's arguments");
    return &parameters_[address];
  }
  const bool is_shared = instruction.space == Space::kShared;
  const bool is_inside = is_shared ? address + bytes <= shared_.size() : is_allowed(address, bytes);
  if (!is_inside)
    warp.fail(instruction, lane,
              is_shared ? "accesses memory outside of the block's" : "accesses memory of nobody");
  char* const at = is_shared ? &shared_[address] : reinterpret_cast<char*>(address);
  const bool is_change = !stored || memcmp(at, stored, bytes) != 0;
  if (const char* what = note(instruction, now, address, is_change))
    warp.fail(instruction, lane,
              std::string(is_write(instruction.access) ? "a write" : "a read") + what);
  return at;
}

// Returns what is wrong with the access's order, or null.
const char* Block::note(const Instruction& instruction, Moment now, uint64_t address,
                        bool is_change) {
  const uint64_t bytes = uint64_t{instruction.bytes} * instruction.count;
  const bool is_shared = instruction.space == Space::kShared;
  Shadows& shadows = is_shared ? shared_shadows_ : global_shadows_;
  const Access access = instruction.access;
  if (access == Access::kVolatileRead || access == Access::kVolatileWrite) return nullptr;
  if (is_write(access) && bytes == 1) return " of a single byte, which is not supported";
  const char* found = nullptr;
  for (uint64_t k = 0; k < bytes; k += 2) {
    Shadow& shadow = shadows[address + k];
    if (is_shared && access != Access::kWrite && !shadow.is_written_by(now.block))
      return " before the first write";
    const char* const what = is_write(access)
                                 ? shadow.write(now, access == Access::kAtomic, is_change)
                                 : shadow.read(now);
    if (what) found = what;
  }
  return found;
}

bool Block::is_allowed(uint64_t address, uint64_t bytes) {
  const auto holds = [&](const std::pair<uint64_t, uint64_t>& region) {
    return region.first <= address && address + bytes <= region.first + region.second;
  };
  if (holds(last_region_)) return true;
  auto after = launch_.regions.upper_bound(address);
  if (after == launch_.regions.begin()) return false;
  last_region_ = *--after;
  return holds(last_region_);
}

void run(const Launch& launch, uint32_t seed) {
  Block block(launch, seed);
  std::vector<Size> blocks;
  for (uint32_t z = 0; z < launch.grid.z; ++z)
    for (uint32_t y = 0; y < launch.grid.y; ++y)
      for (uint32_t x = 0; x < launch.grid.x; ++x) blocks.push_back({x, y, z});
  std::shuffle(blocks.begin(), blocks.end(), std::mt19937(seed));
  for (const Size& at : blocks) block.run(at);
}

}  // namespace ptx
