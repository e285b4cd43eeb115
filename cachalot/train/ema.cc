#include "train/ema.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "backend/host_memory.h"
#include "base/error.h"
#include "base/text.h"
#include "train/activity.h"

namespace cachalot {

namespace {

constexpr int64_t kChunk = int64_t{1} << 18;  // numbers: 1 MiB stays in the cache between copy and use

}  // namespace

Ema::Ema(Device& device, const ParamSet& params, const Optimizer& optimizer, double decay)
    : params_(&params), optimizer_(&optimizer), decay_(decay), stream_(unfollowed(device)) {
  for (const Param& p : params.table())
    if (p.trained()) bytes_ += p.size() * int64_t(sizeof(float));
  memory_ = static_cast<float*>(take_host_memory(bytes_));
  if (!memory_)
    throw Error(fmt::format("the average of the weights needs {} of the host's memory; free: {}",
                            human_bytes(double(bytes_)), human_bytes(double(host_free_bytes()))))
        .hint("train without it: --train.ema_decay 0");
  float* at = memory_;
  for (size_t i = 0; i < params.table().size(); ++i) {
    const Param& p = params.table()[i];
    averages_.push_back(p.trained() ? make_tensor(at, DType::f32, p.rows, p.cols) : Tensor{});
    if (!p.trained()) continue;
    CHECK(optimizer.master(i).dtype == DType::f32, p.name);
    at += p.size();
  }
  thread_ = std::thread([this] { work(); });
}

Ema::~Ema() {
  {
    const std::lock_guard lock(mutex_);
    closing_ = true;
  }
  changed_.notify_all();
  thread_.join();
  give_host_memory(memory_);
}

void Ema::start(Stream& s) {
  settle();
  for (size_t i = 0; i < averages_.size(); ++i)
    if (averages_[i]) on(s).download(optimizer_->master(i), averages_[i].data);
  on(s).synchronize();
}

void Ema::follow(Stream& s, int64_t update) {
  settle();
  {
    const std::lock_guard lock(mutex_);
    after_ = on(s).record();
    const double warm = double(1 + update) / double(10 + update);
    weight_ = float(1 - std::min(decay_, warm));
    busy_ = true;
  }
  changed_.notify_all();
}

void Ema::settle() const {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return !busy_; });
  if (failure_) std::rethrow_exception(failure_);
}

void Ema::work() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return busy_ || closing_; });
    if (!busy_) return;
    const EventPtr after = std::exchange(after_, nullptr);
    const float weight = weight_;
    lock.unlock();
    std::exception_ptr failure;
    try {
      on(stream_).wait(after);
      read_masters(weight);
    } catch (...) {
      failure = std::current_exception();
    }
    lock.lock();
    failure_ = failure;
    busy_ = false;
    changed_.notify_all();
  }
}

void Ema::read_masters(float weight) {
  std::vector<float> chunk;
  for (size_t i = 0; i < averages_.size(); ++i) {
    if (!averages_[i]) continue;
    const Tensor master = optimizer_->master(i);
    const int64_t rows_at_once = std::max<int64_t>(1, kChunk / master.cols);
    for (int64_t row = 0; row < master.rows; row += rows_at_once) {
      const Tensor part = master.slice_rows(row, std::min(rows_at_once, master.rows - row));
      chunk.resize(size_t(part.size()));
      on(stream_).download(part, chunk.data());
      on(stream_).synchronize();
      float* average = static_cast<float*>(averages_[i].data) + row * master.cols;
      for (size_t k = 0; k < chunk.size(); ++k) average[k] += weight * (chunk[k] - average[k]);
    }
  }
}

std::vector<StateTensor> Ema::state() const {
  settle();
  std::vector<StateTensor> state;
  for (size_t i = 0; i < averages_.size(); ++i)
    if (averages_[i])
      state.push_back(
          {.name = kAveragePrefix + params_->table()[i].name, .tensor = averages_[i], .on_host = true});
  return state;
}

void Ema::lend(Stream& s) {
  settle();
  kept_.assign(averages_.size(), {});
  for (size_t i = 0; i < averages_.size(); ++i) {
    if (!averages_[i]) continue;
    const Tensor w = params_->weight(i);
    const auto* average = static_cast<const float*>(averages_[i].data);
    if (w.dtype == DType::e4m3) {
      upload_quantised(s, *params_, i, std::vector<float>(average, average + w.size()));
    } else if (w.dtype == DType::bf16) {
      const std::vector<bf16> rounded(average, average + w.size());
      on(s).upload(rounded.data(), w);
    } else {
      CHECK(w.dtype == DType::f32);
      kept_[i].resize(size_t(w.size()));
      on(s).download(w, kept_[i].data());
      on(s).synchronize();
      on(s).upload(average, w);
    }
  }
}

void Ema::take_back(Stream& s) {
  for (size_t i = 0; i < averages_.size(); ++i) {
    if (!averages_[i]) continue;
    const Tensor w = params_->weight(i);
    if (!kept_[i].empty()) on(s).upload(kept_[i].data(), w);
    else if (w.dtype == DType::e4m3) quantise_weight(s, *params_, i, optimizer_->master(i));
    else on(s).cast({.x = optimizer_->master(i), .y = w});
  }
  kept_.clear();
}

}  // namespace cachalot
