#include "infer/steps.h"

#include <algorithm>
#include <bit>
#include <optional>

namespace cachalot {

namespace {

// Tokens a piece of a context that is cut at fixed places: long, since few contexts are longer, and cutting
// more often costs more (hopper/latent_decode.h has the figures).
constexpr int64_t kInvariantPiece = 4096;

void append(std::vector<int32_t>& to, const std::vector<int32_t>& more) {
  to.insert(to.end(), more.begin(), more.end());
}

// The likeliest token needs no seed.
Sampling plain(Sampling s) { return s.temperature > 0 ? s : Sampling{}; }

bool equal(const Sampling& a, const Sampling& b) {
  return a.temperature == b.temperature && a.top_p == b.top_p && a.top_k == b.top_k && a.seed == b.seed;
}

// Products of one kind whatever the number of rows, until the end of a scope, however it ends.
struct FixedRows {
  FixedRows(Stream& s, bool fixed) : stream(s) { on(stream).fix_rows(fixed); }
  ~FixedRows() { on(stream).fix_rows(false); }
  Stream& stream;
};

}  // namespace

KvShape Steps::cache_shape(const ModelConfig& config, Recipe recipe, const EngineOptions& o) {
  const bool codes = o.cache == CacheFormat::fp8;
  return {
      .layers = config.num_hidden_layers + o.speculate,
      .pages = o.max_sequences * ((o.max_context + o.page_size - 1) / o.page_size),
      .page_size = o.page_size,
      .width = codes ? latent_bytes(config.kv_lora_rank, config.qk_rope_head_dim) : config.cached_per_token(),
      .dtype = codes ? DType::e4m3 : recipe.act};
}

Steps::Steps(Device& device, const ModelConfig& config, const ParamSet& params, const EngineOptions& options,
             int64_t positions, int64_t arena_bytes)
    : config_(config),
      recipe_(params.recipe()),
      options_(options),
      stream_(device),
      model_(stream_, config, params, positions),
      cache_(device, cache_shape(config, params.recipe(), options)),
      // After S accepted drafts depth k runs S + k positions; the trunk writes S + 1 at once.
      window_(2 * options.speculate),
      window_buffer_(
          device,
          options.speculate * options.max_sequences * window_ * config.hidden_size * size_of(recipe_.act),
          "speculation windows"),
      arena_(device, arena_bytes, "activations of inference") {
  const int64_t rows = options.max_sequences * window_,
                bytes = rows * config.hidden_size * size_of(recipe_.act);
  for (int64_t k = 0; k < options.speculate; ++k)
    windows_.push_back(make_tensor(static_cast<uint8_t*>(window_buffer_.data()) + k * bytes, recipe_.act,
                                   rows, config.hidden_size));
  // A step with drafts begins where the one before ended, which the host finds out.
  if (options.speculate == 0 && on(stream_).capture([] {})) beside_.emplace(device);
}

int64_t Steps::table_width() const {
  return (options_.max_context + options_.page_size - 1) / options_.page_size;
}

int64_t Steps::window_row(const Sequence& sequence, int64_t position) const {
  return sequence.window * window_ + position % window_;
}

std::vector<int32_t> Steps::window_rows(const Sequence& sequence, int64_t first, int64_t end) const {
  std::vector<int32_t> rows;
  for (int64_t i = first; i < end; ++i)
    rows.push_back(i < end - window_ ? -1 : int32_t(window_row(sequence, i)));
  return rows;
}

TokenBatch Steps::planned(TokenBatch batch) {
  if (batch.attend != Attend::absorb) return batch;
  batch.piece = options_.batch_invariant ? kInvariantPiece : 0;
  batch.latent_plan = arena_.take_vector(DType::i32, latent_plan_size(batch.sequences));
  on(stream_).latent_plan({.page_table = batch.page_table,
                           .kv_lens = batch.kv_lens,
                           .q_starts = batch.starts,
                           .plan = batch.latent_plan,
                           .cache = cache_.shape().dtype,
                           .rows = batch.rows,
                           .heads = config_.num_attention_heads,
                           .page_size = batch.page_size,
                           .sequences = batch.sequences,
                           .piece = batch.piece});
  return batch;
}

Tensor Steps::trunk(const TokenBatch& batch) {
  Tensor hidden = arena_.take(recipe_.act, batch.rows, config_.hidden_size);
  Arena::Scope scratch(arena_);
  model_.forward(stream_, arena_, planned(batch),
                 {.caches = cache_.layers(), .replay = {}, .keep_states = false, .hidden = hidden});
  return hidden;
}

Tensor Steps::mtp(int64_t depth, const TokenBatch& batch, Tensor previous) {
  Tensor hidden = arena_.take_like(previous);
  Arena::Scope scratch(arena_);
  const auto state = model_.forward_mtp(stream_, arena_, planned(batch), depth, previous,
                                        {.caches = cache_.layers(), .replay = {}, .keep_states = false});
  on(stream_).cast({.x = state.hidden, .y = hidden});
  return hidden;
}

void Steps::sample(const Sampling& sampling, Tensor logits, Tensor positions, Tensor tokens) {
  on(stream_).sample({.logits = logits,
                      .positions = positions,
                      .tokens = tokens,
                      .temperature = sampling.temperature,
                      .top_p = sampling.top_p,
                      .top_k = sampling.top_k,
                      .seed = sampling.seed});
}

std::vector<int32_t> Steps::wait_for(Stream& s, Tensor tokens) {
  std::vector<int32_t> host(size_t(tokens.size()));
  on(s).download(tokens, host.data());
  on(s).synchronize();
  return host;
}

int64_t Steps::prefill(Sequence& q, int64_t count) {
  const int64_t n = q.known(), first = q.cached[0], end = first + count;
  CHECK(count > 0 && end <= n && under_way_.empty());
  arena_.clear();
  IndexPack pack;

  // Depth k runs the positions of this piece whose token t_(i+k) the prompt still holds.
  struct Piece {
    CacheBatch batch;
    int64_t rows;
    size_t window;  // where its hidden states go
  };
  std::vector<Piece> pieces;
  for (int64_t k = 0; k <= options_.speculate; ++k) {
    const int64_t depth_end = std::min(end, n - k);
    if (depth_end <= first) break;
    CHECK(q.cached[size_t(k)] == first);
    const CacheRows rows{.first = first,
                         .tokens = {q.tokens.begin() + first + k, q.tokens.begin() + depth_end + k},
                         .pages = &q.pages};
    pieces.push_back({.batch = CacheBatch(pack, Attend::expand, {&rows, 1}),
                      .rows = depth_end - first,
                      .window = pack.add(window_rows(q, first, depth_end))});
    q.cached[size_t(k)] = depth_end;
  }
  const size_t drawn_position = pack.add({int32_t(n)});
  pack.upload(stream_, arena_);

  Tensor hidden = trunk(pieces[0].batch.view(pack));
  const Tensor last = hidden.slice_rows(count - 1, 1);
  for (size_t k = 0; k < windows_.size() && k < pieces.size(); ++k) {
    if (k > 0) hidden = mtp(int64_t(k), pieces[k].batch.view(pack), hidden.slice_rows(0, pieces[k].rows));
    on(stream_).scatter_rows({.x = hidden, .rows = pack.view(pieces[k].window), .y = windows_[k]});
  }
  // The deepest depth fills its cache; nobody needs its hidden states.
  if (const size_t s = windows_.size(); s > 0 && s < pieces.size())
    mtp(int64_t(s), pieces[s].batch.view(pack), hidden.slice_rows(0, pieces[s].rows));
  if (end < n) return kNoToken;

  Tensor logits = arena_.take(recipe_.stat, 1, config_.vocab_size), token = arena_.take_vector(DType::i32, 1);
  model_.head().logits(stream_, last, logits);
  sample(q.sampling, logits, pack.view(drawn_position), token);
  return wait_for(stream_, token)[0];
}

// What depth k runs: from the first position that does not stand on true tokens yet, up to n-2.
struct Steps::Depth {
  int64_t k = 0;
  std::vector<size_t> members;  // the sequences that draft so deep
  std::optional<CacheBatch> batch;
  size_t window = 0;                    // rows of the windows: h^(k-1) comes from there, h^k goes there
  size_t last_rows = 0, positions = 0;  // of each member: its last row, the position of its draft
};

Steps::Depth Steps::plan_depth(IndexPack& pack, int64_t k, std::span<Sequence* const> sequences) {
  Depth depth{.k = k};
  std::vector<CacheRows> rows;
  std::vector<int32_t> window, last_rows, positions;
  for (size_t i = 0; i < sequences.size(); ++i) {
    Sequence& q = *sequences[i];
    if (q.drafts < k) continue;
    const int64_t n = q.known(), first = q.cached[size_t(k)];
    CHECK(first < n - 1 && n - 1 - first <= window_);
    CacheRows r{.first = first,
                .tokens = {q.tokens.begin() + std::min(first + k, n), q.tokens.end()},
                .pages = &q.pages};
    r.tokens.resize(size_t(n - 1 - first), -1);  // the last k - 1 are drafts
    depth.members.push_back(i);
    append(window, window_rows(q, first, n - 1));
    last_rows.push_back(int32_t(window.size()) - 1);
    positions.push_back(int32_t(n - 1 + k));
    rows.push_back(std::move(r));
    q.cached[size_t(k)] = std::max<int64_t>(n - k, 0);
  }
  depth.batch.emplace(pack, Attend::absorb, rows, table_width());
  depth.window = pack.add(std::move(window));
  depth.last_rows = pack.add(std::move(last_rows));
  depth.positions = pack.add(std::move(positions));
  return depth;
}

void Steps::draft(const IndexPack& pack, const Depth& depth, std::span<Sequence* const> sequences,
                  std::span<const Tensor> drafts) {
  const int64_t k = depth.k, members = int64_t(depth.members.size());
  Arena::Scope scratch(arena_);
  const TokenBatch batch = depth.batch->view(pack);
  for (size_t m = 0; m < depth.members.size(); ++m) {  // its rows end with d_(k-c) ... d_(k-1)
    const int64_t end = depth.batch->first_row(m + 1), c = std::min(k - 1, end - depth.batch->first_row(m));
    if (c > 0)
      on(stream_).cast(
          {.x = drafts[depth.members[m]].slice_cols(k - 1 - c, c), .y = batch.tokens.slice_cols(end - c, c)});
  }
  const Tensor window = pack.view(depth.window);
  Tensor previous = arena_.take(recipe_.act, batch.rows, config_.hidden_size);
  on(stream_).gather_rows({.x = windows_[size_t(k) - 1], .rows = window, .y = previous});
  const Tensor hidden = mtp(k, batch, previous);
  if (size_t(k) < windows_.size())
    on(stream_).scatter_rows({.x = hidden, .rows = window, .y = windows_[size_t(k)]});

  Tensor last = arena_.take(recipe_.act, members, config_.hidden_size);
  on(stream_).gather_rows({.x = hidden, .rows = pack.view(depth.last_rows), .y = last});
  Tensor logits = arena_.take(recipe_.stat, members, config_.vocab_size);
  model_.head().logits(stream_, last, logits);
  for (int64_t m = 0; m < members; ++m) {
    const size_t i = depth.members[size_t(m)];
    sample(sequences[i]->sampling, logits.slice_rows(m, 1), pack.view(depth.positions).slice_cols(m, 1),
           drafts[i].slice_cols(k - 1, 1));
  }
}

void Steps::run_recorded(DecodeKey key, bool known, const std::function<void()>& work) {
  if (recorded_.size() >= kMostGraphs && !recorded_.contains(key)) recorded_.clear();
  Recorded& r = recorded_[std::move(key)];
  // The first time as it comes: libraries load their kernels then, which a recording could not.
  if ((r.met || known) && !r.graph) r.graph = on(stream_).capture(work);
  if (r.graph) on(stream_).replay(r.graph);
  else work();
  r.met = true;
}

void Steps::start(std::span<Sequence* const> sequences) {
  // Behind a step that is under way every sequence has one token more than the host knows.
  const bool ahead = !under_way_.empty();
  if (ahead) {
    CHECK(looks_ahead() && under_way_.size() == 1 && std::ranges::equal(under_way_[0].sequences, sequences));
    under_way_[0].drawn_at = on(stream_).record();
  } else if (beside_) {
    // A prompt that was given up may still work where uploads will arrive.
    on(*beside_).wait(on(stream_).record());
  }
  arena_.clear();
  IndexPack pack;
  int64_t depths = 0, drawn_size = 0;
  for (const Sequence* q : sequences) {
    CHECK(0 <= q->drafts && q->drafts <= options_.speculate && q->cached[0] == q->known() - 1);
    depths = std::max(depths, q->drafts);
    drawn_size += 2 * q->drafts + 1;
  }
  std::vector<Depth> plan;
  for (int64_t k = 1; k <= depths; ++k) plan.push_back(plan_depth(pack, k, sequences));

  // The trunk runs the newest token, at n-1, and the drafts behind it.
  std::vector<CacheRows> rows;
  std::vector<int32_t> window, positions;
  rows.reserve(sequences.size());
  for (const Sequence* q : sequences) {
    const int64_t n = q->known() + ahead;
    CacheRows& r = rows.emplace_back(CacheRows{.first = n - 1, .tokens = {}, .pages = &q->pages});
    r.tokens.assign(size_t(q->drafts) + 1, -1);
    if (!ahead) r.tokens[0] = q->tokens.back();
    if (!windows_.empty()) append(window, window_rows(*q, n - 1, n + q->drafts));
    for (int64_t i = 0; i <= q->drafts; ++i) positions.push_back(int32_t(n + i));
  }
  const CacheBatch verify(pack, Attend::absorb, rows, table_width());
  const size_t window_handle = pack.add(std::move(window)), positions_handle = pack.add(std::move(positions));

  // Every sequence's drafts d_1 ... d_s and behind them its s + 1 tokens, so that one download brings all. They and
  // the upload have two places by turns: while one step works, its drawn tokens are read by the next one and by the
  // host, and the next one's upload arrives.
  const Tensor places[2] = {arena_.take_vector(DType::i32, drawn_size),
                            arena_.take_vector(DType::i32, drawn_size)};
  const int64_t place = ahead ? 1 - under_way_[0].place : 0;
  const Tensor drawn = places[place];
  if (place == 1) arena_.take_vector(DType::i32, pack.size());
  pack.upload(ahead ? *beside_ : stream_, arena_);
  if (place == 0) arena_.take_vector(DType::i32, pack.size());
  if (ahead) {
    CHECK(under_way_[0].uploaded == pack.size());
    on(stream_).wait(on(*beside_).record());
  }
  std::vector<Tensor> drafts, tokens;
  drafts.reserve(sequences.size()), tokens.reserve(sequences.size());
  int64_t at = 0;
  for (const Sequence* q : sequences) {
    drafts.push_back(drawn.slice_cols(at, q->drafts));
    tokens.push_back(drawn.slice_cols(at + q->drafts, q->drafts + 1));
    at += 2 * q->drafts + 1;
  }
  // All that the work below depends on, besides what the upload brought.
  DecodeKey key{ahead, place};
  key.reserve(2 + 5 * sequences.size());
  for (const Sequence* q : sequences) {
    const Sampling sampling = plain(q->sampling);
    key.insert(key.end(), {q->drafts, std::bit_cast<int64_t>(sampling.temperature),
                           std::bit_cast<int64_t>(sampling.top_p), sampling.top_k,
                           std::bit_cast<int64_t>(sampling.seed)});
  }
  for (const Depth& depth : plan)
    for (size_t m = 0; m < depth.members.size(); ++m) key.push_back(depth.batch->first_row(m + 1));

  run_recorded(std::move(key), ahead, [&] {
    const FixedRows fixed(stream_, options_.batch_invariant);  // a prompt runs alone: it has no neighbours
    for (const Depth& depth : plan) draft(pack, depth, sequences, drafts);

    const TokenBatch batch = verify.view(pack);
    if (ahead) on(stream_).cast({.x = places[1 - place], .y = batch.tokens});
    for (size_t i = 0; i < sequences.size(); ++i)
      if (drafts[i].cols > 0)
        on(stream_).cast(
            {.x = drafts[i], .y = batch.tokens.slice_cols(verify.first_row(i) + 1, drafts[i].cols)});
    const Tensor hidden = trunk(batch);
    if (!windows_.empty())
      on(stream_).scatter_rows({.x = hidden, .rows = pack.view(window_handle), .y = windows_[0]});
    Tensor logits = arena_.take(recipe_.stat, batch.rows, config_.vocab_size);
    model_.head().logits(stream_, hidden, logits);
    // Neighbours without drafts lie side by side: those with the same settings draw together.
    for (size_t i = 0, end = 0; i < sequences.size(); i = end) {
      const Sampling sampling = plain(sequences[i]->sampling);
      for (end = i + 1; end < sequences.size() && sequences[end]->drafts == 0 &&
                        sequences[end - 1]->drafts == 0 && equal(plain(sequences[end]->sampling), sampling);)
        ++end;
      const int64_t row = verify.first_row(i), count = verify.first_row(end) - row;
      Tensor to = tokens[i];
      to.cols = to.ld = count;
      sample(sampling, logits.slice_rows(row, count), pack.view(positions_handle).slice_cols(row, count), to);
    }
  });

  UnderWay& step = under_way_.emplace_back(UnderWay{.sequences = {sequences.begin(), sequences.end()},
                                                    .drafts = {},
                                                    .drawn = drawn,
                                                    .place = place,
                                                    .uploaded = pack.size(),
                                                    .drawn_at = {}});
  for (const Sequence* q : sequences) step.drafts.push_back(q->drafts);
}

std::vector<Drawn> Steps::finish() {
  CHECK(!under_way_.empty());
  const UnderWay step = std::move(under_way_.front());
  under_way_.erase(under_way_.begin());
  std::vector<Drawn> result(step.drafts.size());
  for (size_t i = 0; i < result.size(); ++i) {
    result[i].drafts.resize(size_t(step.drafts[i]));
    result[i].tokens.resize(size_t(step.drafts[i]) + 1);
  }
  if (step.drawn_at) on(*beside_).wait(step.drawn_at);
  const std::vector<int32_t> host = wait_for(step.drawn_at ? *beside_ : stream_, step.drawn);
  auto next = host.begin();
  for (Drawn& d : result)
    for (std::vector<int32_t>* part : {&d.drafts, &d.tokens}) {
      std::copy_n(next, part->size(), part->begin());
      next += std::ptrdiff_t(part->size());
    }
  return result;
}

}  // namespace cachalot
