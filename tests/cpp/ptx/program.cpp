#include "program.h"

#include <cxxabi.h>

#include <algorithm>
#include <cstdlib>
#include <set>
#include <sstream>
#include <stdexcept>

namespace ptx {
namespace {

uint32_t round_up(uint32_t bytes, uint32_t to) { return (bytes + to - 1) / to * to; }

bool begins(const std::string& text, const char* with) { return text.rfind(with, 0) == 0; }

std::string trimmed(const std::string& text) {
  const size_t first = text.find_first_not_of(" \t\r");
  if (first == std::string::npos) return "";
  return text.substr(first, text.find_last_not_of(" \t\r") - first + 1);
}

std::vector<std::string> split(const std::string& text, char at) {
  std::vector<std::string> parts;
  std::string part;
  int depth = 0;
  for (const char c : text) {
    depth += (c == '{') - (c == '}');
    if (c == at && depth == 0) {
      parts.push_back(trimmed(part));
      part.clear();
    } else {
      part += c;
    }
  }
  if (!trimmed(part).empty()) parts.push_back(trimmed(part));
  return parts;
}

uint32_t bytes_of(const std::string& type) {
  if (type == "pred") return 1;
  return static_cast<uint32_t>(std::atoi(type.c_str() + 1)) / 8;
}

// A variable: ".shared .align 8 .b8 name[192]", ".param .u64 name".
struct Variable {
  std::string name;
  uint32_t align = 0, bytes = 0;
};

Variable variable(std::string text) {
  Variable result;
  std::istringstream words(text);
  for (std::string word; words >> word;) {
    if (word == ".align") {
      words >> result.align;
    } else if (word[0] != '.') {
      result.name = word.substr(0, word.find('['));
      const size_t bracket = word.find('[');
      if (bracket != std::string::npos)
        result.bytes *= static_cast<uint32_t>(std::atoi(word.c_str() + bracket + 1));
    } else if (word != ".ptr" && word.find_first_of("0123456789") != std::string::npos) {
      result.bytes = bytes_of(word.substr(1));
      if (result.align == 0) result.align = result.bytes;
    }
  }
  return result;
}

class Reader {
 public:
  explicit Reader(const std::string& text) : lines_(text) {}

  std::vector<Kernel> run() {
    while (next()) {
      if (begins(line_, ".file")) {
        read_file();
      } else if (line_.find(".entry ") != std::string::npos) {
        read_kernel();
      } else if (begins(line_, ".extern .shared")) {
        dynamic_.insert(variable(without_semicolon()).name);
      } else if (begins(line_, ".section")) {
        while (next() && line_ != "}") {
        }
      } else if (!line_.empty() && !begins(line_, ".version") && !begins(line_, ".target") &&
                 !begins(line_, ".address_size") && !begins(line_, ".global")) {
        fail("is not known outside of kernels");
      }
    }
    for (Kernel& kernel : kernels_) kernel.files = files_;
    return std::move(kernels_);
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw std::runtime_error("PTX line " + std::to_string(number_) + ", \"" + line_ +
                             "\": " + what);
  }

  bool next() {
    if (!std::getline(lines_, line_)) return false;
    ++number_;
    const size_t comment = line_.find("//");
    if (comment != std::string::npos && !begins(trimmed(line_), ".file")) line_.resize(comment);
    line_ = trimmed(line_);
    return true;
  }

  std::string without_semicolon() const {
    if (line_.empty() || line_.back() != ';') fail("ends without a semicolon");
    return line_.substr(0, line_.size() - 1);
  }

  void read_file() {
    std::istringstream words(line_);
    std::string directive, path;
    uint32_t number = 0;
    words >> directive >> number >> path;
    path = path.substr(1, path.find('"', 1) - 1);
    for (const char* ours : {"/csrc/", "/tests/"})
      if (const size_t at = path.rfind(ours); at != std::string::npos) path.erase(0, at + 1);
    files_[number] = path;
  }

