// The instructions of one kernel.
#include <algorithm>
#include <cctype>
#include <deque>

#include "instructions.h"
#include "parser.h"
#include "text.h"

namespace ptx {
namespace {

class Body {
 public:
  Body(const Symbols& symbols, Kernel& kernel) : symbols_(symbols), kernel_(kernel) {}

  void parse(const std::vector<Statement>& statements) {
    scopes_.emplace_back();
    for (const Statement& statement : statements) {
      add(statement);
    }
    kernel_.code.push_back(named("exit", "(end)", 0));
    kernel_.code.back().kind = Kind::kExit;
    for (const auto& [instruction, label] : branches_) {
      const auto target = labels_.find(label);
      if (target == labels_.end()) {
        throw Fault("no label " + label);
      }
      kernel_.code[instruction].target = target->second;
    }
    kernel_.registers = registers_;
  }

 private:
  static Instruction named(const std::string& name, const std::string& text, int line) {
    Instruction instruction;
    instruction.name = name;
    instruction.text = text;
    instruction.line = line;
    return instruction;
  }

  void add(const Statement& statement) {
    const std::string& text = statement.text;
    if (text == "{") {
      scopes_.emplace_back();
    } else if (text == "}") {
      scopes_.pop_back();
    } else if (text.back() == ':') {
      labels_[text.substr(0, text.size() - 1)] = static_cast<int>(kernel_.code.size());
    } else if (begins_with(text, ".reg") || begins_with(text, ".param")) {
      declare(text);
    } else if (text[0] == '.') {
      throw Fault("unknown declaration: " + text);
    } else {
      add_instruction(statement);
    }
  }

  // ".reg .b32 %r<9>": the registers of such a name are made when they are met.
  void declare(const std::string& text) {
    const std::string names = text.substr(text.find_last_of(" \t") + 1);
    if (names.find('<') == std::string::npos) {
      scopes_.back()[names] = registers_++;
    }
  }

  void add_instruction(const Statement& statement) {
    std::string rest = statement.text;
    Instruction instruction = named("", statement.text, statement.line);
    if (rest[0] == '@') {
      const auto end = rest.find_first_of(" \t");
      instruction.is_negated = rest[1] == '!';
      instruction.predicate = register_of(
          rest.substr(instruction.is_negated ? 2 : 1, end - (instruction.is_negated ? 2 : 1)));
      rest = trimmed(rest.substr(end));
    }
    const auto end = std::min(rest.find_first_of(" \t"), rest.size());
    instruction.name = rest.substr(0, end);
    const std::string operands = trimmed(rest.substr(end));
    decode(instruction, operands.empty() ? std::vector<std::string>() : split(operands, ','));
    kernel_.code.push_back(instruction);
  }

  // --- operands

  int register_of(const std::string& name) {
    for (auto scope = scopes_.rbegin(); scope != scopes_.rend(); ++scope) {
      if (const auto found = scope->find(name); found != scope->end()) {
        return found->second;
      }
    }
    static const std::vector<std::string> kSpecials = {"%tid.x", "%ntid.x", "%ctaid.x", "%nctaid.x",
                                                       "%laneid"};
    if (std::find(kSpecials.begin(), kSpecials.end(), name) != kSpecials.end()) {
      kernel_.specials.emplace_back(registers_, name);
    } else if (name[0] != '%' || name.find('.') != std::string::npos) {
      throw Fault("unknown operand: " + name);
    }
    return scopes_.front()[name] = registers_++;
  }

  int constant(Bits value) {
    const auto [found, is_new] = constants_.emplace(value, registers_);
    if (is_new) {
      kernel_.constants.emplace_back(registers_++, value);
    }
    return found->second;
  }

  int source(const std::string& operand) {
    if (begins_with(operand, "0f") || begins_with(operand, "0d")) {
      return constant(std::stoull(operand.substr(2), nullptr, 16));
    }
    if (operand[0] == '-') {
      return constant(static_cast<Bits>(std::stoll(operand)));
    }
    if (std::isdigit(static_cast<unsigned char>(operand[0])) != 0) {
      return constant(std::stoull(operand, nullptr, 0));
    }
    if (const auto symbol = symbols_.find(operand); symbol != symbols_.end()) {
      return constant(symbol->second);
    }
    for (const Parameter& parameter : kernel_.parameters) {
      if (parameter.name == operand) {
        return constant(parameter.offset);
      }
    }
    return register_of(operand);
  }

