// data/byte_source.h in a build without zlib: gzip is recognised, and refused.
#include <fmt/format.h>

#include "base/error.h"
#include "data/byte_source.h"

namespace cachalot {

bool can_read_gzip() { return false; }

std::unique_ptr<ByteSource> open_gzip(std::unique_ptr<ByteSource>, std::string path) {
  throw Error(fmt::format("{} is a gzip archive; this program was built without zlib", path))
      .hint("install zlib1g-dev and build with -DCACHALOT_ZLIB=ON, or unpack the file with gunzip");
}

}  // namespace cachalot
