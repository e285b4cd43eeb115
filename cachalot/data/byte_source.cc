#include "data/byte_source.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/error.h"

namespace cachalot {

namespace {

using namespace std::string_view_literals;

class FileSource : public ByteSource {
 public:
  explicit FileSource(std::string path) : path_(std::move(path)) {
    fd_ = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd_ < 0)
      throw Error(fmt::format("cannot open {}: {}", path_, std::strerror(errno))).hint("check the path");
    struct stat status {};
    if (::fstat(fd_, &status) == 0) {
      if (S_ISDIR(status.st_mode)) {
        ::close(fd_);
        throw Error(fmt::format("{} is a directory, not a file", path_));
      }
      seekable_ = S_ISREG(status.st_mode);
      size_ = status.st_size;
    }
    ::posix_fadvise(fd_, 0, 0, POSIX_FADV_SEQUENTIAL);
  }
  ~FileSource() override { ::close(fd_); }

  size_t read(std::span<char> out) override {
    for (;;) {
      const ssize_t n = ::read(fd_, out.data(), out.size());
      if (n < 0 && errno == EINTR) continue;
      if (n < 0)
        throw Error(
            fmt::format("{}: reading stopped at byte {}: {}", path_, consumed_, std::strerror(errno)));
      consumed_ += n;
      return size_t(n);
    }
  }

  void skip(int64_t bytes) override {
    if (!seekable_) return ByteSource::skip(bytes);
    if (bytes > size_ - consumed_) throw Error(fmt::format("{} has become shorter", path_));
    consumed_ += bytes;
    if (::lseek(fd_, consumed_, SEEK_SET) < 0)
      throw Error(fmt::format("{}: cannot go to byte {}: {}", path_, consumed_, std::strerror(errno)));
  }

  int64_t consumed() const override { return consumed_; }

 private:
  std::string path_;
  int fd_ = -1;
  bool seekable_ = false;
  int64_t size_ = 0, consumed_ = 0;
};

// Gives back the first bytes, which were read to see what the file is.
class Peeked : public ByteSource {
 public:
  Peeked(std::string first, std::unique_ptr<ByteSource> rest)
      : first_(std::move(first)), rest_(std::move(rest)) {}

  size_t read(std::span<char> out) override {
    if (at_ == first_.size()) return rest_->read(out);
    const size_t n = std::min(out.size(), first_.size() - at_);
    std::memcpy(out.data(), first_.data() + at_, n);
    at_ += n;
    return n;
  }

  void skip(int64_t bytes) override {
    const int64_t here = std::min(bytes, int64_t(first_.size() - at_));
    at_ += size_t(here);
    if (bytes > here) rest_->skip(bytes - here);
  }

  int64_t consumed() const override { return rest_->consumed() - int64_t(first_.size() - at_); }

 private:
  std::string first_;
  size_t at_ = 0;
  std::unique_ptr<ByteSource> rest_;
};

// What we do not unpack, and what to do instead.
struct Refused {
  std::string_view magic, name, command;
};
constexpr Refused kRefused[] = {
    {"\xFD"
     "7zXZ\0"sv,
     "an xz archive", "xz -dc FILE | zstd -o FILE.zst"},
    {"BZh"sv, "a bzip2 archive", "bzip2 -dc FILE | zstd -o FILE.zst"},
    {"PK\3\4"sv, "a zip archive", "unzip it into a folder and pass the folder"},
    {"PAR1"sv, "a Parquet file",
     "python3 -c 'import pyarrow.parquet as p, json; [print(json.dumps(r)) for b in "
     "p.ParquetFile(\"FILE\").iter_batches() for r in b.to_pylist()]' | zstd -o FILE.jsonl.zst"},
};

}  // namespace

void ByteSource::skip(int64_t bytes) {
  std::string waste(size_t(std::min<int64_t>(bytes, 1 << 18)), '\0');
  while (bytes > 0) {
    const size_t n = read({waste.data(), size_t(std::min<int64_t>(bytes, int64_t(waste.size())))});
    if (n == 0) throw Error("the input has become shorter since it was read last");
    bytes -= int64_t(n);
  }
}

std::unique_ptr<ByteSource> open_bytes(const std::string& path) {
  std::unique_ptr<ByteSource> source = std::make_unique<FileSource>(path);
  std::string first(6, '\0');
  size_t have = 0;
  while (have < first.size()) {
    const size_t n = source->read({first.data() + have, first.size() - have});
    if (n == 0) break;
    have += n;
  }
  first.resize(have);
  for (const Refused& refused : kRefused) {
    if (!first.starts_with(refused.magic)) continue;
    std::string command(refused.command);
    for (size_t at = 0; (at = command.find("FILE", at)) != std::string::npos; at += path.size())
      command.replace(at, 4, path);
    throw Error(fmt::format("{} is {}, which cachalot does not read", path, refused.name)).hint(command);
  }
  const bool gzip = first.starts_with("\x1F\x8B"sv);
  const bool zstd =
      first.starts_with("\x28\xB5\x2F\xFD"sv) ||
      (first.size() >= 4 && (uint8_t(first[0]) & 0xF0) == 0x50 && first.substr(1, 3) == "\x2A\x4D\x18"sv);
  source = std::make_unique<Peeked>(std::move(first), std::move(source));
  if (gzip) return open_gzip(std::move(source), path);
  if (zstd) return open_zstd(std::move(source), path);
  return source;
}

}  // namespace cachalot
