#include "train/dry_run.h"

#include <fmt/format.h>
#include <fmt/ostream.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <ostream>

#include "base/rng.h"
#include "base/text.h"
#include "train/checkpoint.h"
#include "train/snapshot.h"

namespace cachalot {

namespace fs = std::filesystem;

namespace {

using Clock = std::chrono::steady_clock;

// Of the file system that `path` will be on; -1: unknown.
int64_t free_disk(const std::string& path) {
  fs::path at = fs::absolute(path);
  while (!fs::exists(at) && at.has_parent_path() && at != at.parent_path()) at = at.parent_path();
  std::error_code code;
  const fs::space_info space = fs::space(at, code);
  return code ? -1 : int64_t(space.available);
}

// Seconds of a step of `rows` rows: a whole one where that is short, else what its micro-batches take.
double time_step(Stream& s, Trainer& trainer, const ModelConfig& model, const TrainSection& t, int64_t rows) {
  constexpr double kEnough = 5;  // seconds
  std::vector<int32_t> tokens(size_t(rows * (t.seq_len + 1)));
  for (size_t i = 0; i < tokens.size(); ++i)
    tokens[i] = int32_t(random_below(uint64_t(t.seed), 0, i, uint64_t(model.vocab_size)));
  std::vector<TokenSpan> sequences;
  for (int64_t r = 0; r < rows; ++r)
    sequences.push_back(TokenSpan(tokens).subspan(size_t(r * (t.seq_len + 1)), size_t(t.seq_len + 1)));
  const auto timed = [&](int64_t n) {
    const auto begin = Clock::now();
    trainer.step(std::span<const TokenSpan>(sequences).first(size_t(n)), 0.0);
    on(s).synchronize();
    return std::chrono::duration<double>(Clock::now() - begin).count();
  };
  const int64_t micro = t.micro_batch_sequences();
  timed(micro);  // warms up
  const double one = timed(micro);
  const double estimate = one * double(rows) / double(micro);
  if (estimate > kEnough) return estimate;
  double best = estimate, spent = 0;
  for (int i = 0; i < 5 && spent < kEnough; ++i) {
    const double seconds = timed(rows);
    spent += seconds;
    best = i == 0 ? seconds : std::min(best, seconds);
  }
  return best;
}

}  // namespace

void print_dry_run(std::ostream& out, const ModelConfig& model, const RunConfig& config, Device& device,
                   const MemoryPlan& plan, const std::string& run_dir, const std::string& device_name,
                   int64_t done) {
  const TrainSection& t = config.train;
  const StepPlan steps(t);
  const auto bytes = [](int64_t n) { return human_bytes(double(n)); };
  Stream s(device);
  Trainer trainer(s, model, t, plan.arena);
  trainer.init();

  const int64_t one =
      checkpoint_bytes(trainer.state(), trainer.params().table(), trainer.params().recipe().weight);
  const int64_t saves = t.save_every > 0 ? (steps.steps() - 1) / t.save_every + 1 : 1;
  int64_t kept = std::min(saves, t.keep_last);
  if (t.keep_every > 0 && t.save_every > 0) kept += steps.steps() / t.keep_every;
  const int64_t most = std::min(saves, kept + 1);  // an old one goes when the new one is complete
  const int64_t free = free_disk(run_dir);
  fmt::print(out, "disk       {} for {} checkpoint{} of {}{}; {} free\n", bytes(most * one), most,
             most == 1 ? "" : "s", bytes(one),
             most > kept ? fmt::format(" ({} kept, one being written)", kept) : "",
             free < 0 ? "unknown" : bytes(free));
  if (free >= 0 && free < most * one)
    fmt::print(out, "           WARNING: that does not fit: fewer --train.keep_last, or another --run-dir\n");
  {
    const Snapshot snapshot(device, trainer.state());
    const char* where = snapshot.place() == Snapshot::Place::device ? "on the device"
                        : snapshot.place() == Snapshot::Place::host ? "in memory of the host"
                                                                    : "";
    if (*where)
      fmt::print(out, "           they are written from a copy {}, {}, while training goes on\n", where,
                 bytes(snapshot.bytes()));
    else fmt::print(out, "           no memory for a copy: training waits while they are written\n");
  }
  if (done >= steps.steps()) {
    fmt::print(out, "dry run: nothing was written; all {} steps are done\n", done);
    out << std::flush;
    return;
  }
  const double first = time_step(s, trainer, model, t, steps.batch(1));
  const double seconds =
      first * double(steps.tokens() - steps.tokens_after(done)) / double(steps.tokens_after(1));
  fmt::print(out, "time       {} for {} steps{}, by steps of {} on {}; without evaluations\n",
             human_seconds(seconds), steps.steps() - done,
             done > 0 ? fmt::format(" that are left of {}", steps.steps()) : "",
             first < 1 ? fmt::format("{:.3g} ms", 1000 * first) : human_seconds(first), device.name());
  if (t.price_per_hour > 0)
    fmt::print(out, "cost       {:.2f} at {:.2f} an hour\n", seconds / 3600 * t.price_per_hour,
               t.price_per_hour);
  fmt::print(out, "dry run: nothing was written; without --dry-run this {} on {}\n",
             done > 0 ? "resumes" : "begins", device_name);
  out << std::flush;
}

}  // namespace cachalot
