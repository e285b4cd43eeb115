// A run's checkpoints are the folders checkpoints/step-00000123, of 8 or more digits, that hold COMPLETE. What
// has a suffix is none: .tmp, .old and .tmp.old are half written or half removed, .damaged and .rewound were
// put aside.
#pragma once

#include <charconv>
#include <cstdint>
#include <optional>
#include <string_view>

namespace cachalot {

inline constexpr const char* kCompleteFile = "COMPLETE";

// The step of the checkpoint with this name; nullopt: it is no checkpoint's.
inline std::optional<int64_t> checkpoint_step(std::string_view name) {
  constexpr std::string_view kPrefix = "step-";
  if (!name.starts_with(kPrefix) || name.size() < kPrefix.size() + 8) return std::nullopt;
  name.remove_prefix(kPrefix.size());
  if (name.find_first_not_of("0123456789") != std::string_view::npos) return std::nullopt;
  int64_t step = 0;
  if (std::from_chars(name.data(), name.data() + name.size(), step).ec != std::errc{}) return std::nullopt;
  return step;
}

}  // namespace cachalot
