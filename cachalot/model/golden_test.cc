// The whole model against Hugging Face transformers: tests/golden/README.md says what the files hold and how
// they were made. `nano` and `nano-yarn` are in the repository; two larger ones live beside it, where
// ../shared exists.
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "backend/cuda/cuda.h"
#include "backend/testing.h"
#include "model/forward_results.h"
#include "model/load.h"
#include "model/safetensors.h"
#include "model/transformer.h"

namespace cachalot::testing {
namespace {

std::string source_root() {
  const char* root = std::getenv("CACHALOT_SOURCE");
  return root ? root : ".";
}

// The CPU, and a GPU where there is one.
std::vector<std::string> devices() {
  std::vector<std::string> names{"cpu"};
  const CudaStatus status = probe_cuda();
  if (!status.devices.empty() && status.devices[0].usable()) names.push_back("cuda");
  return names;
}

class Golden : public TestWithParam<const char*> {
 protected:
  void SetUp() override {
    directory_ = source_root() + "/tests/golden/" + GetParam();
    if (!std::filesystem::exists(directory_)) directory_ = source_root() + "/../shared/golden/" + GetParam();
    if (!std::filesystem::exists(directory_))
      GTEST_SKIP() << GetParam() << " is tested on machines that have ../shared/golden";
    reference_ =
        std::make_unique<SafetensorsFile>(SafetensorsFile::open(directory_ + "/reference.safetensors"));
    json_ = read_json_file(directory_ + "/reference.json");
    read_tokens(directory_ + "/reference.safetensors", request_);
  }

  ForwardResults run(const std::string& device, Precision precision, const std::string& model = "model") {
    auto d = open_device(device);
    return run_forward(*d, directory_ + "/" + model, precision, false, request_);
  }

  std::vector<double> expected(const std::string& name) const {
    const StoredTensor* t = reference_->find(name);
    CHECK(t && t->type == StoredType::f32, name);
    std::vector<float> values(size_t(t->size()));
    std::memcpy(values.data(), t->data, size_t(t->bytes()));
    return {values.begin(), values.end()};
  }
  static std::vector<double> wide(const NamedTensor& t) { return {t.values.begin(), t.values.end()}; }

  // Every f32 tensor of the reference whose name starts with `prefix`; how many there were.
  int expect_all(const ForwardResults& results, const std::string& prefix, double bound) const {
    int count = 0;
    for (const StoredTensor& t : reference_->tensors()) {
      if (t.type != StoredType::f32 || !t.name.starts_with(prefix)) continue;
      SCOPED_TRACE(t.name);
      EXPECT_METRIC(wide(results.at(t.name)), expected(t.name), bound);
      EXPECT_EQ(results.at(t.name).shape, t.shape);
      ++count;
    }
    return count;
  }
  void expect_routing(const ForwardResults& results) const {
    for (const StoredTensor& t : reference_->tensors())
      if (t.type == StoredType::i32 && t.name.starts_with("router.")) {
        std::vector<int32_t> indices(size_t(t.size()));
        std::memcpy(indices.data(), t.data, size_t(t.bytes()));
        EXPECT_EQ(results.at(t.name).indices, indices) << t.name;
      }
  }
  // The next runs follow the choices of `results`, all of which are counted.
  int64_t replay_routing(const ForwardResults& results) {
    int64_t choices = 0;
    for (const NamedTensor& t : results.tensors) {
      int layer = 0;
      if (t.dtype != DType::i32 || std::sscanf(t.name.c_str(), "router.%d.indices", &layer) != 1) continue;
      request_.routing[layer] = t.indices;
      choices += int64_t(t.indices.size());
    }
    return choices;
  }
  // Choices of `exact` that another run did not make.
  static int64_t flips(const ForwardResults& exact, const ForwardResults& other) {
    int64_t count = 0;
    for (const NamedTensor& t : exact.tensors) {
      if (t.dtype != DType::i32 || !t.name.starts_with("router.")) continue;
      const int64_t k = t.shape[1];
      for (int64_t row = 0; row < t.shape[0]; ++row) {
        const int32_t* a = t.indices.data() + row * k;
        const int32_t* b = other.at(t.name).indices.data() + row * k;
        for (int64_t j = 0; j < k; ++j) count += std::find(b, b + k, a[j]) == b + k;
      }
    }
    return count;
  }
  void expect_losses(const ForwardResults& results, double relative) const {
    EXPECT_NEAR(results.loss_main, json_["loss_main"].get<double>(), relative * results.loss_main);
    EXPECT_NEAR(results.loss_total, json_["loss_total"].get<double>(), relative * results.loss_total);
    ASSERT_EQ(results.loss_mtp.size(), json_["loss_mtp"].size());
    for (size_t k = 0; k < results.loss_mtp.size(); ++k)
      EXPECT_NEAR(results.loss_mtp[k], json_["loss_mtp"][k].get<double>(), relative * results.loss_mtp[k]);
  }

