#include "infer/text_session.h"

#include <algorithm>

#include "base/error.h"
#include "base/text.h"

namespace cachalot {

TextSession::TextSession(std::vector<std::string> stops) : stops_(std::move(stops)) {
  for (const std::string& stop : stops_)
    if (stop.empty())
      throw Error("a stop string is empty").hint("every text would end before its first character");
  std::sort(stops_.begin(), stops_.end(), [](const auto& a, const auto& b) { return a.size() > b.size(); });
}

std::string TextSession::push(std::string_view bytes) {
  if (stopped_) return {};
  for (const char byte : bytes) {
    pending_.push_back(byte);
    // What was shown cannot be part of a stop string: it would have been held back.
    const auto stop =
        std::find_if(stops_.begin(), stops_.end(), [&](const auto& s) { return pending_.ends_with(s); });
    if (stop == stops_.end()) continue;
    stopped_ = true;
    pending_.resize(pending_.size() - stop->size());
    return std::exchange(pending_, {});
  }
  const size_t free = pending_.size() - held_for_stops();
  const size_t shown = utf8_complete_prefix(std::string_view(pending_).substr(0, free));
  std::string text = pending_.substr(0, shown);
  pending_.erase(0, shown);
  return text;
}

std::string TextSession::finish() { return std::exchange(pending_, {}); }

size_t TextSession::held_for_stops() const {
  size_t held = 0;
  for (const std::string& stop : stops_)
    for (size_t n = std::min(stop.size() - 1, pending_.size()); n > held; --n)
      if (std::string_view(pending_).ends_with(std::string_view(stop).substr(0, n))) {
        held = n;
        break;
      }
  return held;
}

}  // namespace cachalot
