// Contract: backend/ops/gate.h. Scores and weights float, choices exact; a row is one thread's.
#include <algorithm>
#include <cmath>
#include <limits>

#include "backend/cpu/convert.h"
#include "backend/cpu/cpu_backend.h"
#include "backend/ops/check.h"

namespace cachalot::cpu {

namespace {

// NaN is below every number and equal to NaN.
bool above(float a, float b) { return a > b || (std::isnan(b) && !std::isnan(a)); }

// Marks the k best of n candidates; ties go to the lower index. Candidates are those with open[i].
void choose_best(const float* value, int64_t n, int64_t k, const bool* open, bool* chosen) {
  std::fill(chosen, chosen + n, false);
  for (int64_t round = 0; round < k; ++round) {
    int64_t best = -1;
    for (int64_t i = 0; i < n; ++i)
      if ((!open || open[i]) && !chosen[i] && (best < 0 || above(value[i], value[best]))) best = i;
    if (best < 0) return;
    chosen[best] = true;
  }
}

struct GateScratch {
  GateScratch(Scratch& s, int64_t experts, int64_t groups)
      : biased(s.take<float>(experts)),
        group_score(s.take<float>(groups)),
        open(s.take<bool>(experts)),
        chosen(s.take<bool>(experts)),
        kept(s.take<bool>(groups)) {}
  float *biased, *group_score;
  bool *open, *chosen, *kept;
};

// Sets scratch.chosen for one row of scores.
void select(const GateForward& g, const float* s, const float* bias, const GateScratch& scratch) {
  const int64_t experts = g.logits.cols, in_group = experts / g.groups;
  for (int64_t e = 0; e < experts; ++e) scratch.biased[e] = s[e] + bias[e];
  for (int64_t group = 0; group < g.groups; ++group) {
    const float* b = scratch.biased + group * in_group;
    float first = b[0], second = -std::numeric_limits<float>::infinity();
    if (in_group > 1) {
      second = b[1];
      if (above(second, first)) std::swap(first, second);
      for (int64_t i = 2; i < in_group; ++i) {
        if (above(b[i], first)) second = first, first = b[i];
        else if (above(b[i], second)) second = b[i];
      }
    }
    scratch.group_score[group] = in_group > 1 ? first + second : first;
  }
  choose_best(scratch.group_score, g.groups, g.topk_groups, nullptr, scratch.kept);
  for (int64_t e = 0; e < experts; ++e) scratch.open[e] = scratch.kept[e / in_group];
  choose_best(scratch.biased, experts, g.indices.cols, scratch.open, scratch.chosen);
}

}  // namespace

void CpuBackend::gate_forward(const GateForward& g) {
  check(g);
  require_no_f64("gate_forward", {&g.logits});
  const int64_t experts = g.logits.cols, chosen = g.indices.cols;
  const auto logits = g.logits.matrix<const float>();
  const auto bias = g.bias.vector<const float>();
  const auto scores = g.scores.matrix<float>(), weights = g.weights.matrix<float>();
  const auto indices = g.indices.matrix<int32_t>();
  const double nanoseconds = double(logits.rows * experts * (chosen + 4));
  context_->parallel_ranges(g.logits.rows, 16, nanoseconds, [&](int64_t begin, int64_t end) {
    Scratch memory;
    const GateScratch scratch(memory, experts, g.groups);
    for (int64_t t = begin; t < end; ++t) {
      float* s = scores.row(t);
      int32_t* index = indices.row(t);
      for (int64_t e = 0; e < experts; ++e) s[e] = float(1 / (1 + std::exp(-double(logits(t, e)))));
      if (!g.replay) {
        select(g, s, bias.data, scratch);
        for (int64_t e = 0, j = 0; e < experts; ++e)
          if (scratch.chosen[e]) index[j++] = int32_t(e);
      }
      double sum = 0;
      for (int64_t j = 0; j < chosen; ++j) {
        CHECK(0 <= index[j] && index[j] < experts,
              "gate_forward: replayed expert " + std::to_string(index[j]) + " of " + std::to_string(experts));
        sum += s[index[j]];
      }
      const double factor = g.normalise ? g.scale / (sum + 1e-20) : g.scale;
      for (int64_t j = 0; j < chosen; ++j) weights(t, j) = float(s[index[j]] * factor);
    }
  });
  if (!g.counts) return;
  int32_t* counts = g.counts.vector<int32_t>().data;
  std::fill(counts, counts + experts, 0);
  for (int64_t t = 0; t < indices.rows; ++t)
    for (int64_t j = 0; j < chosen; ++j) ++counts[indices(t, j)];
}

// A chunk of a sequence's rows counts its choices and sums its shares; chunks are added in order.
void CpuBackend::balance_loss(const BalanceLoss& b) {
  check(b);
  require_no_f64("balance_loss", {&b.scores});
  constexpr int64_t kChunk = 64;
  const int64_t experts = b.scores.cols;
  const auto scores = b.scores.matrix<const float>();
  const auto starts = b.starts.vector<const int32_t>();
  Scratch shared;
  int64_t* first_chunk = shared.take<int64_t>(b.sequences + 1);
  first_chunk[0] = 0;
  for (int64_t s = 0; s < b.sequences; ++s) {
    CHECK(0 <= starts[s] && starts[s] <= starts[s + 1] && starts[s + 1] <= scores.rows,
          "balance_loss: starts");
    first_chunk[s + 1] = first_chunk[s] + (starts[s + 1] - starts[s] + kChunk - 1) / kChunk;
  }
  const int64_t chunks = first_chunk[b.sequences];
  double* shares = shared.take<double>(chunks * experts);
  int32_t* counts = shared.take<int32_t>(chunks * experts);
  context_->parallel(chunks, double(scores.rows * experts * (b.top_k + 2)), [&](int64_t chunk) {
    Scratch scratch;
    bool* chosen = scratch.take<bool>(experts);
    double* share = shares + chunk * experts;
    int32_t* count = counts + chunk * experts;
    std::fill(share, share + experts, 0.0);
    std::fill(count, count + experts, 0);
    const int64_t s = std::upper_bound(first_chunk, first_chunk + b.sequences + 1, chunk) - first_chunk - 1;
    const int64_t begin = starts[s] + (chunk - first_chunk[s]) * kChunk;
    for (int64_t t = begin; t < std::min<int64_t>(begin + kChunk, starts[s + 1]); ++t) {
      choose_best(scores.row(t), experts, b.top_k, nullptr, chosen);
      double sum = 0;
      for (int64_t e = 0; e < experts; ++e) sum += scores(t, e);
      for (int64_t e = 0; e < experts; ++e) {
        share[e] += scores(t, e) / sum;
        count[e] += chosen[e];
      }
    }
  });
  const auto fractions = b.fractions.matrix<float>();
  const auto loss = b.loss.vector<float>();
  for (int64_t s = 0; s < b.sequences; ++s) {
    const double length = starts[s + 1] - starts[s];
    double total = 0;
    for (int64_t e = 0; e < experts; ++e) {
      double share = 0;
      int64_t count = 0;
      for (int64_t chunk = first_chunk[s]; chunk < first_chunk[s + 1]; ++chunk) {
        share += shares[chunk * experts + e];
        count += counts[chunk * experts + e];
      }
      const double fraction = length == 0 ? 0 : double(experts) / (double(b.top_k) * length) * double(count);
      fractions(s, e) = float(fraction);
      if (length > 0) total += fraction * share / length;
    }
    loss[s] = float(total);
  }
}

void CpuBackend::gate_backward(const GateBackward& g) {
  check(g);
  require_no_f64("gate_backward", {&g.scores});
  const int64_t experts = g.scores.cols, chosen = g.indices.cols;
  const auto scores = g.scores.matrix<const float>(), dweights = g.dweights.matrix<const float>();
  const auto indices = g.indices.matrix<const int32_t>();
  const auto dlogits = g.dlogits.matrix<float>();
  const bool balance = g.balance_factor != 0;
  const Vector<const int32_t> starts = balance ? g.starts.vector<const int32_t>() : Vector<const int32_t>{};
  const Matrix<const float> fractions = balance ? g.fractions.matrix<const float>() : Matrix<const float>{};
  context_->parallel_ranges(scores.rows, 16, 4.0 * double(g.scores.size()), [&](int64_t begin, int64_t end) {
    Scratch scratch;
    double* ds = scratch.take<double>(experts);
    for (int64_t t = begin; t < end; ++t) {
      const float* s = scores.row(t);
      std::fill(ds, ds + experts, 0.0);
      // w_j = scale s_j / S, S = sum_k s_k + 1e-20:  ds_j = scale / S (dw_j - sum_k dw_k s_k / S)
      double sum = 1e-20, weighted = 0;
      for (int64_t j = 0; j < chosen; ++j) {
        CHECK(0 <= indices(t, j) && indices(t, j) < experts, "gate_backward: indices");
        sum += s[indices(t, j)];
        weighted += double(dweights(t, j)) * s[indices(t, j)];
      }
      for (int64_t j = 0; j < chosen; ++j)
        ds[indices(t, j)] +=
            g.normalise ? g.scale / sum * (dweights(t, j) - weighted / sum) : g.scale * dweights(t, j);
      if (balance) {
        const int64_t q =
            std::upper_bound(starts.data, starts.data + g.sequences + 1, int32_t(t)) - starts.data - 1;
        if (0 <= q && q < g.sequences) {
          // loss = sum_i f_i / T sum_t s_ti / Z_t,  Z_t = sum_j s_tj:
          // d loss / d s_ti = (f_i - sum_j f_j s_tj / Z_t) / (T Z_t)
          const float* f = fractions.row(q);
          double z = 0, mean = 0;
          for (int64_t e = 0; e < experts; ++e) {
            z += s[e];
            mean += double(f[e]) * s[e];
          }
          const double factor = g.balance_factor / (double(starts[q + 1] - starts[q]) * z);
          for (int64_t e = 0; e < experts; ++e) ds[e] += factor * (f[e] - mean / z);
        }
      }
      for (int64_t e = 0; e < experts; ++e) dlogits(t, e) = float(ds[e] * s[e] * (1 - double(s[e])));
    }
  });
}

void CpuBackend::count_groups(const CountGroups& g) {
  check(g);
  const auto indices = g.indices.matrix<const int32_t>();
  const auto in_group = int32_t(g.experts / g.groups);
  int32_t& visits = *g.visits.vector<int32_t>().data;
  if (g.accumulate == Accumulate::overwrite) visits = 0;
  for (int64_t t = 0; t < indices.rows; ++t)
    for (int64_t j = 0; j < indices.cols; ++j)
      visits += j == 0 || indices(t, j) / in_group != indices(t, j - 1) / in_group;
}

void CpuBackend::update_gate_bias(const UpdateGateBias& u) {
  check(u);
  const auto counts = u.counts.vector<const int32_t>();
  const auto bias = u.bias.vector<float>();
  int64_t total = 0;
  for (int64_t e = 0; e < counts.size; ++e) total += counts[e];
  for (int64_t e = 0; e < counts.size; ++e) {  // mean against count, both times E: integers, no rounding
    const int64_t mine = counts[e] * counts.size;
    if (mine != total) bias[e] = float(bias[e] + (mine < total ? u.gamma : -u.gamma));
  }
}

}  // namespace cachalot::cpu
