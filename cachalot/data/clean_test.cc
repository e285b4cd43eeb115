#include "data/clean.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <set>

#include "base/error.h"
#include "base/files.h"
#include "base/rng.h"
#include "data/byte_source.h"
#include "data/clean_report.h"

namespace cachalot {
namespace {

namespace fs = std::filesystem;

std::string sentences(uint64_t seed, int count) {
  std::string text;
  for (int s = 0; s < count; ++s) {
    text += "The";
    for (int w = 0; w < 9; ++w) {
      text += w % 3 == 2 ? " and " : " ";
      for (uint64_t r = random_below(seed, uint64_t(s), uint64_t(w), 3000) + 30; r; r /= 20)
        text += "bcdfghklmnprstvwaeio"[r % 20];
    }
    text += s % 3 == 2 ? ".\n" : ". ";
  }
  return text;
}

class Clean : public testing::Test {
 protected:
  Clean() : folder_((fs::temp_directory_path() / ("clean_" + std::to_string(::getpid()))).string()) {
    fs::remove_all(folder_);
    fs::create_directories(folder_ + "/in");
    options_.unit_bytes = 64 << 10;
    options_.filters.gopher_quality.min_stop_words = 0;
  }
  ~Clean() override { fs::remove_all(folder_); }

  std::string out(const char* name = "out") const { return folder_ + "/" + name; }
  void file(const std::string& name, std::string_view bytes) {
    write_file_atomic(folder_ + "/in/" + name, bytes);
  }

  // 300 documents of all kinds; every tenth a copy of an earlier one, every tenth too short.
  void fill() {
    std::string a, b;
    for (uint64_t i = 0; i < 300; ++i) {
      const uint64_t like = i % 10 == 7 ? i - 6 : i;
      std::string text = sentences(like, 6 + int(like % 40));
      if (i % 10 == 3) text = "Too short.";
      if (i % 10 == 5) text += sentences(9999, 1);
      for (size_t at = 0; (at = text.find('\n', at)) != std::string::npos; at += 2)
        text.replace(at, 1, "\\n");
      (i < 150 ? a : b) += "{\"text\":\"" + text + "\",\"id\":\"" + std::to_string(i) + "\"}\n";
    }
    file("a.jsonl", a);
    file("b.jsonl", b);
  }

  CleanRequest request(const char* name = "out", int threads = 2) {
    CleanRequest r{.input = find_inputs({folder_ + "/in"}), .out = out(name), .threads = threads};
    return r;
  }
  CleanResult run(const CleanRequest& r) { return clean_documents(r, options_, {}); }

  // Every file of a folder by name, hidden ones too.
  static std::map<std::string, std::string> contents(const std::string& folder) {
    std::map<std::string, std::string> all;
    for (const auto& entry : fs::recursive_directory_iterator(folder))
      if (entry.is_regular_file())
        all[fs::relative(entry.path(), folder).string()] = read_file(entry.path().string());
    return all;
  }
  static std::set<std::string> ids(const std::string& folder) {
    std::set<std::string> names;
    DocumentReader reader(find_inputs({folder}), {});
    for (Document d; reader.next(d);) EXPECT_TRUE(names.insert(d.id).second) << d.id;
    return names;
  }

