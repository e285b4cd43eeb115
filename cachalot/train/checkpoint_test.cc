#include "train/checkpoint.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "backend/fake/fake_device.h"
#include "model/hf_checkpoint.h"
#include "train/checkpoint_writer.h"
#include "train/fault_testing.h"
#include "train/resume.h"
#include "train/testing.h"

namespace cachalot {
namespace {

namespace fs = std::filesystem;
using namespace ::cachalot::testing;  // NOLINT

struct Training {
  Training(std::unique_ptr<Device> d, const std::string& precision)
      : train(tiny_training()),
        device(std::move(d)),
        s(*device),
        trainer(s, tiny_model(), with(precision), Trainer::plan(tiny_model(), with(precision)).arena),
        text(tiny_model(), train) {
    trainer.init();
  }
  TrainSection with(const std::string& precision) {
    train.precision = precision;
    return train;
  }
  double step(int64_t i) { return trainer.step(text.batch(i), 0.01).loss; }
  // Everything that a step reads: the state's tensors and the weights with their scales and transposes.
  std::string bits() {
    std::string bits = all_bits(s, trainer);
    for (const StateTensor& t : trainer.state()) bits += read_bits(s, t.tensor);
    for (size_t i = 0; i < trainer.params().table().size(); ++i) {
      const Tensor transposed = trainer.params().transposed(i);
      if (transposed) bits += read_bits(s, transposed) + read_bits(s, scales_of(transposed));
      if (trainer.params().weight(i).scales) bits += read_bits(s, trainer.params().scales(i));
    }
    return bits;
  }
  TrainSection train;
  std::unique_ptr<Device> device;
  Stream s;
  Trainer trainer;
  RandomText text;
};

// A run directory with one checkpoint after `steps` steps.
class CheckpointTest : public ::testing::Test {
 protected:
  CheckpointTest() : run_(folder_ / "run", RunDirectory::Open::fresh) {
    write_file_atomic(folder_ / "run/metrics.jsonl", "{\"step\":1}\n");
  }
  std::string save(Training& t, int64_t step) {
    CheckpointWriter writer(*t.device, t.trainer,
                            {.run = &run_,
                             .model = &model_,
                             .config = "{\"train\": {}}",
                             .storage = t.trainer.params().recipe().weight});
    writer.save(t.s, {.step = step, .updates = t.trainer.updates(), .data = "00"});
    const auto outcome = writer.finished(CheckpointWriter::Wait::yes);
    EXPECT_TRUE(outcome && outcome->error.empty()) << outcome->error;
    EXPECT_EQ(outcome->step, step);
    return outcome->path;
  }
  std::string trouble(const std::string& checkpoint) {
    return error_of([&] { Checkpoint opened(checkpoint); });
  }

