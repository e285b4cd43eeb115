#include "base/html.h"

#include <fmt/format.h>

#include <iterator>

#include "base/text.h"

namespace cachalot {

std::string html_escape(std::string_view text) {
  std::string out;
  for (const char c : utf8_lossy(text)) {
    switch (c) {
      case '&': out += "&amp;"; break;
      case '<': out += "&lt;"; break;
      case '>': out += "&gt;"; break;
      case '"': out += "&quot;"; break;
      case '\'': out += "&#39;"; break;
      case '\n':
      case '\t': out += c; break;
      default:
        // Control characters are seen to be there; the marks below would reorder what stands around.
        if (uint8_t(c) < 0x20 || c == 0x7F) fmt::format_to(std::back_inserter(out), "&#xFFFD;");
        else out += c;
    }
  }
  // Embeddings and overrides of direction (U+202A..U+202E, U+2066..U+2069), in UTF-8.
  for (const std::string_view mark :
       {"\u202A", "\u202B", "\u202C", "\u202D", "\u202E", "\u2066", "\u2067", "\u2068", "\u2069"})
    for (size_t at = 0; (at = out.find(mark, at)) != std::string::npos;)
      out.replace(at, mark.size(), "\uFFFD");
  return out;
}

}  // namespace cachalot
