#include "train/watchdog.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <fstream>

#include "base/text.h"

namespace cachalot {

namespace {

constexpr size_t kRememberedSteps = 101;

std::string first_line(const std::filesystem::path& file) {
  std::ifstream in(file);
  std::string line;
  std::getline(in, line);
  return line;
}

}  // namespace

std::string describe_threads() {
  std::string text;
  std::error_code code;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/task", code)) {
    const std::string stat = first_line(entry.path() / "stat");  // pid (name) state ...
    const size_t name_end = stat.rfind(')');
    const char state = name_end != std::string::npos && name_end + 2 < stat.size() ? stat[name_end + 2] : '?';
    const char* meaning = state == 'R'   ? "running"
                          : state == 'S' ? "sleeping"
                          : state == 'D' ? "in the kernel, "
                                           "cannot be interrupted"
                          : state == 'T' ? "stopped"
                                         : "in another state";
    std::string wait = first_line(entry.path() / "wchan");
    if (wait == "0") wait.clear();
    text += fmt::format("  thread {} ({}): {}{}{}\n", entry.path().filename().string(),
                        first_line(entry.path() / "comm"), meaning, wait.empty() ? "" : ", waits in ", wait);
  }
  return text;
}

Watchdog::Watchdog(const Activity& activity, Options options)
    : activity_(activity), options_(std::move(options)), thread_([this] { watch(); }) {}

Watchdog::~Watchdog() {
  {
    const std::lock_guard lock(mutex_);
    closing_ = true;
  }
  wake_.notify_all();
  thread_.join();
}

void Watchdog::step_took(double seconds) {
  const std::lock_guard lock(mutex_);
  steps_.push_back(seconds);
  if (steps_.size() > kRememberedSteps) steps_.erase(steps_.begin());
  std::vector<double> sorted = steps_;
  const auto middle = sorted.begin() + ptrdiff_t(sorted.size() / 2);
  std::nth_element(sorted.begin(), middle, sorted.end());
  median_ = *middle;
}

void Watchdog::watch() {
  using Clock = std::chrono::steady_clock;
  const auto tick = std::chrono::duration<double>(options_.tick_seconds);
  int64_t seen = -1;
  double waited = 0;
  std::unique_lock lock(mutex_);
  for (;;) {
    const auto begin = Clock::now();
    if (wake_.wait_for(lock, tick, [&] { return closing_; })) return;
    // A tick that took much longer: the whole process stood still.
    const double passed = std::chrono::duration<double>(Clock::now() - begin).count();
    waited += std::min(passed, 2 * options_.tick_seconds);
    if (const int64_t now = activity_.progress; now != seen) seen = now, waited = 0;
    const double limit = std::max(options_.least_seconds, options_.factor * median_);
    if (waited < limit) continue;
    const std::string text = report(waited, limit);
    lock.unlock();
    options_.on_hang(text);
    return;
  }
}

std::string Watchdog::report(double waited, double limit) const {
  const int64_t part = activity_.part;
  const bool in_call = activity_.in_call;
  return fmt::format(
      "rank {}: no progress for {} in step {}, {}{}: {} {} (operation {} of this process)\n"
      "a step takes {} in the median; {} are allowed\n{}",
      options_.rank, human_seconds(waited), activity_.step.load(), activity_.phase.load(),
      part > 0 ? fmt::format(" {}", part) : "", in_call ? "inside" : "after",
      *activity_.op.load() ? activity_.op.load() : "no operation", activity_.calls.load(),
      human_seconds(median_), human_seconds(limit), describe_threads());
}

}  // namespace cachalot
