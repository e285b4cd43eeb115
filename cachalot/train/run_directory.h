// Where a run writes:
//   config.json                       the resolved configuration
//   tokenizer.json, tokenizer_config.json
//   metrics.jsonl                     one JSON object a step (train/telemetry.h)
//   checkpoints/step-00000123/model/  a Hugging Face directory, with the tokenizer
//   checkpoints/step-00000123/COMPLETE  written last
//   model -> checkpoints/step-.../model   the newest one
// A checkpoint appears at once or not at all; the last two are kept.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace cachalot {

class RunDirectory {
 public:
  static constexpr int kKept = 2;

  // Error if `path` is not a directory, or holds a run and `overwrite` is false. Changes nothing.
  static void require_usable(const std::string& path, bool overwrite);

  // Makes the directory; with `overwrite` removes what an earlier run wrote there, and nothing else.
  RunDirectory(std::string path, bool overwrite);

  const std::string& path() const { return path_; }
  std::string metrics_path() const { return path_ + "/metrics.jsonl"; }
  void write_config(const std::string& json_text) const;

  // `write` fills the directory that it is given ("…/step-00000123.tmp/model", which exists). Returns the
  // checkpoint's path. When anything fails, a full disk for one, earlier checkpoints stay and nothing of this
  // one remains.
  std::string save_checkpoint(int64_t step,
                              const std::function<void(const std::string& model_directory)>& write) const;

  std::vector<std::string> checkpoints() const;  // paths of the complete ones, oldest first

 private:
  std::string path_;
};

}  // namespace cachalot
