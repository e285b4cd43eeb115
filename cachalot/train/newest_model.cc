#include "train/newest_model.h"

#include <fmt/format.h>

#include <filesystem>

#include "base/error.h"
#include "model/checkpoint_name.h"
#include "model/load.h"
#include "train/run_directory.h"

namespace cachalot {

namespace fs = std::filesystem;

void read_newest_model(const std::string& run,
                       const std::function<void(const std::string& directory)>& read) {
  constexpr int kTries = 20;
  for (int i = 0; i < kTries; ++i) {
    std::string directory;
    try {
      directory = resolve_model_directory(run);
      read(directory);
      return;
    } catch (const Error&) {
      const bool is_gone = directory.empty()
                               ? RunDirectory::newest_step(run) > 0  // removed between two looks
                               : !fs::exists(fs::path(directory).parent_path() / kCompleteFile);
      if (!is_gone) throw;
    }
  }
  throw Error(fmt::format("{} replaces its checkpoints faster than they can be read", run))
      .hint("a larger --train.save_every or --train.keep_last lets them stay longer");
}

}  // namespace cachalot
