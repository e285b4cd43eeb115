#include "train/telemetry.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <numeric>
#include <ostream>

#include "base/plot.h"
#include "base/text.h"

namespace cachalot {

namespace {

using Clock = std::chrono::steady_clock;

constexpr int kWidthOfBar = 160;  // columns; narrower terminals have numbers in the bar's place

double seconds_since(Clock::time_point t) { return std::chrono::duration<double>(Clock::now() - t).count(); }

double mean(const std::vector<double>& v) {
  return v.empty() ? 0 : std::accumulate(v.begin(), v.end(), 0.0) / double(v.size());
}

double wall_time() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

// torchtitan's tags where it has one (components/metrics.py), ours below moe/ and energy/.
std::vector<std::pair<std::string, double>> board_values(const Json& line,
                                                         const std::vector<int64_t>& expert_layers) {
  std::vector<std::pair<std::string, double>> values;
  const auto put = [&](const char* key, const std::string& tag, double factor = 1) {
    if (line.contains(key) && line[key].is_number())
      values.emplace_back(tag, factor * line[key].get<double>());
  };
  const auto put_list = [&](const char* key, const std::string& tag, const auto& number) {
    if (!line.contains(key)) return;
    for (size_t i = 0; i < line[key].size(); ++i)
      if (line[key][i].is_number())
        values.emplace_back(fmt::format(fmt::runtime(tag), number(i)), line[key][i].get<double>());
  };
  const auto depth = [](size_t i) { return int64_t(i) + 1; };
  const auto layer = [&](size_t i) { return i < expert_layers.size() ? expert_layers[i] : int64_t(i); };
  put("loss", "loss_metrics/global_avg_loss");
  put_list("mtp_loss", "loss_metrics/mtp_{}_loss", depth);
  put("balance_loss", "loss_metrics/seq_load_balancing_loss");
  put("lr", "lr");
  put("batch", "batch_size");
  put("grad_norm", "grad_norm");
  put("tokens", "n_tokens_seen");
  put("tokens_per_second", "throughput(tps)");
  put("tflops", "tflops");
  put("mfu", "mfu(%)", 100);
  put("step_seconds", "time_metrics/end_to_end(s)");
  put("data_seconds", "time_metrics/data_loading(s)");
  put("data_share", "time_metrics/data_loading(%)", 100);
  put("checkpoint_stall_seconds", "time_metrics/checkpoint_stall(s)");
  put("seconds", "time_metrics/since_start(s)");
  put("average_wait_seconds", "time_metrics/average_wait(s)");
  put_list("max_vio", "moe/max_vio/layer_{}", layer);
  put_list("groups_per_token", "moe/groups_per_token/layer_{}", layer);
  put("experts_per_group", "moe/experts_per_group");
  put("energy_joules", "energy/joules");
  put("tokens_per_joule", "energy/tokens_per_joule");
  put("cost", "energy/cost");
  const auto put_score = [&](const Json& score, const std::string& tag) {
    for (const auto& [key, value] : score.items())
      if (value.is_number() && key != "tokens" && key != "bytes")
        values.emplace_back(tag + key, value.get<double>());
    if (!score.contains("mtp")) return;
    for (size_t i = 0; i < score["mtp"].size(); ++i)
      values.emplace_back(fmt::format("{}mtp_{}_acceptance", tag, i + 1),
                          score["mtp"][i]["acceptance"].get<double>());
  };
  if (line.contains("held_out")) {
    const Json& held_out = line["held_out"];
    put_score(held_out, "validation_metrics/");
    if (held_out.contains("sets"))
      for (const auto& [set, score] : held_out["sets"].items())
        put_score(score, "validation_metrics/" + set + "/");
  }
  return values;
}

}  // namespace

Telemetry::Telemetry(std::ostream& out, const ProgressStyle& style, const std::string& metrics_path,
                     const TrainSection& train, int64_t kept_bytes)
    : out_(out),
      style_(style),
      train_(train),
      plan_(train),
      metrics_(metrics_path),
      start_(Clock::now()),
      step_start_(start_) {
  rewind(kept_bytes);
  before_ = last_seconds_;
  if (!style_.terminal) return;
  ProgressStyle progress = style_;
  progress.bar = style_.width >= kWidthOfBar;
  progress_.emplace(out_, progress.bar ? "train" : "", plan_.steps(), progress);
}

void Telemetry::rewind(int64_t kept_bytes) {
  steps_.clear(), losses_.clear(), held_out_steps_.clear(), held_out_losses_.clear();
  scored_ = false;
  for (const Json& line : metrics_.cut(kept_bytes)) remember(line);
  step_end_ = metrics_.bytes();
  try {
    if (board_) restart_board();
  } catch (const Error&) {  // TensorBoard then shows the steps that were undone, too
  }
}

void Telemetry::restart_board() {
  board_->restart(steps_.empty() ? 1 : int64_t(steps_.back()) + 1, wall_time());
}

// What the curve and the clock need of a line; a field of a wrong kind counts as absent.
void Telemetry::remember(const Json& line) {
  if (!line.is_object() || line.contains("event")) return;
  const auto number = [](const Json& object, const char* key, double otherwise) {
    return object.contains(key) && object[key].is_number() ? object[key].get<double>() : otherwise;
  };
  if (!line.contains("step") || !line["step"].is_number_integer()) return;  // damaged
  const double step = number(line, "step", 0);
  steps_.push_back(step);
  losses_.push_back(number(line, "loss", NAN));
  last_seconds_ = number(line, "seconds", last_seconds_);
  last_joules_ = number(line, "energy_joules", last_joules_);
  scored_ = line.contains("held_out") && line["held_out"].is_object();
  if (scored_) {
    held_out_steps_.push_back(step);
    held_out_losses_.push_back(number(line["held_out"], "loss", NAN));
  }
}

void Telemetry::write(const Json& line) {
  metrics_.append(line);
  report_disk();
}

void Telemetry::report_disk() {
  const std::string& error = metrics_.flush();
  if (error.empty() && warned_) note(fmt::format("{} is written again; it lacks nothing", metrics_.path()));
  if (!error.empty() && !warned_)
    note(fmt::format("WARNING: {}; training goes on and keeps the lines in memory", error));
  warned_ = !error.empty();
}

void Telemetry::require_written() {
  if (const std::string& error = metrics_.flush(); !error.empty())
    throw Error(error).hint("is the disk full? The last checkpoint is complete");
}

void Telemetry::event(const Json& line) { write(line); }

void Telemetry::use(Meters meters) {
  meters_.emplace(std::move(meters));
  meters_->go_on_from(last_joules_);
}

void Telemetry::write_tensorboard(const std::string& directory, std::vector<int64_t> expert_layers) {
  expert_layers_ = std::move(expert_layers);
  try {
    // Also without a step: earlier events are of a run that was killed before its first checkpoint.
    std::error_code none_yet;
    const std::filesystem::directory_iterator earlier(directory, none_yet);
    const bool goes_on = !steps_.empty() || earlier != std::filesystem::directory_iterator();
    board_.emplace(directory, wall_time());
    if (goes_on) restart_board();
  } catch (const Error& e) {
    note(fmt::format("WARNING: {}; there will be no TensorBoard events", e.what()));
  }
}

// A board that cannot be written is no reason to end a run: metrics.jsonl has everything.
void Telemetry::show_on_board(const Json& line) {
  if (!board_) return;
  try {
    board_->scalars(line["step"].get<int64_t>(), wall_time(), board_values(line, expert_layers_));
  } catch (const Error& e) {
    note(fmt::format("WARNING: {}; TensorBoard gets no more events", e.what()));
    board_.reset();
  }
}

bool Telemetry::wants_expert_load(int64_t step) const {
  const int64_t every = std::max<int64_t>(1, plan_.steps() / 200);
  return step % every == 0 || step == plan_.steps();
}

void Telemetry::scored(int64_t step, const HeldOut::Result& held_out) {
  const Json score{{"held_out", held_out_json(held_out)}};
  extend_last_step(score);
  Json line{{"step", step}};
  line.update(score);
  show_on_board(line);
  show_score(step, held_out);
}

void Telemetry::write_last_stall() {
  if (stall_ > 0) extend_last_step({{"checkpoint_stall_after_seconds", stall_}});
  stall_ = 0;
}

void Telemetry::extend_last_step(const Json& fields) {
  metrics_.extend(step_end_, fields);
  step_end_ += int64_t(fields.dump().size()) - 1;
  report_disk();
}

double Telemetry::seconds() const { return before_ + seconds_since(start_); }
void Telemetry::step_begins() { step_start_ = Clock::now(); }
void Telemetry::data_came() { data_ = seconds_since(step_start_); }
void Telemetry::step_ends() {
  last_ = seconds_since(step_start_);
  step_seconds_ += last_;
  recent_ = recent_ == 0 ? last_ : 0.9 * recent_ + 0.1 * last_;
}

void Telemetry::step(int64_t step, const StepMetrics& m, const std::optional<HeldOut::Result>& held_out,
                     const std::vector<std::pair<std::string, int64_t>>& part_tokens) {
  const int64_t tokens = plan_.tokens_after(step), step_tokens = tokens - plan_.tokens_after(step - 1);

  Json line = Json::object();
  line["step"] = step;
  line["tokens"] = tokens;
  line["loss"] = m.loss;
  if (!m.mtp_losses.empty()) line["mtp_loss"] = m.mtp_losses;
  if (m.settings.balance_alpha > 0 && !m.counts.empty()) line["balance_loss"] = m.balance;
  line["lr"] = m.settings.lr;
  line["batch"] = plan_.batch(step);
  line["grad_norm"] = m.grad_norm;
  line["updated"] = m.updated;
  if (!m.max_vio.empty()) line["max_vio"] = m.max_vio;
  if (!m.groups_per_token.empty()) {
    line["groups_per_token"] = m.groups_per_token;
    line["experts_per_group"] = m.experts_per_group;
  }
  line["seconds"] = seconds();
  line["tokens_per_second"] = double(step_tokens) / std::max(last_, 1e-9);
  line["data_seconds"] = data_;
  if (m.average_wait) line["average_wait_seconds"] = *m.average_wait;
  if (meters_) meters_->add_to(line, step_tokens, last_, seconds());
  for (const auto& [part, trained] : part_tokens) line["parts"][part] = trained;
  if (stall_ > 0) line["checkpoint_stall_seconds"] = stall_;
  stall_ = 0;
  scored_ = false;
  if (held_out) line["held_out"] = held_out_json(*held_out);
  write(line);
  step_end_ = metrics_.bytes();
  Json shown = line;  // and what metrics.jsonl need not tell twice
  shown["step_seconds"] = last_;
  if (last_ > 0) shown["data_share"] = data_ / last_;
  if (meters_) shown["tflops"] = 1e-12 * meters_->flops_per_token() * line["tokens_per_second"].get<double>();
  show_on_board(shown);
  steps_.push_back(double(step));
  losses_.push_back(m.loss);

  if (progress_) progress_->update(step, in_words(m, line), left(tokens));
  else if (step == 1 || step % train_.log_every == 0 || step == plan_.steps()) show_row(step, m, line);
  if (held_out) show_score(step, *held_out);
}

// The most wanted first: a narrow terminal cuts the end.
std::string Telemetry::in_words(const StepMetrics& m, const Json& line) const {
  const auto has = [&](const char* key) { return line.contains(key); };
  const int64_t step = line["step"].get<int64_t>();
  std::string text = fmt::format("loss {:.3f}, {} tok/s", m.loss, human_count(rate(step)));
  if (!m.mtp_losses.empty()) text += fmt::format(", mtp {:.3f}", mean(m.mtp_losses));
  text += fmt::format(", norm {:.2f}, lr {:.1e}", m.grad_norm, m.settings.lr);
  if (!m.max_vio.empty()) text += fmt::format(", MaxVio {:.2f}", mean(m.max_vio));
  if (has("experts_per_group")) text += fmt::format(", {:.2f} experts a group", m.experts_per_group);
  if (has("mfu"))
    text += fmt::format(", MFU {:.1f} % of {}", 100 * line["mfu"].get<double>(), meters_->peak());
  if (last_ > 0 && data_ > 0.01 * last_) text += fmt::format(", data {:.0f} %", 100 * data_ / last_);
  return text + fmt::format(", {} tokens", human_count(double(plan_.tokens_after(step))));
}

// Seconds until the end, at the speed of the run so far: by tokens, for batches may grow, and with what was
// done before the run was resumed.
double Telemetry::left(int64_t tokens) const {
  return seconds() * double(plan_.tokens() - tokens) / double(tokens);
}

// Tokens a second, smoothed.
double Telemetry::rate(int64_t step) const {
  return double(plan_.tokens_after(step) - plan_.tokens_after(step - 1)) / std::max(recent_, 1e-9);
}

void Telemetry::show_row(int64_t step, const StepMetrics& m, const Json& line) {
  constexpr int kRowsBelowHeads = 20;
  const int64_t tokens = plan_.tokens_after(step);
  const size_t digits = fmt::formatted_size("{}", plan_.steps());
  std::string heads, row;
  const auto column = [&](const std::string& head, size_t width, const std::string& value) {
    width = std::max(width, head.size());
    const char* const gap = row.empty() ? "" : "  ";
    heads += fmt::format("{}{:>{}}", gap, head, width);
    row += fmt::format("{}{:>{}}", gap, value, width);
  };
  column("step", 2 * digits + 1, fmt::format("{}/{}", step, plan_.steps()));
  column("loss", 7, fmt::format("{:.4f}", m.loss));
  if (!m.mtp_losses.empty()) column("MTP", 7, fmt::format("{:.4f}", mean(m.mtp_losses)));
  column("norm", 6, fmt::format(fmt::runtime(m.grad_norm < 1000 ? "{:.2f}" : "{:.0e}"), m.grad_norm));
  column("lr", 7, fmt::format("{:.1e}", m.settings.lr));
  column("tokens", 6, human_count(double(tokens)));
  column("tok/s", 6, human_count(rate(step)));
  if (line.contains("mfu"))
    column("MFU of " + meters_->peak(), 6, fmt::format("{:.1f} %", 100 * line["mfu"].get<double>()));
  if (!m.max_vio.empty()) column("MaxVio", 5, fmt::format("{:.2f}", mean(m.max_vio)));
  if (!m.groups_per_token.empty()) column("experts/group", 5, fmt::format("{:.2f}", m.experts_per_group));
  column("data", 5, last_ > 0 ? fmt::format("{:.0f} %", 100 * data_ / last_) : "");
  column("left", 9, human_seconds(left(tokens)));
  if (rows_ == 0) out_ << heads << '\n';
  rows_ = (rows_ + 1) % kRowsBelowHeads;
  out_ << row << '\n' << std::flush;
}

void Telemetry::show_score(int64_t step, const HeldOut::Result& held_out) {
  held_out_steps_.push_back(double(step));
  held_out_losses_.push_back(held_out.loss());
  scored_ = true;
  note(fmt::format("step {}: {}", step, held_out_text(held_out)));
}

void Telemetry::note(const std::string& line) {
  if (progress_) progress_->print(line);
  else out_ << line << '\n' << std::flush;
  rows_ = 0;
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