  int destination(const std::string& operand) {
    return operand == "_" ? Instruction::kNone : register_of(operand);
  }

  void sources(Instruction& instruction, const std::vector<std::string>& operands,
               std::size_t first) {
    if (operands.size() - first > instruction.from.size()) {
      throw Fault("too many operands: " + instruction.text);
    }
    for (std::size_t i = first; i < operands.size(); ++i) {
      instruction.from[i - first] = source(operands[i]);
    }
  }

  // "[%rd1+8]" or "[name]"
  void address(Instruction& instruction, const std::string& operand) {
    const std::vector<std::string> parts = split(without_ends(operand), '+');
    instruction.from[0] = source(parts[0]);
    instruction.offset = parts.size() > 1 ? std::stoll(parts[1]) : 0;
  }

  // --- instructions

  void decode(Instruction& instruction, const std::vector<std::string>& operands) {
    const std::vector<std::string> name = split(instruction.name, '.');
    if (name[0] == "bra") {
      instruction.kind = Kind::kBranch;
      branches_.emplace_back(kernel_.code.size(), operands.at(0));
    } else if (name[0] == "ret" || name[0] == "exit") {
      instruction.kind = Kind::kExit;
    } else if (name[0] == "trap") {
      instruction.kind = Kind::kTrap;
    } else if (name[0] == "call") {
      decode_call(instruction, operands);
    } else if (name[0] == "ld" || name[0] == "st" || name[0] == "atom" || name[0] == "red") {
      decode_access(instruction, name, operands);
    } else if (instruction.name == "bar.sync" || instruction.name == "bar.red.or.pred" ||
               name[0] == "barrier") {
      decode_barrier(instruction, operands);
    } else if (meetings().count(instruction.name) != 0) {
      decode_meeting(instruction, operands);
    } else if (name[0] == "mov") {
      decode_move(instruction, bytes_of_type(name.back()), operands);
    } else {
      decode_arithmetic(instruction, operands);
    }
  }

  // Bits are as good as unsigned integers.
  void decode_arithmetic(Instruction& instruction, const std::vector<std::string>& operands) {
    std::string name = instruction.name;
    auto found = arithmetic().find(name);
    if (const auto bits = name.rfind(".b"); found == arithmetic().end() && bits != name.npos) {
      found = arithmetic().find(name.replace(bits, 2, ".u"));
    }
    if (found == arithmetic().end()) {
      throw Fault("unknown instruction: " + instruction.text);
    }
    instruction.execute = found->second;
    instruction.to[0] = register_of(operands.at(0));
    sources(instruction, operands, 1);
  }

  void decode_move(Instruction& instruction, std::size_t bytes,
                   const std::vector<std::string>& operands) {
    const bool unpacks = operands.at(0)[0] == '{', packs = operands.at(1)[0] == '{';
    if (!unpacks && !packs) {
      instruction.execute = move();
      instruction.to[0] = register_of(operands[0]);
      instruction.from[0] = source(operands[1]);
      return;
    }
    const auto parts = split(without_ends(operands[unpacks ? 0 : 1]), ',');
    const int part_bytes = static_cast<int>(bytes / parts.size());
    instruction.elements = static_cast<int>(parts.size());
    instruction.execute = unpacks ? unpack(part_bytes) : pack(part_bytes);
    if (instruction.execute == nullptr || parts.size() > instruction.to.size()) {
      throw Fault("unknown instruction: " + instruction.text);
    }
    for (std::size_t i = 0; i < parts.size(); ++i) {
      (unpacks ? instruction.to[i] : instruction.from[i]) =
          unpacks ? destination(parts[i]) : source(parts[i]);
    }
    (unpacks ? instruction.from[0] : instruction.to[0]) = source(operands[unpacks ? 1 : 0]);
  }

