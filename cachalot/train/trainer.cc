#include "train/trainer.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <chrono>
#include <cmath>
#include <numeric>

#include "base/text.h"
#include "data/checksum.h"

namespace cachalot {

namespace {

constexpr int64_t kAllThatIsLeft = -1;  // an arena on the "plan" device

// A device tensor's copy in host memory, there after the next synchronize().
class HostCopy {
 public:
  HostCopy(Stream& s, const Tensor& t)
      : dtype_(t.dtype), bytes_(size_t(t.size() * size_of(t.dtype) / 8 + 1)) {
    on(s).download(t, bytes_.data());
    size_ = t.size();
  }
  double sum() const {  // from the first to the last
    double sum = 0;
    for (int64_t i = 0; i < size_; ++i)
      sum +=
          dtype_ == DType::f64 ? bytes_[size_t(i)] : double(reinterpret_cast<const float*>(bytes_.data())[i]);
    return sum;
  }

 private:
  DType dtype_;
  std::vector<double> bytes_;  // aligned for f32 and f64
  int64_t size_ = 0;
};

double sum(const std::vector<HostCopy>& copies) {
  double total = 0;
  for (const HostCopy& c : copies) total += c.sum();
  return total;
}

}  // namespace

void MemoryPlan::require_fit(const Device& device, const TrainSection& train) const {
  const int64_t free = device.free_bytes();
  if (total() <= free) return;
  const int64_t fixed = total() - arena;
  const Error error(fmt::format(
      "training needs {} ({} of it for the activations of a micro-batch); {} has {} free",
      human_bytes(double(total())), human_bytes(double(arena)), device.name(), human_bytes(double(free))));
  if (fixed > free)
    throw Error(error).hint(
        "use a smaller model (--model.num_hidden_layers, --model.n_routed_experts, "
        "--model.hidden_size) or a machine with more memory");
  if (train.micro_batch_sequences() >
      1) {  // activations grow with the micro-batch, so the largest that fits is known
    int64_t fits = train.micro_batch_sequences() * (free - fixed) / arena;
    while (fits > 1 && train.batch % fits != 0) --fits;
    throw Error(error).hint(fmt::format("--train.micro_batch {}", std::max<int64_t>(1, fits)));
  }
  throw Error(error).hint(fmt::format("lower --train.seq_len (now {})", train.seq_len));
}

Trainer::Trainer(Stream& s, const ModelConfig& model, const TrainSection& train, int64_t arena_bytes)
    : stream_(&s),
      train_(train),
      params_(s.device(), model, Recipe::of(parse_precision(train.precision)), {.gradients = true}),
      optimizer_(s.device(), params_,
                 {.beta1 = train.beta1,
                  .beta2 = train.beta2,
                  .eps = train.eps,
                  .weight_decay = train.weight_decay,
                  .max_norm = train.clip}),
      balance_(s.device(), model, params_),
      model_(s, model, params_, train.seq_len),
      arena_(s.device(), arena_bytes == kAllThatIsLeft ? s.device().free_bytes() - 1024 : arena_bytes,
             "activations of a micro-batch") {
  if (train.ema_decay > 0) ema_ = std::make_unique<Ema>(s.device(), params_, optimizer_, train.ema_decay);
}

void Trainer::init() {
  if (ema_) ema_->settle();  // its thread reads the masters
  initialize(*stream_, params_, model_.config(), uint64_t(train_.seed),
             [this](size_t i) { return optimizer_.master(i); });
  optimizer_.init(*stream_);
  if (ema_) ema_->start(*stream_);
  updates_ = 0;
}

std::vector<StateTensor> Trainer::state() const {
  std::vector<StateTensor> state;
  for (size_t i = 0; i < params_.table().size(); ++i) {
    const Param& p = params_.table()[i];
    if (!p.trained()) {
      state.push_back({.name = kRouterBiasPrefix + p.name, .tensor = params_.weight(i)});
      continue;
    }
    state.push_back({.name = kMasterPrefix + p.name, .tensor = optimizer_.master(i)});
    state.push_back({.name = "moment1." + p.name, .tensor = optimizer_.first_moment(i)});
    state.push_back({.name = "moment2." + p.name, .tensor = optimizer_.second_moment(i)});
  }
  if (ema_)
    for (StateTensor& t : ema_->state()) state.push_back(std::move(t));
  return state;
}

void Trainer::adopt_state(int64_t updates) {
  optimizer_.adopt_masters(*stream_);
  updates_ = updates;
}

MemoryPlan Trainer::plan(const ModelConfig& model, const TrainSection& train) {
  const auto device = open_device("plan");
  Stream s(*device);
  TrainSection on_device = train;  // the average of the weights is not on the device
  on_device.ema_decay = 0;
  Trainer trainer(s, model, on_device, kAllThatIsLeft);
  const std::vector<int32_t> tokens(size_t(train.seq_len + 1), 0);
  const std::vector<TokenSpan> sequences(size_t(train.micro_batch_sequences()), tokens);
  // Every micro-batch of a step takes the same.
  const bool balanced = train.balance_alpha > 0 || !train.schedule.balance_alpha.empty();
  trainer.step(sequences, {.lr = train.lr, .balance_alpha = balanced ? 1.0 : 0.0, .mtp_lambda = 1});
  trainer.score_text(sequences, Drafts::yes, false);
  const int64_t table_bytes =
      2 * train.seq_len * (model.qk_rope_head_dim / 2) * size_of(trainer.params_.recipe().stat);
  return {.weights = trainer.params_.weight_bytes(),
          .gradients = trainer.params_.gradient_bytes(),
          .optimizer = trainer.optimizer_.bytes(),
          .tables = table_bytes + trainer.balance_.bytes(),
          .arena = trainer.arena_.high_water()};
}

StepMetrics Trainer::step(std::span<const TokenSpan> sequences, double lr) {
  return step(sequences, {.lr = lr,
                          .bias_gamma = train_.bias_gamma,
                          .balance_alpha = train_.balance_alpha,
                          .mtp_lambda = train_.mtp_lambda});
}

namespace {

// Bits of a device tensor, in pieces; waits.
uint64_t checksum_of(Stream& s, const Tensor& t, uint64_t seed) {
  constexpr int64_t kPiece = int64_t{4} << 20;
  CHECK(t.rows == 1 || t.ld == t.cols, t.describe());
  const Tensor line = make_tensor(t.data, t.dtype, 1, t.size());
  const int64_t width = size_of(t.dtype);
  std::vector<char> bytes(size_t(std::min(line.cols, kPiece) * width));
  for (int64_t at = 0; at < line.cols; at += kPiece) {
    const int64_t n = std::min(kPiece, line.cols - at);
    on(s).download(line.slice_cols(at, n), bytes.data());
    on(s).synchronize();
    seed = checksum64({bytes.data(), size_t(n * width)}, seed);
  }
  return seed;
}

}  // namespace

// Which numbers of two fingerprints differ, the losses first.
std::string Trainer::describe_difference(const std::vector<uint64_t>& a,
                                         const std::vector<uint64_t>& b) const {
  std::vector<std::string> names;
  if (a[0] != b[0]) names.push_back("the losses");
  int64_t gradients = 0;
  for (size_t i = 0; i < params_.table().size(); ++i)
    if (a[i + 1] != b[i + 1] && ++gradients <= 3)
      names.push_back("the gradient of " + params_.table()[i].name);
  std::string text = fmt::format("{}", fmt::join(names, ", "));
  if (gradients > 3) text += fmt::format(" and {} more", gradients - 3);
  return text;
}

// Of the losses of all kinds, then of every gradient.
std::vector<uint64_t> Trainer::fingerprint(const TrainingPass& pass) {
  Stream& s = *stream_;
  uint64_t losses = checksum_of(s, pass.losses, 1);
  for (const Tensor& t : pass.mtp_losses) losses = checksum_of(s, t, losses);
  for (const Tensor& t : pass.balance()) losses = checksum_of(s, t, losses);
  std::vector<uint64_t> prints{losses};
  for (size_t i = 0; i < params_.table().size(); ++i)
    prints.push_back(params_.table()[i].trained() ? checksum_of(s, params_.gradient(i), 1) : 0);
  return prints;
}

StepMetrics Trainer::step(std::span<const TokenSpan> sequences, const StepSettings& settings,
                          const StepHooks& hooks) {
  Stream& s = *stream_;
  const int64_t depths = model_.config().num_nextn_predict_layers, micro = train_.micro_batch_sequences();
  const int64_t batch_size = int64_t(sequences.size());
  CHECK(batch_size > 0 && batch_size % micro == 0, fmt::format("{} sequences", batch_size));
  std::vector<int64_t> targets(size_t(depths) + 1, 0);  // of the step, by depth; 0: of the main model
  for (const TokenSpan& q : sequences) {
    CHECK(int64_t(q.size()) >= depths + 2 && int64_t(q.size()) <= train_.seq_len + 1);
    for (int64_t k = 0; k <= depths; ++k) targets[size_t(k)] += int64_t(q.size()) - 1 - k;
  }
  LossScales scales{
      .main = 1.0 / double(targets[0]), .mtp = {}, .balance = settings.balance_alpha / double(batch_size)};
  for (int64_t k = 1; k <= depths; ++k)
    scales.mtp.push_back(settings.mtp_lambda / double(depths) / double(targets[size_t(k)]));

  std::vector<HostCopy> losses, balance;
  std::vector<std::vector<HostCopy>> mtp_losses{size_t(depths)};
  std::optional<Recheck> recheck;
  const auto enter = [&](const char* phase, int64_t part = 0) {
    if (hooks.activity) hooks.activity->enter(phase, part);
  };
  for (int64_t first = 0; first < batch_size; first += micro) {
    const Accumulate mode = first == 0 ? Accumulate::overwrite : Accumulate::add;
    // The next micro-batch reuses the memory: the same stream, so after the one before is done.
    const auto compute = [&] {
      arena_.clear();
      const TrainingBatch batch =
          make_training_batch(s, arena_, sequences.subspan(size_t(first), size_t(micro)), depths);
      return forward_backward(s, arena_, model_, batch, scales,
                              {.caches = {},
                               .replay = {},
                               .with_balance = settings.balance_alpha > 0,
                               .recompute = train_.recompute == "v3"},
                              mode);
    };
    enter("forward and backward of micro-batch", first / micro + 1);
    TrainingPass pass = compute();
    if (hooks.recheck && first == 0) {
      enter("the same again, to compare");
      const std::vector<uint64_t> one = fingerprint(pass);
      pass = compute();
      const std::vector<uint64_t> two = fingerprint(pass);
      recheck.emplace();
      if (one != two) {
        recheck->differed = true;
        recheck->what = describe_difference(one, two);
        pass = compute();
        const std::vector<uint64_t> three = fingerprint(pass);
        recheck->settled = three == one || three == two;
      }
    }
    losses.emplace_back(s, pass.losses);
    for (int64_t k = 0; k < depths; ++k) mtp_losses[size_t(k)].emplace_back(s, pass.mtp_losses[size_t(k)]);
    for (const Tensor& b : pass.balance()) balance.emplace_back(s, b);
    balance_.collect(s, pass, mode);
  }
  enter("norm of the gradient");
  optimizer_.sum_gradients(s);
  double norm_squared = 0;
  on(s).download(optimizer_.grad_norm_squared(), &norm_squared);
  balance_.download(s);
  on(s).synchronize();  // the step's only one

  StepMetrics m{.settings = settings,
                .loss = sum(losses) / double(targets[0]),
                .mtp_losses = {},
                .balance = sum(balance) / double(batch_size),
                .grad_norm = std::sqrt(norm_squared),
                .updated = std::isfinite(norm_squared),
                .recheck = recheck,
                .max_vio = balance_.max_violation(),
                .groups_per_token = balance_.groups_per_token(),
                .experts_per_group = balance_.experts_per_group(),
                .counts = balance_.counts()};
  for (int64_t k = 0; k < depths; ++k)
    m.mtp_losses.push_back(sum(mtp_losses[size_t(k)]) / double(targets[size_t(k) + 1]));
  if (m.updated && hooks.accept) m.updated = hooks.accept(m.loss, m.grad_norm);
  if (m.updated) {  // queued before the next step's first operation; a step without it moves no bias either
    enter("update of the weights");
    if (ema_) {  // it reads the masters
      const auto begin = std::chrono::steady_clock::now();
      ema_->settle();
      m.average_wait = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    }
    optimizer_.update(s, settings.lr, updates_ + 1);
    balance_.update(s, settings.bias_gamma);
    ++updates_;
    if (ema_) ema_->follow(s, updates_);
  }
  return m;
}

std::optional<TextScore> Trainer::score_text(std::span<const TokenSpan> windows, Drafts drafts,
                                             const std::atomic<bool>& stop) {
  return cachalot::score_text(*stream_, arena_, model_, windows, train_.micro_batch_sequences(), drafts,
                              stop);
}

std::optional<double> Trainer::score(std::span<const TokenSpan> windows, const std::atomic<bool>& stop) {
  const auto score = score_text(windows, Drafts::no, stop);
  return score ? std::optional(score->nats) : std::nullopt;
}

}  // namespace cachalot
