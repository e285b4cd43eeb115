// Pictures as PNG (RFC 2083), without compression: small ones, for pages.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

namespace cachalot {

using Rgb = std::array<uint8_t, 3>;

// `pixels`: rows of `width` from the top, width * height in all. The bytes of a file.
std::string encode_png(int width, int height, const std::vector<Rgb>& pixels);

std::string base64(const std::string& bytes);  // RFC 4648, section 4

}  // namespace cachalot
