// The bytes of a file that may be compressed, read from front to back in bounded memory.
//
// What a file is, its first bytes say, not its name: gzip (RFC 1952, several members one after another as
// `cat a.gz b.gz` or bgzip make them) and Zstandard (RFC 8878, several frames, windows of up to 128 MiB) are
// unpacked; xz, bzip2, zip and Parquet are refused with the command that converts them.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace cachalot {

class ByteSource {
 public:
  virtual ~ByteSource() = default;
  // Fills the front of `out` (not empty), returns how much; 0 only at the end. Error: the file cannot be read,
  // is truncated or damaged; what was returned before is good, up to the checksum that archives carry at the
  // end of a member or frame.
  virtual size_t read(std::span<char> out) = 0;
  // Passes over `bytes` bytes, without reading them where the file is not compressed. Error when it ends
  // before.
  virtual void skip(int64_t bytes);
  // Bytes of the file, as it lies on the disk, that have been consumed: for progress.
  virtual int64_t consumed() const = 0;
};

std::unique_ptr<ByteSource> open_bytes(const std::string& path);

// Was the program built with the library? (CACHALOT_ZLIB, CACHALOT_ZSTD in CMakeLists.txt)
bool can_read_gzip();
bool can_use_zstd();

// One frame with a checksum. The same bytes and level give the same frame. Error without the library.
std::string zstd_frame(std::string_view bytes, int level);
// The bytes of one frame that zstd_frame made. Error if it is damaged.
std::string zstd_unframe(std::string_view frame);

// For byte_source.cc: what unpacks `packed`. Error in a build without the library.
std::unique_ptr<ByteSource> open_gzip(std::unique_ptr<ByteSource> packed, std::string path);
std::unique_ptr<ByteSource> open_zstd(std::unique_ptr<ByteSource> packed, std::string path);

}  // namespace cachalot
