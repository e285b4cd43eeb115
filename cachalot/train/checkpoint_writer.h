// Checkpoints beside the training: save() takes a snapshot, which is all that training waits for, and a
// thread of its own writes it. One at a time: a save() that comes while the one before is being written waits
// for that.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "train/checkpoint.h"
#include "train/run_directory.h"
#include "train/snapshot.h"
#include "train/trainer.h"

namespace cachalot {

class CheckpointWriter {
 public:
  // What is written beside the tensors, the same for all checkpoints of a run.
  struct Options {
    const RunDirectory* run = nullptr;
    const ModelConfig* model = nullptr;
    std::string config;  // text of config.json
    DType storage = DType::bf16;
    PieceDone progress = [] {};  // on the writing thread
  };
  // Takes the snapshot's memory and opens a stream. `device` and `trainer` must outlive it.
  CheckpointWriter(Device& device, const Trainer& trainer, Options options);
  ~CheckpointWriter();  // waits for what is being written
  CheckpointWriter(const CheckpointWriter&) = delete;

  struct Stall {              // seconds that training waited
    double for_previous = 0;  // checkpoint, which was still being written
    double for_snapshot = 0;
    double total() const { return for_previous + for_snapshot; }
  };
  // After `s`, the trainer's stream, has done a step. state.files and .router_bias are filled in here.
  Stall save(Stream& s, RunState state);

  struct Outcome {
    int64_t step = 0;
    std::string path, error, hint;  // error: why there is none; "" when there is one
    double seconds = 0;             // from the snapshot to the last file
  };
  // The oldest checkpoint that is finished and has not been told of yet; `wait`: after the one that is being
  // written.
  enum class Wait : bool { no = false, yes = true };
  std::optional<Outcome> finished(Wait wait = Wait::no);

  const Snapshot& snapshot() const { return snapshot_; }

 private:
  void work();
  void write();

  const Trainer& trainer_;
  Options options_;
  Snapshot snapshot_;
  Stream stream_;  // the thread's
  RunState state_;

  std::mutex mutex_;
  std::condition_variable changed_;
  bool busy_ = false, closing_ = false;
  std::deque<Outcome> outcomes_;
  std::thread thread_;
};

}  // namespace cachalot