  void read_kernel() {
    kernels_.emplace_back();
    kernel_ = &kernels_.back();
    classes_.clear();
    constants_.clear();
    symbols_.clear();
    labels_.clear();
    branches_.clear();
    place_ = {};
    const size_t name = line_.find(".entry ") + 7;
    kernel_->name = line_.substr(name, line_.find('(') - name);
    if (line_.back() != ')')
      while (next() && line_ != ")") read_parameter();
    while (next() && line_ != "{") {
      std::istringstream words(line_);
      std::string word;
      if (words >> word && word == ".maxntid") words >> kernel_->most_threads;
    }
    while (next() && line_ != "}") read_line();
    for (const auto& [at, label] : branches_) {
      if (!labels_.count(label)) fail("has no label " + label);
      kernel_->code[at].target = labels_[label];
    }
    kernel_->registers = slots_;
    for (const auto& [value, slot] : constants_) kernel_->constants.emplace_back(slot, value);
    slots_ = 0;
  }

  void read_parameter() {
    std::string text = line_;
    if (text.back() == ',') text.pop_back();
    const Variable v = variable(text);
    const uint32_t offset = round_up(kernel_->parameter_bytes, v.align);
    kernel_->parameters.push_back({offset, v.bytes});
    kernel_->parameter_bytes = offset + v.bytes;
    symbols_[v.name] = offset;
  }

  void read_line() {
    if (line_.empty() || begins(line_, ".pragma")) return;
    if (begins(line_, ".reg")) return read_registers();
    if (begins(line_, ".loc")) return read_place();
    if (begins(line_, ".shared")) {
      const Variable v = variable(without_semicolon());
      const uint32_t offset = round_up(kernel_->static_shared, v.align);
      symbols_[v.name] = offset;
      kernel_->static_shared = offset + v.bytes;
      return;
    }
    if (line_.back() == ':') {
      labels_[line_.substr(0, line_.size() - 1)] = static_cast<uint32_t>(kernel_->code.size());
      return;
    }
    if (line_[0] == '.' || line_[0] == '{') fail("is not known");
    read_instruction();
  }

  // ".loc 7 107 3, function_name $L__info_string13, inlined_at 4 23 5": file, line, column.
  void read_place() {
    std::istringstream words(line_.substr(4));
    words >> place_.file >> place_.line;
    const size_t caller = line_.find("inlined_at ");
    place_.calling_file = place_.calling_line = 0;
    if (caller == std::string::npos) return;
    std::istringstream(line_.substr(caller + 11)) >> place_.calling_file >> place_.calling_line;
  }

  // ".reg .b32 %r<12>;"
  void read_registers() {
    std::istringstream words(without_semicolon());
    std::string directive, type, name;
    words >> directive >> type >> name;
    const size_t bracket = name.find('<');
    if (bracket == std::string::npos) fail("declares registers one by one");
    classes_[name.substr(0, bracket)] = slots_;
    slots_ += static_cast<uint32_t>(std::atoi(name.c_str() + bracket + 1));
  }

  void read_instruction() {
    Instruction in;
    in.place = place_;
    std::string text = without_semicolon();
    if (text[0] == '@') {
      const size_t end = text.find_first_of(" \t");
      in.guard_negated = text[1] == '!';
      in.guard = static_cast<int32_t>(
          operand(text.substr(in.guard_negated ? 2 : 1, end - (in.guard_negated ? 2 : 1))));
      text = trimmed(text.substr(end));
    }
    const size_t end = text.find_first_of(" \t");
    const std::string name = text.substr(0, end);
    operands_ =
        end == std::string::npos ? std::vector<std::string>() : split(text.substr(end), ',');

    if (name == "ret") {
      in.flow = Flow::kReturn;
    } else if (name == "bra" || name == "bra.uni") {
      in.flow = Flow::kBranch;
      branches_.emplace_back(kernel_->code.size(), operands_.at(0));
    } else if (name == "bar.sync" || name == "barrier.sync") {
      if (operands_ != std::vector<std::string>{"0"}) fail("is another barrier than __syncthreads");
      in.flow = Flow::kBlockBarrier;
    } else if (name == "bar.warp.sync") {
      in.flow = Flow::kWarpBarrier;
      in.mask = operand(operands_.at(0));
    } else if (begins(name, "ld.") || begins(name, "st.")) {
      read_memory(in, name);
    } else if (begins(name, "atom.")) {
      read_atomic(in, name);
    } else if (begins(name, "mov.b") && text.find('{') != std::string::npos) {
      read_pair(in, name);
    } else if ((in.execute = exchange(name))) {
      in.flow = Flow::kTogether;
      in.mask = operand(operands_.back());
      operands_.pop_back();
      read_operands(in);
    } else if ((in.execute = arithmetic(name))) {
      read_operands(in);
    } else {
      fail("is not known");
    }
    kernel_->code.push_back(in);
  }

