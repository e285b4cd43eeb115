// A 64-bit checksum of bytes: XXH64 (Collet, github.com/Cyan4973/xxHash, doc/xxhash_spec.md), so that
// `xxhsum -H1` says the same. Against accidents (flipped bits, cut files, mixed-up files), not against an
// attacker. About 10 GB/s a core.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

namespace cachalot {

uint64_t checksum64(std::string_view bytes, uint64_t seed = 0);

// The same of bytes that come piece by piece.
class Checksum64 {
 public:
  explicit Checksum64(uint64_t seed = 0);
  void add(std::string_view bytes);
  uint64_t get() const;

 private:
  uint64_t seed_, size_ = 0;
  std::array<uint64_t, 4> lanes_;
  char rest_[32];  // size_ % 32 bytes that fill no block of 32 yet
};

struct FileChecksum {
  int64_t bytes = 0;
  uint64_t checksum = 0;
};
// Read, not mapped: a disk that fails is an Error.
FileChecksum checksum_file(const std::string& path);

}  // namespace cachalot
