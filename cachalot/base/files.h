// Files: whole reads, memory maps, and writes that leave either the old file or the new one.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

namespace cachalot {

std::string read_file(const std::string& path);  // Error if it cannot be read

// Writes to a temporary name in the same folder, syncs, renames. An Error (full disk, no permission) leaves
// what was there before untouched and no temporary file behind.
void write_file_atomic(const std::string& path, std::string_view bytes);

// The same for a file too large for one string: `write(append)` calls append(bytes) as often as it likes.
using Append = std::function<void(std::string_view)>;
void write_file_atomic(const std::string& path, const std::function<void(const Append&)>& write);

// A whole directory appears at once or not at all: built under `<path>.tmp`, synced, renamed to `path`.
// What stood at `path` is replaced only by commit(); without it the destructor removes the temporary one.
class AtomicDirectory {
 public:
  explicit AtomicDirectory(std::string path);
  ~AtomicDirectory();
  AtomicDirectory(const AtomicDirectory&) = delete;
  AtomicDirectory& operator=(const AtomicDirectory&) = delete;
  const std::string& path() const { return temporary_; }  // write here
  void commit();

 private:
  std::string final_, temporary_;
  bool committed_ = false;
};

// A read-only memory map. Pages come from the disk when touched; a file that shrinks under the map kills the
// process with SIGBUS, so model files must not be rewritten in place (ours never are: see above).
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