  // "%r1|%p1, %r2, 3": outputs, inputs.
  void read_operands(Instruction& in) {
    const std::vector<std::string> outputs = split(operands_.at(0), '|');
    for (size_t k = 0; k < outputs.size(); ++k) in.outputs.at(k) = operand(outputs[k]);
    for (size_t k = 1; k < operands_.size(); ++k) in.inputs.at(k - 1) = operand(operands_[k]);
  }

  // "mov.b64 %rd1, {%r1, %r2}" and the reverse.
  void read_pair(Instruction& in, const std::string& name) {
    if (name != "mov.b64") fail("is not known");
    const bool apart = operands_.at(0)[0] == '{';
    const auto parts = split(inside(operands_.at(apart ? 0 : 1)), ',');
    const uint32_t whole = operand(operands_[apart ? 1 : 0]);
    if (parts.size() != 2) fail("does not have two parts");
    in.execute = halves(apart);
    for (size_t k = 0; k < 2; ++k) (apart ? in.outputs : in.inputs)[k] = operand(parts[k]);
    (apart ? in.inputs : in.outputs)[0] = whole;
  }

  static std::string inside(const std::string& text) { return text.substr(1, text.size() - 2); }

  // "ld.volatile.global.v2.f32 {%f1, %f2}, [%rd1+8]", "st.shared.u32 [%r1], %r2"
  void read_memory(Instruction& in, const std::string& name) {
    const bool is_load = name[0] == 'l';
    bool is_volatile = false;
    for (const std::string& part : split(name.substr(3), '.')) {
      if (part == "volatile") {
        is_volatile = true;
      } else if (part == "v2" || part == "v4") {
        in.count = static_cast<uint8_t>(part[1] - '0');
      } else if (!read_space(in, part)) {
        in.bytes = static_cast<uint8_t>(bytes_of(part));
        in.is_signed = part[0] == 's';
        if (in.bytes == 0) fail("is not known");
      }
    }
    in.access = is_load       ? is_volatile ? Access::kVolatileRead : Access::kRead
                : is_volatile ? Access::kVolatileWrite
                              : Access::kWrite;
    in.execute = is_load ? load() : store();
    read_address(in, operands_.at(is_load ? 1 : 0));
    const std::string& values = operands_.at(is_load ? 0 : 1);
    const auto parts = in.count > 1 ? split(inside(values), ',') : std::vector{values};
    if (parts.size() != in.count) fail("has another number of values");
    if (!is_load && in.count > 3) fail("stores too many values");
    for (size_t k = 0; k < parts.size(); ++k)
      (is_load ? in.outputs.at(k) : in.inputs.at(k + 1)) = operand(parts[k]);
  }

  bool read_space(Instruction& in, const std::string& name) {
    if (name == "param") return in.space = Space::kParameters, true;
    if (name == "shared") return in.space = Space::kShared, true;
    if (name == "global") return in.space = Space::kGlobal, true;
    return false;
  }

