#include "parser.h"

#include <cctype>
#include <fstream>
#include <sstream>

#include "instructions.h"
#include "memory.h"

namespace ptx {
namespace {

using Lines = std::vector<std::string>;

// Without comments, and without what is for debuggers and the profiler. Only what stands around the
// bodies of kernels is not indented.
Lines read_lines(const std::string& path) {
  std::ifstream file(path);
  if (!file) {
    throw std::runtime_error("cannot read " + path);
  }
  Lines lines;
  for (std::string line; std::getline(file, line);) {
    line = line.substr(0, line.find("//"));
    const std::string text = trimmed(line);
    const bool is_code = !begins_with(text, ".loc") && !begins_with(text, ".pragma");
    lines.push_back(is_code ? line : "");
  }
  return lines;
}

// A label ends with ':', a scope is a brace where a statement could begin.
class Statements {
 public:
  void add(const std::string& line, int number) {
    for (const char c : line) {
      const bool begins = text_.empty();
      if (begins && std::isspace(static_cast<unsigned char>(c)) != 0) {
        continue;
      }
      line_ = begins ? number : line_;
      if (c != ';') {
        text_ += c;
      }
      if (c == ';' || (begins && (c == '{' || c == '}')) || (c == ':' && text_[0] == '$')) {
        finish();
      }
    }
    if (!text_.empty()) {
      text_ += ' ';
    }
  }
  const std::vector<Statement>& all() const { return all_; }

 private:
  void finish() {
    all_.push_back({trimmed(text_), line_});
    text_.clear();
  }
  std::string text_;
  int line_ = 0;
  std::vector<Statement> all_;
};

// ".param .align 8 .b8 name[56]" or ".param .u64 name"
void add_parameter(const std::string& text, Kernel& kernel) {
  std::istringstream words(text);
  std::string word, type, name;
  std::size_t alignment = 0;
  while (words >> word) {
    if (word == ".align") {
      words >> alignment;
    } else if (word[0] != '.') {
      name = word;
    } else if (word != ".param") {
      type = word.substr(1);
    }
  }
  const auto bracket = name.find('[');
  const std::size_t count = bracket == name.npos ? 1 : std::stoul(name.substr(bracket + 1));
  const std::size_t bytes = bytes_of_type(type) * count;
  alignment = alignment == 0 ? bytes_of_type(type) : alignment;
  const std::size_t offset = (kernel.parameter_bytes + alignment - 1) / alignment * alignment;
  kernel.parameters.push_back({name.substr(0, bracket), offset, bytes});
  kernel.parameter_bytes = offset + bytes;
}

// ".visible .entry name(" and what follows, up to the brace that ends the body.
Kernel parse_kernel(const Lines& lines, std::size_t& at, const Symbols& symbols) {
  Kernel kernel;
  const std::string head = lines[at].substr(lines[at].find(".entry") + 7);
  kernel.name = trimmed(head.substr(0, head.find('(')));
  for (; !begins_with(lines.at(at), "{"); ++at) {
    if (const std::string line = trimmed(lines[at]); begins_with(line, ".param")) {
      add_parameter(split(line, ',')[0], kernel);
    } else if (begins_with(line, ".maxntid")) {
      kernel.max_threads = static_cast<unsigned>(std::stoul(line.substr(8)));
    }
  }
  Statements statements;
  for (++at; !begins_with(lines.at(at), "}"); ++at) {
    statements.add(lines[at], static_cast<int>(at + 1));
  }
  try {
    parse_body(statements.all(), symbols, kernel);
  } catch (const Fault& fault) {
    kernel.error = fault.what();
  }
  return kernel;
}

// ".global .align 1 .b8 $str[42] = {100, ..., 10};": a string, which lacks its last 0. They live as
// long as the process.
void add_string(const std::string& line, Symbols& symbols) {
  const auto bracket = line.find('[');
  const auto begin = line.find_last_of(" \t", bracket) + 1;
  const std::size_t bytes = std::stoul(line.substr(bracket + 1));
  auto* text = new char[bytes + 1]();
  if (const auto brace = line.find('{'); brace != std::string::npos) {
    const auto values = split(line.substr(brace + 1, line.find('}') - brace - 1), ',');
    for (std::size_t i = 0; i < values.size(); ++i) {
      text[i] = static_cast<char>(std::stoi(values[i]));
    }
  }
  allow(text, bytes);
  symbols[line.substr(begin, bracket - begin)] = reinterpret_cast<Bits>(text);
}

}  // namespace

void parse(const std::string& path, Kernels& kernels) {
  const Lines lines = read_lines(path);
  Symbols symbols;
  for (std::size_t at = 0; at < lines.size(); ++at) {
    const std::string& line = lines[at];
    if (begins_with(line, ".global") || begins_with(line, ".visible .global")) {
      add_string(line, symbols);
    } else if (begins_with(line, ".extern .shared")) {
      const auto begin = line.find_last_of(" \t") + 1;
      symbols[line.substr(begin, line.find('[') - begin)] = kSharedBase;
    } else if (line.find(".entry") != std::string::npos) {
      Kernel kernel = parse_kernel(lines, at, symbols);
      kernels[kernel.name] = std::move(kernel);
    }
  }
}

}  // namespace ptx
