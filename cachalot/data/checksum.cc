#include "data/checksum.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "base/files.h"

namespace cachalot {

namespace {

static_assert(std::endian::native == std::endian::little, "numbers are read as they stand in the file");

constexpr uint64_t kPrime1 = 0x9E3779B185EBCA87u, kPrime2 = 0xC2B2AE3D27D4EB4Fu,
                   kPrime3 = 0x165667B19E3779F9u, kPrime4 = 0x85EBCA77C2B2AE63u,
                   kPrime5 = 0x27D4EB2F165667C5u;

template <class T> uint64_t load(const char* p) {
  T value;
  std::memcpy(&value, p, sizeof value);
  return value;
}

using Lanes = std::array<uint64_t, 4>;

uint64_t round(uint64_t lane, uint64_t input) { return std::rotl(lane + input * kPrime2, 31) * kPrime1; }

Lanes begin(uint64_t seed) { return {seed + kPrime1 + kPrime2, seed + kPrime2, seed, seed - kPrime1}; }

// All blocks of 32 bytes from `p` on; returns where the rest begins.
const char* add_blocks(Lanes& lanes, const char* p, const char* end) {
  for (; end - p >= 32; p += 32)
    for (size_t i = 0; i < 4; ++i) lanes[i] = round(lanes[i], load<uint64_t>(p + 8 * i));
  return p;
}

// `size` bytes in all, of which the last size % 32 stand at `p`.
uint64_t finish(const Lanes& lanes, uint64_t seed, uint64_t size, const char* p) {
  const char* const end = p + size % 32;
  uint64_t hash = seed + kPrime5;
  if (size >= 32) {
    hash =
        std::rotl(lanes[0], 1) + std::rotl(lanes[1], 7) + std::rotl(lanes[2], 12) + std::rotl(lanes[3], 18);
    for (const uint64_t lane : lanes) hash = (hash ^ round(0, lane)) * kPrime1 + kPrime4;
  }
  hash += size;
  for (; end - p >= 8; p += 8) hash = std::rotl(hash ^ round(0, load<uint64_t>(p)), 27) * kPrime1 + kPrime4;
  if (end - p >= 4) {
    hash = std::rotl(hash ^ load<uint32_t>(p) * kPrime1, 23) * kPrime2 + kPrime3;
    p += 4;
  }
  for (; p < end; ++p) hash = std::rotl(hash ^ uint8_t(*p) * kPrime5, 11) * kPrime1;
  hash = (hash ^ hash >> 33) * kPrime2;
  hash = (hash ^ hash >> 29) * kPrime3;
  return hash ^ hash >> 32;
}

}  // namespace

uint64_t checksum64(std::string_view bytes, uint64_t seed) {
  Lanes lanes = begin(seed);
  const char* const rest = add_blocks(lanes, bytes.data(), bytes.data() + bytes.size());
  return finish(lanes, seed, bytes.size(), rest);
}

Checksum64::Checksum64(uint64_t seed) : seed_(seed), lanes_(begin(seed)) {}

void Checksum64::add(std::string_view bytes) {
  const size_t had = size_ % sizeof rest_;
  size_ += bytes.size();
  if (had > 0) {
    const size_t n = std::min(bytes.size(), sizeof rest_ - had);
    std::memcpy(rest_ + had, bytes.data(), n);
    bytes.remove_prefix(n);
    if (had + n < sizeof rest_) return;
    add_blocks(lanes_, rest_, rest_ + sizeof rest_);
  }
  const char* const rest = add_blocks(lanes_, bytes.data(), bytes.data() + bytes.size());
  std::memcpy(rest_, rest, size_ % sizeof rest_);
}

uint64_t Checksum64::get() const { return finish(lanes_, seed_, size_, rest_); }

FileChecksum checksum_file(const std::string& path) {
  FileChecksum file;
  Checksum64 sum;
  read_file(path, [&](std::string_view piece) {
    sum.add(piece);
    file.bytes += int64_t(piece.size());
  });
  file.checksum = sum.get();
  return file;
}

}  // namespace cachalot