  // "atom.shared.min.s32 %r1, [%r2], %r3"
  void read_atomic(Instruction& in, const std::string& name) {
    const size_t space = name.find('.') + 1, operation = name.find('.', space) + 1;
    if (!read_space(in, name.substr(space, operation - space - 1))) fail("is not known");
    in.access = Access::kAtomic;
    in.execute = atomic(name.substr(operation));
    if (!in.execute) fail("is not known");
    in.bytes = static_cast<uint8_t>(bytes_of(name.substr(name.rfind('.') + 1)));
    in.outputs[0] = operand(operands_.at(0));
    read_address(in, operands_.at(1));
    in.inputs[1] = operand(operands_.at(2));
  }

  // "[%rd1]", "[%rd1+-8]", "[name+4]"
  void read_address(Instruction& in, const std::string& text) {
    const std::string address = inside(text);
    const size_t plus = address.find('+');
    in.inputs[0] = operand(address.substr(0, plus));
    if (plus != std::string::npos) in.offset = std::atoll(address.c_str() + plus + 1);
  }

  uint32_t operand(const std::string& text) {
    if (text[0] == '%') {
      const size_t digit = text.find_first_of("0123456789");
      if (digit != std::string::npos && classes_.count(text.substr(0, digit)))
        return classes_[text.substr(0, digit)] +
               static_cast<uint32_t>(std::atoi(text.c_str() + digit));
      static const std::set<std::string> kSpecial = {"%tid.x",    "%ntid.x",   "%ctaid.x",
                                                     "%ctaid.y",  "%ctaid.z",  "%nctaid.x",
                                                     "%nctaid.y", "%nctaid.z", "%laneid"};
      if (!kSpecial.count(text)) fail(text + " is not known");
      const auto [at, is_new] = kernel_->special.try_emplace(text, slots_);
      slots_ += is_new;
      return at->second;
    }
    if (begins(text, "0f") || begins(text, "0d"))
      return constant(std::strtoull(text.c_str() + 2, nullptr, 16));
    if (text[0] == '-') return constant(static_cast<uint64_t>(std::atoll(text.c_str())));
    if (text[0] >= '0' && text[0] <= '9') return constant(std::strtoull(text.c_str(), nullptr, 0));
    if (dynamic_.count(text)) return constant(round_up(kernel_->static_shared, 16));
    if (!symbols_.count(text)) fail(text + " is not known");
    return constant(symbols_[text]);
  }

  uint32_t constant(uint64_t value) {
    const auto [at, is_new] = constants_.try_emplace(value, slots_);
    slots_ += is_new;
    return at->second;
  }

  std::istringstream lines_;
  std::string line_;
  int number_ = 0;
  std::map<uint32_t, std::string> files_;
  std::set<std::string> dynamic_;  // names of dynamic shared memory
  std::vector<Kernel> kernels_;

  // Of the kernel that is read.
  Kernel* kernel_ = nullptr;
  uint32_t slots_ = 0;
  Place place_;  // of the instructions that come next
  std::map<std::string, uint32_t> classes_, symbols_, labels_;
  std::map<uint64_t, uint32_t> constants_;
  std::vector<std::pair<size_t, std::string>> branches_;
  std::vector<std::string> operands_;
};

}  // namespace

std::string Kernel::describe(const Place& place) const {
  const auto text = [&](uint32_t file, uint32_t line) {
    const auto found = files.find(file);
    return found == files.end() ? "" : found->second + ":" + std::to_string(line);
  };
  // CUDA's own functions are named by their caller.
  const std::string here = text(place.file, place.line);
  return here[0] == '/' ? text(place.calling_file, place.calling_line) : here;
}

std::string readable(const std::string& name) {
  int status = 0;
  char* const text = abi::__cxa_demangle(name.c_str(), nullptr, nullptr, &status);
  std::string result = status == 0 ? text : name;
  std::free(text);
  const std::string anonymous = "(anonymous namespace)::";
  for (size_t at; (at = result.find(anonymous)) != std::string::npos;)
    result.erase(at, anonymous.size());
  result.resize(std::min(result.find('('), result.size()));
  return result.substr(result.find(' ') + 1);
}

std::vector<Kernel> read(const std::string& text) { return Reader(text).run(); }

}  // namespace ptx
