// What decides a run's bits besides its configuration: another program, or other arithmetic, rounds
// differently.
#pragma once

#include <string>

#include "backend/backend.h"

namespace cachalot {

struct BitsIdentity {
  std::string program;     // checksum of the executable's file, hexadecimal
  std::string arithmetic;  // "avx512_bf16, fma, glibc 2.36"; a GPU's name

  static BitsIdentity of(Device& device);
  bool operator==(const BitsIdentity&) const = default;
  template <class V> void visit(V& v) {
    v("program", program, "checksum of the program that trained");
    v("arithmetic", arithmetic, "what computed: instruction set and C library, or GPU");
  }
};

}  // namespace cachalot
