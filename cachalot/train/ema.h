// An exponential moving average of the weights, FP32, in memory of the host, for an early estimate of how the
// model would do after the learning rate's decay (V3 report, section 3.2.3):
//   average += (1 - d) (master - average),   d = min(decay, (1 + n) / (10 + n)) at update n
// so that the first steps do not hang on to the initial weights (Tan & Le, arXiv:1905.11946, as published).
//
// A thread reads the masters, some megabytes at a time, while the next forward and backward run; only the
// next update has to wait for it. The average of every step depends on the masters alone, not on when it was
// made.
#pragma once

#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include "train/optimizer.h"
#include "train/state_tensor.h"

namespace cachalot {

constexpr const char* kAveragePrefix = "average.";  // of its names among StateTensors

class Ema {
 public:
  // `params` and `optimizer` must outlive it. Error when the host has no memory for it: 4 bytes a parameter.
  Ema(Device& device, const ParamSet& params, const Optimizer& optimizer, double decay);
  ~Ema();
  Ema(const Ema&) = delete;

  void start(Stream& s);                   // the average is what the masters are; waits for `s`
  void follow(Stream& s, int64_t update);  // after update number 1, 2, ... of `s`; returns at once
  // Waits until nothing reads the masters and the average is complete. Throws, now and from then on, what the
  // thread's reading of the masters threw: the average is then lost.
  void settle() const;

  std::vector<StateTensor> state() const;  // settled; the router biases have no average
  Tensor average(size_t param) const { return averages_[param]; }  // on the host; absent: not trained
  int64_t bytes() const { return bytes_; }

  // Weights become the average's, and again what the optimizer made of them, to the same bits. Not for steps.
  void lend(Stream& s);
  void take_back(Stream& s);

 private:
  void work();
  void read_masters(float weight);

  const ParamSet* params_;
  const Optimizer* optimizer_;
  double decay_;
  int64_t bytes_ = 0;
  float* memory_ = nullptr;
  std::vector<Tensor> averages_;
  std::vector<std::vector<float>> kept_;  // lend(): weights that are their own masters
  Stream stream_;                         // the thread's

  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  EventPtr after_;
  float weight_ = 0;
  bool busy_ = false, closing_ = false;
  std::exception_ptr failure_;  // of the thread
  std::thread thread_;
};

}  // namespace cachalot
