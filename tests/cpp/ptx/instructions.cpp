// What PTX instructions compute. Only those that this project's kernels use are here.
#include <algorithm>
#include <cfenv>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <string>
#include <tuple>
#include <type_traits>
#include <unordered_map>
#include <utility>

#include "block.h"
#include "program.h"

namespace ptx {
namespace {

using Half = _Float16;

// Applies a function to the first register of outputs and the registers of inputs.
template <class Function, class Out, class... In>
struct EachLane {
  static void run(Warp& warp, const Instruction& in, Lanes lanes) {
    run(warp, in, lanes, std::index_sequence_for<In...>());
  }

 private:
  template <size_t... k>
  static void run(Warp& warp, const Instruction& in, Lanes lanes, std::index_sequence<k...>) {
    for (int lane = 0; lane < kLanes; ++lane)
      if (lanes >> lane & 1)
        warp.set<Out>(in.outputs[0], lane, Function()(warp.get<In>(in.inputs[k], lane)...));
  }
};

// A type by its name in PTX.
template <class T>
struct Type {
  const char* name;
};

constexpr std::tuple kReals = {Type<float>{"f32"}, Type<double>{"f64"}};
constexpr std::tuple kIntegers = {Type<int16_t>{"s16"}, Type<uint16_t>{"u16"},
                                  Type<int32_t>{"s32"}, Type<uint32_t>{"u32"},
                                  Type<int64_t>{"s64"}, Type<uint64_t>{"u64"}};
constexpr std::tuple kBits = {Type<uint16_t>{"b16"}, Type<uint32_t>{"b32"}, Type<uint64_t>{"b64"}};
constexpr std::tuple kPredicate = {Type<bool>{"pred"}};
constexpr std::tuple kNumbers = std::tuple_cat(kIntegers, kReals);
constexpr std::tuple kAll = std::tuple_cat(kNumbers, kBits);

// Integers wrap around, as on the GPU.
template <class T, class Operation>
T wrapped(T x, T y, Operation operation) {
  if constexpr (std::is_integral_v<T>)
    return static_cast<T>(operation(static_cast<uint64_t>(x), static_cast<uint64_t>(y)));
  else
    return operation(x, y);
}

float flushed(float x) { return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(0.f, x) : x; }

float fma_rounded_down(float x, float y, float z) {
  const int before = std::fegetround();
  std::fesetround(FE_DOWNWARD);
  volatile float a = x, b = y, c = z;  // not to be computed before or after
  const volatile float sum = std::fma(a, b, c);
  std::fesetround(before);
  return sum;
}

uint64_t insert_bits(uint64_t field, uint64_t into, uint32_t start, uint32_t length) {
  if (start >= 64) return into;
  const uint64_t ones = length >= 64 ? ~uint64_t{0} : (uint64_t{1} << length) - 1;
  return (into & ~(ones << start)) | (field & ones) << start;
}

class Table {
 public:
  Table() {
    binary("add", kNumbers, []<class T>(T x, T y) { return wrapped(x, y, std::plus()); });
    binary("sub", kNumbers, []<class T>(T x, T y) { return wrapped(x, y, std::minus()); });
    binary("mul", kReals, []<class T>(T x, T y) { return x * y; });
    binary("mul.lo", kIntegers, []<class T>(T x, T y) { return wrapped(x, y, std::multiplies()); });
    binary("div", kReals, []<class T>(T x, T y) { return x / y; });
    binary("div", kIntegers, []<class T>(T x, T y) { return y == 0 ? T(-1) : T(x / y); });
    // If one is NaN, the other.
    binary("min", kNumbers, []<class T>(T x, T y) { return x < y || y != y ? x : y; });
    binary("max", kNumbers, []<class T>(T x, T y) { return x > y || y != y ? x : y; });
    binary("and", kBits, []<class T>(T x, T y) { return T(x & y); });
    binary("or", kBits, []<class T>(T x, T y) { return T(x | y); });
    binary("xor", kBits, []<class T>(T x, T y) { return T(x ^ y); });
    binary("and", kPredicate, [](bool x, bool y) { return x && y; });
    binary("or", kPredicate, [](bool x, bool y) { return x || y; });
    binary("xor", kPredicate, [](bool x, bool y) { return x != y; });
    unary("not", kBits, []<class T>(T x) { return T(~x); });
    unary("not", kPredicate, [](bool x) { return !x; });
    unary("neg", kReals, []<class T>(T x) { return -x; });
    unary("neg", kIntegers, []<class T>(T x) { return wrapped(T(), x, std::minus()); });
    unary("abs", kReals, []<class T>(T x) { return std::abs(x); });
    unary("mov", kAll, []<class T>(T x) { return x; });
    unary("mov", kPredicate, [](bool x) { return x; });
    each(kAll, [&]<class T>(Type<T> type) {
      add<T, T, T, bool>("selp." + name(type), [](T x, T y, bool first) { return first ? x : y; });
    });
    add<uint64_t, uint64_t>("cvta.to.global.u64", [](uint64_t x) { return x; });
    add<int64_t, int32_t, int32_t>("mul.wide.s32", [](int64_t x, int64_t y) { return x * y; });
    add<uint64_t, uint32_t, uint32_t>("mul.wide.u32", [](uint64_t x, uint64_t y) { return x * y; });
    add<uint32_t, uint32_t, uint32_t, uint32_t>(
        "mad.lo.s32", [](uint32_t x, uint32_t y, uint32_t z) { return x * y + z; });
    add<int32_t, uint32_t>("popc.b32", [](uint32_t x) { return __builtin_popcount(x); });
    add<uint64_t, uint64_t, uint64_t, uint32_t, uint32_t>(
        "bfi.b64", [](auto... operands) { return insert_bits(operands...); });
    add<float, float, float, float>("fma.rm.f32",
                                    [](auto... operands) { return fma_rounded_down(operands...); });
    add<float, float>("rcp.approx.ftz.f32", [](float x) { return flushed(1 / flushed(x)); });
    add<float, float>("ex2.approx.ftz.f32", [](float x) { return flushed(std::exp2(flushed(x))); });
    each(kReals, [&]<class T>(Type<T> type) {
      add<T, T, T, T>("fma.rn." + name(type), [](T x, T y, T z) { return std::fma(x, y, z); });
      add<T, T>("rcp.rn." + name(type), [](T x) { return 1 / x; });
    });
    each(kBits, [&]<class T>(Type<T> type) { shift<T>("shl." + name(type)); });
    each(kAll, [&]<class T>(Type<T> type) { shift_right<T>("shr." + name(type)); });
    each(kAll, [&]<class T>(Type<T> type) { compare<T>(name(type)); });
    convert();
  }

