// The whole steps that `cachalot bench` measures, on random weights and random tokens: what a model costs
// does not depend on what it knows. (The router's choices do: random weights spread tokens over all experts.)
#pragma once

#include <cstdint>
#include <string>

#include "backend/profile/profile_device.h"
#include "config/model.h"
#include "infer/steps.h"
#include "train/config.h"

namespace cachalot::cli {

struct StepTime {
  double seconds = 0;  // of one step, median
  double least = 0;    // the fastest
  int64_t repeats = 0;
  int64_t tokens = 0;  // of one step
  int64_t memory = 0;  // that training takes on the device, all of it; else 0
  Profile profile;     // of one step, run once more with every operation timed alone
};

// An optimizer step of train.batch sequences of train.seq_len tokens, AdamW and balancing included.
StepTime bench_train(Device& device, const ModelConfig& model, const TrainSection& train, double seconds);

// One micro-batch of all sequences without an optimizer and its memory: the forward alone, or forward and
// backward with gradients overwritten. For single layers of large models.
enum class Pass : uint8_t { forward, forward_backward };
StepTime bench_pass(Device& device, const ModelConfig& model, const TrainSection& train, Pass pass,
                    double seconds);

// The last layer alone, as one of `ranks` expert-parallel ranks holds it: attention, router and shared expert
// whole, n_routed_experts / ranks experts, and for these as many rows, evenly, as this rank's own tokens send
// to the experts of all ranks. Nothing is sent: what a layer costs beside its communication.
enum class LayerPass : uint8_t {
  forward,
  overwriting,
  adding
};  // the last two: with a backward, by its gradients
StepTime bench_layer(Device& device, const ModelConfig& model, const TrainSection& train, int64_t ranks,
                     LayerPass pass, double seconds);

struct GenerateBench {
  int64_t context = 512;  // tokens of the prompt
  int64_t sequences = 1;
  int64_t speculate = 0;
  int64_t new_tokens = 32;
  std::string precision = "bf16", cache = "bf16";
  bool batch_invariant = false;
  Sampling sampling;
};
// A prompt of `context` tokens through the cache, one sequence.
StepTime bench_prefill(Device& device, const ModelConfig& model, const GenerateBench& bench, double seconds);
// A decoding step of all sequences behind prompts of `context` tokens. seconds is the mean step of the median
// run.
StepTime bench_decode(Device& device, const ModelConfig& model, const GenerateBench& bench, double seconds);

}  // namespace cachalot::cli
