#include "train/run_directory.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <system_error>

#include "base/error.h"
#include "base/files.h"

namespace cachalot {

namespace fs = std::filesystem;

namespace {

bool present(const fs::path& path) { return fs::symlink_status(path).type() != fs::file_type::not_found; }

void remove_tree(const fs::path& path) {
  std::error_code code;
  fs::remove_all(path, code);
  if (code) throw Error(fmt::format("cannot remove {}: {}", path.string(), code.message()));
}

// Renamed first: a removal that is cut short leaves nothing that looks like a checkpoint.
void remove_checkpoint(const fs::path& path) {
  std::error_code code;
  const fs::path trash = path.string() + ".old";
  fs::rename(path, trash, code);
  fs::remove_all(trash, code);  // one too many does no harm
}

// "step-00000123" with 8 or more digits.
bool is_checkpoint_name(const std::string& name) {
  return name.starts_with("step-") && name.size() >= 13 &&
         name.find_first_not_of("0123456789", 5) == std::string::npos;
}

}  // namespace

RunDirectory::Holds RunDirectory::look(const std::string& path) {
  if (path.empty()) throw Error("the run directory has no name").hint("--run-dir runs/NAME");
  const fs::path root(path);
  if (present(root) && !fs::is_directory(root))
    throw Error(fmt::format("{} is no directory", path)).hint("--run-dir");
  const bool configured = present(root / "config.json");
  if (present(root / "checkpoints") || present(root / "metrics.jsonl"))
    return configured ? Holds::run : Holds::beginnings;
  if (configured)  // a model directory, for one
    throw Error(fmt::format("{} is no run but holds a config.json", path)).hint("choose another --run-dir");
  return Holds::nothing;
}

RunDirectory::RunDirectory(std::string path, Open open, KeepRule keep) : path_(std::move(path)), keep_(keep) {
  const Holds holds = look(path_);
  if (open == Open::fresh && holds == Holds::run)
    throw Error(fmt::format("{} already holds a run", path_))
        .hint("--overwrite to replace it, or --run-dir for another place");
  const fs::path root(path_);
  std::error_code code;
  fs::create_directories(root / "checkpoints", code);
  if (code)
    throw Error(fmt::format("cannot make the run directory {}: {}", path_, code.message()))
        .hint("--run-dir for another place");
  lock();
  if (open != Open::resume && holds != Holds::nothing) {  // in a foreign folder nothing is ours
    for (const char* name :
         {"config.json", "metrics.jsonl", "tokenizer.json", "tokenizer_config.json", "machine.json", "hang.txt",
          "tb", "checkpoints"})
      remove_tree(root / name);
    if (fs::is_symlink(root / "model")) remove_tree(root / "model");
    fs::create_directories(root / "checkpoints", code);
  }
  remove_leftovers();
}

RunDirectory::~RunDirectory() {
  if (lock_ >= 0) ::close(lock_);  // and with it the lock
}

// The kernel forgets the lock with the process, however it ends.
void RunDirectory::lock() {
  const std::string file = path_ + "/run.lock";
  lock_ = ::open(file.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (lock_ < 0)
    throw Error(fmt::format("cannot write {}: {}", file, std::strerror(errno)))
        .hint("--run-dir for another place");
  if (::flock(lock_, LOCK_EX | LOCK_NB) == 0) return;
  const int reason = errno;
  ::close(lock_);
  if (reason == EWOULDBLOCK)
    throw Error(fmt::format("another process trains in {}", path_))
        .hint("wait for it or stop it (SIGTERM saves), or choose another --run-dir");
  // A file system without locks: two processes at once remain the user's care.
  lock_ = -1;
}

void RunDirectory::remove_leftovers() const {
  std::error_code code;
  for (const auto& entry : fs::directory_iterator(path_ + "/checkpoints", code)) {
    const std::string name = entry.path().filename().string();
    const size_t dot = name.rfind('.');
    if (dot == std::string::npos || !is_checkpoint_name(name.substr(0, dot))) continue;
    if (name.ends_with(".tmp") || name.ends_with(".old")) fs::remove_all(entry.path(), code);
  }
}

void RunDirectory::write_config(const std::string& json_text) const {
  write_file_atomic(path_ + "/config.json", json_text);
}

std::string RunDirectory::save_checkpoint(
    int64_t step, const std::function<std::string(const std::string&)>& write) const {
  const std::string final_path = fmt::format("{}/checkpoints/step-{:08}", path_, step);
  AtomicDirectory directory(final_path);
  const std::string complete = write(directory.path());
  write_file_atomic(directory.path() + "/COMPLETE", complete);
  directory.commit();
  link_model(final_path);

  const std::vector<std::string> all = checkpoints();
  for (size_t i = 0; i + size_t(keep_.last) < all.size(); ++i)
    if (keep_.every == 0 || step_of(all[i]) % keep_.every != 0) remove_checkpoint(all[i]);
  return final_path;
}

// The link is a convenience: a file system without links keeps its checkpoints all the same.
void RunDirectory::link_model(const std::string& checkpoint) const {
  const std::string link = path_ + "/model", fresh = link + ".tmp";
  const std::string target = "checkpoints/" + fs::path(checkpoint).filename().string() + "/model";
  ::unlink(fresh.c_str());
  if (::symlink(target.c_str(), fresh.c_str()) == 0 && ::rename(fresh.c_str(), link.c_str()) != 0)
    ::unlink(fresh.c_str());
}

std::string RunDirectory::put_aside(const std::string& checkpoint) const {
  const std::string aside = checkpoint + ".damaged";
  std::error_code code;
  fs::remove_all(aside, code);
  fs::rename(checkpoint, aside, code);
  if (code) throw Error(fmt::format("cannot rename {}: {}", checkpoint, code.message()));
  return aside;
}

int64_t RunDirectory::step_of(const std::string& checkpoint) {
  return std::stoll(fs::path(checkpoint).filename().string().substr(5));
}

std::vector<std::string> RunDirectory::checkpoints() const {
  std::vector<std::pair<int64_t, std::string>> found;
  for (const auto& entry : fs::directory_iterator(path_ + "/checkpoints")) {
    const std::string name = entry.path().filename().string();
    if (is_checkpoint_name(name) && fs::exists(entry.path() / "COMPLETE"))
      found.emplace_back(step_of(name), entry.path().string());
  }
  std::sort(found.begin(), found.end());
  std::vector<std::string> paths;
  for (auto& [step, path] : found) paths.push_back(std::move(path));
  return paths;
}

}  // namespace cachalot