  // Null if there is none of that name.
  Execute find(std::string name) const {
    // "rn": rounded to the nearest number, as these are anyway.
    for (const char* operation : {"add.rn.", "sub.rn.", "mul.rn.", "div.rn."})
      if (name.rfind(operation, 0) == 0) name.erase(3, 3);
    const auto found = entries_.find(name);
    return found == entries_.end() ? nullptr : found->second;
  }

 private:
  template <class T>
  static std::string name(Type<T> type) {
    return type.name;
  }

  template <class Types, class Use>
  static void each(const Types& types, Use use) {
    std::apply([&](auto... type) { (use(type), ...); }, types);
  }

  template <class Out, class... In, class Function>
  void add(const std::string& name, Function) {
    entries_[name] = &EachLane<Function, Out, In...>::run;
  }

  template <class Types, class Function>
  void unary(const std::string& operation, const Types& types, Function function) {
    each(types, [&]<class T>(Type<T> type) { add<T, T>(operation + "." + name(type), function); });
  }

  template <class Types, class Function>
  void binary(const std::string& operation, const Types& types, Function function) {
    each(types,
         [&]<class T>(Type<T> type) { add<T, T, T>(operation + "." + name(type), function); });
  }

  template <class T>
  void shift(const std::string& name) {
    add<T, T, uint32_t>(name,
                        [](T x, uint32_t by) { return by < 8 * sizeof x ? T(x << by) : T(); });
  }

  template <class T>
  void shift_right(const std::string& name) {
    if constexpr (std::is_integral_v<T>)
      add<T, T, uint32_t>(name, [](T x, uint32_t by) {
        return by < 8 * sizeof x ? T(x >> by) : T(x < 0 ? -1 : 0);
      });
  }

