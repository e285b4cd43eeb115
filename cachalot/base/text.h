// Words for people: sizes, durations, the nearest known name.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace cachalot {

std::string human_bytes(double bytes);      // 1.50 GiB
std::string human_count(double n);          // 12.3M
std::string human_seconds(double seconds);  // 4 m 07 s

// The candidate with the smallest edit distance to `name`, or "" when none is close.
std::string nearest(std::string_view name, const std::vector<std::string>& candidates);

// Length of the UTF-8 sequence that starts at text[at] (1..4), or 0 if the bytes there are not valid UTF-8
// (overlong, surrogate, above U+10FFFF, truncated).
int utf8_length(std::string_view text, size_t at);

// Longest prefix of `text` that does not end inside a character: what may be printed while more may follow.
// Bytes that can never become valid count as complete.
size_t utf8_complete_prefix(std::string_view text);

// Every byte that is not part of valid UTF-8 replaced with U+FFFD: for printing only, data keeps its bytes.
std::string utf8_lossy(std::string_view text);

}  // namespace cachalot
