// For tests of train/: a model of a few thousand parameters that has every part of the large one, and folders
// that go away with the test.
#pragma once

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

#include <filesystem>
#include <string>
#include <vector>

#include "backend/testing.h"
#include "base/files.h"
#include "base/rng.h"
#include "train/trainer.h"

namespace cachalot::testing {

// 1 dense layer, 2 with experts, 1 MTP depth with experts; no two dimensions equal.
inline ModelConfig tiny_model() {
  return {.vocab_size = 61,
          .hidden_size = 24,
          .intermediate_size = 40,
          .moe_intermediate_size = 12,
          .num_hidden_layers = 3,
          .first_k_dense_replace = 1,
          .num_nextn_predict_layers = 1,
          .num_attention_heads = 2,
          .q_lora_rank = 14,
          .kv_lora_rank = 10,
          .qk_nope_head_dim = 6,
          .qk_rope_head_dim = 4,
          .v_head_dim = 7,
          .n_routed_experts = 6,
          .n_shared_experts = 1,
          .num_experts_per_tok = 2,
          .n_group = 1,
          .topk_group = 1,
          .norm_topk_prob = true,
          .routed_scaling_factor = 1.5,
          .rms_norm_eps = 1e-6,
          .rope_theta = 10000,
          .yarn = std::nullopt,
          .max_position_embeddings = 64,
          .initializer_range = 0.1,
          .bos_token_id = 0,
          .eos_token_id = 1};
}

inline TrainSection tiny_training() {
  TrainSection t;
  t.steps = 10;
  t.seq_len = 9;
  t.batch = 4;
  t.lr = 0.01;
  t.min_lr = 0.001;
  t.warmup_steps = 0;
  t.bias_gamma = 0.01;
  return t;
}

// Sequences of seq_len + 1 random tokens; other ones for every step.
class RandomText {
 public:
  RandomText(const ModelConfig& model, const TrainSection& train) : model_(model), train_(train) {}
  std::vector<TokenSpan> batch(int64_t step) {
    const int64_t width = train_.seq_len + 1;
    tokens_.resize(size_t(train_.batch * width));
    for (size_t i = 0; i < tokens_.size(); ++i)
      tokens_[i] = int32_t(random_below(5, uint64_t(step), i, uint64_t(model_.vocab_size)));
    std::vector<TokenSpan> rows;
    for (int64_t r = 0; r < train_.batch; ++r)
      rows.push_back(TokenSpan(tokens_).subspan(size_t(r * width), size_t(width)));
    return rows;
  }

 private:
  ModelConfig model_;
  TrainSection train_;
  std::vector<int32_t> tokens_;
};

// All weights, router biases and masters, parameter after parameter.
inline std::string all_bits(Stream& s, const Trainer& trainer) {
  std::string bits;
  for (size_t i = 0; i < trainer.params().table().size(); ++i) {
    bits += read_bits(s, trainer.params().weight(i));
    bits += read_bits(s, trainer.optimizer().master(i));
  }
  return bits;
}

class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string name = std::filesystem::temp_directory_path().string() + "/cachalot-test-XXXXXX";
    CHECK(::mkdtemp(name.data()) != nullptr);
    path_ = name;
  }
  ~TemporaryFolder() {
    std::error_code code;
    std::filesystem::remove_all(path_, code);
  }
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// Files cannot grow beyond `bytes` while it lives: what a full disk or a quota does to a write.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) {
    old_handler_ = ::signal(SIGXFSZ, SIG_IGN);
    ::getrlimit(RLIMIT_FSIZE, &old_);
    const rlimit limit{bytes, old_.rlim_max};
    ::setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FileSizeLimit() {
    ::setrlimit(RLIMIT_FSIZE, &old_);
    ::signal(SIGXFSZ, old_handler_);
  }

 private:
  rlimit old_{};
  sighandler_t old_handler_;
};

inline AssertionResult contains(const std::string& text, const std::string& part) {
  if (text.find(part) != std::string::npos) return AssertionSuccess();
  return AssertionFailure() << "\"" << part << "\" is not in:\n" << text;
}

// What `body` throws as "message | hint", or "no error".
template <class Body>
std::string error_of(const Body& body) {
  try {
    body();
  } catch (const Error& e) {
    return std::string(e.what()) + " | " + e.hint();
  }
  return "no error";
}

}  // namespace cachalot::testing
