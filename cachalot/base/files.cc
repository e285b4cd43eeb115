#include "base/files.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <utility>

#include "base/error.h"

namespace cachalot {

namespace fs = std::filesystem;

namespace {

Error system_error(const std::string& doing, const std::string& path, int code) {
  Error error(fmt::format("{} {}: {}", doing, path, std::strerror(code)));
  if (code == ENOSPC || code == EDQUOT)
    error.hint("the disk is full: free some space or choose another folder");
  if (code == ENOENT) error.hint("check the path");
  return error;
}

class FileDescriptor {
 public:
  FileDescriptor(const std::string& path, int flags, const std::string& doing) : path_(path) {
    fd_ = ::open(path.c_str(), flags | O_CLOEXEC, 0644);
    if (fd_ < 0) throw system_error(doing, path, errno);
  }
  ~FileDescriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  FileDescriptor(const FileDescriptor&) = delete;
  int get() const { return fd_; }
  void close() {  // NFS and quotas report a failed write here
    if (::close(std::exchange(fd_, -1)) != 0) throw system_error("cannot finish writing", path_, errno);
  }

 private:
  std::string path_;
  int fd_;
};

void sync_directory(const std::string& path) {
  const int fd = ::open(path.empty() ? "." : path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return;  // some file systems cannot; the rename itself is still atomic
  ::fsync(fd);
  ::close(fd);
}

}  // namespace

std::string read_file(const std::string& path) {
  FileDescriptor fd(path, O_RDONLY, "cannot open");
  struct stat status{};
  if (::fstat(fd.get(), &status) != 0) throw system_error("cannot read", path, errno);
  if (S_ISDIR(status.st_mode)) throw system_error("cannot read", path, EISDIR);
  std::string bytes;
  bytes.reserve(S_ISREG(status.st_mode) ? size_t(status.st_size) : 0);
  char block[1 << 16];
  for (;;) {
    const ssize_t n = ::read(fd.get(), block, sizeof block);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) throw system_error("cannot read", path, errno);
    if (n == 0) return bytes;
    bytes.append(block, size_t(n));
  }
}

void write_file_atomic(const std::string& path, const std::function<void(const Append&)>& write) {
  // A pipe or a device is written to, and so is what /dev/stdout leads to: nothing takes their place.
  std::error_code code;
  const fs::file_type type = fs::status(path, code).type();
  const bool in_place = type == fs::file_type::character || type == fs::file_type::fifo ||
                        (path.starts_with("/dev/") && fs::is_symlink(path, code));
  const std::string temporary = in_place ? path : fmt::format("{}.tmp.{}", path, ::getpid());
  try {
    const int how = in_place ? O_APPEND : O_CREAT | O_TRUNC;
    FileDescriptor fd(temporary, O_WRONLY | how, "cannot write");
    write([&](std::string_view bytes) {
      while (!bytes.empty()) {
        const ssize_t n = ::write(fd.get(), bytes.data(), bytes.size());
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) throw system_error("cannot write", path, errno);
        bytes.remove_prefix(size_t(n));
      }
    });
    if (::fsync(fd.get()) != 0 && errno != EINVAL && errno != EROFS)
      throw system_error("cannot write", path, errno);
    fd.close();
    if (in_place) return;
    if (::rename(temporary.c_str(), path.c_str()) != 0) throw system_error("cannot replace", path, errno);
  } catch (...) {
    if (!in_place) ::unlink(temporary.c_str());
    throw;
  }
  sync_directory(fs::path(path).parent_path().string());
}

void write_file_atomic(const std::string& path, std::string_view bytes) {
  write_file_atomic(path, [&](const Append& append) { append(bytes); });
}

AtomicDirectory::AtomicDirectory(std::string path) : final_(std::move(path)) {
  while (final_.size() > 1 && final_.back() == '/') final_.pop_back();
  temporary_ = final_ + ".tmp";
  std::error_code code;
  fs::remove_all(temporary_, code);  // left by a killed process
  fs::create_directories(temporary_, code);
  if (code) throw system_error("cannot create", temporary_, code.value());
}

AtomicDirectory::~AtomicDirectory() {
  std::error_code code;
  if (!committed_) fs::remove_all(temporary_, code);
}

void AtomicDirectory::commit() {
  sync_directory(temporary_);
  // rename() replaces only an empty directory: the old one steps aside first and is removed last, so that at
  // every instant one complete directory exists under final_ or final_ + ".old".
  const std::string old = final_ + ".old";
  std::error_code code;
  fs::remove_all(old, code);
  const bool replaces = fs::exists(final_);
  if (replaces && ::rename(final_.c_str(), old.c_str()) != 0)
    throw system_error("cannot replace", final_, errno);
  if (::rename(temporary_.c_str(), final_.c_str()) != 0) {
    const int reason = errno;
    if (replaces) ::rename(old.c_str(), final_.c_str());
    throw system_error("cannot create", final_, reason);
  }
  committed_ = true;
  sync_directory(fs::path(final_).parent_path().string());
  fs::remove_all(old, code);
}

MappedFile::MappedFile(const std::string& path) {
  FileDescriptor fd(path, O_RDONLY, "cannot open");
  struct stat status{};
  if (::fstat(fd.get(), &status) != 0) throw system_error("cannot read", path, errno);
  if (!S_ISREG(status.st_mode)) throw Error(fmt::format("{} is not a regular file", path));
  size_ = status.st_size;
  if (size_ == 0) return;
  void* map = ::mmap(nullptr, size_t(size_), PROT_READ, MAP_PRIVATE, fd.get(), 0);
  if (map == MAP_FAILED) throw system_error("cannot map", path, errno);
  data_ = static_cast<const uint8_t*>(map);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

MappedFile::~MappedFile() {
  if (data_) ::munmap(const_cast<uint8_t*>(data_), size_t(size_));
}

}  // namespace cachalot
