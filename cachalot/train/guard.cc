#include "train/guard.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/error.h"

namespace cachalot {

namespace {

constexpr double kLossFloor = 0.01;  // of the median loss
constexpr double kNormFloor = 0.1;   // of the logarithm: 10 %
constexpr double kNormal = 1.4826;   // MAD of a normal distribution with deviation 1 is 1 / 1.4826

double median(std::vector<double>& values) {
  const auto middle = values.begin() + ptrdiff_t(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

std::vector<double> logarithms(const std::vector<double>& values) {
  std::vector<double> logs;
  for (const double v : values) logs.push_back(std::log(std::max(v, 1e-30)));
  return logs;
}

}  // namespace

Action parse_action(const std::string& text) {
  for (const Action a : {Action::log, Action::skip, Action::rewind, Action::stop})
    if (text == name_of(a)) return a;
  CHECK(false, text);  // RunConfig::validate() has seen it
}

const char* name_of(Action action) {
  switch (action) {
    case Action::log: return "log";
    case Action::skip: return "skip";
    case Action::rewind: return "rewind";
    case Action::stop: return "stop";
  }
  CHECK(false);
}

double robust_limit(std::vector<double> values, double k, double floor) {
  const double center = median(values);
  for (double& v : values) v = std::abs(v - center);
  return center + k * kNormal * std::max(median(values), floor);
}

Guard::Guard(const GuardSection& section, Routers routers)
    : section_(section), routers_(std::move(routers)) {}

std::optional<Verdict> Guard::judge(double loss, double grad_norm) const {
  if (!std::isfinite(loss) || !std::isfinite(grad_norm))
    return Verdict{.trouble = "not_finite",
                   .what = fmt::format("the loss is {:.4g}, the norm of the gradient {:.4g}", std::abs(loss),
                                       std::abs(grad_norm)),  // no "-nan"
                   .setting = "guard.on_not_finite",
                   .action = parse_action(section_.on_not_finite)};
  if (section_.spike == 0 || state_.losses.size() < size_t(GuardSection::kFewestSteps)) return std::nullopt;
  std::vector<double> losses = state_.losses;
  const double usual_loss = median(losses);
  const double loss_limit = robust_limit(losses, section_.spike, kLossFloor * std::abs(usual_loss));
  if (loss > loss_limit)
    return Verdict{
        .trouble = "loss_spike",
        .what = fmt::format("the loss is {:.4f}, above {:.4f}; the median of the last {} steps is {:.4f}",
                            loss, loss_limit, losses.size(), usual_loss),
        .setting = "guard.on_spike",
        .action = parse_action(section_.on_spike)};
  std::vector<double> norms = state_.norms;
  const double usual_norm = median(norms);
  const double norm_limit = std::exp(robust_limit(logarithms(norms), section_.spike, kNormFloor));
  if (grad_norm > norm_limit)
    return Verdict{
        .trouble = "norm_spike",
        .what = fmt::format("the norm of the gradient is {:.4g}, above {:.4g}; the median of the last {} "
                            "steps is {:.4g}",
                            grad_norm, norm_limit, norms.size(), usual_norm),
        .setting = "guard.on_spike",
        .action = parse_action(section_.on_spike)};
  return std::nullopt;
}

std::optional<Verdict> Guard::learn(double loss, double grad_norm, bool taken,
                                    const std::vector<std::vector<int32_t>>& counts,
                                    const std::vector<double>& max_vio) {
  state_.skipped = taken ? 0 : state_.skipped + 1;
  if (taken && std::isfinite(loss) && std::isfinite(grad_norm)) {
    for (auto [values, value] : {std::pair(&state_.losses, loss), std::pair(&state_.norms, grad_norm)}) {
      values->push_back(value);
      while (int64_t(values->size()) > section_.window) values->erase(values->begin());
    }
  }
  if (section_.collapse_steps == 0) return std::nullopt;
  const double worst = double(routers_.experts) / double(std::max<int64_t>(routers_.per_token, 1)) - 1;
  state_.collapsed.resize(counts.size());
  state_.idle.resize(counts.size() * size_t(routers_.experts));
  std::optional<Verdict> verdict;
  const auto say = [&](const char* trouble, std::string what) {
    if (!verdict)
      verdict = {.trouble = trouble,
                 .what = std::move(what),
                 .setting = "guard.on_collapse",
                 .action = parse_action(section_.on_collapse)};
  };
  for (size_t l = 0; l < counts.size(); ++l) {
    int64_t& collapsed = state_.collapsed[l];
    collapsed = worst > 0 && max_vio[l] > section_.collapse_share * worst ? collapsed + 1 : 0;
    // Told again whenever as many steps have passed.
    if (collapsed > 0 && collapsed % section_.collapse_steps == 0)
      say("collapse",
          fmt::format("layer {}: MaxVio has been above {:.3g} for {} steps ({:.3g} now; all tokens to the "
                      "same experts: {:.3g})",
                      routers_.layers[l], section_.collapse_share * worst, collapsed, max_vio[l], worst));
    for (size_t e = 0; e < counts[l].size(); ++e) {
      int64_t& idle = state_.idle[l * size_t(routers_.experts) + e];
      idle = counts[l][e] == 0 ? idle + 1 : 0;
      if (idle > 0 && idle % section_.collapse_steps == 0)
        say("idle_expert",
            fmt::format("layer {}: expert {} has had no token for {} steps", routers_.layers[l], e, idle));
    }
  }
  return verdict;
}

}  // namespace cachalot