  std::string directory_;
  std::unique_ptr<SafetensorsFile> reference_;
  Json json_;
  ForwardRequest request_;
};

TEST_P(Golden, ForwardAndBackwardInF32) {
  request_.gradients = true;
  for (const std::string& device : devices()) {
    SCOPED_TRACE(device);
    const ForwardResults results = run(device, Precision::f32);
    expect_routing(results);
    EXPECT_EQ(expect_all(results, "logits", 1e-11), 1);
    EXPECT_GE(expect_all(results, "hidden.", 1e-11), 3);
    EXPECT_GE(expect_all(results, "router.", 1e-11), 1);
    EXPECT_GE(expect_all(results, "mtp.", 1e-11), 2);
    expect_losses(results, 1e-6);
    EXPECT_GE(expect_all(results, "grad.", 1e-10), 30);
  }
}

TEST_P(Golden, ForwardWithoutGradientsIsTheSameForward) {
  for (const std::string& device : devices()) {
    SCOPED_TRACE(device);
    request_.gradients = false;
    const ForwardResults plain = run(device, Precision::f32);
    request_.gradients = true;
    const ForwardResults both = run(device, Precision::f32);
    for (const NamedTensor& t : plain.tensors) EXPECT_EQ(t.values, both.at(t.name).values) << t.name;
    EXPECT_EQ(plain.loss_total, both.loss_total);
  }
}

TEST_P(Golden, Fp8CheckpointInF32Arithmetic) {
  for (const std::string& device : devices()) {
    SCOPED_TRACE(device);
    const ForwardResults results = run(device, Precision::f32, "model_fp8");
    EXPECT_METRIC(wide(results.at("logits")), expected("fp8.logits"), 1e-11);
  }
}

TEST_P(Golden, Bf16WithRoutingReplayed) {
  const ForwardResults exact = run("cpu", Precision::f32);
  const ForwardResults free = run("cpu", Precision::bf16);
  const int64_t choices = replay_routing(exact);
  fmt::print("  {}: free bf16 routing flips {} of {} choices; logits metric {:.2e}\n", GetParam(),
             flips(exact, free), choices, metric(wide(free.at("logits")), expected("logits")));
  request_.gradients = true;
  for (const std::string& device : devices()) {
    SCOPED_TRACE(device);
    const ForwardResults results = run(device, Precision::bf16);
    expect_routing(results);
    EXPECT_EQ(expect_all(results, "logits", 2e-4), 1);
    EXPECT_GE(expect_all(results, "hidden.", 2e-4), 3);
    EXPECT_GE(expect_all(results, "mtp.", 2e-4), 2);
  }
}

TEST_P(Golden, Fp8WithRoutingReplayed) {
  const ForwardResults exact = run("cpu", Precision::f32);
  const int64_t choices = replay_routing(exact);
  const auto routing = std::exchange(request_.routing, {});
  const ForwardResults free = run("cpu", Precision::fp8);
  fmt::print("  {}: free fp8 routing flips {} of {} choices; logits metric {:.2e}\n", GetParam(),
             flips(exact, free), choices, metric(wide(free.at("logits")), expected("logits")));
  request_.routing = routing;
  request_.gradients = true;
  const ForwardResults bf16 = run("cpu", Precision::bf16);
  for (const std::string& device : devices()) {
    SCOPED_TRACE(device);
    const ForwardResults results = run(device, Precision::fp8);
    expect_routing(results);
    EXPECT_EQ(expect_all(results, "logits", 3e-2), 1);
    EXPECT_GE(expect_all(results, "hidden.", 3e-2), 3);
    EXPECT_GE(expect_all(results, "mtp.", 3e-2), 2);
    std::vector<std::pair<double, std::string>> gradients;  // against those of bf16
    for (const NamedTensor& t : results.tensors)
      if (t.name.starts_with("grad.")) gradients.emplace_back(metric(wide(t), wide(bf16.at(t.name))), t.name);
    std::sort(gradients.begin(), gradients.end());
    fmt::print("  {} on {}: logits metric {:.2e}; gradients against bf16: median {:.2e}, worst {:.2e} ({})\n",
               GetParam(), device, metric(wide(results.at("logits")), expected("logits")),
               gradients[gradients.size() / 2].first, gradients.back().first, gradients.back().second);
    for (const auto& [m, name] : gradients) EXPECT_LE(m, 0.2) << name;  // random ones would be near 1
  }
}

TEST_P(Golden, Fp8CheckpointKeepsItsCodesInTheFp8Recipe) {
  auto device = open_device("cpu");
  Stream s(*device);
  const std::string directory = directory_ + "/model_fp8";
  const LoadedModel kept = load_model(s, directory, Precision::bf16, {}),
                    fp8 = load_model(s, directory, Precision::fp8, {.gradients = true});
  int linears = 0;
  for (size_t i = 0; i < kept.params->table().size(); ++i) {
    if (kept.params->weight(i).dtype != DType::e4m3) continue;
    ++linears;
    EXPECT_EQ(read_bits(s, fp8.params->weight(i)), read_bits(s, kept.params->weight(i)));
    EXPECT_EQ(read_bits(s, fp8.params->scales(i)), read_bits(s, kept.params->scales(i)));
  }
  EXPECT_GE(linears, 5);
  replay_routing(run("cpu", Precision::f32, "model_fp8"));
  for (const std::string& name : devices()) {
    SCOPED_TRACE(name);
    EXPECT_METRIC(wide(run(name, Precision::fp8, "model_fp8").at("logits")), expected("fp8.logits"), 3e-2);
  }
}

// Errors do not add up: every block starts from the reference's numbers.
TEST_P(Golden, Fp8BlocksFedTheReferencesHiddenState) {
  replay_routing(run("cpu", Precision::f32));
  for (const std::string& name : devices()) {
    SCOPED_TRACE(name);
    auto device = open_device(name);
    Stream s(*device);
    const LoadedModel loaded = load_model(s, directory_ + "/model", Precision::fp8, {});
    const ModelConfig& c = loaded.config;
    const Transformer model(s, c, *loaded.params, request_.length);
    Arena arena(*device, int64_t(256) << 20, "test");
    std::vector<std::span<const int32_t>> sequences;
    for (int64_t b = 0; b < request_.batch; ++b)
      sequences.emplace_back(request_.tokens.data() + b * (request_.length + 1), size_t(request_.length + 1));
    const TokenBatch batch = make_training_batch(s, arena, sequences, 0).main;
    double worst = 0;
    for (int64_t l = 0; l < c.num_hidden_layers; ++l) {
      Tensor x = arena.take(DType::bf16, batch.rows, c.hidden_size), replay;
      std::vector<bf16> numbers;
      for (const double v : expected(fmt::format("hidden.{}", l))) numbers.push_back(bf16(float(v)));
      on(s).upload(numbers.data(), x);
      if (const auto it = request_.routing.find(int(l)); it != request_.routing.end()) {
        replay = arena.take(DType::i32, batch.rows, c.num_experts_per_tok);
        on(s).upload(it->second.data(), replay);
      }
      Tensor y = model.blocks()[size_t(l)].forward(s, arena, batch, x, {.cache = {}, .replay = replay}).y;
      if (l + 1 == c.num_hidden_layers) {  // the reference shows what is behind the last norm
        Tensor normed = arena.take_like(y);
        const Tensor gain = loaded.params->weight("norm"), r = arena.take_vector(DType::f32, batch.rows);
        on(s).rmsnorm_forward({.x = y, .gain = gain, .y = normed, .r = r, .eps = c.rms_norm_eps});
        y = normed;
      }
      const std::vector<double> got = read(s, y), wanted = expected(fmt::format("hidden.{}", l + 1));
      EXPECT_METRIC(got, wanted, 1e-2);
      worst = std::max(worst, metric(got, wanted));
    }
    fmt::print("  {} on {}: worst block {:.2e}\n", GetParam(), name, worst);
  }
}

TEST_P(Golden, FakeDeviceHasTheSameBits) {
  request_.gradients = true;
  for (const Precision precision : {Precision::f32, Precision::fp8}) {
    const ForwardResults cpu = run("cpu", precision), fake = run("fake", precision);
    for (const NamedTensor& t : cpu.tensors) {
      EXPECT_EQ(t.values, fake.at(t.name).values) << t.name;
      EXPECT_EQ(t.indices, fake.at(t.name).indices) << t.name;
    }
  }
}

TEST_P(Golden, AnyNumberOfThreadsHasTheSameBits) {
  request_.gradients = true;
  const auto with = [&](int threads, Precision precision) {
    auto d = open_device("cpu", {.threads = threads});
    return run_forward(*d, directory_ + "/model", precision, false, request_);
  };
  for (const Precision precision : {Precision::f32, Precision::bf16, Precision::fp8}) {
    const ForwardResults one = with(1, precision), three = with(3, precision);
    for (const NamedTensor& t : one.tensors) EXPECT_EQ(t.values, three.at(t.name).values) << t.name;
  }
}

TEST_P(Golden, WithoutMtpTheTrunkIsTheSame) {
  const ForwardResults whole = run("cpu", Precision::f32);
  auto d = open_device("cpu");
  const ForwardResults trunk = run_forward(*d, directory_ + "/model", Precision::f32, true, request_);
  EXPECT_EQ(trunk.at("logits").values, whole.at("logits").values);
  EXPECT_TRUE(trunk.loss_mtp.empty());
}

INSTANTIATE_TEST_SUITE_P(, Golden, Values("nano", "nano-yarn", "tiny-unaligned", "tiny-v3-heads"),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

TEST(ForwardRequest, BadTokensAndRoutingAreRefused) {
  auto d = open_device("cpu");
  const std::string model = source_root() + "/tests/golden/nano/model";
  ForwardRequest r{.tokens = {1, 2, 3, 4, 5, 160}, .batch = 1, .length = 5, .routing = {}};
  const auto error = [&](const std::string& directory) -> std::string {
    try {
      run_forward(*d, directory, Precision::f32, false, r);
    } catch (const Error& e) {
      return e.what();
    }
    return "no error";
  };
  const std::string token = "token 160 at row 0, column 5: the vocabulary has 160";
  EXPECT_EQ(error(model), token);
  const std::string folder = ::testing::TempDir() + "no-weights-" + std::to_string(::getpid());
  std::filesystem::create_directory(folder);
  write_file_atomic(folder + "/config.json", read_file(model + "/config.json"));
  EXPECT_EQ(error(folder), token) << "before the weights are looked for";
  std::filesystem::remove_all(folder);
  r.tokens.back() = 6;
  EXPECT_EQ(error(model), "no error");
  r.routing[1] = {0, 1};
  EXPECT_EQ(error(model), "routing of layer 1 holds 2 choices, this run needs 5 x 3");
  r.routing = {{0, std::vector<int32_t>(15, 0)}};  // a dense layer
  EXPECT_EQ(error(model), "routing for layer 0, which has no experts");
  r.routing = {{1, {2, 1, 0, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2}}};
  EXPECT_EQ(error(model), "routing of layer 1, row 0: not 3 ascending experts below 8");
}

TEST(LoadModel, TellsHowMuchIsRead) {
  auto d = open_device("cpu");
  Stream s(*d);
  std::vector<int64_t> told;
  int64_t of = 0;
  const LoadedModel model = load_model(s, source_root() + "/tests/golden/nano/model", Precision::f32,
                                       {.progress = [&](int64_t read, int64_t all) {
                                         told.push_back(read);
                                         of = all;
                                       }});
  EXPECT_EQ(told.size(), model.params->table().size());
  EXPECT_TRUE(std::is_sorted(told.begin(), told.end()));
  int64_t all = 0;
  for (const Param& p : model.params->table()) all += p.size();
  EXPECT_EQ(of, all);
  EXPECT_EQ(told.back(), all);
}

}  // namespace
}  // namespace cachalot::testing
