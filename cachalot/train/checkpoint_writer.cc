#include "train/checkpoint_writer.h"

#include <fcntl.h>
#include <unistd.h>

#include <chrono>

namespace cachalot {

namespace {

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point t) { return std::chrono::duration<double>(Clock::now() - t).count(); }

// What the checkpoint says of metrics.jsonl must be on the disk before the checkpoint is.
void sync_file(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return;
  ::fsync(fd);
  ::close(fd);
}

}  // namespace

CheckpointWriter::CheckpointWriter(Device& device, const Trainer& trainer, Options options)
    : trainer_(trainer),
      options_(std::move(options)),
      snapshot_(device, trainer.state()),
      stream_(device) {
  // The first copy into fresh memory of a CPU waits for its pages: not in a step.
  if (snapshot_.place() == Snapshot::Place::device) snapshot_.take(stream_, trainer.state());
  thread_ = std::thread([this] { work(); });  // last: nobody would join it if the copy failed
}

CheckpointWriter::~CheckpointWriter() {
  {
    const std::lock_guard lock(mutex_);
    closing_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

CheckpointWriter::Stall CheckpointWriter::save(Stream& s, RunState state) {
  Stall stall;
  auto begin = Clock::now();
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return !busy_; });
  stall.for_previous = seconds_since(begin);
  begin = Clock::now();
  snapshot_.take(s, trainer_.state());
  state_ = std::move(state);
  busy_ = true;
  lock.unlock();
  changed_.notify_all();
  if (snapshot_.place() == Snapshot::Place::nowhere) {  // the tensors are the trainer's own
    lock.lock();
    changed_.wait(lock, [&] { return !busy_; });
  }
  stall.for_snapshot = seconds_since(begin);
  return stall;
}

std::optional<CheckpointWriter::Outcome> CheckpointWriter::finished(Wait wait) {
  std::unique_lock lock(mutex_);
  if (wait == Wait::yes) changed_.wait(lock, [&] { return !busy_; });
  if (outcomes_.empty()) return std::nullopt;
  Outcome oldest = std::move(outcomes_.front());
  outcomes_.pop_front();
  return oldest;
}

void CheckpointWriter::work() {
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [&] { return busy_ || closing_; });
    if (!busy_) return;
    lock.unlock();
    write();
    lock.lock();
    busy_ = false;
    changed_.notify_all();
  }
}

// On the writing thread.
void CheckpointWriter::write() {
  Outcome outcome{.step = state_.step};
  const auto begin = Clock::now();
  try {
    outcome.path = options_.run->save_checkpoint(state_.step, [&](const std::string& directory) {
      const std::string complete = write_checkpoint_files(stream_, directory,
                                                          {.state = state_,
                                                           .config = options_.config,
                                                           .tokenizer_directory = options_.run->path(),
                                                           .storage = options_.storage,
                                                           .model = options_.model,
                                                           .tensors = &snapshot_.tensors(),
                                                           .progress = options_.progress});
      sync_file(options_.run->metrics_path());
      return complete;
    });
  } catch (const Error& e) {
    outcome.error = e.what();
    outcome.hint = e.hint();
  } catch (const std::exception& e) {
    outcome.error = e.what();
  }
  outcome.seconds = seconds_since(begin);
  const std::lock_guard lock(mutex_);
  outcomes_.push_back(std::move(outcome));
}

}  // namespace cachalot
