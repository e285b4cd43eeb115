#include <algorithm>
#include <numeric>
#include <set>
#include <vector>

#include "backend/ops/check.h"
#include "backend/ref/number.h"
#include "backend/ref/ref_backend.h"

namespace cachalot {

namespace {

// The `count` best of `candidates` by `value`, best first; NaN below every number, ties to the lower index.
std::vector<int64_t> best(std::vector<int64_t> candidates, const std::vector<double>& value, int64_t count) {
  std::stable_sort(candidates.begin(), candidates.end(), [&](int64_t i, int64_t j) {
    const double a = value[size_t(i)], b = value[size_t(j)];
    return a > b || (std::isnan(b) && !std::isnan(a));
  });
  candidates.resize(size_t(count));
  return candidates;
}

std::vector<int64_t> range(int64_t from, int64_t below) {
  std::vector<int64_t> r(size_t(below - from));
  std::iota(r.begin(), r.end(), from);
  return r;
}

// Indices (ascending) of the experts of a token, from its biased scores.
std::vector<int64_t> choose(const std::vector<double>& biased, const GateForward& g) {
  const int64_t size = int64_t(biased.size()) / g.groups;
  std::vector<double> group_scores;
  for (int64_t group = 0; group < g.groups; ++group) {
    double score = 0;
    for (const int64_t i : best(range(group * size, (group + 1) * size), biased, std::min<int64_t>(2, size)))
      score = round_to(g.scores.dtype, score + biased[size_t(i)]);
    group_scores.push_back(score);
  }
  std::vector<int64_t> open;  // experts of the chosen groups
  for (const int64_t group : best(range(0, g.groups), group_scores, g.topk_groups))
    for (int64_t i = group * size; i < (group + 1) * size; ++i) open.push_back(i);
  std::sort(open.begin(), open.end());
  std::vector<int64_t> chosen = best(std::move(open), biased, g.indices.cols);
  std::sort(chosen.begin(), chosen.end());
  return chosen;
}

}  // namespace

void RefBackend::gate_forward(const GateForward& g) {
  check(g);
  const int64_t experts = g.logits.cols, top_k = g.indices.cols;
  const Reader logits(g.logits), bias(g.bias);
  const Writer scores(g.scores), indices(g.indices), weights(g.weights);
  const Indices chosen(g.indices, experts);
  for (int64_t t = 0; t < g.logits.rows; ++t) {
    std::vector<double> biased;
    for (int64_t e = 0; e < experts; ++e) {
      scores.set(t, e, 1 / (1 + std::exp(-logits(t, e))));
      biased.push_back(round_to(g.scores.dtype, scores(t, e) + bias[e]));
    }
    if (!g.replay) {
      const std::vector<int64_t> choice = choose(biased, g);
      for (int64_t j = 0; j < top_k; ++j) indices.set(t, j, double(choice[size_t(j)]));
    }
    double sum = 0;
    for (int64_t j = 0; j < top_k; ++j) sum += scores(t, chosen(t, j));
    const double divisor = g.normalise ? sum + 1e-20 : 1;
    for (int64_t j = 0; j < top_k; ++j) weights.set(t, j, scores(t, chosen(t, j)) / divisor * g.scale);
  }
  if (!g.counts) return;
  const Writer counts(g.counts);
  for (int64_t e = 0; e < experts; ++e) counts.set(e, 0);
  for (int64_t t = 0; t < g.logits.rows; ++t)
    for (int64_t j = 0; j < top_k; ++j) counts.add(0, chosen(t, j), 1);
}

void RefBackend::balance_loss(const BalanceLoss& b) {
  check(b);
  const int64_t experts = b.scores.cols;
  const Reader scores(b.scores);
  const Writer fractions(b.fractions), loss(b.loss);
  const Starts starts(b.starts, b.scores.rows);
  for (int64_t s = 0; s < b.sequences; ++s) {
    const int64_t tokens = starts[s + 1] - starts[s];
    std::vector<double> f(size_t(experts), 0.0), p(size_t(experts), 0.0);
    for (int64_t t = starts[s]; t < starts[s + 1]; ++t) {
      std::vector<double> row;
      for (int64_t e = 0; e < experts; ++e) row.push_back(scores(t, e));
      const double total = std::accumulate(row.begin(), row.end(), 0.0);
      for (size_t e = 0; e < row.size(); ++e) p[e] += row[e] / total / double(tokens);
      for (const int64_t e : best(range(0, experts), row, b.top_k))
        f[size_t(e)] += double(experts) / double(b.top_k * tokens);
    }
    for (int64_t e = 0; e < experts; ++e) fractions.set(s, e, f[size_t(e)]);
    loss.set(s, std::inner_product(f.begin(), f.end(), p.begin(), 0.0));
  }
}

// w_j = scale s_j / S, S = sum of the chosen + 1e-20:  ds_j = scale (dw_j / S - sum_i dw_i s_i / S^2)
// loss = mean_t sum_i f_i s_i / S_t, S_t = sum of all: ds_i = (f_i - sum_j f_j s_j / S_t) / (S_t T_s)
// s = sigmoid(logit):                                  dlogit = ds s (1 - s)
void RefBackend::gate_backward(const GateBackward& g) {
  check(g);
  const int64_t experts = g.scores.cols, top_k = g.indices.cols;
  const Reader dweights(g.dweights), s(g.scores);
  const Indices chosen(g.indices, experts);
  const Writer dlogits(g.dlogits);
  std::vector<int64_t> sequence_of(size_t(g.scores.rows), -1), length(size_t(g.scores.rows), 0);
  if (g.balance_factor != 0) {
    const Starts starts(g.starts, g.scores.rows);
    for (int64_t q = 0; q < g.sequences; ++q)
      for (int64_t t = starts[q]; t < starts[q + 1]; ++t) {
        sequence_of[size_t(t)] = q;
        length[size_t(t)] = starts[q + 1] - starts[q];
      }
  }
  for (int64_t t = 0; t < g.scores.rows; ++t) {
    std::vector<double> ds(size_t(experts), 0.0);
    double sum = 1e-20, dot = 0;
    for (int64_t j = 0; j < top_k; ++j) {
      sum += s(t, chosen(t, j));
      dot += dweights(t, j) * s(t, chosen(t, j));
    }
    for (int64_t j = 0; j < top_k; ++j)
      ds[size_t(chosen(t, j))] +=
          g.scale * (g.normalise ? (dweights(t, j) - dot / sum) / sum : dweights(t, j));
    if (const int64_t q = sequence_of[size_t(t)]; q >= 0) {
      const Reader fractions(g.fractions);
      double total = 0, mean = 0;
      for (int64_t e = 0; e < experts; ++e) total += s(t, e);
      for (int64_t e = 0; e < experts; ++e) mean += fractions(q, e) * s(t, e) / total;
      for (int64_t e = 0; e < experts; ++e)
        ds[size_t(e)] += g.balance_factor * (fractions(q, e) - mean) / (total * double(length[size_t(t)]));
    }
    for (int64_t e = 0; e < experts; ++e) dlogits.set(t, e, ds[size_t(e)] * s(t, e) * (1 - s(t, e)));
  }
}

void RefBackend::count_groups(const CountGroups& g) {
  check(g);
  const Indices chosen(g.indices, g.experts);
  const Writer visits(g.visits);
  double total = g.accumulate == Accumulate::add ? visits[0] : 0;
  for (int64_t t = 0; t < g.indices.rows; ++t) {
    std::set<int64_t> groups;
    for (int64_t j = 0; j < g.indices.cols; ++j) groups.insert(chosen(t, j) / (g.experts / g.groups));
    total += double(groups.size());
  }
  visits.set(0, total);
}

void RefBackend::update_gate_bias(const UpdateGateBias& u) {
  check(u);
  const int64_t experts = u.bias.cols;
  const Reader counts(u.counts);
  const Writer bias(u.bias);
  double total = 0;
  for (int64_t e = 0; e < experts; ++e) total += counts[e];
  for (int64_t e = 0; e < experts; ++e) {  // mean against count, both times the number of experts: exact
    const double missing = total - counts[e] * double(experts);
    if (missing != 0) bias.set(e, bias[e] + (missing > 0 ? u.gamma : -u.gamma));
  }
}

}  // namespace cachalot