  TemporaryFolder folder_;
  const ModelConfig model_ = tiny_model();
  RunDirectory run_;
};

TEST_F(CheckpointTest, WhatIsLoadedIsWhatWasSavedBitForBitAndTrainsOnAsIfNothingHadHappened) {
  for (const char* precision : {"f32", "bf16", "fp8"}) {
    SCOPED_TRACE(precision);
    Training a(open_device("cpu", {.threads = 2}), precision);
    for (int64_t i = 0; i < 3; ++i) a.step(i);
    const std::string path = save(a, 3), saved = a.bits();
    const double next = a.step(3);
    Training b(open_device("cpu", {.threads = 1}), precision);
    b.step(7);  // other numbers everywhere
    const Checkpoint checkpoint(path);
    checkpoint.load(b.s, b.trainer.state());
    b.trainer.adopt_state(checkpoint.state().updates);
    EXPECT_TRUE(b.bits() == saved);
    EXPECT_EQ(b.trainer.updates(), 3);
    EXPECT_EQ(b.step(3), next);
    EXPECT_TRUE(b.bits() == a.bits());
  }
}

// A queueing device forgets nothing that was not waited for: what is in the files is what was there at
// save().
TEST_F(CheckpointTest, TheSnapshotIsOfTheMomentOfSavingThoughStepsFollow) {
  Training a(open_fake_device({.threads = 1}), "bf16"), b(open_device("cpu", {.threads = 1}), "bf16");
  for (int64_t i = 0; i < 2; ++i) EXPECT_EQ(a.step(i), b.step(i));
  std::string path;
  {
    CheckpointWriter writer(*b.device, b.trainer,
                            {.run = &run_, .model = &model_, .config = "{}", .storage = DType::bf16});
    EXPECT_EQ(writer.snapshot().place(), Snapshot::Place::device);
    const std::string saved = b.bits();
    writer.save(b.s, {.step = 2, .updates = 2});
    for (int64_t i = 2; i < 6; ++i) b.step(i);  // while it is written
    path = writer.finished(CheckpointWriter::Wait::yes)->path;
    Training c(open_device("cpu", {.threads = 1}), "bf16");
    Checkpoint(path).load(c.s, c.trainer.state());
    c.trainer.adopt_state(2);
    EXPECT_TRUE(c.bits() == saved);
  }
  EXPECT_TRUE(read_file(save(a, 20) + "/optimizer/state-00001-of-00001.safetensors") ==
              read_file(path + "/optimizer/state-00001-of-00001.safetensors"));
  EXPECT_TRUE(read_file(run_.path() + "/model/model.safetensors") ==
              read_file(path + "/model/model.safetensors"));
}

TEST_F(CheckpointTest, TheModelIsTheMastersRoundedOnce) {
  Training a(open_device("cpu", {.threads = 1}), "bf16");
  a.step(0);
  const std::string path = save(a, 1);
  TemporaryFolder direct;
  save_model(a.s, a.trainer.params(), model_, [&](size_t i) { return a.trainer.optimizer().master(i); },
             direct.path(), {.storage = DType::bf16, .tokenizer_directory = ""});
  for (const char* name : {"model.safetensors", "config.json", "generation_config.json"})
    EXPECT_TRUE(read_file(path + "/model/" + name) == read_file(direct / name)) << name;
  const Json state = read_json_file(path + "/state.json");
  EXPECT_EQ(state["router_bias"].size(), 3u);
  EXPECT_EQ(state["files"].size(), 5u);  // config.json, two of model/, the weights, the optimizer's
}

TEST_F(CheckpointTest, AnyFlippedBitAndAnyMissingFileIsNamed) {
  Training a(open_device("cpu", {.threads = 1}), "f32");
  const std::string path = save(a, 1);
  EXPECT_EQ(trouble(path), "no error");
  for (const auto& entry : fs::recursive_directory_iterator(path)) {
    if (!entry.is_regular_file()) continue;
    const std::string file = entry.path().string(), whole = read_file(file);
    const bool small = entry.path().filename() == "COMPLETE";  // says what state.json should be
    for (const size_t at : {size_t{0}, whole.size() / 2, whole.size() - 1}) {
      std::string bytes = whole;
      bytes[at] = char(bytes[at] ^ 1);
      std::ofstream(file, std::ios::binary) << bytes;
      EXPECT_TRUE(contains(trouble(path), small ? "state.json" : entry.path().filename().string())) << at;
    }
    std::ofstream(file, std::ios::binary) << whole.substr(0, whole.size() - 1);
    EXPECT_NE(trouble(path), "no error") << file;
    fs::remove(file);
    EXPECT_NE(trouble(path), "no error") << file;
    std::ofstream(file, std::ios::binary) << whole;
  }
  EXPECT_EQ(trouble(path), "no error");
}

TEST_F(CheckpointTest, ADamagedCheckpointIsPutAsideAndTheOneBeforeItTaken) {
  Training a(open_device("cpu", {.threads = 1}), "f32");
  const std::string first = save(a, 1), second = save(a, 2);
  std::vector<std::string> told;
  const auto tell = [&](const std::string& line) { told.push_back(line); };
  EXPECT_EQ(newest_checkpoint(run_, tell)->directory(), second);
  EXPECT_TRUE(told.empty());
  fs::resize_file(second + "/optimizer/state-00001-of-00001.safetensors", 1000);
  EXPECT_EQ(newest_checkpoint(run_, tell)->directory(), first);
  ASSERT_EQ(told.size(), 1u);
  EXPECT_TRUE(contains(told[0], "state-00001-of-00001.safetensors has 1000 bytes; "));
  EXPECT_TRUE(contains(told[0], "it is now " + second + ".damaged"));
  EXPECT_EQ(fs::read_symlink(run_.path() + "/model"), "checkpoints/step-00000001/model");
  fs::remove(first + "/model/config.json");
  for (int start = 0; start < 2; ++start) {  // nothing was renamed: no start begins from scratch
    EXPECT_TRUE(contains(error_of([&] { newest_checkpoint(run_, tell); }), "no checkpoint of "));
    EXPECT_EQ(run_.checkpoints(), std::vector<std::string>{first});
  }
  EXPECT_EQ(told.size(), 1u);
  run_.put_aside(first, RunDirectory::Aside::damaged);
  EXPECT_TRUE(
      contains(error_of([&] { newest_checkpoint(run_, tell); }), "has no checkpoint but those put aside"));
  const RunDirectory empty(folder_ / "empty", RunDirectory::Open::fresh);
  EXPECT_FALSE(newest_checkpoint(empty, tell));
}

TEST_F(CheckpointTest, AStateThatIsCutMissingOrOfAnotherKindIsDamageAndTheCheckpointBeforeItIsTaken) {
  Training a(open_device("cpu", {.threads = 1}), "f32");
  const std::string first = save(a, 1);
  for (const char* bad : {"", "[1]", "{", "{\"step\": \"two\"}", "{\"format\": 7}", "missing"}) {
    SCOPED_TRACE(bad);
    const std::string second = save(a, 2);
    if (std::string(bad) == "missing") fs::remove(second + "/state.json");
    else write_file_atomic(second + "/state.json", bad);
    EXPECT_TRUE(contains(trouble(second), kDamagedCheckpoint));
    std::string told;
    EXPECT_EQ(newest_checkpoint(run_, [&](const std::string& line) { told += line; })->directory(), first);
    EXPECT_TRUE(contains(told, "it is now " + second + ".damaged"));
  }
}

// A checkpoint appears with its COMPLETE, so one without it is damaged: not one that never was.
TEST_F(CheckpointTest, ACheckpointWithoutItsMarkAFileInItsPlaceAndFoldersForFilesAreDamage) {
  Training a(open_device("cpu", {.threads = 1}), "f32");
  const std::string first = save(a, 1);
  for (const char* bad : {"no mark", "empty", "a file", "config.json", "state.json", "COMPLETE"}) {
    SCOPED_TRACE(bad);
    const std::string second = save(a, 2), name = bad;
    if (name == "no mark") {
      fs::remove(second + "/COMPLETE");
    } else if (name == "empty" || name == "a file") {
      fs::remove_all(second);
      if (name == "empty") fs::create_directory(second);
      else write_file_atomic(second, "");
    } else {
      fs::remove(second + "/" + name);
      fs::create_directory(second + "/" + name);
    }
    std::string told;
    EXPECT_EQ(newest_checkpoint(run_, [&](const std::string& line) { told += line; })->directory(), first);
    EXPECT_TRUE(contains(told, "it is now " + second + ".damaged"));
    fs::remove_all(second + ".damaged");
  }
  // With none left that has its mark, no start begins at step 0 and writes over the run.
  const auto nobody = [](const std::string&) {};
  fs::remove(first + "/COMPLETE");
  EXPECT_TRUE(contains(error_of([&] { newest_checkpoint(run_, nobody); }), "no checkpoint of "));
  EXPECT_TRUE(fs::exists(first));
  fs::remove_all(first);
  EXPECT_TRUE(
      contains(error_of([&] { newest_checkpoint(run_, nobody); }), "says that there was a checkpoint"));
}

TEST_F(CheckpointTest, WritingAndReadingTellThatTheyGoOn) {
  Training a(open_device("cpu", {.threads = 1}), "f32");
  std::atomic<int64_t> written{0}, read{0};
  std::string path;
  {
    CheckpointWriter writer(
        *a.device, a.trainer,
        {.run = &run_, .model = &model_, .config = "{}", .storage = DType::f32, .progress = [&] {
           ++written;
         }});
    writer.save(a.s, {.step = 1});
    path = writer.finished(CheckpointWriter::Wait::yes)->path;
  }
  const Checkpoint checkpoint(path, [&] { ++read; });
  EXPECT_GE(written, int64_t(a.trainer.state().size())) << "for every tensor";
  EXPECT_EQ(read, int64_t(checkpoint.state().files.size()));
}

TEST_F(CheckpointTest, AnEarlierVersionsCheckpointAndOneOfAnotherModelAreRefused) {
  Training a(open_device("cpu", {.threads = 1}), "f32"), b(open_device("cpu", {.threads = 1}), "bf16");
  const std::string path = save(a, 1);
  EXPECT_TRUE(contains(error_of([&] {
                         Checkpoint checkpoint(path);
                         std::vector<StateTensor> state = b.trainer.state();
                         state[0].tensor.cols -= 1, state[0].tensor.ld -= 1;
                         checkpoint.load(b.s, state);
                       }),
                       "this run has f32"));
  std::vector<StateTensor> more = a.trainer.state();
  more.push_back({.name = "ema.embed", .tensor = more[0].tensor});
  EXPECT_TRUE(contains(error_of([&] { Checkpoint(path).load(a.s, more); }), "has no tensor ema.embed"));
  more.resize(more.size() - 2);
  EXPECT_TRUE(contains(error_of([&] { Checkpoint(path).load(a.s, more); }), "which this run does not have"));
  fs::remove(path + "/state.json");
  fs::remove_all(path + "/optimizer");
  EXPECT_TRUE(contains(trouble(path), "holds a model but no state of the optimizer"));
  EXPECT_TRUE(contains(trouble(path), "--init-from " + path + "/model"));
}

TEST_F(CheckpointTest, AFullDiskFailsTheCheckpointNotTheWriter) {
  Training a(open_device("cpu", {.threads = 1}), "f32");
  CheckpointWriter writer(*a.device, a.trainer,
                          {.run = &run_, .model = &model_, .config = "{}", .storage = DType::f32});
  {
    const FileSizeLimit full(20000);
    writer.save(a.s, {.step = 1});
    const auto outcome = writer.finished(CheckpointWriter::Wait::yes);
    ASSERT_TRUE(outcome);
    EXPECT_TRUE(contains(outcome->error, "cannot write "));
    EXPECT_TRUE(run_.checkpoints().empty());
  }
  writer.save(a.s, {.step = 2});
  EXPECT_EQ(writer.finished(CheckpointWriter::Wait::yes)->error, "");
  EXPECT_EQ(run_.checkpoints().size(), 1u);
}

// A card that fails while the writer opens: an error like any other, since no thread runs yet.
TEST_F(CheckpointTest, AWriterThatCannotTakeItsFirstCopyIsAnError) {
  Faults faults;
  Training a(std::make_unique<FaultyDevice>(open_device("cpu", {.threads = 1}), faults), "f32");
  faults.before = [](const char*) { throw Error("the card is gone"); };
  EXPECT_TRUE(contains(error_of([&] {
                         CheckpointWriter writer(
                             *a.device, a.trainer,
                             {.run = &run_, .model = &model_, .config = "{}", .storage = DType::f32});
                       }),
                       "the card is gone"));
  faults.before = {};
}

TEST(Resume, FieldsThatDecideTheModelMustStayAndOthersMayChange) {
  const Json was{
      {"model", {{"hidden_size", 8}}}, {"train", {{"lr", 0.1}, {"steps", 10}}}, {"guard", {{"spike", 1}}}};
  Json now = was;
  EXPECT_TRUE(compare_configs(was, now, "run").empty());
  now["train"]["steps"] = 20;
  now["guard"]["spike"] = 2;
  EXPECT_EQ(compare_configs(was, now, "run"),
            (std::vector<std::string>{"guard.spike 1 -> 2", "train.steps 10 -> 20"}));
  Json more = was;  // text to score, where there was none
  for (Json* json : {&now, &more}) (*json)["data"]["validation"] = Json::object();
  more["data"]["validation"]["books"] = {"books.txt"};
  EXPECT_EQ(compare_configs(now, more, "run").size(), 3u);
  now.erase("data");
  now["model"]["hidden_size"] = 9;
  now["train"].erase("lr");
  const std::string text = error_of([&] { compare_configs(was, now, "run"); });
  EXPECT_TRUE(contains(text, "model.hidden_size 8 -> 9; train.lr 0.1 -> nothing | "));
  EXPECT_TRUE(contains(text, "train.save_every"));
}

TEST(Resume, OtherArithmeticOrAnotherProgramIsRefused) {
  const BitsIdentity was{.program = "1", .arithmetic = "avx2"};
  require_same_bits(was, was);
  EXPECT_TRUE(contains(error_of([&] { require_same_bits(was, {.program = "1", .arithmetic = "sse2"}); }),
                       "was computed by avx2; this is sse2"));
  EXPECT_TRUE(contains(error_of([&] { require_same_bits(was, {.program = "2", .arithmetic = "avx2"}); }),
                       "by another program (1; this is 2) | resume with the program that wrote it; "
                       "--allow-different-bits"));
  const auto device = open_device("cpu", {.threads = 1});
  EXPECT_EQ(BitsIdentity::of(*device), BitsIdentity::of(*device));
  EXPECT_EQ(BitsIdentity::of(*device).program.size(), 16u);
}

}  // namespace
}  // namespace cachalot
