#include "base/png.h"

#include <algorithm>

#include "base/error.h"

namespace cachalot {

namespace {

// The checksum of a chunk: RFC 2083, section 15.
uint32_t crc32(const std::string& bytes) {
  uint32_t c = ~uint32_t(0);
  for (const char b : bytes) {
    c ^= uint8_t(b);
    for (int bit = 0; bit < 8; ++bit) c = (c >> 1) ^ (c & 1 ? 0xedb88320u : 0);
  }
  return ~c;
}

void put_u32(std::string& out, uint32_t n) {
  for (int shift = 24; shift >= 0; shift -= 8) out.push_back(char(n >> shift & 0xff));
}

void put_chunk(std::string& out, const char* type, const std::string& data) {
  put_u32(out, uint32_t(data.size()));
  const std::string body = type + data;
  out += body;
  put_u32(out, crc32(body));
}

// zlib's container (RFC 1950) around stored blocks (RFC 1951, section 3.2.4).
std::string stored(const std::string& data) {
  constexpr size_t kMost = 65535;
  std::string out = "\x78\x01";
  size_t at = 0;
  do {
    const size_t n = std::min(kMost, data.size() - at);
    out.push_back(char(at + n == data.size()));  // the last block?
    for (const size_t v : {n, ~n}) out.push_back(char(v & 0xff)), out.push_back(char(v >> 8 & 0xff));
    out.append(data, at, n);
    at += n;
  } while (at < data.size());
  uint32_t a = 1, b = 0;  // Adler-32
  for (const char c : data) a = (a + uint8_t(c)) % 65521, b = (b + a) % 65521;
  put_u32(out, b << 16 | a);
  return out;
}

}  // namespace

std::string encode_png(int width, int height, const std::vector<Rgb>& pixels) {
  CHECK(width > 0 && height > 0 && pixels.size() == size_t(width) * size_t(height));
  std::string rows;
  for (int y = 0; y < height; ++y) {
    rows.push_back(0);  // no filter
    for (int x = 0; x < width; ++x)
      for (const uint8_t c : pixels[size_t(y) * size_t(width) + size_t(x)]) rows.push_back(char(c));
  }
  std::string header;
  put_u32(header, uint32_t(width));
  put_u32(header, uint32_t(height));
  header += std::string("\x08\x02\x00\x00\x00", 5);  // 8 bits, RGB
  std::string out = "\x89PNG\r\n\x1a\n";
  put_chunk(out, "IHDR", header);
  put_chunk(out, "IDAT", stored(rows));
  put_chunk(out, "IEND", "");
  return out;
}

std::string base64(const std::string& bytes) {
  constexpr char kDigits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string out;
  for (size_t i = 0; i < bytes.size(); i += 3) {
    const size_t n = std::min<size_t>(3, bytes.size() - i);
    uint32_t v = 0;
    for (size_t j = 0; j < 3; ++j) v = v << 8 | (j < n ? uint8_t(bytes[i + j]) : 0);
    for (size_t j = 0; j < 4; ++j) out.push_back(j <= n ? kDigits[v >> (18 - 6 * j) & 63] : '=');
  }
  return out;
}

}  // namespace cachalot
