// data/byte_source.h: Zstandard, by libzstd.
#include <fmt/format.h>
#include <zstd.h>

#include <vector>

#include "base/error.h"
#include "data/byte_source.h"

namespace cachalot {

namespace {

constexpr int kWindowLog = 27;  // 128 MiB: what `zstd` itself reads unless told otherwise

class ZstdSource : public ByteSource {
 public:
  ZstdSource(std::unique_ptr<ByteSource> packed, std::string path)
      : packed_(std::move(packed)), path_(std::move(path)), block_(ZSTD_DStreamInSize()) {
    stream_.reset(ZSTD_createDStream());
    if (!stream_) throw Error("libzstd cannot start: out of memory");
    ZSTD_DCtx_setParameter(stream_.get(), ZSTD_d_windowLogMax, kWindowLog);
  }

  size_t read(std::span<char> out) override {
    ZSTD_outBuffer to{out.data(), out.size(), 0};
    while (to.pos == 0) {
      // A full buffer last time may have left bytes inside the decoder: ask it before asking the file.
      if (in_.pos == in_.size && !pending_ && !refill()) {
        if (inside_) fail("ends in the middle: it is truncated");
        break;
      }
      const size_t left = ZSTD_decompressStream(stream_.get(), &to, &in_);
      if (ZSTD_isError(left)) {
        const bool window =
            std::string_view(ZSTD_getErrorName(left)).find("memory") != std::string_view::npos;
        if (window)
          throw Error(
              fmt::format("{} was packed with a window above 128 MiB (zstd --long or --ultra)", path_))
              .hint(fmt::format("zstd -dc --long=31 {} | zstd -o smaller.zst", path_));
        fail(fmt::format("is damaged ({})", ZSTD_getErrorName(left)));
      }
      inside_ = left != 0;
      pending_ = inside_ && to.pos == to.size;
    }
    unpacked_ += int64_t(to.pos);
    return to.pos;
  }

  int64_t consumed() const override { return packed_->consumed() - int64_t(in_.size - in_.pos); }

 private:
  bool refill() {
    in_ = {block_.data(), packed_->read(block_), 0};
    return in_.size > 0;
  }

  [[noreturn]] void fail(std::string_view what) const {
    throw Error(fmt::format("{}: the Zstandard archive {}, near byte {} (byte {} unpacked)", path_, what,
                            consumed(), unpacked_))
        .hint("fetch or make the file again");
  }

  struct Free {
    void operator()(ZSTD_DStream* stream) const { ZSTD_freeDStream(stream); }
  };
  std::unique_ptr<ByteSource> packed_;
  std::string path_;
  std::vector<char> block_;
  std::unique_ptr<ZSTD_DStream, Free> stream_;
  ZSTD_inBuffer in_{nullptr, 0, 0};
  bool inside_ = false;   // of a frame
  bool pending_ = false;  // the decoder may hold bytes that did not fit
  int64_t unpacked_ = 0;
};

}  // namespace

bool can_use_zstd() { return true; }

std::unique_ptr<ByteSource> open_zstd(std::unique_ptr<ByteSource> packed, std::string path) {
  return std::make_unique<ZstdSource>(std::move(packed), std::move(path));
}

std::string zstd_frame(std::string_view bytes, int level) {
  struct Free {
    void operator()(ZSTD_CCtx* context) const { ZSTD_freeCCtx(context); }
  };
  thread_local const std::unique_ptr<ZSTD_CCtx, Free> context(ZSTD_createCCtx());
  if (!context) throw Error("libzstd cannot start: out of memory");
  ZSTD_CCtx_setParameter(context.get(), ZSTD_c_compressionLevel, level);
  ZSTD_CCtx_setParameter(context.get(), ZSTD_c_checksumFlag, 1);
  std::string frame(ZSTD_compressBound(bytes.size()), '\0');
  const size_t n = ZSTD_compress2(context.get(), frame.data(), frame.size(), bytes.data(), bytes.size());
  if (ZSTD_isError(n))
    throw Error(fmt::format("libzstd cannot pack {} bytes: {}", bytes.size(), ZSTD_getErrorName(n)));
  frame.resize(n);
  return frame;
}

std::string zstd_unframe(std::string_view frame) {
  const unsigned long long size = ZSTD_getFrameContentSize(frame.data(), frame.size());
  // What a frame unpacks to is bounded before it sizes anything: Zstandard packs at most some 30,000 to 1.
  if (size == ZSTD_CONTENTSIZE_ERROR || size == ZSTD_CONTENTSIZE_UNKNOWN || size / 100000 > frame.size())
    throw Error("a Zstandard frame is damaged");
  std::string bytes(size, '\0');
  const size_t n = ZSTD_decompress(bytes.data(), bytes.size(), frame.data(), frame.size());
  if (ZSTD_isError(n) || n != bytes.size())
    throw Error(fmt::format("a Zstandard frame is damaged ({})",
                            ZSTD_isError(n) ? ZSTD_getErrorName(n) : "its size"));
  return bytes;
}

}  // namespace cachalot
