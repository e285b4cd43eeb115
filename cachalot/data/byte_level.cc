#include "data/byte_level.h"

#include "base/text.h"
#include "data/unicode.h"

namespace cachalot {

const std::array<uint32_t, 256>& byte_alphabet() {
  static const auto alphabet = [] {
    std::array<uint32_t, 256> characters{};
    uint32_t next = 0x100;
    for (uint32_t byte = 0; byte < 256; ++byte) {
      const bool printable = (0x21 <= byte && byte <= 0x7E) || (0xA1 <= byte && byte != 0xAD);
      characters[byte] = printable ? byte : next++;
    }
    return characters;
  }();
  return alphabet;
}

std::string write_bytes(std::string_view bytes) {
  std::string written;
  for (const char byte : bytes) append_utf8(byte_alphabet()[uint8_t(byte)], written);
  return written;
}

std::optional<std::string> read_bytes(std::string_view written) {
  static const auto byte_of = [] {
    std::array<int16_t, 0x144> bytes{};
    bytes.fill(-1);
    for (int byte = 0; byte < 256; ++byte) bytes[byte_alphabet()[byte]] = int16_t(byte);
    return bytes;
  }();
  std::string bytes;
  for (size_t at = 0; at < written.size();) {
    const int length = utf8_length(written, at);
    if (length == 0) return std::nullopt;
    const uint32_t c = decode_utf8(written, at, length);
    if (c >= byte_of.size() || byte_of[c] < 0) return std::nullopt;
    bytes += char(byte_of[c]);
    at += length;
  }
  return bytes;
}

}  // namespace cachalot
