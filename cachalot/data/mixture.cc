#include "data/mixture.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "base/text.h"

namespace cachalot {

namespace {

constexpr double kTolerated = 0.01;  // of the budget that epochs alone may miss

}  // namespace

std::vector<double> MixturePlan::shares() const {
  std::vector<double> shares;
  for (const Part& p : parts) shares.push_back(p.share);
  return shares;
}

MixturePlan plan_mixture(std::vector<MixturePart> parts, const MixtureLimits& limits) {
  CHECK(!parts.empty() && limits.rows > 0);
  const auto tokens = [&](double rows) { return human_count(rows * double(limits.row_tokens)); };
  double weights = 0, fixed = 0;
  std::string with_epochs;
  for (const MixturePart& p : parts) {
    CHECK(p.rows > 0);
    for (const auto& [what, value] : {std::pair("weight", p.weight), std::pair("number of epochs", p.epochs)})
      if (!std::isfinite(value) || value < 0)
        throw Error(fmt::format("the {} of part \"{}\" is {}", what, p.name, value))
            .hint("it must be 0 or more");
    if (p.weight > 0 && p.epochs > 0)
      throw Error(fmt::format("part \"{}\" has a weight of {} and {} epochs", p.name, p.weight, p.epochs))
          .hint("a part has one or the other: with epochs its size decides its share");
    weights += p.weight;
    fixed += p.epochs * double(p.rows);
    if (p.epochs > 0)
      with_epochs += fmt::format("{}{} epochs of \"{}\" ({})", with_epochs.empty() ? "" : ", ", p.epochs,
                                 p.name, tokens(p.epochs * double(p.rows)));
  }
  const double budget = double(limits.rows);
  if (weights == 0 && fixed == 0)
    for (MixturePart& p : parts) weights += p.weight = double(p.rows);
  // A row of the batch more or less is nothing that anybody asked for.
  if (fixed > budget * (1 + kTolerated))
    throw Error(fmt::format("the mixture wants {}: {} tokens, and the budget is {}", with_epochs,
                            tokens(fixed), tokens(budget)))
        .hint(fmt::format("--train.tokens {:.0f}, or fewer epochs", fixed * double(limits.row_tokens)));
  if (weights == 0 && fixed < budget * (1 - kTolerated))
    throw Error(
        fmt::format("the mixture has {}: {} tokens, and the budget is {}; no part has a weight to fill "
                    "the rest",
                    with_epochs, tokens(fixed), tokens(budget)))
        .hint(
            fmt::format("--train.tokens {:.0f}, or a weight for a part", fixed * double(limits.row_tokens)));
  const double rest = std::max(0.0, budget - fixed);
  const double total = weights > 0 ? fixed + rest : fixed;

  MixturePlan plan;
  for (const MixturePart& p : parts) {
    const double rows = p.epochs > 0  ? p.epochs * double(p.rows)
                        : weights > 0 ? rest * p.weight / weights
                                      : 0;
    const double share = rows / total;
    plan.parts.push_back(
        {.name = p.name, .share = share, .rows = share * budget, .epochs = share * budget / double(p.rows)});
    const double epochs = plan.parts.back().epochs;
    if (limits.max_epochs > 0 && epochs > limits.max_epochs * (1 + kTolerated)) {
      Error error(fmt::format(
          "the mixture passes part \"{}\" {:.2f} times: {} of the run's {} tokens, and the part "
          "has {}; data.max_epochs is {}",
          p.name, epochs, tokens(share * budget), tokens(budget), tokens(double(p.rows)), limits.max_epochs));
      const double fits = limits.max_epochs * double(p.rows) / budget;  // its largest share
      if (p.weight > 0 && fits < 1 && weights > p.weight && rest > 0 && fits * budget < rest)
        error.hint(
            fmt::format("a weight of {:.3g} at most, fewer --train.tokens, or a higher --data.max_epochs",
                        (weights - p.weight) * fits * budget / (rest - fits * budget)));
      else error.hint("fewer --train.tokens, or a higher --data.max_epochs");
      throw error;
    }
  }
  return plan;
}

Mixture::Mixture(const std::vector<double>& shares) : before_{0} {
  for (const double share : shares) {
    CHECK(share >= 0);
    before_.push_back(before_.back() + share);
  }
  CHECK(before_.back() > 0);
}

uint64_t Mixture::fraction(size_t low, size_t high) const {
  const size_t middle = (low + high) / 2;
  const double all = before_[high] - before_[low];
  return all > 0 ? uint64_t(std::llround((before_[middle] - before_[low]) / all * 0x1p32)) : 0;
}

Mixture::Place Mixture::place(int64_t n) const {
  CHECK(n >= 0);
  size_t low = 0, high = before_.size() - 1;
  while (high - low > 1) {
    const uint64_t f = fraction(low, high);
    const auto left = [&](int64_t i) { return int64_t((unsigned __int128)(uint64_t(i)) * f >> 32); };
    const size_t middle = (low + high) / 2;
    if (left(n + 1) > left(n)) {
      n = left(n);
      high = middle;
    } else {
      n -= left(n);
      low = middle;
    }
  }
  return {.part = int64_t(low), .row = n};
}

std::vector<int64_t> Mixture::counts(int64_t n) const {
  std::vector<int64_t> counts(before_.size() - 1);
  const auto walk = [&](auto&& self, size_t low, size_t high, int64_t m) -> void {
    if (high - low == 1) {
      counts[low] = m;
      return;
    }
    const int64_t left = int64_t((unsigned __int128)(uint64_t(m)) * fraction(low, high) >> 32);
    self(self, low, (low + high) / 2, left);
    self(self, (low + high) / 2, high, m - left);
  };
  walk(walk, 0, counts.size(), n);
  return counts;
}

}  // namespace cachalot
