#include "model/convert.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/disk_space.h"
#include "base/error.h"
#include "base/json.h"
#include "base/thread_pool.h"
#include "model/checkpoint_testing.h"
#include "model/hf_checkpoint.h"

namespace cachalot {
namespace {

namespace fs = std::filesystem;

std::string weights(const std::string& directory) { return read_file(directory + "/model.safetensors"); }

std::string message_of(const ConvertOptions& options) {
  try {
    convert_model(options);
  } catch (const Error& e) {
    EXPECT_NE(e.hint(), "") << e.what();
    return e.what();
  }
  return "no error";
}

TEST(Convert, Fp8ThroughFloat32IsByteIdentical) {
  for (const std::string& model : golden_models())
    for (const bool keep_original_scales : {true, false}) {
      TemporaryDirectory dir;
      convert_model({.from = model + "/model_fp8", .to = dir / "f32", .storage = DType::f32});
      EXPECT_FALSE(load_model_config(dir / "f32").fp8);
      if (!keep_original_scales) fs::remove(dir / "f32/" + kOriginalScales);
      convert_model({.from = dir / "f32", .to = dir / "fp8", .storage = DType::e4m3});
      EXPECT_EQ(weights(dir / "fp8"), weights(model + "/model_fp8")) << keep_original_scales;
      EXPECT_EQ(load_model_config(dir / "fp8"), load_model_config(model + "/model_fp8"));
      EXPECT_FALSE(fs::exists(dir / "fp8/" + kOriginalScales));
    }
}

TEST(Convert, PowerOfTwoScalesThroughFloat32AndBfloat16AreByteIdentical) {
  int halved = 0;  // blocks whose largest code is 224: only the kept scales tell them
  for (const std::string& model : golden_models()) {
    TemporaryDirectory dir;
    convert_model({.from = model + "/model",
                   .to = dir / "ue8m0",
                   .storage = DType::e4m3,
                   .scale_format = ScaleFormat::power_of_two});
    EXPECT_TRUE(load_model_config(dir / "ue8m0").fp8_power_of_two_scales);
    const CheckpointReader reader(dir / "ue8m0");
    for (const std::string& name : reader.names()) {
      const StoredTensor& t = *reader.find(name);
      if (!name.ends_with("_scale_inv")) continue;
      for (int64_t i = 0; i < t.size(); ++i) {
        float scale;
        std::memcpy(&scale, t.data + 4 * i, 4);
        int exponent;
        ASSERT_EQ(std::frexp(scale, &exponent), 0.5f) << name;
      }
    }
    for (const DType middle : {DType::f32, DType::bf16}) {
      TemporaryDirectory step;
      convert_model({.from = dir / "ue8m0", .to = step / "wide", .storage = middle});
      convert_model({.from = step / "wide", .to = step / "fp8", .storage = DType::e4m3});
      EXPECT_EQ(weights(step / "fp8"), weights(dir / "ue8m0")) << model;
      EXPECT_EQ(load_model_config(step / "fp8"), load_model_config(dir / "ue8m0"));
      fs::remove(step / "wide/" + kOriginalScales);
      convert_model({.from = step / "wide",
                     .to = step / "without",
                     .storage = DType::e4m3,
                     .scale_format = ScaleFormat::power_of_two});
      halved += weights(step / "without") != weights(dir / "ue8m0");
    }
  }
  EXPECT_GT(halved, 0);  // the kept scales are needed
}

TEST(Convert, ThroughBfloat16CodesAreEqualAndScalesWithin2ToMinus8) {
  for (const std::string& model : golden_models()) {
    TemporaryDirectory dir;
    convert_model({.from = model + "/model_fp8", .to = dir / "bf16", .storage = DType::bf16});
    convert_model({.from = dir / "bf16", .to = dir / "exact", .storage = DType::e4m3});
    EXPECT_EQ(weights(dir / "exact"), weights(model + "/model_fp8"));  // with the kept scales
    fs::remove(dir / "bf16/" + kOriginalScales);
    convert_model({.from = dir / "bf16", .to = dir / "fp8", .storage = DType::e4m3});
    const CheckpointReader before(model + "/model_fp8"), after(dir / "fp8");
    ASSERT_EQ(before.names(), after.names());
    for (const std::string& name : before.names()) {
      const StoredTensor &a = *before.find(name), &b = *after.find(name);
      ASSERT_EQ(a.describe(), b.describe());
      if (!name.ends_with("_scale_inv")) {
        EXPECT_EQ(std::memcmp(a.data, b.data, size_t(a.bytes())), 0) << name;
        continue;
      }
      for (int64_t i = 0; i < a.size(); ++i) {
        float x, y;
        std::memcpy(&x, a.data + 4 * i, 4);
        std::memcpy(&y, b.data + 4 * i, 4);
        EXPECT_NEAR(x, y, x / 256) << name;
      }
    }
  }
}

TEST(Convert, Bfloat16ToFp8IsTheGoldenFp8ModelWithAnyNumberOfThreads) {
  ThreadPool pool(3);
  for (const std::string& model : golden_models()) {
    TemporaryDirectory dir;
    convert_model({.from = model + "/model", .to = dir / "fp8", .storage = DType::e4m3, .pool = &pool});
    EXPECT_EQ(weights(dir / "fp8"), weights(model + "/model_fp8"));
    convert_model({.from = model + "/model", .to = dir / "f32", .storage = DType::f32, .pool = &pool});
    convert_model({.from = dir / "f32", .to = dir / "bf16", .storage = DType::bf16, .pool = &pool});
    EXPECT_EQ(weights(dir / "bf16"), weights(model + "/model"));
    EXPECT_FALSE(fs::exists(dir / "f32/" + kOriginalScales));  // there were none
  }
}

TEST(Convert, AnotherScaleFormatRequantisesAndTheSameOneCopies) {
  TemporaryDirectory dir;
  const std::string model = golden("nano-yarn/model_fp8");
  convert_model({.from = model, .to = dir / "same", .storage = DType::e4m3});
  EXPECT_EQ(weights(dir / "same"), weights(model));
  convert_model({.from = model,
                 .to = dir / "ue8m0",
                 .storage = DType::e4m3,
                 .scale_format = ScaleFormat::power_of_two});
  EXPECT_NE(weights(dir / "ue8m0"), weights(model));
  EXPECT_EQ(read_json_file(dir / "ue8m0/config.json")["quantization_config"]["scale_fmt"], "ue8m0");
}

TEST(Convert, KeptScalesOfWeightsThatHaveChangedAreIgnored) {
  TemporaryDirectory dir;
  convert_model({.from = golden("nano/model_fp8"), .to = dir / "f32", .storage = DType::f32});
  // The scales of that model beside other weights of the same shapes.
  convert_model({.from = golden("nano/model"), .to = dir / "other", .storage = DType::f32});
  fs::copy(dir / "f32/" + kOriginalScales, dir / "other/" + kOriginalScales);
  std::string bytes = weights(dir / "other");
  for (size_t i = bytes.size() - 200'000; i < bytes.size(); i += 4) bytes[i + 1] = char(bytes[i + 1] ^ 0x41);
  write_file_atomic(dir / "other/model.safetensors", bytes);
  const auto to_fp8 = [&](const std::string& to) {  // the noise hit MTP's copies too
    convert_model({.from = dir / "other", .to = to, .storage = DType::e4m3, .drop_mtp = true});
  };
  to_fp8(dir / "a");
  fs::remove(dir / "other/" + kOriginalScales);
  to_fp8(dir / "b");
  EXPECT_EQ(weights(dir / "a"), weights(dir / "b"));
  // Of other shapes: an Error that says what to remove.
  convert_model({.from = golden("nano-yarn/model"), .to = dir / "yarn", .storage = DType::f32});
  fs::copy(dir / "f32/" + kOriginalScales, dir / "yarn/" + kOriginalScales);
  EXPECT_NE(message_of({.from = dir / "yarn", .to = dir / "c", .storage = DType::e4m3})
                .find("does not fit the weight"),
            std::string::npos);
  EXPECT_FALSE(fs::exists(dir / "c"));
}

TEST(Convert, ConfigKeepsTheSourcesKeysAndTextFilesAreCopied) {
  TemporaryDirectory dir;
  fs::copy(golden("nano/model_fp8"), dir / "in");
  Json config = read_json_file(dir / "in/config.json");
  config["my_note"] = "kept";
  config["dtype"] = config["torch_dtype"];
  config.erase("torch_dtype");
  write_file_atomic(dir / "in/config.json", config.dump());
  write_file_atomic(dir / "in/tokenizer.json", "{}");
  const ConvertSummary summary =
      convert_model({.from = dir / "in", .to = dir / "out", .storage = DType::f32, .drop_mtp = true});
  const Json out = read_json_file(dir / "out/config.json");
  EXPECT_EQ(out["my_note"], "kept");
  EXPECT_EQ(out["dtype"], "float32");
  EXPECT_FALSE(out.contains("torch_dtype"));
  EXPECT_FALSE(out.contains("quantization_config"));
  EXPECT_EQ(out["num_nextn_predict_layers"], 0);
  EXPECT_EQ(read_file(dir / "out/tokenizer.json"), "{}");
  EXPECT_EQ(read_file(dir / "out/generation_config.json"), read_file(dir / "in/generation_config.json"));
  for (const std::string& name : CheckpointReader(dir / "out").names())
    EXPECT_EQ(name.find("layers.3."), std::string::npos) << name;
  EXPECT_EQ(summary.files, 1);
  EXPECT_EQ(summary.tensors, int64_t(CheckpointReader(dir / "out").names().size()));
  EXPECT_EQ(summary.parameters, parameter_count(parameter_table(load_model_config(dir / "out"))));
}

TEST(Convert, ShardsAndProgressAddUp) {
  TemporaryDirectory dir;
  int64_t last = 0, total = 0;
  const ConvertSummary summary =
      convert_model({.from = golden("nano-yarn/model"),
                     .to = dir / "out",
                     .storage = DType::f32,
                     .max_shard_bytes = 1'000'000,
                     .progress = [&](int64_t bytes, int64_t all, const std::string&) {
                       EXPECT_GT(bytes, last);
                       last = bytes, total = all;
                     }});
  EXPECT_EQ(last, total);
  EXPECT_EQ(last, summary.bytes_written);
  EXPECT_GT(summary.files, 5);
  for (const auto& entry : fs::directory_iterator(dir / "out"))
    EXPECT_LT(entry.file_size(), 1'100'000u) << entry.path();
  convert_model({.from = dir / "out", .to = dir / "back", .storage = DType::bf16});
  EXPECT_EQ(weights(dir / "back"), weights(golden("nano-yarn/model")));
}

TEST(Convert, TheTargetIsNeverReplacedByAccident) {
  TemporaryDirectory dir;
  fs::copy(golden("nano/model"), dir / "in");
  EXPECT_NE(message_of({.from = dir / "in", .to = dir / "in/.", .overwrite = true})
                .find("is the source and the target"),
            std::string::npos);
  EXPECT_NE(
      message_of({.from = dir / "in", .to = dir.path(), .overwrite = true}).find("lies inside the target"),
      std::string::npos);
  fs::create_directory(dir / "out");
  EXPECT_EQ(message_of({.from = dir / "in", .to = dir / "out"}), "no error");  // empty
  EXPECT_EQ(message_of({.from = dir / "in", .to = dir / "out"}), dir / "out is not empty");
  EXPECT_EQ(message_of({.from = dir / "in", .to = dir / "out/", .storage = DType::f32, .overwrite = true}),
            "no error");
  EXPECT_EQ(read_json_file(dir / "out/config.json")["torch_dtype"], "float32");
  fs::create_directory(dir / "home");
  write_file_atomic(dir / "home/letter.txt", "dear");
  EXPECT_EQ(message_of({.from = dir / "in", .to = dir / "home", .overwrite = true}),
            dir / "home is not empty and is no model directory");
  // A run has a config.json, too, and so has a checkpoint; without its model a checkpoint is lost.
  fs::create_directories(dir / "run/checkpoints/step-00000001/model");
  write_file_atomic(dir / "run/config.json", "{}");
  write_file_atomic(dir / "run/checkpoints/step-00000001/COMPLETE", "");
  write_file_atomic(dir / "run/checkpoints/step-00000001/config.json", "{}");
  fs::create_directory_symlink("checkpoints/step-00000001/model", dir / "run/model");
  EXPECT_EQ(message_of({.from = dir / "in", .to = dir / "run", .overwrite = true}),
            dir / "run is not empty and is no model directory");
  EXPECT_EQ(message_of({.from = dir / "in", .to = dir / "run/checkpoints/step-00000001", .overwrite = true}),
            dir / "run/checkpoints/step-00000001 is not empty and is no model directory");
  EXPECT_EQ(message_of({.from = dir / "in", .to = dir / "run/model", .overwrite = true}),
            dir / "run/model belongs to a checkpoint, which could not be resumed with another model");
  EXPECT_EQ(message_of({.from = dir / "in", .to = ""}), "the folder for the result has no name");
  write_file_atomic(dir / "file", "x");
  EXPECT_EQ(message_of({.from = dir / "in", .to = dir / "file", .overwrite = true}),
            dir / "file is no directory");
}

TEST(Convert, AFullDiskLeavesTheOldModel) {
  TemporaryDirectory dir;
  convert_model({.from = golden("nano/model"), .to = dir / "out"});
  const std::string before = weights(dir / "out");
  {
    const FileSizeLimit limit(200'000);
    EXPECT_THROW(
        convert_model(
            {.from = golden("nano/model"), .to = dir / "out", .storage = DType::f32, .overwrite = true}),
        Error);
  }
  EXPECT_EQ(weights(dir / "out"), before);
  EXPECT_EQ(std::distance(fs::directory_iterator(dir.path()), {}), 1);
}

// A source that is all hole: its weights in F32 are more than this disk holds.
TEST(Convert, WhatDoesNotFitOnTheDiskIsToldBeforeAnythingIsWritten) {
  TemporaryDirectory dir;
  fs::create_directory(dir / "in");
  Json config = read_json_file(golden("nano/model/config.json"));
  const int64_t free = free_disk(dir.path());
  int64_t width = config["hidden_size"].get<int64_t>();
  const auto vocabulary = [&] { return free / width / 4 + 1; };  // the embedding alone fills the disk
  while (vocabulary() > 1'000'000) width *= 2;
  if (width > 32768) GTEST_SKIP() << "this disk is too large to be filled by one model";
  config["hidden_size"] = width;
  config["vocab_size"] = vocabulary();
  write_file_atomic(dir / "in/config.json", config.dump());
  Json header = Json::object();
  int64_t at = 0;
  for (const Param& p : parameter_table(parse_model_config(config, "config.json")))
    for (const ParamView& v : p.views)
      for (const TensorSource& t : view_tensors(p, v, DType::bf16, {}, {})) {
        if (v.copy) continue;  // it would be compared with the original
        header[t.name] = {
            {"dtype", name_of(t.type)}, {"shape", t.shape}, {"data_offsets", {at, at + t.bytes()}}};
        at += t.bytes();
      }
  std::string text = header.dump();
  text.append((8 - text.size() % 8) % 8, ' ');
  std::string file(8, '\0');
  for (int i = 0; i < 8; ++i) file[size_t(i)] = char(text.size() >> 8 * i & 0xFF);
  const std::string path = dir / "in/model.safetensors";
  write_file_atomic(path, file + text);
  std::error_code code;
  fs::resize_file(path, file.size() + text.size() + size_t(at), code);
  if (code) GTEST_SKIP() << "no files with holes on this disk: " << code.message();

  const ConvertOptions options{.from = dir / "in", .to = dir / "out", .storage = DType::f32};
  const std::string message = message_of(options);
  EXPECT_TRUE(message.starts_with("the converted model needs ")) << message;
  EXPECT_NE(message.find(" in " + options.to + ", where "), std::string::npos) << message;
  EXPECT_TRUE(message.ends_with(" are free")) << message;
  EXPECT_EQ(std::distance(fs::directory_iterator(dir.path()), {}), 1) << "nothing but the source";
}

TEST(Convert, StoppedByItsProgressItLeavesNothing) {
  TemporaryDirectory dir;
  ConvertOptions options{.from = golden("nano/model"), .to = dir / "out"};
  options.progress = [](int64_t, int64_t, const std::string&) { throw Error("stopped").hint("-"); };
  EXPECT_EQ(message_of(options), "stopped");
  EXPECT_TRUE(fs::is_empty(dir.path()));
}

TEST(Convert, AValueThatIsNotFiniteIsNamedAndNothingIsWritten) {
  TemporaryDirectory dir;
  convert_model({.from = golden("nano/model"), .to = dir / "in", .storage = DType::f32});
  std::string bytes = weights(dir / "in");
  const StoredTensor t =
      *SafetensorsFile::open(dir / "in/model.safetensors").find("model.layers.0.self_attn.o_proj.weight");
  const SafetensorsFile file = SafetensorsFile::open(dir / "in/model.safetensors");
  const float bad = std::nanf("");
  const auto at = file.find(t.name)->data - file.tensors()[0].data;
  std::memcpy(bytes.data() +
                  (bytes.size() - size_t(file.tensors().back().data + file.tensors().back().bytes() -
                                         file.tensors()[0].data)) +
                  at,
              &bad, 4);
  write_file_atomic(dir / "in/model.safetensors", bytes);
  EXPECT_EQ(message_of({.from = dir / "in", .to = dir / "out", .storage = DType::e4m3}),
            "model.layers.0.self_attn.o_proj.weight: element [0, 0] of the matrix is nan");
  EXPECT_FALSE(fs::exists(dir / "out"));
  EXPECT_FALSE(fs::exists(dir / "out.tmp"));
}

}  // namespace
}  // namespace cachalot
