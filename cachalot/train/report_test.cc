#include "train/report.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>  // RunLog holds some
#include <tuple>

#include "base/files.h"
#include "train/testing.h"

namespace cachalot {
namespace {

using namespace ::cachalot::testing;  // NOLINT

constexpr const char* kLines =
    R"({"step":1,"tokens":64,"loss":5.5,"mtp_loss":[5.7],"lr":1e-4,"grad_norm":1.5,"max_vio":[0.5,0.7],"groups_per_token":[1.5,1.25],"experts_per_group":1.5,"data_seconds":0,"average_wait_seconds":0,"seconds":1,"tokens_per_second":64}
{"event":"expert_load","step":2,"layers":[3,4],"counts":[[1,2,3,2],[4,0,4,0]],"bias":[[0.1,-0.1,0,0],[0,0,0,0.2]]}
{"step":2,"tokens":128,"loss":5.0,"mtp_loss":[5.6],"lr":2e-4,"grad_norm":null,"max_vio":[0.4,0.6],"groups_per_token":[1.75,1.5],"experts_per_group":1.25,"data_seconds":0.01,"average_wait_seconds":0.02,"checkpoint_stall_seconds":0.125,"seconds":2,"tokens_per_second":64,"held_out":{"bits_per_byte":2.5,"loss":4.9,"mtp":[{"loss":5,"acceptance":0.6}],"sets":{"code <1>":{"bits_per_byte":2.2}},"expert_load":{"en":[[4,4,0,0],[2,2,2,2]],"code <1>":[[0,0,4,4],[2,2,2,2]]}}}
{"event":"expert_load","step":3,"layers":[3,4],"counts":[[2,2,2,2],[3,1,3,1]],"bias":[[0.2,-0.2,0,0],[0,0,0,0.3]]}
{"event":"loss_spike","step":3,"action":"skip"}
not json
{"step":3,"tokens":192,"loss":4.5,"mtp_loss":[5.5],"lr":3e-4,"grad_norm":1.25,"max_vio":[0.3,0.5],"seconds":3,"tokens_per_second":64,"held_out":{"bits_per_byte":2.4,"loss":4.8,"sets":{"code <1>":{"bits_per_byte":2.1}}}}
{"step":4,"tokens":256,"lo)";

RunLog example_log(const TemporaryFolder& folder) {
  write_file_atomic(folder / "metrics.jsonl", kLines);
  return read_run_log(folder / "metrics.jsonl");
}

TEST(RunLog, ReadsColumnsOfARunThatGoesOn) {
  const TemporaryFolder folder;
  const RunLog log = example_log(folder);
  EXPECT_EQ(log.step, (std::vector<double>{1, 2, 3}));
  EXPECT_EQ(log.column("loss").value, (std::vector<double>{5.5, 5.0, 4.5}));
  EXPECT_EQ(log.column("mtp_loss.0").value, (std::vector<double>{5.7, 5.6, 5.5}));
  EXPECT_EQ(log.column("grad_norm").step, (std::vector<double>{1, 3}));  // null leaves a gap
  EXPECT_EQ(log.column("held_out.bits_per_byte").step, (std::vector<double>{2, 3}));
  EXPECT_EQ(log.names("max_vio."), (std::vector<std::string>{"max_vio.0", "max_vio.1"}));
  EXPECT_EQ(log.last("held_out.loss"), 4.8);
  EXPECT_TRUE(std::isnan(log.last("nothing")));
  EXPECT_EQ(log.events.size(), 3u);
  EXPECT_EQ(log.expert_loads.size(), 1u);
  EXPECT_EQ(log.unreadable, 1);  // "not json"; the line that is being written is none
}

TEST(Report, ShowsEverySectionOfARun) {
  const TemporaryFolder folder;
  const std::string html = report_html({.title = "run <1>",
                                        .log = example_log(folder),
                                        .config_json = "{\"seed\": 1}",
                                        .machine_json = R"({"measured": "MFU of 5 GFLOP/s measured"})",
                                        .total_steps = 8,
                                        .now = 1.75e9,
                                        .written = 1.75e9,
                                        .samples = {{"Once", " upon & a time"}}});
  for (const char* part : {"run &lt;1&gt;",
                           "3 of 8",
                           "Learning rate",
                           "Norm of the gradient",
                           "MaxVio",
                           "Router biases",
                           "least and largest of each layer",
                           "Groups that a token reaches",
                           "Experts of a token in a group that it reaches",
                           "MFU of 5 GFLOP/s measured. ",
                           "waited 125 ms for 1 checkpoint, 4.2 % of the time; 125 ms at most",
                           "<b>5.2 %</b>",  // 0.155 s of 3
                           "<tr><td>all</td><td class=\"n\">2.4000</td><td class=\"n\">4.8000</td><td "
                           "class=\"n\">60.0 %</td></tr>",
                           "<tr><td>code &lt;1&gt;</td><td class=\"n\">2.1000</td>",
                           "Layer 3, step 2",
                           "code &lt;1&gt;",
                           "loss_spike",
                           "action skip",
                           " upon &amp; a time",
                           "1 lines of metrics.jsonl could not be read",
                           "; no process on this machine trains in it",
                           "&quot;seed&quot;: 1"})
    EXPECT_TRUE(contains(html, part));
  for (const char* part : {"<1>", "nan", "src=\"http", "href=\"http"})
    EXPECT_FALSE(contains(html, part)) << part;
}

// Each line is JSON, and none is what a run writes.
TEST(RunLog, LinesWithFieldsOfAWrongKindAreCountedAndLeftOut) {
  const TemporaryFolder folder;
  const char* const wrong[] = {R"({"step":2,"mtp_loss":{"a":1}})",
                               R"({"step":2,"max_vio":{"a":1}})",
                               R"({"step":2,"max_vio":[[1]]})",
                               R"({"step":2,"loss":{"0":1}})",
                               R"({"step":"2","loss":1})",
                               R"({"step":2.5,"loss":1})",
                               R"({"step":2,"held_out":[1]})",
                               R"({"step":2,"held_out":{"expert_load":[[[1]]]}})",
                               R"({"step":2,"held_out":{"expert_load":{"en":[1]}}})",
                               R"({"event":"expert_load","counts":[[1,2]]})",
                               R"({"event":"expert_load","step":"2","counts":[[1,2]]})",
                               R"({"event":"expert_load","step":2,"bias":3})",
                               R"({"event":"expert_load","step":2,"counts":[3]})",
                               R"({"event":"expert_load","step":2,"layers":{"a":1}})",
                               R"({"event":3,"step":2})",
                               R"([1])"};
  std::string lines = R"({"step":1,"loss":5,"max_vio":[0.5],"max_vio.x":1,"mtp_loss.y":2})"
                      "\n";
  for (const char* line : wrong) lines += std::string(line) + "\n";
  lines += R"({"step":3,"loss":4,"max_vio":[null],"max_vio.x":1,"mtp_loss.y":2})"
           "\n";
  write_file_atomic(folder / "metrics.jsonl", lines);
  const RunLog log = read_run_log(folder / "metrics.jsonl");
  EXPECT_EQ(log.step, (std::vector<double>{1, 3}));
  EXPECT_TRUE(log.events.empty());
  EXPECT_EQ(log.unreadable, int64_t(std::size(wrong)));
  const std::string html = report_html(
      {.title = "r", .log = log, .config_json = "", .machine_json = "", .total_steps = 3, .samples = {}});
  EXPECT_TRUE(contains(html, "</html>"));
}

TEST(Report, SaysWhetherTheRunGoesOn) {
  const TemporaryFolder folder;
  ReportInput in{.title = "r", .log = example_log(folder), .total_steps = 3, .goes_on = true};
  EXPECT_TRUE(contains(report_html(in), "; it goes on"));  // the last evaluation, say
  in.goes_on = false;
  EXPECT_TRUE(contains(report_html(in), "; finished"));
}

TEST(Report, EnergyIsInUnitsOfABill) {
  const TemporaryFolder folder;
  for (const auto& [joules, tile, unit] : {std::tuple{"7200", "2 Wh", "Wh so far"},
                                           {"9e6", "2.5 kWh", "kWh so far"},
                                           {"8.4e10", "23.33 MWh", "MWh so far"}}) {
    write_file_atomic(
        folder / "m.jsonl",
        fmt::format("{{\"step\":1,\"energy_joules\":1}}\n{{\"step\":2,\"energy_joules\":{}}}\n", joules));
    const std::string html = report_html({.title = "r", .log = read_run_log(folder / "m.jsonl")});
    EXPECT_TRUE(contains(html, std::string("<b>") + tile + "</b>"));
    EXPECT_TRUE(contains(html, unit));
  }
}

TEST(Report, ARunThatHasJustBegunHasAPageToo) {
  const std::string html =
      report_html({.title = "r", .log = {}, .config_json = "", .machine_json = "", .samples = {}});
  EXPECT_TRUE(contains(html, "<h1>r</h1>"));
  EXPECT_TRUE(contains(html, "</html>"));
}

}  // namespace
}  // namespace cachalot