  template <class T>
  void compare(const std::string& type) {
    const auto one = [&](const char* name, auto function) {
      add<bool, T, T>(std::string("setp.") + name + "." + type, function);
    };
    one("eq", [](T x, T y) { return x == y; });
    one("ne", [](T x, T y) { return x < y || x > y; });
    one("lt", [](T x, T y) { return x < y; });
    one("le", [](T x, T y) { return x <= y; });
    one("gt", [](T x, T y) { return x > y; });
    one("ge", [](T x, T y) { return x >= y; });
    if constexpr (std::is_floating_point_v<T>) {
      // "u": true as well if one is NaN.
      one("equ", [](T x, T y) { return !(x < y || x > y); });
      one("neu", [](T x, T y) { return !(x == y); });
      one("ltu", [](T x, T y) { return !(x >= y); });
      one("leu", [](T x, T y) { return !(x > y); });
      one("gtu", [](T x, T y) { return !(x <= y); });
      one("geu", [](T x, T y) { return !(x < y); });
      one("num", [](T x, T y) { return !std::isunordered(x, y); });
      one("nan", [](T x, T y) { return std::isunordered(x, y); });
    }
  }

  void convert() {
    constexpr std::tuple kSmall = {Type<int8_t>{"s8"}, Type<uint8_t>{"u8"}};
    constexpr std::tuple kAnyIntegers = std::tuple_cat(kSmall, kIntegers);
    each(kAnyIntegers, [&]<class From>(Type<From> from) {
      each(kAnyIntegers, [&]<class To>(Type<To> to) {
        add<To, From>("cvt." + name(to) + "." + name(from), [](From x) { return To(x); });
      });
      each(kReals, [&]<class To>(Type<To> to) {
        add<To, From>("cvt.rn." + name(to) + "." + name(from), [](From x) { return To(x); });
      });
    });
    each(kReals, [&]<class T>(Type<T> type) {
      const std::string both = name(type) + "." + name(type);
      add<T, T>("cvt.rni." + both, [](T x) { return std::nearbyint(x); });
      add<T, T>("cvt.rzi." + both, [](T x) { return std::trunc(x); });
      add<T, T>("cvt.rmi." + both, [](T x) { return std::floor(x); });
      add<T, T>("cvt.sat." + both, [](T x) { return x > 0 ? std::min(x, T(1)) : T(); });
      // Beyond the integer's range: its limits; NaN: 0.
      add<int32_t, T>("cvt.rzi.s32." + name(type), [](T x) {
        using Limits = std::numeric_limits<int32_t>;
        if (std::isnan(x)) return 0;
        if (x >= T(2147483648)) return Limits::max();
        return x <= T(-2147483648) ? Limits::min() : static_cast<int32_t>(x);
      });
    });
    add<double, float>("cvt.f64.f32", [](float x) { return double{x}; });
    add<float, double>("cvt.rn.f32.f64", [](double x) { return static_cast<float>(x); });
    add<float, Half>("cvt.f32.f16", [](Half x) { return static_cast<float>(x); });
    add<Half, float>("cvt.rn.f16.f32", [](float x) { return static_cast<Half>(x); });
  }

  std::unordered_map<std::string, Execute> entries_;
};

// "mov.b64 {%r1, %r2}, %rd1" and the reverse.
void take_apart(Warp& warp, const Instruction& in, Lanes lanes) {
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!(lanes >> lane & 1)) continue;
    const uint64_t whole = warp.get<uint64_t>(in.inputs[0], lane);
    warp.set(in.outputs[0], lane, static_cast<uint32_t>(whole));
    warp.set(in.outputs[1], lane, static_cast<uint32_t>(whole >> 32));
  }
}

void put_together(Warp& warp, const Instruction& in, Lanes lanes) {
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!(lanes >> lane & 1)) continue;
    const uint64_t high = warp.get<uint32_t>(in.inputs[1], lane);
    warp.set(in.outputs[0], lane, high << 32 | warp.get<uint32_t>(in.inputs[0], lane));
  }
}

