#include "train/scoring.h"

#include <algorithm>

namespace cachalot {

namespace {

// Losses in host memory after the next synchronize().
class Losses {
 public:
  Losses(Stream& s, const Tensor& t) : wide_(t.dtype == DType::f64) {
    (wide_ ? f64_.resize(size_t(t.size())) : f32_.resize(size_t(t.size())));
    on(s).download(t, wide_ ? static_cast<void*>(f64_.data()) : f32_.data());
  }
  double sum() const {  // from the first to the last
    double sum = 0;
    for (const double x : f64_) sum += x;
    for (const float x : f32_) sum += double(x);
    return sum;
  }

 private:
  bool wide_;
  std::vector<double> f64_;
  std::vector<float> f32_;
};

// The likeliest token of every row, in host memory after the next synchronize().
std::vector<int32_t> likeliest(Stream& s, Arena& arena, const Transformer& model, Tensor hidden,
                               Tensor positions) {
  constexpr int64_t kRows = 256;
  Arena::Scope scratch(arena);
  const int64_t rows = hidden.rows;
  Tensor tokens = arena.take_vector(DType::i32, rows);
  Tensor logits = arena.take(model.recipe().stat, std::min(kRows, rows), model.config().vocab_size);
  for (int64_t first = 0; first < rows; first += kRows) {
    const int64_t n = std::min(kRows, rows - first);
    model.head().logits(s, hidden.slice_rows(first, n), logits.slice_rows(0, n));
    on(s).sample({.logits = logits.slice_rows(0, n),
                  .positions = positions.slice_cols(first, n),
                  .tokens = tokens.slice_cols(first, n)});
  }
  std::vector<int32_t> result(static_cast<size_t>(rows));
  on(s).download(tokens, result.data());
  on(s).synchronize();  // before the memory is used again
  return result;
}

TextScore score_batch(Stream& s, Arena& arena, const Transformer& model, std::span<const TokenSpan> windows,
                      int64_t depths) {
  arena.clear();
  const TrainingBatch batch = make_training_batch(s, arena, windows, depths);
  // Of the states only the routers' counts are read: what a backward would compute again is not kept.
  const TrainingPass pass =
      forward_losses(s, arena, model, batch, {.caches = {}, .replay = {}, .recompute = true});
  const Losses losses(s, pass.losses);
  std::vector<Losses> of_depths;
  for (const Tensor& t : pass.mtp_losses) of_depths.emplace_back(s, t);
  std::vector<std::vector<int32_t>> counts;
  for (const Tensor& t : pass.counts()) {
    counts.emplace_back(size_t(t.size()));
    on(s).download(t, counts.back().data());
  }
  on(s).synchronize();
  TextScore score{.nats = losses.sum(), .targets = batch.main.rows, .depths = {}, .expert_load = {}};
  for (const auto& layer : counts) score.expert_load.emplace_back(layer.begin(), layer.end());
  if (depths == 0) return score;

  const std::vector<int32_t> chosen = likeliest(s, arena, model, pass.trunk.hidden, batch.main.positions);
  for (int64_t k = 1; k <= depths; ++k) {
    const MtpBatch& b = batch.mtp[size_t(k) - 1];
    const std::vector<int32_t> drafted =
        likeliest(s, arena, model, pass.mtp[size_t(k) - 1].hidden, b.batch.positions);
    TextScore::Depth depth{.nats = of_depths[size_t(k) - 1].sum(), .targets = b.batch.rows};
    // Row j of a window drafts token j + k + 1, which the main model chooses in row j + k.
    size_t draft = 0, first = 0;
    for (const TokenSpan& w : windows) {
      const size_t rows = w.size() - 1;
      for (size_t j = 0; j + size_t(k) < rows; ++j)
        depth.accepted += drafted[draft++] == chosen[first + j + size_t(k)];
      first += rows;
    }
    CHECK(int64_t(draft) == b.batch.rows);
    score.depths.push_back(depth);
  }
  return score;
}

}  // namespace

TextScore& TextScore::operator+=(const TextScore& other) {
  nats += other.nats;
  targets += other.targets;
  if (depths.size() < other.depths.size()) depths.resize(other.depths.size());
  for (size_t k = 0; k < other.depths.size(); ++k) {
    depths[k].nats += other.depths[k].nats;
    depths[k].targets += other.depths[k].targets;
    depths[k].accepted += other.depths[k].accepted;
  }
  if (expert_load.size() < other.expert_load.size()) expert_load.resize(other.expert_load.size());
  for (size_t l = 0; l < other.expert_load.size(); ++l) {
    expert_load[l].resize(std::max(expert_load[l].size(), other.expert_load[l].size()));
    for (size_t e = 0; e < other.expert_load[l].size(); ++e) expert_load[l][e] += other.expert_load[l][e];
  }
  return *this;
}

std::optional<TextScore> score_text(Stream& s, Arena& arena, const Transformer& model,
                                    std::span<const TokenSpan> windows, int64_t together, Drafts drafts,
                                    const std::atomic<bool>& stop) {
  const int64_t depths = drafts == Drafts::yes ? int64_t(model.mtp().size()) : 0;
  for (const TokenSpan& w : windows) CHECK(w.size() >= 2 && int64_t(w.size()) <= model.positions() + 1);
  TextScore total;
  for (size_t first = 0; first < windows.size();) {
    if (stop) return std::nullopt;
    const auto enough = [&](size_t i) { return int64_t(windows[i].size()) >= depths + 2; };
    size_t end = first + 1;  // neighbours that all have the depths, or all do not
    while (end < windows.size() && end - first < size_t(together) && enough(end) == enough(first)) ++end;
    total += score_batch(s, arena, model, windows.subspan(first, end - first), enough(first) ? depths : 0);
    first = end;
  }
  return total;
}

}  // namespace cachalot
