// The report of `cachalot data clean` for people: one HTML page that needs nothing else, no script, no network.
#pragma once

#include <string>
#include <string_view>

#include "base/json.h"

namespace cachalot {

// `report`: what report.json holds. Every text in it is hostile: it appears as text, whatever it spells.
std::string clean_report_html(const Json& report);

// For HTML, inside elements and inside quoted attributes.
std::string escape_html(std::string_view text);

}  // namespace cachalot
