#include "train/trainer.h"

#include <fmt/format.h>

#include <cmath>
#include <numeric>

#include "base/text.h"

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
             "activations of a micro-batch") {}

void Trainer::init() {
  initialize(*stream_, params_, model_.config(), uint64_t(train_.seed),
             [this](size_t i) { return optimizer_.master(i); });
  optimizer_.init(*stream_);
  updates_ = 0;
}

MemoryPlan Trainer::plan(const ModelConfig& model, const TrainSection& train) {
  const auto device = open_device("plan");
  Stream s(*device);
  Trainer trainer(s, model, train, kAllThatIsLeft);
  const std::vector<int32_t> tokens(size_t(train.seq_len + 1), 0);
  const std::vector<TokenSpan> sequences(size_t(train.micro_batch_sequences()), tokens);
  TrainSection one = train;
  one.batch = train.micro_batch_sequences();
  trainer.train_ = one;  // every micro-batch of a step takes the same
  trainer.step(sequences, train.lr);
  trainer.score(sequences, false);
  const int64_t table_bytes =
      2 * train.seq_len * (model.qk_rope_head_dim / 2) * size_of(trainer.params_.recipe().stat);
  return {.weights = trainer.params_.weight_bytes(),
          .gradients = trainer.params_.gradient_bytes(),
          .optimizer = trainer.optimizer_.bytes(),
          .tables = table_bytes + trainer.balance_.bytes(),
          .arena = trainer.arena_.high_water()};
}

StepMetrics Trainer::step(std::span<const TokenSpan> sequences, double lr) {
  Stream& s = *stream_;
  const int64_t depths = model_.config().num_nextn_predict_layers, micro = train_.micro_batch_sequences();
  CHECK(int64_t(sequences.size()) == train_.batch, fmt::format("{} sequences", sequences.size()));
  std::vector<int64_t> targets(size_t(depths) + 1, 0);  // of the step, by depth; 0: of the main model
  for (const TokenSpan& q : sequences) {
    CHECK(int64_t(q.size()) >= depths + 2 && int64_t(q.size()) <= train_.seq_len + 1);
    for (int64_t k = 0; k <= depths; ++k) targets[size_t(k)] += int64_t(q.size()) - 1 - k;
  }
  LossScales scales{
      .main = 1.0 / double(targets[0]), .mtp = {}, .balance = train_.balance_alpha / double(train_.batch)};
  for (int64_t k = 1; k <= depths; ++k)
    scales.mtp.push_back(train_.mtp_lambda / double(depths) / double(targets[size_t(k)]));

  std::vector<HostCopy> losses, balance;
  std::vector<std::vector<HostCopy>> mtp_losses{size_t(depths)};
  for (int64_t first = 0; first < train_.batch; first += micro) {
    const Accumulate mode = first == 0 ? Accumulate::overwrite : Accumulate::add;
    arena_
        .clear();  // the next micro-batch reuses the memory: the same stream, so after the one before is done
    const TrainingBatch batch =
        make_training_batch(s, arena_, sequences.subspan(size_t(first), size_t(micro)), depths);
    const TrainingPass pass =
        forward_backward(s, arena_, model_, batch, scales,
                         {.caches = {}, .replay = {}, .with_balance = train_.balance_alpha > 0}, mode);
    losses.emplace_back(s, pass.losses);
    for (int64_t k = 0; k < depths; ++k) mtp_losses[size_t(k)].emplace_back(s, pass.mtp_losses[size_t(k)]);
    for (const Tensor& b : pass.balance()) balance.emplace_back(s, b);
    balance_.collect(s, pass, mode);
  }
  optimizer_.step(s, lr, updates_ + 1);
  double norm_squared = 0;
  on(s).download(optimizer_.grad_norm_squared(), &norm_squared);
  balance_.download(s);
  on(s).synchronize();  // the step's only one

  StepMetrics m{.lr = lr,
                .loss = sum(losses) / double(targets[0]),
                .mtp_losses = {},
                .balance = sum(balance) / double(train_.batch),
                .grad_norm = std::sqrt(norm_squared),
                .updated = std::isfinite(norm_squared),
                .max_vio = balance_.max_violation(),
                .counts = balance_.counts()};
  for (int64_t k = 0; k < depths; ++k)
    m.mtp_losses.push_back(sum(mtp_losses[size_t(k)]) / double(targets[size_t(k) + 1]));
  if (m.updated) {  // a step that AdamW refused moves no bias either; queued before the next step's first
                    // operation
    balance_.update(s, train_.bias_gamma);
    ++updates_;
  }
  return m;
}

std::optional<double> Trainer::score(std::span<const TokenSpan> windows, const std::atomic<bool>& stop) {
  Stream& s = *stream_;
  const size_t micro = size_t(train_.micro_batch_sequences());
  double total = 0;
  for (size_t first = 0; first < windows.size(); first += micro) {
    if (stop) return std::nullopt;
    const auto some = windows.subspan(first, std::min(micro, windows.size() - first));
    for (const TokenSpan& w : some) CHECK(w.size() >= 2 && int64_t(w.size()) <= train_.seq_len + 1);
    arena_.clear();
    const TrainingBatch batch = make_training_batch(s, arena_, some, 0);
    const TrainingPass pass = forward_losses(s, arena_, model_, batch, {});
    const HostCopy losses(s, pass.losses);
    on(s).synchronize();
    total += losses.sum();
  }
  return total;
}

}  // namespace cachalot