template <class Function>
void reduce(Warp& warp, const Instruction& in, Lanes) {
  uint32_t all = warp.get<uint32_t>(in.inputs[0], 0);
  for (int lane = 1; lane < kLanes; ++lane)
    all = Function()(all, warp.get<uint32_t>(in.inputs[0], lane));
  for (int lane = 0; lane < kLanes; ++lane) warp.set(in.outputs[0], lane, all);
}

struct Least {
  uint32_t operator()(uint32_t x, uint32_t y) const { return std::min(x, y); }
};

struct Sum {
  uint32_t operator()(uint32_t x, uint32_t y) const { return x + y; }
};

void ballot(Warp& warp, const Instruction& in, Lanes) {
  uint32_t all = 0;
  for (int lane = 0; lane < kLanes; ++lane)
    all |= static_cast<uint32_t>(warp.get<bool>(in.inputs[0], lane)) << lane;
  for (int lane = 0; lane < kLanes; ++lane) warp.set(in.outputs[0], lane, all);
}

// Of whole warps only: inputs[2] limits the lanes.
void shuffle_xor(Warp& warp, const Instruction& in, Lanes) {
  std::array<uint32_t, kLanes> found;
  for (int lane = 0; lane < kLanes; ++lane) {
    if (warp.get<uint32_t>(in.inputs[2], lane) != kLanes - 1)
      warp.fail(in, lane, "shuffles a part of the warp");
    found[lane] = warp.get<uint32_t>(
        in.inputs[0], lane ^ static_cast<int>(warp.get<uint32_t>(in.inputs[1], lane) % kLanes));
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    warp.set(in.outputs[0], lane, found[lane]);
    if (in.outputs[1]) warp.set(in.outputs[1], lane, true);
  }
}

void load_lanes(Warp& warp, const Instruction& in, Lanes lanes) {
  std::array<std::array<uint64_t, 4>, kLanes> found{};
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!(lanes >> lane & 1)) continue;
    const char* const at = warp.memory(in, lane);
    for (int k = 0; k < in.count; ++k) {
      uint64_t& value = found[lane][k];
      memcpy(&value, at + k * in.bytes, in.bytes);
      if (const int unused = 64 - 8 * in.bytes; in.is_signed)
        value = static_cast<uint64_t>(static_cast<int64_t>(value << unused) >> unused);
    }
  }
  for (int lane = 0; lane < kLanes; ++lane)
    if (lanes >> lane & 1)
      for (int k = 0; k < in.count; ++k) warp.set(in.outputs[k], lane, found[lane][k]);
}

void store_lanes(Warp& warp, const Instruction& in, Lanes lanes) {
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!(lanes >> lane & 1)) continue;
    char values[32];
    for (int k = 0; k < in.count; ++k) {
      const uint64_t value = warp.get<uint64_t>(in.inputs[k + 1], lane);
      memcpy(values + k * in.bytes, &value, in.bytes);
    }
    memcpy(warp.memory(in, lane, values), values, static_cast<size_t>(in.bytes) * in.count);
  }
}

void atomic_min(Warp& warp, const Instruction& in, Lanes lanes) {
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!(lanes >> lane & 1)) continue;
    char* const at = warp.memory(in, lane);
    int32_t before;
    memcpy(&before, at, sizeof before);
    const int32_t after = std::min(before, warp.get<int32_t>(in.inputs[1], lane));
    memcpy(at, &after, sizeof after);
    warp.set(in.outputs[0], lane, before);
  }
}

}  // namespace

Execute arithmetic(const std::string& name) {
  static const Table table;
  return table.find(name);
}

Execute exchange(const std::string& name) {
  if (name == "redux.sync.min.u32") return &reduce<Least>;
  if (name == "redux.sync.add.u32") return &reduce<Sum>;
  if (name == "vote.sync.ballot.b32") return &ballot;
  if (name == "shfl.sync.bfly.b32") return &shuffle_xor;
  return nullptr;
}

Execute halves(bool apart) { return apart ? &take_apart : &put_together; }

Execute load() { return &load_lanes; }

Execute store() { return &store_lanes; }

Execute atomic(const std::string& name) { return name == "min.s32" ? &atomic_min : nullptr; }

}  // namespace ptx
