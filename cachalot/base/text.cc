#include "base/text.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>

namespace cachalot {

std::string human_bytes(double bytes) {
  const char* units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
  int u = 0;
  while (bytes >= 1024 && u < 5) bytes /= 1024, ++u;
  return u == 0 ? fmt::format("{:.0f} B", bytes) : fmt::format("{:.2f} {}", bytes, units[u]);
}

std::string human_count(double n) {
  const char* units[] = {"", "K", "M", "B", "T"};
  int u = 0;
  while (n >= 1000 && u < 4) n /= 1000, ++u;
  return u == 0 ? fmt::format("{:.0f}", n) : fmt::format("{:.1f}{}", n, units[u]);
}

std::string human_seconds(double seconds) {
  if (!(seconds >= 0)) return "?";
  const int64_t s = int64_t(seconds + 0.5);
  if (seconds < 10) return fmt::format("{:.1f} s", seconds);
  if (s < 60) return fmt::format("{} s", s);
  if (s < 3600) return fmt::format("{} m {:02} s", s / 60, s % 60);
  if (s < 86400) return fmt::format("{} h {:02} m", s / 3600, s / 60 % 60);
  return fmt::format("{} d {:02} h", s / 86400, s / 3600 % 24);
}

std::string nearest(std::string_view name, const std::vector<std::string>& candidates) {
  std::string best;
  size_t best_distance = std::max<size_t>(2, name.size() / 2) + 1;
  for (const std::string& c : candidates) {
    std::vector<size_t> row(c.size() + 1);
    std::iota(row.begin(), row.end(), 0);
    for (size_t i = 1; i <= name.size(); ++i) {
      size_t diagonal = row[0];
      row[0] = i;
      for (size_t j = 1; j <= c.size(); ++j) {
        const size_t swap = diagonal + (name[i - 1] != c[j - 1]);
        diagonal = row[j];
        row[j] = std::min({swap, row[j] + 1, row[j - 1] + 1});
      }
    }
    if (row.back() < best_distance) best_distance = row.back(), best = c;
  }
  return best;
}

namespace {

// What the first byte announces: sequence length, and the range of a valid second byte (Unicode table 3-7).
struct Lead {
  int length;
  uint8_t low, high;
};
Lead lead(uint8_t b) {
  if (b < 0x80) return {1, 0, 0};
  if (b >= 0xC2 && b <= 0xDF) return {2, 0x80, 0xBF};
  if (b == 0xE0) return {3, 0xA0, 0xBF};
  if (b == 0xED) return {3, 0x80, 0x9F};
  if (b >= 0xE1 && b <= 0xEF) return {3, 0x80, 0xBF};
  if (b == 0xF0) return {4, 0x90, 0xBF};
  if (b >= 0xF1 && b <= 0xF3) return {4, 0x80, 0xBF};
  if (b == 0xF4) return {4, 0x80, 0x8F};
  return {0, 0, 0};
}

// Bytes of the sequence at `at` that are present and right; equal to lead().length when it is complete.
int valid_bytes(std::string_view text, size_t at, const Lead& l) {
  int n = 1;
  while (n < l.length && at + n < text.size()) {
    const uint8_t b = uint8_t(text[at + n]);
    if (b < (n == 1 ? l.low : 0x80) || b > (n == 1 ? l.high : 0xBF)) break;
    ++n;
  }
  return n;
}

}  // namespace

int utf8_length(std::string_view text, size_t at) {
  const Lead l = lead(uint8_t(text[at]));
  return l.length && valid_bytes(text, at, l) == l.length ? l.length : 0;
}

size_t utf8_complete_prefix(std::string_view text) {
  for (size_t back = 1; back <= 3 && back <= text.size(); ++back) {
    const size_t at = text.size() - back;
    const Lead l = lead(uint8_t(text[at]));
    if (l.length > int(back) && valid_bytes(text, at, l) == int(back)) return at;
    if ((uint8_t(text[at]) & 0xC0) != 0x80) break;
  }
  return text.size();
}

std::string utf8_lossy(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t i = 0; i < text.size();) {
    const int n = utf8_length(text, i);
    if (n) out.append(text.substr(i, n));
    else out.append("\xEF\xBF\xBD");
    i += n ? n : 1;
  }
  return out;
}

}  // namespace cachalot
