#include "train/telemetry.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>
#include <numeric>
#include <ostream>

#include "base/plot.h"
#include "base/text.h"

namespace cachalot {

namespace {

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point t) { return std::chrono::duration<double>(Clock::now() - t).count(); }

double mean(const std::vector<double>& v) {
  return v.empty() ? 0 : std::accumulate(v.begin(), v.end(), 0.0) / double(v.size());
}

}  // namespace

Telemetry::Telemetry(std::ostream& out, const ProgressStyle& style, const std::string& metrics_path,
                     const TrainSection& train)
    : out_(out),
      style_(style),
      train_(train),
      metrics_path_(metrics_path),
      start_(Clock::now()),
      step_start_(start_) {
  metrics_.open(metrics_path, std::ios::trunc);
  if (!metrics_)
    throw Error(fmt::format("cannot write {}: {}", metrics_path, std::strerror(errno)))
        .hint("choose another --run-dir");
  if (style_.terminal) progress_.emplace(out_, "train", train_.total_steps(), style_);
}

double Telemetry::seconds() const { return seconds_since(start_); }
void Telemetry::step_begins() { step_start_ = Clock::now(); }
void Telemetry::step_ends() {
  last_ = seconds_since(step_start_);
  step_seconds_ += last_;
  recent_ = recent_ == 0 ? last_ : 0.9 * recent_ + 0.1 * last_;
}

void Telemetry::step(int64_t step, const StepMetrics& m, const std::optional<HeldOut::Result>& held_out,
                     const std::vector<std::pair<std::string, int64_t>>& part_tokens) {
  const int64_t tokens = step * train_.tokens_per_step();

  Json line = Json::object();
  line["step"] = step;
  line["tokens"] = tokens;
  line["loss"] = m.loss;
  if (!m.mtp_losses.empty()) line["mtp_loss"] = m.mtp_losses;
  if (train_.balance_alpha > 0 && !m.counts.empty()) line["balance_loss"] = m.balance;
  line["lr"] = m.lr;
  line["grad_norm"] = m.grad_norm;
  line["updated"] = m.updated;
  if (!m.max_vio.empty()) line["max_vio"] = m.max_vio;
  line["seconds"] = seconds();
  line["tokens_per_second"] = double(train_.tokens_per_step()) / std::max(last_, 1e-9);
  for (const auto& [part, trained] : part_tokens) line["parts"][part] = trained;
  if (held_out) {
    line["held_out"] = {{"bits_per_byte", held_out->bits_per_byte()},
                        {"loss", held_out->loss()},
                        {"tokens", held_out->tokens},
                        {"bytes", held_out->bytes}};
    held_out_steps_.push_back(double(step));
    held_out_losses_.push_back(held_out->loss());
  }
  metrics_ << line.dump() << '\n' << std::flush;
  if (!metrics_)
    throw Error(fmt::format("cannot write {}: {}", metrics_path_, std::strerror(errno)))
        .hint("is the disk full? The last checkpoint is complete");
  steps_.push_back(double(step));
  losses_.push_back(m.loss);

  // The most wanted first: a narrow terminal cuts the end.
  std::string text = fmt::format("loss {:.3f}, {} tok/s", m.loss,
                                 human_count(double(train_.tokens_per_step()) / std::max(recent_, 1e-9)));
  if (!m.mtp_losses.empty()) text += fmt::format(", mtp {:.3f}", mean(m.mtp_losses));
  text += fmt::format(", norm {:.2f}, lr {:.1e}", m.grad_norm, m.lr);
  if (!m.max_vio.empty()) text += fmt::format(", MaxVio {:.2f}", mean(m.max_vio));
  text += fmt::format(", {} tokens", human_count(double(tokens)));
  if (progress_) {
    progress_->update(step, text);
  } else if (step == 1 || step % train_.log_every == 0 || step == train_.total_steps()) {
    const double left = seconds() * double(train_.total_steps() - step) / double(step);
    out_ << fmt::format("step {:{}}/{}, {}, {} left\n", step, fmt::formatted_size("{}", train_.total_steps()),
                        train_.total_steps(), text, human_seconds(left))
         << std::flush;
  }
  if (!m.updated)
    note(fmt::format("step {}: the norm of the gradient is {}; the step changed nothing", step, m.grad_norm));
  if (held_out)
    note(fmt::format("step {}: held out {:.4f} bits per byte (loss {:.4f})", step, held_out->bits_per_byte(),
                     held_out->loss()));
}

void Telemetry::note(const std::string& line) {
  if (progress_) progress_->print(line);
  else out_ << line << '\n' << std::flush;
}

void Telemetry::finish() {
  if (!progress_) return;
  progress_->finish();
  progress_.reset();
}

std::string Telemetry::curve() const {
  if (steps_.size() < 2) return "";
  PlotSeries train{.name = "train", .x = {}, .y = {}};  // means of equal parts: single steps only show noise
  const size_t parts = std::min<size_t>(steps_.size(), 120);
  for (size_t i = 0; i < parts; ++i) {
    const size_t begin = i * steps_.size() / parts, end = (i + 1) * steps_.size() / parts;
    const auto average = [&](const std::vector<double>& v) {
      return std::accumulate(v.begin() + ptrdiff_t(begin), v.begin() + ptrdiff_t(end), 0.0) /
             double(end - begin);
    };
    train.x.push_back(average(steps_));
    train.y.push_back(average(losses_));
  }
  std::vector<PlotSeries> series{train};
  if (!held_out_steps_.empty())
    series.push_back({.name = "held out", .x = held_out_steps_, .y = held_out_losses_});
  return plot(series,
              {.width = std::min(72, style_.width), .x_label = "step", .y_label = "loss (nats a token)"});
}

}  // namespace cachalot