  std::string folder_;
  CleanOptions options_;
};

TEST_F(Clean, WhatIsKeptAndWhatWentAddUp) {
  fill();
  const CleanResult result = run(request());
  ASSERT_TRUE(result.finished);
  const Json& report = result.report;
  int64_t dropped = report.at("duplicates").at("documents").get<int64_t>();
  for (const auto& [rule, tally] : report.at("dropped").items())
    dropped += tally.at("documents").get<int64_t>();
  const int64_t kept = report.at("kept").at("documents").get<int64_t>();
  EXPECT_EQ(report.at("read").at("documents").get<int64_t>(), 300);
  EXPECT_EQ(kept + dropped, 300);
  EXPECT_EQ(int64_t(ids(out()).size()), kept);
  EXPECT_EQ(report.at("dropped").at("gopher_quality.min_words").at("documents").get<int64_t>(), 30);
  EXPECT_GE(report.at("duplicates").at("exact").get<int64_t>(), 0);
  EXPECT_GT(report.at("duplicates").at("documents").get<int64_t>(), 5);
  int64_t by_part = 0;
  for (const auto& [part, tally] : report.at("parts_kept").items())
    by_part += tally.at("documents").get<int64_t>();
  EXPECT_EQ(by_part, kept);
  EXPECT_FALSE(fs::exists(out() + "/.work"));
  EXPECT_EQ(read_json_file(out() + "/report.json"), report);
  EXPECT_TRUE(run(request()).was_finished);
}

TEST_F(Clean, TheResultDoesNotDependOnThreadsOrMemory) {
  fill();
  run(request("one", 1));
  const auto one = contents(out("one"));
  EXPECT_GT(one.size(), 3u);
  run(request("many", 5));
  EXPECT_EQ(contents(out("many")), one);
  options_.dedup.memory = 1 << 20;
  run(request("small", 2));
  EXPECT_EQ(contents(out("small")), one);
}

TEST_F(Clean, KilledAnywhereItGoesOnAndNothingIsLostOrTwice) {
  fill();
  run(request("whole", 1));
  const auto whole = contents(out("whole"));
  // Killed after every number of updates: in units, in comparing, in writing.
  int kills = 0;
  for (int after = 1; after <= 60; ++after) {
    const pid_t child = ::fork();
    if (child == 0) {
      int left = after % 7 + 1;
      CleanProgress progress;
      progress.update = [&](const char*, int64_t, int64_t, const std::string&) {
        if (--left == 0) ::kill(::getpid(), SIGKILL);
      };
      try {
        clean_documents(request("killed", 2), options_, progress);
        ::_exit(0);
      } catch (...) {
        ::_exit(3);
      }
    }
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    if (WIFEXITED(status)) {
      ASSERT_EQ(WEXITSTATUS(status), 0);
      break;
    }
    ++kills;
    // Nothing half-written under a final name: a part is there whole or not at all.
    for (const auto& [name, bytes] : contents(out("killed"))) {
      const bool is_part = name.starts_with("part-");
      EXPECT_TRUE(!is_part || bytes == whole.at(name)) << name;
    }
  }
  EXPECT_GE(kills, 3);
  run(request("killed"));
  EXPECT_EQ(contents(out("killed")), whole);
}

TEST_F(Clean, StoppingIsCleanAndGoesOn) {
  fill();
  run(request("whole", 1));
  std::atomic<bool> stop = false;
  CleanProgress progress{.stop = &stop};
  int updates = 0;
  progress.update = [&](const char*, int64_t, int64_t, const std::string&) { stop = ++updates == 2; };
  EXPECT_FALSE(clean_documents(request(), options_, progress).finished);
  EXPECT_FALSE(fs::exists(out() + "/report.json"));
  EXPECT_TRUE(run(request()).finished);
  EXPECT_EQ(contents(out()), contents(out("whole")));
}

TEST_F(Clean, AnotherProcessIsRefusedBeforeItRemovesAnything) {
  fill();
  run(request("alone", 1));
  std::set<std::string> errors;
  CleanProgress progress;
  progress.update = [&](const char*, int64_t, int64_t, const std::string&) {
    CleanRequest again = request();
    again.overwrite = true;
    try {
      run(again);
    } catch (const Error& e) {
      errors.insert(e.what());
    }
  };
  EXPECT_TRUE(clean_documents(request(), options_, progress).finished);
  EXPECT_EQ(errors, std::set<std::string>{"another process is writing " + out()});
  EXPECT_EQ(contents(out()), contents(out("alone")));
}

TEST_F(Clean, OtherOptionsFilesOrFoldersAreRefused) {
  fill();
  std::atomic<bool> stop = true;
  EXPECT_FALSE(clean_documents(request(), options_, {.stop = &stop}).finished);
  options_.filters.c4.on = false;
  EXPECT_THROW(run(request()), Error);
  CleanRequest again = request();
  again.overwrite = true;
  EXPECT_TRUE(run(again).finished);
  options_.filters.c4.on = true;
  EXPECT_THROW(run(request()), Error);
  fs::create_directories(out("mine"));
  write_file_atomic(out("mine") + "/thesis.txt", "precious");
  EXPECT_THROW(run(request("mine")), Error);
  again.out = out("mine");
  EXPECT_THROW(run(again), Error);
  EXPECT_EQ(read_file(out("mine") + "/thesis.txt"), "precious");
}

TEST_F(Clean, WhatAnEarlierRunLeftMayBeDamaged) {
  fill();
  std::atomic<bool> stop = false;
  CleanProgress progress{.stop = &stop};
  progress.update = [&](const char*, int64_t, int64_t, const std::string&) { stop = true; };
  EXPECT_FALSE(clean_documents(request(), options_, progress).finished);
  for (const char* file : {"/.work/unit-000000.json", "/report.json"}) {
    ASSERT_TRUE(fs::exists(out() + "/.work/unit-000000.json"));
    write_file_atomic(out() + file, "[1]");
    try {
      run(request());
      ADD_FAILURE() << file;
    } catch (const Error& e) {
      EXPECT_NE(std::string(e.what()).find("is damaged"), std::string::npos) << e.what();
      EXPECT_EQ(e.hint(), "--overwrite begins anew");
    }
  }
  CleanRequest again = request();
  again.overwrite = true;
  EXPECT_TRUE(run(again).finished);
}

TEST_F(Clean, ADamagedFileStopsItOrIsNamed) {
  if (!can_use_zstd()) GTEST_SKIP() << "runs where libzstd-dev is installed (scripts/setup.sh installs it)";
  fill();
  const std::string frame = zstd_frame(read_file(folder_ + "/in/a.jsonl"), 3);
  file("a.jsonl", "{\"text\":\"x\"}\n");
  file("aa.jsonl.zst", frame.substr(0, frame.size() / 2));
  EXPECT_THROW(run(request()), Error);
  CleanRequest skip = request("skip");
  skip.skip_corrupt = true;
  const CleanResult result = run(skip);
  EXPECT_TRUE(result.finished);
  ASSERT_EQ(result.report.at("problems").size(), 1u);
  EXPECT_NE(result.report.at("problems")[0].get<std::string>().find("aa.jsonl.zst"), std::string::npos);
  skip.out = out();  // the run that stopped goes on, as its error suggests
  EXPECT_EQ(run(skip).report, result.report);
  EXPECT_GE(result.report.at("read").at("documents").get<int64_t>(), 151);  // b is read
}

TEST_F(Clean, EvaluationItemsAreKeptOut) {
  fill();
  const std::string item = sentences(777, 2);
  file("c.jsonl", "{\"text\":\"" + sentences(500, 2) + item + sentences(501, 2) + "\",\"id\":\"planted\"}\n");
  write_file_atomic(folder_ + "/eval.jsonl", "{\"question\":\"" + item + "\"}\n");
  CleanRequest r = request();
  r.evaluation = {folder_ + "/eval.jsonl"};
  options_.filters = {};
  options_.filters.gopher_quality.on = options_.filters.c4.on = options_.filters.fineweb.on = false;
  const CleanResult result = run(r);
  EXPECT_GE(result.report.at("dropped").at("evaluation").at("documents").get<int64_t>(), 1);
  EXPECT_EQ(ids(out()).count("planted"), 0u);
  EXPECT_EQ(result.report.at("evaluation")[0].at("items").get<int64_t>(), 1);
}

TEST_F(Clean, TheReportShowsHostileTextAsText) {
  const std::string evil = "<script>alert(1)</script><img src=x onerror=alert(2)>\\\" onmouseover=\\\"x ' & ";
  file("evil.jsonl",
       "{\"text\":\"ok\"}\n{\"text\":\"" + evil + "\",\"id\":\"" + evil + "\",\"part\":\"" + evil + "\"}\n");
  const CleanResult result = run(request());
  const std::string html = read_file(out() + "/report.html");
  EXPECT_EQ(html.find("<script"), std::string::npos);
  EXPECT_EQ(html.find("<img"), std::string::npos);
  EXPECT_EQ(html.find("onmouseover=\"x"), std::string::npos);
  EXPECT_NE(html.find("&lt;script&gt;"), std::string::npos);
  EXPECT_NE(html.find("default-src 'none'"), std::string::npos);
  EXPECT_EQ(html.find("http://"), std::string::npos);  // nothing from elsewhere
}

TEST_F(Clean, PartsWithoutEndAreRefused) {
  std::string lines;
  for (int i = 0; i < 1100; ++i) lines += "{\"text\":\"x\",\"part\":\"" + std::to_string(i) + "\"}\n";
  file("a.jsonl", lines);
  EXPECT_THROW(run(request()), Error);
  CleanRequest named = request("named");
  named.input = find_inputs({"mine=" + folder_ + "/in"});
  EXPECT_TRUE(run(named).finished);
}

TEST_F(Clean, NoDocumentsAtAllIsAResult) {
  file("empty.jsonl", "");
  const CleanResult result = run(request());
  EXPECT_TRUE(result.finished);
  EXPECT_EQ(result.report.at("read").at("documents").get<int64_t>(), 0);
}

}  // namespace
}  // namespace cachalot
