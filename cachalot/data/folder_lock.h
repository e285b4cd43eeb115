// One process at a time writes a folder.
#pragma once

#include <string>

namespace cachalot {

// flock() on the folder itself: it goes with the process, however that ends. Where a file system knows no
// locks, two processes at once remain the user's care.
class FolderLock {
 public:
  explicit FolderLock(const std::string& folder);  // Error: another one holds it
  ~FolderLock();
  FolderLock(const FolderLock&) = delete;

 private:
  int fd_;
};

}  // namespace cachalot
