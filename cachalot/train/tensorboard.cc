#include "train/tensorboard.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <system_error>

#include "base/error.h"

namespace cachalot {

namespace {

constexpr std::array<uint32_t, 256> make_table() {
  std::array<uint32_t, 256> table{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t c = i;
    for (int bit = 0; bit < 8; ++bit) c = (c >> 1) ^ (c & 1 ? 0x82f63b78u : 0);
    table[i] = c;
  }
  return table;
}
constexpr auto kTable = make_table();

uint32_t masked(uint32_t crc) { return std::rotr(crc, 15) + 0xa282ead8u; }

// Little-endian, whatever the machine.
void put_bytes(std::string& out, uint64_t bits, int bytes) {
  for (int i = 0; i < bytes; ++i) out.push_back(char(bits >> (8 * i) & 0xff));
}

// The wire format of protocol buffers: a key (field << 3 | type), then a varint, 8 bytes, a length with
// bytes, or 4.
enum Wire { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 };
void put_varint(std::string& out, uint64_t n) {
  for (; n >= 0x80; n >>= 7) out.push_back(char((n & 0x7f) | 0x80));
  out.push_back(char(n));
}
void put_key(std::string& out, int field, Wire type) {
  put_varint(out, uint64_t(field) << 3 | uint64_t(type));
}
void put_string(std::string& out, int field, std::string_view s) {
  put_key(out, field, kBytes);
  put_varint(out, s.size());
  out += s;
}
constexpr std::string_view kName = "events.out.tfevents.";

// For the name of a new file: `now`, or later than the files that are there. TensorBoard reads them in the
// order of their names, and clocks may be set back between two processes, which may also begin in the same
// second.
int64_t second_after_all(const std::string& directory, int64_t now) {
  std::error_code failed;
  for (const auto& entry : std::filesystem::directory_iterator(directory, failed)) {
    const std::string name = entry.path().filename().string();
    int64_t second = 0;
    if (name.starts_with(kName) &&
        std::from_chars(name.data() + kName.size(), name.data() + name.size(), second).ec == std::errc{})
      now = std::max(now, second + 1);
  }
  return now;
}

std::string event_at(double wall_time) {
  std::string event;
  put_key(event, 1, kFixed64);
  put_bytes(event, std::bit_cast<uint64_t>(wall_time), 8);
  return event;
}

}  // namespace

uint32_t crc32c(std::string_view bytes) {
  uint32_t c = ~uint32_t(0);
  for (const char b : bytes) c = kTable[(c ^ uint8_t(b)) & 0xff] ^ (c >> 8);
  return ~c;
}

TensorBoardWriter::TensorBoardWriter(const std::string& directory, double wall_time) {
  std::error_code failed;
  std::filesystem::create_directories(directory, failed);
  char host[256] = "localhost";
  if (gethostname(host, sizeof host - 1) != 0 || !*host) std::strcpy(host, "localhost");
  const std::string stem = fmt::format("{}/{}{:010}.{}.{}", directory, kName,
                                       second_after_all(directory, int64_t(wall_time)), host, getpid());
  path_ = stem;
  for (int i = 1; std::filesystem::exists(path_, failed); ++i) path_ = fmt::format("{}.{}", stem, i);
  file_.open(path_, std::ios::binary);
  std::string event = event_at(wall_time);
  put_string(event, 3, "brain.Event:2");
  record(event);
}

void TensorBoardWriter::scalars(int64_t step, double wall_time,
                                const std::vector<std::pair<std::string, double>>& values) {
  std::string summary;
  for (const auto& [tag, number] : values) {
    std::string value;
    put_string(value, 1, tag);
    put_key(value, 2, kFixed32);
    put_bytes(value, std::bit_cast<uint32_t>(float(number)), 4);
    put_string(summary, 1, value);
  }
  std::string event = event_at(wall_time);
  put_key(event, 2, kVarint);
  put_varint(event, uint64_t(step));
  put_string(event, 5, summary);
  record(event);
}

void TensorBoardWriter::restart(int64_t step, double wall_time) {
  std::string start;
  put_key(start, 1, kVarint);
  put_varint(start, 1);  // SessionLog.START
  std::string event = event_at(wall_time);
  put_key(event, 2, kVarint);
  put_varint(event, uint64_t(step));
  put_string(event, 7, start);
  record(event);
}

void TensorBoardWriter::record(std::string_view event) {
  std::string out;
  put_bytes(out, event.size(), 8);
  put_bytes(out, masked(crc32c(out)), 4);
  out += event;
  put_bytes(out, masked(crc32c(event)), 4);
  file_.write(out.data(), std::streamsize(out.size()));
  file_.flush();
  if (!file_)
    throw Error(fmt::format("cannot write {}: {}", path_, std::strerror(errno)))
        .hint("is the disk full? The last checkpoint is complete");
}

}  // namespace cachalot
