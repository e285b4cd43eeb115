// Files: whole reads, memory maps, and writes that leave either the old file or the new one.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

namespace cachalot {

std::string read_file(const std::string& path);  // Error if it cannot be read
// The same piece by piece, for a file too large for one string.
void read_file(const std::string& path, const std::function<void(std::string_view)>& piece);

// Writes to a temporary name in the same folder, syncs, renames. An Error (full disk, no permission) leaves
// what was there before untouched and no temporary file behind.
void write_file_atomic(const std::string& path, std::string_view bytes);

// The same for a file too large for one string: `write(append)` calls append(bytes) as often as it likes.
using Append = std::function<void(std::string_view)>;
void write_file_atomic(const std::string& path, const std::function<void(const Append&)>& write);

// A whole directory appears at once or not at all: built under `<path>.tmp`, synced, renamed to `path`.
// What stood at `path` is replaced only by commit(); without it the destructor removes the temporary one.
// Where `path` is a link, the directory it leads to is replaced. Error while another one, of any process,
// builds the same directory.
class AtomicDirectory {
 public:
  explicit AtomicDirectory(std::string path);
  ~AtomicDirectory();
  AtomicDirectory(const AtomicDirectory&) = delete;
  AtomicDirectory& operator=(const AtomicDirectory&) = delete;
  const std::string& path() const { return temporary_; }  // write here
  void commit();

 private:
  void lock();

  std::string final_, temporary_;
  int lock_ = -1;  // temporary_ itself, under flock(): it goes with the process
  bool committed_ = false;
};

// A read-only memory map. Pages come from the disk when touched; one that cannot be read is a SIGBUS: of a
// file that has become shorter (so model files must not be rewritten in place; ours never are, see above), of a
// disk that fails. cli/read_errors.h makes a message of it; what must go on after such an error uses read_file.
class MappedFile {
 public:
  explicit MappedFile(const std::string& path);
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();
  const uint8_t* data() const { return data_; }
  int64_t size() const { return size_; }
  std::string_view view() const { return {reinterpret_cast<const char*>(data_), size_t(size_)}; }

 private:
  const uint8_t* data_ = nullptr;
  int64_t size_ = 0;
};

}  // namespace cachalot
