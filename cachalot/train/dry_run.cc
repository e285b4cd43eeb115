#include "train/dry_run.h"

#include <fmt/format.h>
#include <fmt/ostream.h>

#include <algorithm>
#include <chrono>
#include <numeric>
#include <ostream>

#include "base/disk_space.h"
#include "base/rng.h"
#include "base/text.h"
#include "train/checkpoint.h"
#include "train/run_directory.h"
#include "train/snapshot.h"

namespace cachalot {

namespace {

using Clock = std::chrono::steady_clock;

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

int64_t trained_parameters(const std::vector<Param>& table) {
  int64_t n = 0;
  for (const Param& p : table) n += p.trained() ? p.size() : 0;
  return n;
}

}  // namespace

CheckpointCount count_checkpoints(const TrainSection& train) {
  const int64_t steps = StepPlan(train).steps(), every = train.save_every;
  if (every == 0 || every >= steps) return {.most = 1, .kept = 1};
  const int64_t saves = (steps - 1) / every + 1;  // those on the way, and the last
  int64_t for_good = 0;                           // those of its multiples stay; 0: none do
  if (train.keep_every > 0 && train.keep_every <= steps) {
    const int64_t factor = every / std::gcd(every, train.keep_every);
    if (factor <= steps / train.keep_every) for_good = factor * train.keep_every;
  }
  const auto after = [&](int64_t saved) {  // so many
    const int64_t newest = std::min(saved, train.keep_last), oldest = saved - newest + 1;
    const int64_t its_step = oldest == saves ? steps : oldest * every;
    return newest + (for_good ? (its_step - 1) / for_good : 0);
  };
  // An old one goes when the new one is complete.
  return {.most = std::min(saves, after(saves - 1) + 1), .kept = after(saves)};
}

void print_disk(std::ostream& out, const ModelConfig& model, const RunConfig& config,
                const std::string& run_dir) {
  const auto bytes = [](int64_t n) { return human_bytes(double(n)); };
  const TrainSection& t = config.train;
  const auto nowhere = open_device("plan");
  Stream s(*nowhere);
  TrainSection on_device = t;  // the average would take memory of the host
  on_device.ema_decay = 0;
  const Trainer trainer(s, model, on_device, 0);
  const std::vector<Param>& table = trainer.params().table();
  int64_t one = checkpoint_bytes(trainer.state(), table, trainer.params().recipe().weight);
  if (t.ema_decay > 0) one += trained_parameters(table) * size_of(DType::f32);

  const auto [most, kept] = count_checkpoints(t);
  const int64_t there = std::min(most, RunDirectory::complete_checkpoints(run_dir));
  const int64_t free = free_disk(run_dir);
  fmt::print(out, "disk       {} for {} checkpoint{} of {}{}{}; {} free\n", bytes(most * one), most,
             most == 1 ? "" : "s", bytes(one),
             most > kept ? fmt::format(" ({} kept, one being written)", kept) : "",
             there > 0 ? fmt::format(", {} of them there", there) : "", free < 0 ? "unknown" : bytes(free));
  if (free >= 0 && free < (most - there) * one)
    fmt::print(out, "           WARNING: that does not fit: {}\n",
               most > 1 ? "fewer by --train.keep_last and --train.keep_every, or another --run-dir"
                        : "another --run-dir");
}

void print_dry_run(std::ostream& out, const ModelConfig& model, const RunConfig& config, Device& device,
                   const MemoryPlan& plan, const std::string& device_name, int64_t done) {
  const TrainSection& t = config.train;
  const StepPlan steps(t);
  const auto bytes = [](int64_t n) { return human_bytes(double(n)); };
  Stream s(device);
  Trainer trainer(s, model, t, plan.arena);
  trainer.init();

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
