#include "train/run_directory.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
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

bool holds_run(const std::string& path) {
  return present(fs::path(path) / "checkpoints") || present(fs::path(path) / "metrics.jsonl");
}

// "step-00000123" with 8 or more digits.
bool is_checkpoint_name(const std::string& name) {
  return name.starts_with("step-") && name.size() >= 13 &&
         name.find_first_not_of("0123456789", 5) == std::string::npos;
}

}  // namespace

void RunDirectory::require_usable(const std::string& path, bool overwrite) {
  if (path.empty()) throw Error("the run directory has no name").hint("--run-dir runs/NAME");
  if (present(path) && !fs::is_directory(path))
    throw Error(fmt::format("{} is no directory", path)).hint("--run-dir");
  if (holds_run(path)) {
    if (overwrite) return;
    throw Error(fmt::format("{} already holds a run", path))
        .hint("--overwrite to replace it, or --run-dir for another place");
  }
  if (present(fs::path(path) / "config.json"))  // a model directory, for one: never ours to replace
    throw Error(fmt::format("{} is no run but holds a config.json", path)).hint("choose another --run-dir");
}

RunDirectory::RunDirectory(std::string path, bool overwrite) : path_(std::move(path)) {
  require_usable(path_, overwrite);
  const fs::path root(path_);
  if (holds_run(path_))
    for (const char* name :
         {"metrics.jsonl", "config.json", "tokenizer.json", "tokenizer_config.json", "checkpoints"})
      remove_tree(root / name);
  if (fs::is_symlink(root / "model")) remove_tree(root / "model");
  std::error_code code;
  fs::create_directories(root / "checkpoints", code);
  if (code)
    throw Error(fmt::format("cannot make the run directory {}: {}", path_, code.message()))
        .hint("--run-dir for another place");
}

void RunDirectory::write_config(const std::string& json_text) const {
  write_file_atomic(path_ + "/config.json", json_text);
}

std::string RunDirectory::save_checkpoint(int64_t step,
                                          const std::function<void(const std::string&)>& write) const {
  const std::string name = fmt::format("step-{:08}", step), final_path = path_ + "/checkpoints/" + name;
  AtomicDirectory directory(final_path);
  std::error_code code;
  fs::create_directory(directory.path() + "/model", code);
  if (code) throw Error(fmt::format("cannot make {}/model: {}", directory.path(), code.message()));
  write(directory.path() + "/model");
  write_file_atomic(directory.path() + "/COMPLETE", fmt::format("step {}\n", step));
  directory.commit();

  // The link is a convenience: a file system without links keeps its checkpoints all the same.
  const std::string link = path_ + "/model", fresh = link + ".tmp";
  ::unlink(fresh.c_str());
  if (::symlink(("checkpoints/" + name + "/model").c_str(), fresh.c_str()) == 0 &&
      ::rename(fresh.c_str(), link.c_str()) != 0)
    ::unlink(fresh.c_str());

  const std::vector<std::string> all = checkpoints();
  for (size_t i = 0; i + kKept < all.size(); ++i) fs::remove_all(all[i], code);  // one too many does no harm
  return final_path;
}

std::vector<std::string> RunDirectory::checkpoints() const {
  std::vector<std::pair<int64_t, std::string>> found;
  for (const auto& entry : fs::directory_iterator(path_ + "/checkpoints")) {
    const std::string name = entry.path().filename().string();
    if (is_checkpoint_name(name) && fs::exists(entry.path() / "COMPLETE"))
      found.emplace_back(std::stoll(name.substr(5)), entry.path().string());
  }
  std::sort(found.begin(), found.end());
  std::vector<std::string> paths;
  for (auto& [step, path] : found) paths.push_back(std::move(path));
  return paths;
}

}  // namespace cachalot