  void decode_access(Instruction& instruction, const std::vector<std::string>& name,
                     const std::vector<std::string>& operands) {
    const bool stores = name[0] == "st", returns = name[0] == "ld" || name[0] == "atom";
    const std::string& place = operands.at(returns ? 1 : 0);
    if (name[1] == "param" && is_local(place)) {
      decode_argument(instruction, operands, stores);
      return;
    }
    instruction.execute = stores && name[1] == "param" ? nullptr : memory_access(name);
    if (instruction.execute == nullptr) {
      throw Fault("unknown instruction: " + instruction.text);
    }
    address(instruction, place);
    const std::string& data = operands.at(stores ? 1 : 0);
    const bool is_vector = data[0] == '{';
    const auto parts = is_vector ? split(without_ends(data), ',') : std::vector<std::string>{data};
    instruction.elements = static_cast<int>(parts.size());
    for (std::size_t i = 0; i < parts.size() && (stores || returns); ++i) {
      (stores ? instruction.from.at(1 + i) : instruction.to.at(i)) =
          stores ? source(parts[i]) : destination(parts[i]);
    }
    for (std::size_t i = returns ? 2 : 1; i < operands.size() && !stores; ++i) {
      instruction.from.at(i - (returns ? 1 : 0)) = source(operands[i]);
    }
  }

  // Arguments and results of a call are declared in the scope around it.
  bool is_local(const std::string& place) {
    const std::string name = split(without_ends(place), '+')[0];
    return std::any_of(scopes_.begin() + 1, scopes_.end(),
                       [&](const auto& scope) { return scope.count(name) != 0; });
  }

  void decode_argument(Instruction& instruction, const std::vector<std::string>& operands,
                       bool stores) {
    const std::string name = split(without_ends(operands[stores ? 0 : 1]), '+')[0];
    instruction.execute = move();
    instruction.to[0] = register_of(stores ? name : operands[0]);
    instruction.from[0] = source(stores ? operands[1] : name);
  }

  // "(retval0), vprintf, (param0, param1)"
  void decode_call(Instruction& instruction, const std::vector<std::string>& operands) {
    if (operands.size() != 3 || operands[1] != "vprintf") {
      throw Fault("unknown instruction: " + instruction.text);
    }
    instruction.execute = print();
    instruction.to[0] = register_of(without_ends(operands[0]));
    instruction.from[0] = register_of(split(without_ends(operands[2]), ',')[0]);
  }

  void decode_barrier(Instruction& instruction, const std::vector<std::string>& operands) {
    if (begins_with(instruction.name, "barrier.cluster.arrive")) {
      instruction.kind = Kind::kClusterArrive;
    } else if (begins_with(instruction.name, "barrier.cluster.wait")) {
      instruction.kind = Kind::kClusterWait;
    } else if (instruction.name == "bar.sync" && operands == std::vector<std::string>{"0"}) {
      instruction.kind = Kind::kBarrier;
    } else if (instruction.name == "bar.red.or.pred" && operands.size() == 3 &&
               operands[1] == "0" && operands[2][0] != '!') {
      instruction.kind = Kind::kBarrier;
      instruction.to[0] = register_of(operands[0]);
      instruction.from[0] = source(operands[2]);
    } else {
      throw Fault("unknown instruction: " + instruction.text);
    }
    if (instruction.predicate != Instruction::kNone) {
      throw Fault("a barrier that not all threads reach: " + instruction.text);
    }
  }

  // The mask is the last operand, the result the first: "d|p" of a shuffle.
  void decode_meeting(Instruction& instruction, const std::vector<std::string>& operands) {
    instruction.kind = Kind::kMeeting;
    instruction.execute = meetings().at(instruction.name);
    instruction.from[kMeetingMask] = source(operands.back());
    if (operands.size() == 1) {
      return;
    }
    const auto results = split(operands[0], '|');
    for (std::size_t i = 0; i < results.size(); ++i) {
      instruction.to[i] = register_of(results[i]);
    }
    sources(instruction, {operands.begin() + 1, operands.end() - 1}, 0);
  }

  const Symbols& symbols_;
  Kernel& kernel_;
  int registers_ = 0;
  std::deque<std::unordered_map<std::string, int>> scopes_;  // the first holds all %names
  std::unordered_map<Bits, int> constants_;
  std::unordered_map<std::string, int> labels_;
  std::vector<std::pair<std::size_t, std::string>> branches_;
};

}  // namespace

void parse_body(const std::vector<Statement>& statements, const Symbols& symbols, Kernel& kernel) {
  Body(symbols, kernel).parse(statements);
}

}  // namespace ptx
