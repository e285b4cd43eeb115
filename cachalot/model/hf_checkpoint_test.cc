#include "model/hf_checkpoint.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/json.h"
#include "model/checkpoint_testing.h"
#include "tensor/tensor.h"

namespace cachalot {
namespace {

namespace fs = std::filesystem;

// A checkpoint in memory, to be spoilt and written.
struct Editable {
  Json config;
  std::map<std::string, std::pair<TensorSpec, std::string>> tensors;

  explicit Editable(const std::string& directory) : config(read_json_file(directory + "/config.json")) {
    const CheckpointReader reader(directory);
    for (const std::string& name : reader.names()) {
      const StoredTensor& t = *reader.find(name);
      tensors[name] = {t, std::string(reinterpret_cast<const char*>(t.data), size_t(t.bytes()))};
    }
  }
  void add(const std::string& name, StoredType type, std::vector<int64_t> shape) {
    TensorSpec spec{.name = name, .type = type, .shape = std::move(shape)};
    tensors[name] = {spec, std::string(size_t(spec.bytes()), '\0')};
  }
  void erase_if(const std::function<bool(const std::string&)>& condition) {
    std::erase_if(tensors, [&](const auto& item) { return condition(item.first); });
  }
  void write(const std::string& directory) const {
    fs::create_directories(directory);
    write_file_atomic(directory + "/config.json", config.dump(2));
    std::vector<TensorSource> out;
    for (const auto& [name, tensor] : tensors) {
      TensorSource t;
      static_cast<TensorSpec&>(t) = tensor.first;
      t.fill = [&bytes = tensor.second](const Append& append) { append(bytes); };
      out.push_back(t);
    }
    write_checkpoint(directory, std::move(out), kDefaultShardBytes);
  }
};

struct Message {
  std::string what, hint;
};
Message open_message(const Editable& checkpoint, const HfCheckpoint::Options& options = {}) {
  TemporaryDirectory dir;
  checkpoint.write(dir.path());
  try {
    HfCheckpoint open(dir.path(), options);
    for (const Param& p : open.table()) {
      std::vector<float> x(static_cast<size_t>(p.size()));
      open.read_f32(p, x.data());
    }
  } catch (const Error& e) {
    std::string what = e.what();
    for (size_t at; (at = what.find(dir.path())) != std::string::npos;)
      what.replace(at, dir.path().size(), "D");
    return {what, e.hint()};
  }
  return {"no error", ""};
}

const Param& find(const HfCheckpoint& checkpoint, std::string_view name) {
  for (const Param& p : checkpoint.table())
    if (p.name == name) return p;
  throw std::runtime_error("no parameter " + std::string(name));
}

TEST(HfCheckpoint, AllGoldenModelsOpenAndStackTheirParts) {
  for (const std::string& model : golden_models()) {
    const HfCheckpoint wide(model + "/model", {}), narrow(model + "/model_fp8", {});
    const Param& p =
        find(wide, "layers." + std::to_string(wide.config().first_k_dense_replace) + ".mlp.experts.gate_up");
    std::vector<float> all(static_cast<size_t>(p.size())), rows(static_cast<size_t>(p.part_rows * p.cols));
    wide.read_f32(p, all.data());
    ASSERT_EQ(int64_t(p.views.size()), 2 * wide.config().n_routed_experts);
    for (const size_t v :
         {size_t{0}, size_t{1}, p.views.size() - 1}) {  // gate and up of expert 0, up of the last
      const StoredTensor& t = *wide.find(p.views[v]);
      EXPECT_EQ(t.type, StoredType::bf16);
      for (int64_t i = 0; i < t.size(); ++i) {
        bf16 value;
        std::memcpy(&value, t.data + 2 * i, 2);
        ASSERT_EQ(all[size_t(p.views[v].first_row * p.cols + i)], float(value));
      }
    }
    // FP8: codes and scales laid out as Tensor::scale finds them, and the same values dequantised.
    ASSERT_TRUE(narrow.is_fp8(p));
    EXPECT_FALSE(narrow.is_fp8(find(narrow, "embed")));
    const int64_t parts = p.rows / p.part_rows, scale_ld = fp8_blocks(p.cols);
    std::vector<uint8_t> codes(all.size());
    std::vector<float> scales(size_t(parts * fp8_blocks(p.part_rows) * scale_ld));
    for (const ParamView& v : p.views)
      for_strips(v.rows, p.cols, 0, [&](int64_t row, int64_t rows) {
        const int64_t block = v.first_row / p.part_rows * fp8_blocks(p.part_rows) + row / 128;
        narrow.read_rows_fp8(p, v, row, rows, codes.data() + (v.first_row + row) * p.cols,
                             scales.data() + block * scale_ld);
      });
    const Tensor t{.data = codes.data(),
                   .dtype = DType::e4m3,
                   .rows = p.rows,
                   .cols = p.cols,
                   .ld = p.cols,
                   .scales = scales.data(),
                   .scale_ld = scale_ld,
                   .part_rows = p.part_rows};
    narrow.read_f32(p, all.data());
    const Matrix<e4m3> m = t.matrix<e4m3>();
    for (int64_t r = 0; r < p.rows; ++r)
      for (int64_t c = 0; c < p.cols; ++c)
        ASSERT_EQ(float(m(r, c)) * t.scale(r, c), all[size_t(r * p.cols + c)]);
  }
}

TEST(HfCheckpoint, RowsOfAViewAreTheRowsOfTheWhole) {
  const HfCheckpoint checkpoint(golden("nano-yarn/model_fp8"), {});
  const Param& p = find(checkpoint, "layers.0.mlp.gate_up");  // two parts of 256 rows
  std::vector<float> all(static_cast<size_t>(p.size())), some(size_t(100 * p.cols));
  checkpoint.read_f32(p, all.data());
  checkpoint.read_rows_f32(p, p.views[1], 128, 100, some.data());
  EXPECT_TRUE(std::equal(some.begin(), some.end(), all.begin() + (256 + 128) * p.cols));
}

TEST(HfCheckpoint, MissingUnexpectedAndWrongTensorsAreListedTogether) {
  Editable c(golden("nano/model"));
  c.tensors.erase("model.layers.0.mlp.gate_proj.weight");
  c.tensors.erase("lm_head.weight");
  c.add("model.layers.0.mlp.gate.weight", StoredType::bf16, {8, 64});
  c.add("model.norm.weight", StoredType::bf16, {1, 64});
  c.add("model.layers.1.input_layernorm.weight", StoredType::i32, {64});
  c.add("model.layers.2.input_layernorm.weight", StoredType::f16, {64});
  const Message m = open_message(c);
  EXPECT_EQ(m.what,
            "D: 2 tensors are missing: model.layers.0.mlp.gate_proj.weight, lm_head.weight; "
            "1 tensor is unexpected: model.layers.0.mlp.gate.weight; "
            "3 tensors are wrong: model.layers.1.input_layernorm.weight is I32, supported are BF16, F32 and "
            "F8_E4M3, "
            "model.layers.2.input_layernorm.weight is F16, supported are BF16, F32 and F8_E4M3, "
            "model.norm.weight is BF16 [1, 64], config.json says [64]");
  EXPECT_NE(m.hint, "");
}

TEST(HfCheckpoint, LongListsAreCutWithTheCount) {
  Editable c(golden("nano/model"));
  c.config["n_routed_experts"] = 16;
  const std::string what = open_message(c).what;
  EXPECT_NE(what.find("72 tensors are missing"), std::string::npos)
      << what;  // 8 experts, 3 matrices, 3 layers
  EXPECT_NE(what.find(", ..."), std::string::npos) << what;
  EXPECT_NE(what.find("config.json says [16, 64]"), std::string::npos) << what;
  EXPECT_LT(what.size(), 4000u);
}

TEST(HfCheckpoint, MtpLayersMustMatchTheConfigUnlessDropped) {
  const auto mtp = [](const std::string& name) { return name.starts_with("model.layers.3."); };
  Editable without(golden("nano/model"));
  without.erase_if(mtp);
  Message m = open_message(without);
  EXPECT_NE(m.what.find("missing: model.layers.3."), std::string::npos) << m.what;
  EXPECT_NE(m.hint.find("--drop-mtp"), std::string::npos);
  EXPECT_EQ(open_message(without, {.drop_mtp = true}).what, "no error");

  Editable unannounced(golden("nano/model"));
  unannounced.config["num_nextn_predict_layers"] = 0;
  m = open_message(unannounced);
  EXPECT_NE(m.what.find("unexpected: model.layers.3."), std::string::npos) << m.what;
  EXPECT_NE(m.hint.find("--drop-mtp"), std::string::npos);
  EXPECT_EQ(open_message(unannounced, {.drop_mtp = true}).what, "no error");
  without.config["num_nextn_predict_layers"] = 0;
  EXPECT_EQ(open_message(without).what, "no error");

  Editable fewer(golden("nano/model"));  // what is left out must be MTP, not the last layer of the model
  fewer.config["num_hidden_layers"] = 2;
  m = open_message(fewer, {.drop_mtp = true});
  EXPECT_NE(m.what.find("unexpected: model.layers.2."), std::string::npos) << m.what;
  EXPECT_EQ(m.what.find("model.layers.3."), std::string::npos) << m.what;
  EXPECT_NE(m.hint.find("num_hidden_layers 2"), std::string::npos) << m.hint;

  const HfCheckpoint dropped(golden("nano-yarn/model"), {.drop_mtp = true});
  EXPECT_EQ(dropped.config().num_nextn_predict_layers, 0);
  for (const Param& p : dropped.table()) EXPECT_LT(p.layer, 2);
}

TEST(HfCheckpoint, CopiesMayBeAbsentButNotDifferent) {
  Editable c(golden("nano-yarn/model"));
  c.tensors.erase("model.layers.2.embed_tokens.weight");
  c.tensors.erase("model.layers.3.shared_head.head.weight");
  c.add("model.layers.0.self_attn.rotary_emb.inv_freq", StoredType::f32, {16});
  EXPECT_EQ(open_message(c).what, "no error");
  c.tensors["model.layers.3.embed_tokens.weight"].second[2 * (5 * 128 + 7)] ^= 1;
  EXPECT_EQ(open_message(c).what,
            "D/model.safetensors: model.layers.3.embed_tokens.weight differs from model.embed_tokens.weight, "
            "first at [5, 7]");
}

TEST(HfCheckpoint, Fp8NeedsItsScalesItsConfigAndALinearLayer) {
  const std::string q = "model.layers.0.self_attn.q_a_proj.weight";
  const auto with = [&](const std::function<void(Editable&)>& change) {
    Editable c(golden("nano/model_fp8"));
    change(c);
    return open_message(c).what;
  };
  EXPECT_EQ(with([](Editable&) {}), "no error");
  EXPECT_EQ(with([&](Editable& c) { c.tensors.erase(q + "_scale_inv"); }),
            "D: 1 tensor is missing: " + q + "_scale_inv");
  EXPECT_EQ(with([&](Editable& c) { c.add(q + "_scale_inv", StoredType::f32, {2, 1}); }),
            "D: 1 tensor is wrong: " + q + "_scale_inv is F32 [2, 1], expected F32 [1, 1]");
  EXPECT_EQ(with([&](Editable& c) { c.add(q + "_scale_inv", StoredType::bf16, {1, 1}); }),
            "D: 1 tensor is wrong: " + q + "_scale_inv is BF16 [1, 1], expected F32 [1, 1]");
  EXPECT_EQ(with([&](Editable& c) { c.add(q, StoredType::bf16, {24, 64}); }),
            "D: 1 tensor is unexpected: " + q + "_scale_inv");
  EXPECT_EQ(with([](Editable& c) {
              c.add("lm_head.weight", StoredType::f8_e4m3, {160, 64});
              c.add("lm_head.weight_scale_inv", StoredType::f32, {2, 1});
            }),
            "D: 1 tensor is wrong: lm_head.weight is F8_E4M3, which only linear layers are");
  EXPECT_NE(with([](Editable& c) {
              c.config.erase("quantization_config");
            }).find("is F8_E4M3, but config.json has no quantization_config"),
            std::string::npos);
  for (const float bad : {-1.0f, std::nanf(""), INFINITY}) {
    const std::string what =
        with([&](Editable& c) { std::memcpy(c.tensors[q + "_scale_inv"].second.data(), &bad, 4); });
    EXPECT_EQ(what.find("D/model.safetensors: " + q + "_scale_inv[0, 0] is "), 0u) << what;
  }
}

// Writing with rows taken from a checkpoint gives that checkpoint's file, byte for byte: types, names,
// copies, scales.
TEST(HfCheckpoint, WriteModelReproducesTheGoldenFiles) {
  for (const std::string& model : golden_models()) {
    const HfCheckpoint source(model + "/model", {});
    const auto rows = [&](const Param& p, int64_t first, int64_t count, float* out) {
      std::vector<float> all(static_cast<size_t>(p.size()));
      source.read_f32(p, all.data());
      std::copy_n(all.begin() + first * p.cols, count * p.cols, out);
    };
    for (const bool fp8 : {false, true}) {
      TemporaryDirectory dir;
      write_model(dir.path(), source.config(), {.storage = fp8 ? DType::e4m3 : DType::bf16}, rows);
      EXPECT_EQ(read_file(dir / "model.safetensors"),
                read_file(model + (fp8 ? "/model_fp8" : "/model") + "/model.safetensors"));
      EXPECT_EQ(load_model_config(dir.path()), load_model_config(model + (fp8 ? "/model_fp8" : "/model")));
      EXPECT_EQ(read_json_file(dir / "generation_config.json")["eos_token_id"], 1);
      // Greedy is a choice of the reader's (transformers'), no wish of the model's: `generate` samples.
      EXPECT_FALSE(read_json_file(dir / "generation_config.json").contains("do_sample"));
    }
  }
}

TEST(HfCheckpoint, Float32IsWrittenAndReadUnrounded) {
  const HfCheckpoint shape(golden("nano/model"), {});
  const auto value = [](const Param& p, int64_t row, int64_t col) {
    return float(p.layer) + 1e-7f * float(row * p.cols + col);
  };
  TemporaryDirectory dir;
  write_model(dir.path(), shape.config(), {.storage = DType::f32, .max_shard_bytes = 100'000},
              [&](const Param& p, int64_t first, int64_t count, float* out) {
                for (int64_t i = 0; i < count * p.cols; ++i)
                  out[i] = value(p, first + i / p.cols, i % p.cols);
              });
  EXPECT_TRUE(fs::exists(dir / "model.safetensors.index.json"));
  EXPECT_EQ(read_json_file(dir / "config.json")["torch_dtype"], "float32");
  const HfCheckpoint back(dir.path(), {});
  for (const Param& p : back.table()) {
    std::vector<float> x(static_cast<size_t>(p.size()));
    back.read_f32(p, x.data());
    for (int64_t i = 0; i < p.size(); ++i)
      ASSERT_EQ(x[size_t(i)], value(p, i / p.cols, i % p.cols)) << p.name;
  }
}

TEST(HfCheckpoint, TextFilesAreCopiedAndTheRestIsNot) {
  TemporaryDirectory from, to;
  for (const char* name : {"tokenizer.json", "tokenizer_config.json", "generation_config.json",
                           "chat_template.jinja", "notes.txt", "model.safetensors", "config.json"})
    write_file_atomic(from / name, name);
  copy_tokenizer_files(from.path(), to.path());
  for (const char* name :
       {"tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"})
    EXPECT_EQ(read_file(to / name), name);
  EXPECT_EQ(std::distance(fs::directory_iterator(to.path()), {}), 4);
  EXPECT_THROW(copy_tokenizer_files(from / "none", to.path()), Error);
}

}  // namespace
}  // namespace cachalot
