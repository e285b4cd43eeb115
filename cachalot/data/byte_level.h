// The byte alphabet of byte-level BPE (GPT-2, 2019): tokenizer.json is text, so each of the 256 bytes is
// written as one printable character. Bytes that are printable in Latin-1 stand for themselves, the 68 others
// take U+0100, U+0101, ... in order: a space is written "\u0120" and a newline "\u010a".
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace cachalot {

// The character of each byte.
const std::array<uint32_t, 256>& byte_alphabet();

std::string write_bytes(std::string_view bytes);  // bytes -> characters, as UTF-8

// Characters -> bytes; nothing when a character stands for no byte (then the token is not byte-level).
std::optional<std::string> read_bytes(std::string_view written);

}  // namespace cachalot
