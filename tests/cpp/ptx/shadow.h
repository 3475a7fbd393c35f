// Who has touched memory last, to find accesses by two threads whose order nothing decides.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <unordered_map>

#include "program.h"

namespace ptx {

// When a thread runs: only __syncthreads orders warps, only __syncwarp a warp's lanes, and nothing
// orders blocks. `phase` counts the former and `step` the latter, both from 1 and never again.
struct Moment {
  uint32_t block, phase, step;
  uint8_t warp, lane;
};

// What is known of two neighbouring bytes (no kernel stores a single one).
class Shadow {
 public:
  bool is_written_by(uint32_t block) const { return write_.block == block; }

  // Notes an access. Returns what is wrong with its order, or null.
  const char* read(const Moment& now) {
    const char* const found = conflict_with_write(now);
    if (read_.block != now.block || read_.phase != now.phase) {
      is_read_by_blocks_ |= read_.block != 0 && read_.block != now.block;
      readers_ = 0;
    }
    lanes_ = readers_ && read_.warp == now.warp && read_.step == now.step ? lanes_ : 0;
    lanes_ |= Lanes{1} << now.lane;
    readers_ |= uint32_t{1} << now.warp;
    read_ = now;
    return found;
  }

  // `is_change`: that another thread writes the same value again is no conflict.
  const char* write(const Moment& now, bool is_atomic, bool is_change) {
    const char* found = nullptr;
    if (is_change && !(is_atomic && is_atomic_)) found = conflict_with_write(now);
    if (!found) found = conflict_with_read(now);
    const bool adds = (!is_change || (is_atomic && is_atomic_)) && write_.block == now.block &&
                      write_.phase == now.phase;
    const bool other_warp = adds && write_.warp != now.warp;
    const bool other_lane =
        adds && (other_warp || (write_.step == now.step && write_.lane != now.lane));
    write_ = now;
    is_atomic_ = is_atomic;
    if (other_warp) write_.warp = kSeveral;
    if (other_lane) write_.lane = kSeveral;
    return found;
  }

 private:
  static constexpr uint8_t kSeveral = 255;

  const char* conflict_with_write(const Moment& now) const {
    if (write_.block == 0) return nullptr;
    if (write_.block != now.block) return " unordered with a write by another block";
    if (write_.phase != now.phase) return nullptr;
    if (write_.warp != now.warp) return " unordered with a write by another warp";
    if (write_.step != now.step || write_.lane == now.lane) return nullptr;
    return " unordered with a write by another lane";
  }

  const char* conflict_with_read(const Moment& now) const {
    if (read_.block == 0) return nullptr;
    if (read_.block != now.block || is_read_by_blocks_)
      return " unordered with a read by another block";
    if (read_.phase != now.phase) return nullptr;
    if (readers_ & ~(uint32_t{1} << now.warp)) return " unordered with a read by another warp";
    if (read_.step != now.step || !(lanes_ & ~(Lanes{1} << now.lane))) return nullptr;
    return " unordered with a read by another lane";
  }

  Moment write_{}, read_{};
  uint32_t readers_ = 0;  // warps, in the phase of `read_`
  Lanes lanes_ = 0;       // of the warp of `read_`, in its step
  bool is_atomic_ = false, is_read_by_blocks_ = false;
};

// The shadow of a whole address space.
class Shadows {
 public:
  Shadow& operator[](uint64_t address) {
    const uint64_t page = address / (2 * kOfPage);
    if (!last_ || page != last_page_) {
      std::unique_ptr<Page>& found = pages_[page];
      if (!found) found = std::make_unique<Page>();
      last_ = found.get();
      last_page_ = page;
    }
    return (*last_)[address / 2 % kOfPage];
  }

 private:
  static constexpr uint64_t kOfPage = 2048;
  using Page = std::array<Shadow, kOfPage>;

  std::unordered_map<uint64_t, std::unique_ptr<Page>> pages_;
  Page* last_ = nullptr;
  uint64_t last_page_ = 0;
};

}  // namespace ptx
