#include "train/run_directory.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <system_error>

#include "base/error.h"
#include "base/files.h"
#include "model/checkpoint_name.h"

namespace cachalot {

namespace fs = std::filesystem;

namespace {

constexpr const char* kAside[] = {".damaged", ".rewound"};  // by RunDirectory::Aside

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

// "step-00000123" and a suffix.
bool is_checkpoint_with(const std::string& suffix, const std::string& name) {
  return name.ends_with(suffix) && checkpoint_step(name.substr(0, name.size() - suffix.size())).has_value();
}

bool is_leftover(const std::string& name) {
  for (const char* suffix : {".tmp", ".old", ".tmp.old"})
    if (is_checkpoint_with(suffix, name)) return true;
  return false;
}

// Only what a process that has not come to write its configuration may have left.
bool only_begun(const fs::path& root) {
  for (const char* name : {"metrics.jsonl", "machine.json", "hang.txt", "tb"})  // written later
    if (present(root / name)) return false;
  if (!present(root / "run.lock"))  // then nobody came beyond making checkpoints/
    for (const char* name : {"tokenizer.json", "tokenizer_config.json"})
      if (present(root / name)) return false;
  if (!fs::is_directory(root / "checkpoints")) return false;
  for (const auto& entry : fs::directory_iterator(root / "checkpoints"))
    if (!is_leftover(entry.path().filename().string())) return false;
  return true;
}

// Steps and paths, complete or not, oldest first.
std::vector<std::pair<int64_t, std::string>> list_checkpoints(const std::string& run) {
  std::vector<std::pair<int64_t, std::string>> found;
  std::error_code none_yet;
  for (const auto& entry : fs::directory_iterator(run + "/checkpoints", none_yet))
    if (const auto step = checkpoint_step(entry.path().filename().string()))
      found.emplace_back(*step, entry.path().string());
  std::sort(found.begin(), found.end());
  return found;
}

}  // namespace

RunDirectory::Holds RunDirectory::look(const std::string& path) {
  if (path.empty()) throw Error("the run directory has no name").hint("--run-dir runs/NAME");
  const fs::path root(path);
  if (present(root) && !fs::is_directory(root))
    throw Error(fmt::format("{} is no directory", path)).hint("--run-dir");
  const bool configured = present(root / "config.json");
  if (present(root / "checkpoints") || present(root / "metrics.jsonl"))
    return configured ? Holds::run : only_begun(root) ? Holds::beginnings : Holds::remains;
  if (configured)  // a model directory, for one
    throw Error(fmt::format("{} is no run but holds a config.json", path)).hint("choose another --run-dir");
  return Holds::nothing;
}

void RunDirectory::require_free(const std::string& path) {
  const Holds holds = look(path);
  if (holds == Holds::run)
    throw Error(fmt::format("{} already holds a run", path))
        .hint("--overwrite to replace it, or --run-dir for another place");
  if (holds == Holds::remains)
    throw Error(
        fmt::format("{} holds checkpoints or metrics, but no config.json that says of which run", path))
        .hint("restore its config.json to go on, --overwrite to remove them, or --run-dir for another place");
}

// Lines of /proc/locks: "1: FLOCK  ADVISORY  WRITE 4711 fe:00:1234 0 EOF", with the file's number behind its
// device, which is not compared: on layered file systems it is another one than stat() tells.
bool RunDirectory::is_locked(const std::string& path) {
  struct stat file{};
  if (::stat((path + "/run.lock").c_str(), &file) != 0) return false;
  std::ifstream locks("/proc/locks");
  const std::string number = fmt::format(":{} ", file.st_ino);
  for (std::string line; std::getline(locks, line);)
    if (line.find("FLOCK") != std::string::npos && line.find(number) != std::string::npos) return true;
  return false;
}

RunDirectory::RunDirectory(std::string path, Open open, KeepRule keep) : path_(std::move(path)), keep_(keep) {
  if (open == Open::fresh) require_free(path_);
  const Holds holds = look(path_);
  const fs::path root(path_);
  std::error_code code;
  fs::create_directories(root / "checkpoints", code);
  if (code)
    throw Error(fmt::format("cannot make the run directory {}: {}", path_, code.message()))
        .hint("--run-dir for another place");
  lock();
  if (open == Open::fresh) require_free(path_);  // another process may have come and gone
  if (holds == Holds::beginnings)
    for (const char* name : {"tokenizer.json", "tokenizer_config.json"}) remove_tree(root / name);
  if (open == Open::overwrite && holds != Holds::nothing) {  // in a foreign folder nothing is ours
    for (const char* name : {"config.json", "metrics.jsonl", "tokenizer.json", "tokenizer_config.json",
                             "machine.json", "hang.txt", "tb", "checkpoints"})
      remove_tree(root / name);
    if (fs::is_symlink(root / "model")) remove_tree(root / "model");
    fs::create_directories(root / "checkpoints", code);
  }
  remove_leftovers();
}

RunDirectory::Lock::~Lock() {
  if (file >= 0) ::close(file);  // and with it the lock
}

// The kernel forgets the lock with the process, however it ends.
void RunDirectory::lock() {
  const std::string file = path_ + "/run.lock";
  lock_.file = ::open(file.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (lock_.file < 0)
    throw Error(fmt::format("cannot write {}: {}", file, std::strerror(errno)))
        .hint("--run-dir for another place");
  if (::flock(lock_.file, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK)
    throw Error(fmt::format("another process trains in {}", path_))
        .hint("wait for it or stop it (SIGTERM saves), or choose another --run-dir");
  // Else it has no locks: two processes at once remain the user's care.
}

void RunDirectory::remove_leftovers() const {
  std::error_code code;
  for (const auto& entry : fs::directory_iterator(path_ + "/checkpoints", code)) {
    if (is_leftover(entry.path().filename().string())) fs::remove_all(entry.path(), code);
  }
}

void RunDirectory::write_config(const std::string& json_text) const {
  write_file_atomic(path_ + "/config.json", json_text);
}

std::string RunDirectory::save_checkpoint(int64_t step,
                                          const std::function<std::string(const std::string&)>& write) const {
  const std::string final_path = fmt::format("{}/checkpoints/step-{:08}", path_, step);
  AtomicDirectory directory(final_path);
  const std::string complete = write(directory.path());
  write_file_atomic(directory.path() + "/" + kCompleteFile, complete);
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

std::string RunDirectory::name_aside(const std::string& checkpoint, Aside why) {
  return checkpoint + kAside[size_t(why)];
}

std::string RunDirectory::rewind_path(const std::string& checkpoint) const {
  return (checkpoint.empty() ? path_ + "/checkpoints" : checkpoint) + "/rewind.json";
}

std::string RunDirectory::put_aside(const std::string& checkpoint, Aside why) const {
  const std::string aside = name_aside(checkpoint, why);
  std::error_code code;
  fs::remove_all(aside, code);
  fs::rename(checkpoint, aside, code);
  if (code) throw Error(fmt::format("cannot rename {}: {}", checkpoint, code.message()));
  return aside;
}

int64_t RunDirectory::step_of(const std::string& checkpoint) {
  const auto step = checkpoint_step(fs::path(checkpoint).filename().string());
  CHECK(step.has_value(), checkpoint);
  return *step;
}

std::vector<std::string> RunDirectory::aside() const {
  std::vector<std::string> found;
  for (const auto& entry : fs::directory_iterator(path_ + "/checkpoints"))
    for (const char* suffix : kAside)
      if (is_checkpoint_with(suffix, entry.path().filename().string()))
        found.push_back(entry.path().string());
  std::sort(found.begin(), found.end());
  return found;
}

std::vector<std::string> RunDirectory::checkpoints() const {
  std::vector<std::string> paths = all_checkpoints();
  std::erase_if(paths, [](const std::string& path) { return !fs::exists(path + "/" + kCompleteFile); });
  return paths;
}

std::vector<std::string> RunDirectory::all_checkpoints() const {
  std::vector<std::string> paths;
  for (auto& [step, path] : list_checkpoints(path_)) paths.push_back(path);
  return paths;
}

int64_t RunDirectory::newest_step(const std::string& path) {
  int64_t newest = 0;
  for (const auto& [step, checkpoint] : list_checkpoints(path))
    if (fs::exists(fs::path(checkpoint) / kCompleteFile)) newest = step;
  return newest;
}

int64_t RunDirectory::complete_checkpoints(const std::string& path) {
  const auto all = list_checkpoints(path);
  return std::count_if(all.begin(), all.end(),
                       [](const auto& c) { return fs::exists(fs::path(c.second) / kCompleteFile); });
}

bool RunDirectory::had_checkpoint() const { return fs::is_symlink(path_ + "/model"); }

}  // namespace cachalot
