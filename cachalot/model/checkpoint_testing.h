// What the tests of checkpoint files share.
#pragma once

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <stdexcept>
#include <string>
#include <vector>

namespace cachalot {

// A fresh folder, removed at the end.
class TemporaryDirectory {
 public:
  TemporaryDirectory() : path_(::testing::TempDir() + "cachalot.XXXXXX") {
    if (!::mkdtemp(path_.data())) throw std::runtime_error("cannot create " + path_);
  }
  ~TemporaryDirectory() { std::filesystem::remove_all(path_); }
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  const std::string& path() const { return path_; }
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

// While it lives, files of this process cannot grow beyond `bytes`: a disk that is full.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) : handler_(std::signal(SIGXFSZ, SIG_IGN)) {
    ::getrlimit(RLIMIT_FSIZE, &old_);
    const rlimit limit{.rlim_cur = bytes, .rlim_max = old_.rlim_max};
    ::setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FileSizeLimit() {
    ::setrlimit(RLIMIT_FSIZE, &old_);
    std::signal(SIGXFSZ, handler_);
  }
  FileSizeLimit(const FileSizeLimit&) = delete;

 private:
  rlimit old_{};
  void (*handler_)(int);
};

inline std::string source_root() {
  const char* root = std::getenv("CACHALOT_SOURCE");
  if (!root) throw std::runtime_error("CACHALOT_SOURCE must be the root of the repository (ctest sets it)");
  return root;
}

inline std::string golden(const std::string& name) { return source_root() + "/tests/golden/" + name; }

// The golden models in the repository, and those in ../shared where it exists.
inline std::vector<std::string> golden_models() {
  std::vector<std::string> models = {golden("nano"), golden("nano-yarn")};
  for (const char* name : {"tiny-unaligned", "tiny-v3-heads"})
    if (const std::string path = source_root() + "/../shared/golden/" + name; std::filesystem::exists(path))
      models.push_back(path);
  return models;
}

}  // namespace cachalot
