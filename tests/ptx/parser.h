// PTX, as nvcc writes it, into instructions that can be executed.
#pragma once

#include <string>
#include <unordered_map>
#include <vector>

#include "ptx.h"
#include "text.h"

namespace ptx {

// Adds the kernels of a file. What the interpreter does not know is the error of the kernel that
// has it.
void parse(const std::string& path, Kernels& kernels);

// What the strings of a file and the beginning of shared memory have for addresses.
using Symbols = std::unordered_map<std::string, Bits>;

// The instructions between the braces; a Fault names what is not known.
void parse_body(const std::vector<Statement>& statements, const Symbols& symbols, Kernel& kernel);

}  // namespace ptx
