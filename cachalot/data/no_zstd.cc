// data/byte_source.h in a build without libzstd: Zstandard is recognised, and refused.
#include <fmt/format.h>

#include "base/error.h"
#include "data/byte_source.h"

namespace cachalot {

namespace {

constexpr const char* kInstall = "install libzstd-dev and build with -DCACHALOT_ZSTD=ON";

}  // namespace

bool can_use_zstd() { return false; }

std::unique_ptr<ByteSource> open_zstd(std::unique_ptr<ByteSource>, std::string path) {
  throw Error(fmt::format("{} is a Zstandard archive; this program was built without libzstd", path))
      .hint(fmt::format("{}, or unpack the file with unzstd", kInstall));
}

std::string zstd_frame(std::string_view, int) {
  throw Error("this program was built without libzstd and cannot write .zst").hint(kInstall);
}

std::string zstd_unframe(std::string_view) {
  throw Error("this program was built without libzstd and cannot read .zst").hint(kInstall);
}

}  // namespace cachalot
