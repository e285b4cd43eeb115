// Where a run writes:
//   config.json                       the resolved configuration
//   tokenizer.json, tokenizer_config.json
//   metrics.jsonl                     one JSON object a step (train/telemetry.h)
//   checkpoints/step-00000123/        a checkpoint (train/checkpoint.h)
//   model -> checkpoints/step-.../model   the newest one
//   run.lock                          held by the process that trains; no process, no lock
// A checkpoint appears at once or not at all. Put aside are step-….damaged, which was found damaged, and
// step-….rewound, a good one that training went back beyond (train/guard.h).
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace cachalot {

// Which checkpoints stay when a new one is complete.
struct KeepRule {
  int64_t last = 2;   // the newest ones
  int64_t every = 0;  // and those of steps that are multiples of it; 0: none
};

class RunDirectory {
 public:
  enum class Open : uint8_t { fresh, overwrite, resume };

  // What is at `path`: nothing, or an empty or foreign folder; a run that begins (no configuration yet, and
  // nothing that took work); remains (checkpoints or metrics without a configuration: of a run that lost it, of
  // an --overwrite that was cut short, or of another program); a run.
  // Error if it is no directory, or holds a config.json that is not a run's: never ours to replace.
  enum class Holds : uint8_t { nothing, beginnings, remains, run };
  static Holds look(const std::string& path);
  static void require_free(const std::string& path);  // Error, if there is a run or remains
  // Whether a process trains there, as far as this machine sees. Looks only: never in the way of one that
  // begins.
  static bool is_locked(const std::string& path);
  static int64_t newest_step(const std::string& path);  // of the complete checkpoints; 0: there is none
  static int64_t complete_checkpoints(const std::string& path);  // how many

  // Makes the directory and removes what a killed process left half-done. overwrite: and what an earlier run
  // wrote there, but nothing else. Error: another process trains there; fresh, and it is not free.
  RunDirectory(std::string path, Open open, KeepRule keep = {});
  RunDirectory(const RunDirectory&) = delete;

  const std::string& path() const { return path_; }
  std::string metrics_path() const { return path_ + "/metrics.jsonl"; }
  void write_config(const std::string& json_text) const;

  // `write` fills the directory that it is given ("…/step-00000123.tmp", which exists) and returns the text of
  // COMPLETE, the file that is written last. Returns the checkpoint's path. When anything fails, a full disk
  // for one, earlier checkpoints stay and nothing of this one remains. One thread at a time.
  std::string save_checkpoint(int64_t step,
                              const std::function<std::string(const std::string& directory)>& write) const;

  std::vector<std::string> checkpoints() const;      // paths of the complete ones, oldest first
  std::vector<std::string> all_checkpoints() const;  // and of those that have lost their COMPLETE since
  bool had_checkpoint() const;                       // "model" is there, and only a checkpoint makes it
  static int64_t step_of(const std::string& checkpoint);
  enum class Aside : uint8_t { damaged, rewound };
  static std::string name_aside(const std::string& checkpoint, Aside why);
  // Returns where it is now. What was put there before, for the same reason, is replaced.
  std::string put_aside(const std::string& checkpoint, Aside why) const;
  std::vector<std::string> aside() const;  // paths of those that were, for any reason
  void link_model(const std::string& checkpoint) const;
  // The file of a rewind to `checkpoint`, or, "", to the beginning (train/rewind_state.h).
  std::string rewind_path(const std::string& checkpoint) const;

 private:
  struct Lock {
    ~Lock();
    int file = -1;
  };
  void lock();
  void remove_leftovers() const;

  std::string path_;
  KeepRule keep_;
  Lock lock_;
};

}  // namespace cachalot
