// data/byte_source.h: gzip, by zlib.
#include <fmt/format.h>
#include <zlib.h>

#include <vector>

#include "base/error.h"
#include "data/byte_source.h"

namespace cachalot {

namespace {

class GzipSource : public ByteSource {
 public:
  GzipSource(std::unique_ptr<ByteSource> packed, std::string path)
      : packed_(std::move(packed)), path_(std::move(path)), block_(1 << 17) {
    if (inflateInit2(&z_, 15 + 16) != Z_OK) throw Error("zlib cannot start: out of memory");
  }
  ~GzipSource() override { inflateEnd(&z_); }

  size_t read(std::span<char> out) override {
    z_.next_out = reinterpret_cast<Bytef*>(out.data());
    z_.avail_out = uInt(std::min<size_t>(out.size(), 1u << 30));
    const uInt asked = z_.avail_out;
    while (z_.avail_out == asked) {
      if (z_.avail_in == 0 && !refill()) {
        if (inside_) fail("ends in the middle: it is truncated");
        break;
      }
      if (!inside_) {
        // After a member: zero bytes (tape padding) are passed over, another member begins, anything else is
        // no gzip.
        while (z_.avail_in > 0 && *z_.next_in == 0 && members_ > 0) ++z_.next_in, --z_.avail_in;
        if (z_.avail_in == 0) continue;
        inflateReset(&z_);
        inside_ = true;
      }
      const int code = inflate(&z_, Z_NO_FLUSH);
      if (code == Z_STREAM_END) {
        inside_ = false;
        ++members_;
      } else if (code != Z_OK && code != Z_BUF_ERROR) {
        fail(fmt::format("is damaged ({})", z_.msg ? z_.msg : "zlib gives no reason"));
      }
    }
    const size_t n = asked - z_.avail_out;
    unpacked_ += int64_t(n);
    return n;
  }

  int64_t consumed() const override { return packed_->consumed() - int64_t(z_.avail_in); }

 private:
  bool refill() {
    z_.next_in = reinterpret_cast<Bytef*>(block_.data());
    z_.avail_in = uInt(packed_->read(block_));
    return z_.avail_in > 0;
  }

  [[noreturn]] void fail(std::string_view what) const {
    throw Error(fmt::format("{}: the gzip archive {}, near byte {} (byte {} unpacked)", path_, what,
                            consumed(), unpacked_))
        .hint("fetch or make the file again");
  }

  std::unique_ptr<ByteSource> packed_;
  std::string path_;
  std::vector<char> block_;
  z_stream z_{};
  bool inside_ = false;  // of a member
  int64_t members_ = 0, unpacked_ = 0;
};

}  // namespace

bool can_read_gzip() { return true; }

std::unique_ptr<ByteSource> open_gzip(std::unique_ptr<ByteSource> packed, std::string path) {
  return std::make_unique<GzipSource>(std::move(packed), std::move(path));
}

}  // namespace cachalot
