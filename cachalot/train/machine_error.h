// An Error whose cause is the machine: the process ends with a code of its own, so that a supervisor knows
// whether to start the same command here again or elsewhere.
#pragma once

#include <string>
#include <utility>

#include "base/error.h"

namespace cachalot {

constexpr int kExitRetryHere = 3, kExitDrainNode = 4;

// This machine computes wrong numbers: exit code 4.
class MachineError : public Error {
 public:
  MachineError(const std::string& what, std::string what_to_do) : Error(what) { hint(std::move(what_to_do)); }
};

}  // namespace cachalot
