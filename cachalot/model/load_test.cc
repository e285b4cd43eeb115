#include "model/load.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <vector>

#include "base/error.h"
#include "base/files.h"
#include "base/rng.h"
#include "model/checkpoint_testing.h"
#include "model/hf_checkpoint.h"
#include "model/safetensors.h"

namespace cachalot {
namespace {

// A copy of a golden model with other bytes at the second element of a tensor's third row.
void damage(const std::string& from, const std::string& to, const std::string& tensor,
            const std::string& bytes, int64_t columns) {
  std::filesystem::copy(from, to);
  const std::string path = to + "/model.safetensors";
  std::string file = read_file(path);
  const SafetensorsFile parsed = SafetensorsFile::parse(file, path);
  const StoredTensor* t = parsed.find(tensor);
  ASSERT_NE(t, nullptr) << tensor;
  const size_t at = size_t(reinterpret_cast<const char*>(t->data) - file.data());
  file.replace(at + size_t(2 * columns + 1) * bytes.size(), bytes.size(), bytes);
  write_file_atomic(path, file);
}

std::string load_error(const std::string& directory, Precision precision) {
  const auto device = open_device("cpu");
  Stream s(*device);
  try {
    load_model(s, directory, precision, {});
  } catch (const Error& e) {
    return e.what();
  }
  return "no error";
}

TEST(LoadModel, AWeightThatIsNotFiniteIsNamedAndNotComputedWith) {
  TemporaryDirectory dir;
  const std::string up = "model.layers.0.mlp.up_proj.weight";  // the second half of ours; 64 columns
  damage(golden("nano/model"), dir / "nan", up, std::string("\xc0\x7f", 2), 64);
  damage(golden("nano/model"), dir / "inf", up, std::string("\x80\xff", 2), 64);
  damage(golden("nano/model_fp8"), dir / "fp8", up, "\xff", 64);
  for (const Precision precision : {Precision::f32, Precision::bf16, Precision::fp8})
    for (const char* name : {"nan", "inf", "fp8"})
      EXPECT_EQ(load_error(dir / name, precision), up + ": element [2, 1] is not finite") << name;
  EXPECT_EQ(load_error(golden("nano/model"), Precision::f32), "no error");
}

bool same_bytes(const void* a, const void* b, int64_t bytes) { return std::memcmp(a, b, size_t(bytes)) == 0; }

// A dense layer of two strips and a rest, whose last block of scales is cut, from every format into every
// recipe.
TEST(LoadModel, WhatIsReadInStripsHasTheBitsOfWhatIsReadWhole) {
  TemporaryDirectory dir;
  ModelConfig config = load_model_config(golden("nano/model"));
  config.intermediate_size = 33001;
  const auto device = open_device("cpu");
  Stream s(*device);
  for (const DType storage : {DType::f32, DType::bf16, DType::e4m3}) {
    const std::string path = dir / std::string(name_of(storage));
    std::filesystem::create_directory(path);
    write_model(
        path, config, {.storage = storage}, [](const Param& p, int64_t first_row, int64_t rows, float* out) {
          for (int64_t i = 0; i < rows * p.cols; ++i)
            out[i] = float(random_normal(p.name.size(), uint64_t(p.rows), uint64_t(first_row * p.cols + i)));
        });
    const HfCheckpoint whole(path, {});
    for (const Precision precision : {Precision::f32, Precision::bf16, Precision::fp8}) {
      const LoadedModel loaded = load_model(s, path, precision, {});
      const ParamSet apart(*device, loaded.config, Recipe::of(precision), {});
      for (size_t i = 0; i < whole.table().size(); ++i) {
        const Param& p = whole.table()[i];
        SCOPED_TRACE(fmt::format("{} from {} into {}", p.name, name_of(storage), name_of(precision)));
        const Tensor w = loaded.params->weight(i);
        std::vector<float> values(size_t(p.size()));
        whole.read_f32(p, values.data());
        if (w.dtype == DType::f32) {
          EXPECT_TRUE(same_bytes(w.data, values.data(), p.size() * 4));
        } else if (w.dtype == DType::bf16) {
          std::vector<bf16> rounded;
          for (const float x : values) rounded.push_back(bf16(x));
          EXPECT_TRUE(same_bytes(w.data, rounded.data(), p.size() * 2));
        } else if (!whole.is_fp8(p)) {
          upload_quantised(s, apart, i, values);
          EXPECT_TRUE(same_bytes(w.data, apart.weight(i).data, p.size()));
          EXPECT_TRUE(same_bytes(w.scales, apart.weight(i).scales, loaded.params->scales(i).size() * 4));
        } else {
          std::vector<uint8_t> codes(static_cast<size_t>(p.size()));
          std::vector<float> scales(size_t(loaded.params->scales(i).size()));
          float* scale = scales.data();
          for (const ParamView& v : p.views) {
            whole.read_rows_fp8(p, v, 0, v.rows, codes.data() + v.first_row * p.cols, scale);
            scale += fp8_blocks(v.rows) * fp8_blocks(p.cols);
          }
          EXPECT_TRUE(same_bytes(w.data, codes.data(), p.size()));
          EXPECT_TRUE(same_bytes(w.scales, scales.data(), int64_t(scales.size()) * 4));
        }
      }
    }
  }
}

}  // namespace
}  // namespace cachalot
