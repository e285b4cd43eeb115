// The report of `cachalot data clean` for people: one HTML page that needs nothing else, no script, no network.
#pragma once

#include <string>

#include "base/json.h"

namespace cachalot {

// `report`: what report.json holds. Every text in it is hostile: it appears as text, whatever it spells.
std::string clean_report_html(const Json& report);

}  // namespace cachalot
