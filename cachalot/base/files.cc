#include "base/files.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <utility>
#include <vector>

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

void read_file(const std::string& path, const std::function<void(std::string_view)>& piece) {
  FileDescriptor fd(path, O_RDONLY, "cannot open");
  std::vector<char> block(size_t{1} << 18);
  for (;;) {
    const ssize_t n = ::read(fd.get(), block.data(), block.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) throw system_error("cannot read", path, errno);  // of a folder, too
    if (n == 0) return;
    piece({block.data(), size_t(n)});
  }
}

std::string read_file(const std::string& path) {
  std::string bytes;
  std::error_code code;
  if (const auto size = fs::file_size(path, code); !code) bytes.reserve(size);
  read_file(path, [&](std::string_view piece) { bytes += piece; });
  return bytes;
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
    const fs::path folder = fs::path(path).parent_path();
    if (!in_place && !folder.empty() && !fs::exists(folder, code) && code.value() == 0)
      throw Error(fmt::format("cannot write {}: there is no folder {}", path, folder.string()))
          .hint(fmt::format("mkdir -p {}", folder.string()));
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
  std::error_code code;
  if (fs::is_symlink(final_, code)) {  // what it leads to is replaced, on its own disk, and the link stays
    const fs::path target = fs::canonical(final_, code);
    if (!code) final_ = target.string();
  }
  temporary_ = final_ + ".tmp";
  lock();
  std::vector<fs::path> left;  // by a killed process
  for (const auto& entry : fs::directory_iterator(temporary_, code)) left.push_back(entry.path());
  for (const fs::path& path : left) fs::remove_all(path, code);
}

void AtomicDirectory::lock() {
  for (;;) {
    std::error_code code;
    fs::create_directories(temporary_, code);
    if (code) throw system_error("cannot create", temporary_, code.value());
    lock_ = ::open(temporary_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (lock_ < 0 && errno == ENOENT) continue;  // renamed or removed by another process since
    if (lock_ < 0) throw system_error("cannot create", temporary_, errno);
    if (::flock(lock_, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
      ::close(std::exchange(lock_, -1));
      throw Error(fmt::format("another process is writing {}", final_))
          .hint("wait until it is done, or choose another folder");
    }
    struct stat held{}, there{};
    if (::fstat(lock_, &held) == 0 && ::stat(temporary_.c_str(), &there) == 0 && held.st_ino == there.st_ino)
      return;
    ::close(std::exchange(lock_, -1));
  }
}

AtomicDirectory::~AtomicDirectory() {
  std::error_code code;
  if (!committed_ && lock_ >= 0) fs::remove_all(temporary_, code);
  if (lock_ >= 0) ::close(lock_);
}

void AtomicDirectory::commit() {
  sync_directory(temporary_);
  // rename() replaces only an empty directory: the old one steps aside first and is removed last, so that at
  // every instant one complete directory exists under final_ or this name, which nobody gives to a folder that
  // he keeps (".old" alone is what one's own copies are called).
  const std::string old = temporary_ + ".old";
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
