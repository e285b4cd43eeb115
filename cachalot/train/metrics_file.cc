#include "train/metrics_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/files.h"

namespace cachalot {

MetricsFile::MetricsFile(std::string path) : path_(std::move(path)) {
  fd_ = ::open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  const off_t end = fd_ < 0 ? -1 : ::lseek(fd_, 0, SEEK_END);
  if (end < 0)
    throw Error(fmt::format("cannot write {}: {}", path_, std::strerror(errno)))
        .hint("choose another --run-dir");
  written_ = end;
}

MetricsFile::~MetricsFile() { ::close(fd_); }

std::vector<Json> MetricsFile::cut(int64_t bytes) {
  flush();
  if (this->bytes() == 0) return {};
  const std::string text = read_file(path_) + pending_;
  size_t end = 0;
  if (bytes > 0) end = text.find('\n', std::min(text.size(), size_t(bytes - 1)));
  // Cut short by a power failure, or by hand: the lines that are whole.
  if (end == std::string::npos) end = text.rfind('\n');
  const size_t kept = bytes > 0 && end != std::string::npos ? end + 1 : 0;
  pending_.clear();
  if (int64_t(kept) != written_ && ::ftruncate(fd_, off_t(kept)) != 0)
    throw Error(fmt::format("cannot cut {}: {}", path_, std::strerror(errno)));
  written_ = int64_t(kept);
  std::vector<Json> lines;
  for (size_t begin = 0; begin < kept;) {
    const size_t stop = text.find('\n', begin);
    try {
      lines.push_back(parse_json(std::string_view(text).substr(begin, stop - begin), path_));
    } catch (const Error&) {  // damaged, by hand or by a power failure: it stays in the file
    }
    begin = stop + 1;
  }
  return lines;
}

void MetricsFile::append(const Json& line) {
  pending_ += line.dump() + "\n";
  flush();
}

void MetricsFile::extend(int64_t end, const Json& fields) {
  flush();
  CHECK(2 <= end && end <= bytes());
  const int64_t begin = std::min(written_, end - 2);  // the "}\n" of the line
  std::string text(size_t(written_ - begin), '\0');
  if (::pread(fd_, text.data(), text.size(), off_t(begin)) != ssize_t(text.size()))
    throw Error(fmt::format("cannot read {}: {}", path_, std::strerror(errno)));
  text += pending_;
  written_ = begin;
  pending_ = text.substr(0, size_t(end - 2 - begin)) + "," + fields.dump().substr(1) + "\n" +
             text.substr(size_t(end - begin));
  flush();
}

const std::string& MetricsFile::flush() {
  error_.clear();
  while (!pending_.empty()) {
    const ssize_t n = ::pwrite(fd_, pending_.data(), pending_.size(), off_t(written_));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) {
      error_ = fmt::format("cannot write {}: {}", path_, std::strerror(n < 0 ? errno : ENOSPC));
      break;
    }
    written_ += n;
    pending_.erase(0, size_t(n));
  }
  return error_;
}

}  // namespace cachalot
