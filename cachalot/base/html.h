// Text from anywhere, as text of a page.
#pragma once

#include <string>
#include <string_view>

namespace cachalot {

// What would be markup is shown as it is; bytes that are no UTF-8, control characters and marks that turn the
// direction of what stands around become U+FFFD.
std::string html_escape(std::string_view text);

}  // namespace cachalot
