#include "train/telemetry.h"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <sstream>

#include "train/testing.h"

namespace cachalot {
namespace {

using namespace ::cachalot::testing;  // NOLINT

StepMetrics example(double loss) {
  StepMetrics m;
  m.settings = {.lr = 1e-3, .balance_alpha = 1e-4};
  m.loss = loss;
  m.mtp_losses = {loss + 1};
  m.grad_norm = 0.5;
  m.updated = true;
  m.max_vio = {0.5, 1.5};
  m.counts = {{1, 2}, {1, 2}};
  return m;
}

TrainSection twenty_steps() {
  TrainSection train = tiny_training();
  train.steps = 20;
  train.log_every = 5;
  return train;
}

TEST(Telemetry, ALogGetsALineNowAndThenAndTheFileOneObjectAStep) {
  TemporaryFolder folder;
  std::ostringstream out;
  Telemetry telemetry(out, {}, folder / "m.jsonl", twenty_steps());
  for (int64_t i = 1; i <= 20; ++i) {
    telemetry.step_begins();
    telemetry.step_ends();
    telemetry.step(i, example(5 - 0.1 * double(i)),
                   i == 10 ? std::optional(HeldOut::Result{700, 100, 400}) : std::nullopt);
  }
  const std::string text = out.str();
  for (const char* part : {" 1/20   4.9000   5.9000    0.50  1.0e-03 ", " 5/20  ", "10/20  ", "20/20  ",
                           "  1.00  ", "step 10: held out 2.5247 bits per byte (loss 7.0000)"})
    EXPECT_TRUE(contains(text, part));
  EXPECT_EQ(text.find(" 6/20"), std::string::npos);
  std::istringstream file(read_file(folder / "m.jsonl"));
  int64_t n = 0;
  for (std::string line; std::getline(file, line);) EXPECT_EQ(parse_json(line, "line")["step"], ++n);
  EXPECT_EQ(n, 20);
  EXPECT_TRUE(contains(telemetry.curve(), "held out"));
}

// Every column of a long run fits; heads stand above the first row, above what follows another line, and above
// every twentieth row.
TEST(Telemetry, RowsOfALogStandUnderTheirHeadsWithin120Columns) {
  TemporaryFolder folder;
  std::ostringstream out;
  TrainSection train = tiny_training();
  train.steps = 999999;
  train.log_every = 1;
  Telemetry telemetry(out, {}, folder / "m.jsonl", train);
  const auto device = open_device("cpu");
  telemetry.use(Meters(tiny_model(), train, *device, "cpu"));
  StepMetrics m = example(11.25);
  m.grad_norm = 123456.5;
  m.groups_per_token = {2.5, 3.5};
  m.experts_per_group = 2.75;
  m.average_wait = 0.25;
  for (int64_t i = 1; i <= 45; ++i) {
    telemetry.step_begins();
    telemetry.data_came();
    telemetry.step_ends();
    telemetry.step(i, m, std::nullopt);
    if (i == 3) telemetry.note("a note");
  }
  std::istringstream text(out.str());
  std::vector<std::string> lines;
  for (std::string line; std::getline(text, line);) lines.push_back(line);
  std::vector<size_t> heads;
  for (size_t i = 0; i < lines.size(); ++i) {
    EXPECT_LE(lines[i].size(), 120u) << lines[i];
    if (lines[i].ends_with("left")) heads.push_back(i);
  }
  EXPECT_EQ(heads, (std::vector<size_t>{0, 5, 26, 47}));
  for (const char* head : {"step ", "loss ", "MTP ", "norm ", " lr ", "tokens ", "tok/s ", "MFU of ",
                           "MaxVio ", "experts/group ", "data "})
    EXPECT_TRUE(contains(lines[0], head));
  EXPECT_EQ(lines[0].size(), lines[1].size());
  EXPECT_NE(lines[1].back(), ' ') << "the time that is left";
  EXPECT_EQ(lines[0].find("experts/group") + 13, lines[1].find("2.75") + 4);  // right-aligned
  const std::string file = read_file(folder / "m.jsonl");
  const Json line = parse_json(file.substr(0, file.find('\n')), "line");
  EXPECT_EQ(line["groups_per_token"], (std::vector<double>{2.5, 3.5}));
  EXPECT_EQ(line["experts_per_group"], 2.75);
  EXPECT_EQ(line["average_wait_seconds"], 0.25);
}

TEST(Telemetry, ATerminalKeepsOneLineWithMessagesAboveIt) {
  TemporaryFolder folder;
  std::ostringstream out;
  ProgressStyle style{.terminal = true, .width = 160, .redraw_seconds = 0};
  Telemetry telemetry(out, style, folder / "m.jsonl", twenty_steps());
  telemetry.step(1, example(4), std::nullopt);
  StepMetrics bad = example(NAN);
  bad.updated = false;
  bad.grad_norm = NAN;
  telemetry.step(2, bad, std::nullopt);
  telemetry.finish();
  const std::string text = out.str();
  EXPECT_TRUE(contains(text, "\r"));
  EXPECT_TRUE(contains(text, "2/20"));
  std::istringstream file(read_file(folder / "m.jsonl"));
  std::string line;
  std::getline(file, line);
  std::getline(file, line);
  EXPECT_TRUE(parse_json(line, "line")["grad_norm"].is_null());
}

TEST(Telemetry, AFileThatCannotBeWrittenIsAnError) {
  TemporaryFolder folder;
  std::ostringstream out;
  EXPECT_TRUE(contains(error_of([&] { Telemetry(out, {}, folder / "none/m.jsonl", twenty_steps()); }),
                       "none/m.jsonl"));
}

TEST(Telemetry, AFullDiskIsToldOnceAndTheLinesAreKept) {
  std::ostringstream out;
  Telemetry full(out, {}, "/dev/full", twenty_steps());
  for (int64_t i = 1; i <= 3; ++i) full.step(i, example(4), std::nullopt);
  EXPECT_TRUE(contains(out.str(), "WARNING: cannot write /dev/full: No space left"));
  EXPECT_EQ(out.str().find("WARNING"), out.str().rfind("WARNING"));
  EXPECT_TRUE(contains(error_of([&] { full.require_written(); }), "No space left"));
}

TEST(Telemetry, AResumedRunContinuesItsFileItsCurveAndItsClock) {
  TemporaryFolder folder;
  std::ostringstream out;
  int64_t at_ten = 0;
  std::string whole;
  {
    Telemetry telemetry(out, {}, folder / "m.jsonl", twenty_steps());
    for (int64_t i = 1; i <= 20; ++i) {
      telemetry.step(i, example(5 - 0.1 * double(i)), std::nullopt);
      if (i == 10) at_ten = telemetry.metrics_bytes();
      if (i == 10) telemetry.scored(i, {700, 100, 400});  // after the checkpoint
    }
    telemetry.event({{"event", "example"}, {"step", 20}});
    whole = telemetry.curve();
  }
  Telemetry telemetry(out, {}, folder / "m.jsonl", twenty_steps(), at_ten);
  EXPECT_TRUE(telemetry.last_is_scored());
  EXPECT_GT(telemetry.seconds(), 0);
  for (int64_t i = 11; i <= 20; ++i) telemetry.step(i, example(5 - 0.1 * double(i)), std::nullopt);
  EXPECT_EQ(telemetry.curve(), whole);
  std::istringstream file(read_file(folder / "m.jsonl"));
  int64_t n = 0;
  for (std::string line; std::getline(file, line);) {
    const Json json = parse_json(line, "line");
    EXPECT_EQ(json["step"], ++n);
    EXPECT_EQ(json.contains("held_out"), n == 10);
  }
  EXPECT_EQ(n, 20);
}

// The steps that another process did took their time, too.
TEST(Telemetry, AResumedRunTellsTheTimeThatIsLeftOnATerminal) {
  TemporaryFolder folder;
  const std::string line = R"({"step":18,"tokens":648,"loss":5,"seconds":1800})"
                           "\n";
  write_file_atomic(folder / "m.jsonl", line);
  std::ostringstream out;
  const ProgressStyle style{.terminal = true, .width = 80, .redraw_seconds = 0};
  Telemetry telemetry(out, style, folder / "m.jsonl", twenty_steps(), int64_t(line.size()));
  EXPECT_EQ(telemetry.last_step(), 18);
  telemetry.step(19, example(4), std::nullopt);
  EXPECT_TRUE(contains(out.str(), "19/20, 1 m 35 s left, loss 4.000, "));  // 1800 / 19
  EXPECT_TRUE(contains(out.str(), ", mtp 5.000, norm 0.50"));  // numbers, where there is no room for a bar
}

TEST(Telemetry, ResumesBesideLinesWhoseFieldsAreOfAWrongKind) {
  TemporaryFolder folder;
  const std::string lines =
      R"({"step":1,"loss":5,"seconds":7}
{"step":2,"loss":4,"held_out":[1],"seconds":"x"}
{"step":"3","loss":4}
{"step":4,"loss":3,"held_out":{"loss":[]}}
)";
  write_file_atomic(folder / "m.jsonl", lines);
  std::ostringstream out;
  Telemetry telemetry(out, {}, folder / "m.jsonl", twenty_steps(), int64_t(lines.size()));
  EXPECT_GE(telemetry.seconds(), 7);
  EXPECT_TRUE(telemetry.last_is_scored());
  EXPECT_NE(telemetry.curve(), "");
  EXPECT_EQ(telemetry.metrics_bytes(), int64_t(lines.size()));
}

TEST(Telemetry, TensorBoardGetsTheScoreAndTheAcceptanceOfEverySet) {
  TemporaryFolder folder;
  std::ostringstream out;
  Telemetry telemetry(out, {}, folder / "m.jsonl", twenty_steps());
  telemetry.write_tensorboard(folder / "tb");
  telemetry.step(1, example(4), std::nullopt);
  HeldOut::Result score{.nats = 700, .tokens = 100, .bytes = 400};
  score.depths = {{.nats = 800, .targets = 90, .accepted = 60}};
  for (const char* name : {"en", "code"})
    score.sets.push_back({.name = name,
                          .score = {.nats = 350, .targets = 50, .depths = score.depths, .expert_load = {}},
                          .bytes = 200});
  telemetry.scored(1, score);
  std::string events;
  for (const auto& file : std::filesystem::directory_iterator(folder / "tb"))
    events += read_file(file.path().string());
  for (const char* tag : {"validation_metrics/bits_per_byte", "validation_metrics/mtp_1_acceptance",
                          "validation_metrics/en/bits_per_byte", "validation_metrics/code/mtp_1_acceptance"})
    EXPECT_TRUE(events.find(tag) != std::string::npos) << tag;
}

// Tags are torchtitan's where it has one; a layer has the number that it has in the model and on the page.
TEST(Telemetry, TensorBoardGetsEveryNumberOfAStepUnderItsTag) {
  TemporaryFolder folder;
  std::ostringstream out;
  TrainSection train = twenty_steps();
  train.price_per_hour = 2;
  Telemetry telemetry(out, {}, folder / "m.jsonl", train);
  const auto device = open_device("cpu");
  telemetry.use(Meters(tiny_model(), train, *device, "cpu"));
  telemetry.write_tensorboard(folder / "tb", {3, 7});
  StepMetrics m = example(4);
  m.groups_per_token = {2.5, 3.5};
  m.experts_per_group = 2.75;
  m.average_wait = 0.25;
  telemetry.step_begins();
  telemetry.data_came();
  telemetry.step_ends();
  telemetry.add_stall(0.5);
  telemetry.step(1, m, std::nullopt);
  std::string events;
  for (const auto& file : std::filesystem::directory_iterator(folder / "tb"))
    events += read_file(file.path().string());
  for (const char* tag : {"loss_metrics/global_avg_loss",
                          "loss_metrics/mtp_1_loss",
                          "loss_metrics/seq_load_balancing_loss",
                          "grad_norm",
                          "lr",
                          "batch_size",
                          "n_tokens_seen",
                          "throughput(tps)",
                          "tflops",
                          "mfu(%)",
                          "time_metrics/end_to_end(s)",
                          "time_metrics/data_loading(s)",
                          "time_metrics/data_loading(%)",
                          "time_metrics/checkpoint_stall(s)",
                          "time_metrics/average_wait(s)",
                          "time_metrics/since_start(s)",
                          "moe/max_vio/layer_3",
                          "moe/max_vio/layer_7",
                          "moe/groups_per_token/layer_3",
                          "moe/groups_per_token/layer_7",
                          "moe/experts_per_group",
                          "energy/cost"})
    EXPECT_TRUE(contains(events, tag)) << tag;
  EXPECT_FALSE(contains(events, "layer_0"));
}

// Events of a run that was killed before its first checkpoint are void, although metrics.jsonl keeps no step.
TEST(Telemetry, ARunThatBeginsAnewBesideEarlierEventsSaysSoToTensorBoard) {
  TemporaryFolder folder;
  const std::string start("\x3a\x02\x08\x01", 4);  // Event field 7: SessionLog, status START
  for (const bool again : {false, true}) {
    std::ostringstream out;
    Telemetry telemetry(out, {}, folder / "m.jsonl", twenty_steps());
    telemetry.write_tensorboard(folder / "tb");
    telemetry.step(1, example(4), std::nullopt);
    int starts = 0;
    for (const auto& file : std::filesystem::directory_iterator(folder / "tb"))
      starts += contains(read_file(file.path().string()), start);
    EXPECT_EQ(starts, again);
  }
}

}  // namespace
}  // namespace cachalot
