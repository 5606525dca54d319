// Pieces of PTX as text.
#pragma once

#include <string>
#include <vector>

namespace ptx {

struct Statement {
  std::string text;
  int line;  // of the file
};

inline std::string trimmed(const std::string& text) {
  const auto first = text.find_first_not_of(" \t\n");
  if (first == std::string::npos) {
    return "";
  }
  return text.substr(first, text.find_last_not_of(" \t\n") - first + 1);
}

inline bool begins_with(const std::string& text, const char* start) {
  return text.rfind(start, 0) == 0;
}

// Not inside of brackets.
inline std::vector<std::string> split(const std::string& text, char at) {
  std::vector<std::string> parts(1);
  int depth = 0;
  for (const char c : text) {
    depth += c == '{' || c == '[' || c == '(';
    depth -= c == '}' || c == ']' || c == ')';
    if (c == at && depth == 0) {
      parts.emplace_back();
    } else {
      parts.back() += c;
    }
  }
  for (std::string& part : parts) {
    part = trimmed(part);
  }
  return parts;
}

inline std::string without_ends(const std::string& text) { return text.substr(1, text.size() - 2); }

// Of "u64", "f32", "b8"; a predicate is a byte.
inline std::size_t bytes_of_type(const std::string& type) {
  const auto digits = type.find_first_of("0123456789");
  return digits == std::string::npos ? 1 : std::stoul(type.substr(digits)) / 8;
}

}  // namespace ptx
