#include "data/tokenize.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "base/error.h"
#include "base/files.h"
#include "base/json.h"
#include "base/rng.h"
#include "base/thread_pool.h"
#include "data/bpe_trainer.h"
#include "data/loader.h"
#include "data/shard_testing.h"

namespace cachalot {
namespace {

namespace fs = std::filesystem;

constexpr const char* kWords[] = {"the", " king", " queen", ".\n", "\n",  " of",
                                  " и",  "的",    "人",     " x",  " 12", ");\n"};

std::string random_text(uint64_t seed, uint64_t number, uint64_t longest) {
  std::string text;
  const uint64_t words = 1 + random_below(seed, 1, number, longest);
  for (uint64_t i = 0; i < words; ++i) text += kWords[random_below(seed, 100 + number, i, std::size(kWords))];
  return text + "!";
}

// A folder with a tokenizer and a corpus of a few files: two parts, one of them also by records' own field.
class TokenizeTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    // In memory where there is such a folder: every shard is synced, which a busy disk makes slow.
    const fs::path base = fs::is_directory("/dev/shm") ? fs::path("/dev/shm") : fs::temp_directory_path();
    std::string name = (base / "cachalot-tokenize-XXXXXX").string();
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    root_ = name;
    BpeTrainOptions options{.vocab_size = 330};
    for (const char* token : {"<｜fim▁hole｜>", "<｜fim▁begin｜>", "<｜fim▁end｜>"})
      options.special_tokens.push_back(token);
    BpeTrainer trainer(options);
    for (uint64_t i = 0; i < 100; ++i) trainer.add_text(random_text(5, i, 100));
    save_tokenizer(trainer.train(), root_ + "/tokenizer");
    fs::create_directory(root_ + "/corpus");
    for (int file = 0; file < 3; ++file) {
      std::string lines;
      for (uint64_t i = 0; i < 400; ++i) {
        Json line{{"text", random_text(uint64_t(file), i, 60)}};
        if (i % 50 == 7) line["part"] = "rare";
        lines += line.dump() + "\n";
        if (i == 20) lines += "{\"txt\": \"x\"}\n{\"text\"\n\n";  // bad records
      }
      write_file_atomic(root_ + "/corpus/" + std::to_string(file) + ".jsonl", lines);
    }
    for (uint64_t i = 0; i < 40; ++i) {
      fs::create_directories(root_ + "/code/src");
      write_file_atomic(root_ + "/code/src/" + std::to_string(i) + ".c", random_text(9, i, 300));
    }
  }
  static void TearDownTestSuite() { fs::remove_all(root_); }

  static const Tokenizer& tokenizer() {
    static const Tokenizer t = Tokenizer::load(root_ + "/tokenizer");
    return t;
  }
  static TokenizeOptions options(const std::string& out) {
    return {.inputs = find_inputs({root_ + "/corpus", root_ + "/code"}),
            .reading = {},
            .recipe = {.fim_rate = 0.3, .split_rate = 0.3, .seed = 7},
            .held_out = 0.1,
            .shard_tokens = 3000,
            .tokenizer_path = root_ + "/tokenizer",
            .out = root_ + "/" + out,
            .command = "cachalot data tokenize again"};
  }
  static TokenizeResult run(const TokenizeOptions& o) {
    return tokenize(
        tokenizer(), o, [](const TokenizeProgress&) {}, std::atomic<bool>(false));
  }
  // Every file of a folder, as if it lay anywhere.
  static std::map<std::string, std::string> contents(const std::string& folder) {
    std::map<std::string, std::string> files;
    for (const auto& entry : fs::directory_iterator(folder))
      files[entry.path().filename().string()] = read_file(entry.path().string());
    std::string& list = files[kShardFolderFile];  // names the folder in its command
    if (const size_t at = list.find(folder); at != std::string::npos)
      list.replace(at, folder.size(), "FOLDER");
    return files;
  }
  static const std::map<std::string, std::string>& expected() {
    static const std::map<std::string, std::string> files = [] {
      run(options("expected"));
      return contents(root_ + "/expected");
    }();
    return files;
  }
  static std::string error_of(const TokenizeOptions& o) {
    try {
      run(o);
    } catch (const Error& e) {
      return std::string(e.what()) + " | " + e.hint();
    }
    return "no error";
  }
  static ::testing::AssertionResult contains(const std::string& text, const std::string& part) {
    if (text.find(part) != std::string::npos) return ::testing::AssertionSuccess();
    return ::testing::AssertionFailure() << "\"" << part << "\" is not in: " << text;
  }
  static std::string root_;
};
std::string TokenizeTest::root_;

TEST_F(TokenizeTest, EveryDocumentIsInOneShardOfItsPart) {
  const TokenizeOptions o = options("all");
  const TokenizeResult result = run(o);
  EXPECT_FALSE(result.stopped);
  EXPECT_TRUE(result.folder.complete);
  // What the reader gives, by part, encoded one by one.
  const DocumentEncoder encoder(tokenizer(), o.recipe);
  std::map<std::string, std::vector<int32_t>> train, held_out;
  DocumentReader reader(o.inputs, o.reading);
  Document document;
  int64_t documents = 0, kept_out = 0;
  const TokenData data = open_token_data({o.out});
  std::vector<std::vector<int32_t>> in_held_out;
  for (const TokenStream& stream : data.held_out)
    for (const Shard& s : stream.shards()) {
      EXPECT_TRUE(s.header().held_out);
      for (int64_t d = 0; d < s.documents(); ++d) {
        in_held_out.emplace_back(size_t(s.document_end(d) - s.document_begin(d)));
        s.read(s.document_begin(d), in_held_out.back());
      }
    }
  while (reader.next(document)) {
    ++documents;
    const auto plain = encoder.encode(document.text, {.plain = true});
    const bool out = std::find(in_held_out.begin(), in_held_out.end(), plain) != in_held_out.end();
    const auto ids = out ? plain : encoder.encode(document.text);
    auto& side = (out ? held_out : train)[document.part];
    side.insert(side.end(), ids.begin(), ids.end());
    kept_out += out;
  }
  EXPECT_EQ(documents, result.folder.documents);
  EXPECT_EQ(documents, 3 * 400 + 40);
  EXPECT_NEAR(double(kept_out), 0.1 * double(documents), 40);
  EXPECT_EQ(result.folder.dropped[size_t(Drop::bad_json)] + result.folder.dropped[size_t(Drop::no_text)], 6);
  const auto check = [](const std::vector<TokenStream>& streams, const auto& wanted) {
    ASSERT_EQ(streams.size(), wanted.size());
    for (const TokenStream& stream : streams) {
      std::vector<int32_t> all(size_t(stream.tokens()));
      stream.read(0, all);
      EXPECT_TRUE(all == wanted.at(stream.name())) << stream.name();
    }
  };
  check(data.train, train);
  check(data.held_out, held_out);
  EXPECT_EQ(data.train.size(), 3u);  // code, corpus, rare
  for (const TokenStream& stream : data.train)
    for (const Shard& s : stream.shards()) {
      EXPECT_LT(s.tokens(), 3000 + 1000);
      s.require_tokenizer(Tokenizer::load(o.out), o.out);  // the folder has its tokenizer
    }
}

TEST_F(TokenizeTest, TheBytesDoNotDependOnTheNumberOfThreads) {
  for (const int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    TokenizeOptions o = options("threads" + std::to_string(threads));
    o.pool = &pool;
    run(o);
    EXPECT_TRUE(contents(o.out) == expected()) << threads;
  }
}

TEST_F(TokenizeTest, ASecondRunFindsEverythingDone) {
  const TokenizeOptions o = options("twice");
  run(o);
  const auto before = contents(o.out);
  const TokenizeResult again = run(o);
  EXPECT_EQ(again.progress.tokens, 0);
  EXPECT_EQ(again.shards_before, int64_t(again.folder.shards.size()));
  EXPECT_TRUE(contents(o.out) == before);
}

TEST_F(TokenizeTest, ShardsThatAreGoneOrDamagedAreMadeAnewAndNoOthers) {
  const TokenizeOptions o = options("repair");
  const TokenizeResult first = run(o);
  const auto& shards = first.folder.shards;
  for (uint64_t round = 0; round < 12; ++round) {
    int64_t lost = 0;
    for (size_t i = 0; i < shards.size(); ++i) {
      if (random_below(round, 0, i, 5) != 0) continue;
      const std::string path = o.out + "/" + shards[i].file;
      if (i % 2 == 0) fs::remove(path);
      else fs::resize_file(path, fs::file_size(path) - 8);
      lost += shards[i].tokens;
    }
    if (lost > 0) {
      EXPECT_THROW(open_token_data({o.out}), Error);
    }
    EXPECT_EQ(run(o).progress.tokens, lost);
    EXPECT_TRUE(contents(o.out) == expected()) << round;
  }
}

TEST_F(TokenizeTest, StoppingLeavesWholeShardsAndTheNextRunContinues) {
  const TokenizeOptions o = options("stop");
  const TokenizeResult stopped = tokenize(
      tokenizer(), o, [](const TokenizeProgress&) {}, std::atomic<bool>(true));
  EXPECT_TRUE(stopped.stopped);
  EXPECT_FALSE(stopped.folder.complete);
  try {
    open_token_data({o.out});
    ADD_FAILURE();
  } catch (const Error& e) {
    EXPECT_TRUE(contains(e.what(), "is not finished"));
    EXPECT_TRUE(contains(e.hint(), "cachalot data tokenize again"));
  }
  run(o);
  EXPECT_TRUE(contents(o.out) == expected());
}

// A file size limit stands for the full disk: write() fails in the same place.
TEST_F(TokenizeTest, AFullDiskLosesNothingThatWasWritten) {
  TokenizeOptions o = options("full");
  rlimit before;
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  auto* handler = std::signal(SIGXFSZ, SIG_IGN);
  for (const uint64_t limit : {5000, 7500, 9000}) {
    const rlimit tight{limit, before.rlim_max};
    ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &tight), 0);
    o.tokenizer_path = "";  // it would not fit
    const std::string text = error_of(o);
    ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
    EXPECT_TRUE(contains(text, "cannot write")) << limit;
    for (const auto& [name, bytes] : contents(o.out))
      EXPECT_FALSE(name.find(".tmp") != std::string::npos) << name;
  }
  std::signal(SIGXFSZ, handler);
  run(options("full"));
  EXPECT_TRUE(contents(o.out) == expected());
}

// A process that is killed with SIGKILL at fifty random instants, and a run to the end.
TEST_F(TokenizeTest, FiftyKillsChangeNothing) {
  expected();
  const auto start = std::chrono::steady_clock::now();
  run(options("timed"));
  const double usual =
      std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count();
  const TokenizeOptions o = options("killed");
  std::atomic<bool> never{false};
  int at_work = 0;
  for (uint64_t round = 0; round < 50; ++round) {
    // From the second half on the folder is often complete; a lost shard gives the process something to do.
    if (const auto folder = fs::exists(o.out) ? read_shard_folder(o.out) : std::nullopt;
        folder && folder->complete)
      for (size_t i = 0; i < folder->shards.size(); i += 3) fs::remove(o.out + "/" + folder->shards[i].file);
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      ThreadPool pool(2);
      TokenizeOptions mine = o;
      mine.pool = &pool;
      try {
        tokenize(
            tokenizer(), mine, [](const TokenizeProgress&) {}, never);
      } catch (...) {
        ::_exit(3);
      }
      for (;;) ::pause();
    }
    ::usleep(useconds_t(usual * random_uniform(1, 2, round)));
    ::kill(child, SIGKILL);
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFSIGNALED(status)) << "the run after a kill failed";
    const auto left = read_shard_folder(o.out);
    at_work += !left || !left->complete;
    for (const auto& entry : fs::directory_iterator(o.out))  // whatever is there is whole
      if (entry.path().extension() == ".tok") Shard::open(entry.path().string()).verify();
  }
  EXPECT_GT(at_work, 10);
  run(o);
  const auto now = contents(o.out);
  EXPECT_EQ(now.size(), expected().size());
  for (const auto& [name, bytes] : expected())
    EXPECT_TRUE(now.contains(name) && now.at(name) == bytes) << name;
}

// The same for one that reads: what it noted before it was killed, put together, is the order of one that ran
// through.
TEST_F(TokenizeTest, ALoaderKilledFiftyTimesReadsEveryRowInOrder) {
  expected();
  const LoaderOptions lo{.seq_len = 15, .batch = 8, .seed = 4};
  constexpr int64_t kSteps = 1500;
  const auto data = [&] { return open_token_data({root_ + "/expected"}).train; };
  std::vector<std::string> straight;
  {
    Loader loader(data(), lo);
    for (int64_t s = 0; s < kSteps; ++s) {
      const LoadedBatch batch = loader.next();
      straight.emplace_back(reinterpret_cast<const char*>(batch.tokens.data()), batch.tokens.size() * 4);
    }
  }
  const std::string folder = root_ + "/consumer";
  fs::create_directory(folder);
  const auto step_file = [&](int64_t s) { return folder + "/" + std::to_string(s); };
  const auto consume = [&](int64_t steps) {
    Loader loader(data(), lo);
    if (fs::exists(folder + "/cursor"))
      loader.seek(parse_cursor(read_json_file(folder + "/cursor"), "cursor"));
    while (steps-- > 0 && loader.cursor().next_row < kSteps * lo.batch) {
      const int64_t step = loader.cursor().next_row / lo.batch;
      const LoadedBatch batch = loader.next();
      const std::string bytes(reinterpret_cast<const char*>(batch.tokens.data()), batch.tokens.size() * 4);
      // A step that was done but not noted is done again, as after any checkpoint: with the same tokens.
      if (fs::exists(step_file(step)) && read_file(step_file(step)) != bytes) ::_exit(4);
      write_file_atomic(step_file(step), bytes);
      write_file_atomic(folder + "/cursor", cursor_json(loader.cursor()).dump());
    }
  };
  std::set<int64_t> seen;
  const auto noted = [&] { return fs::exists(folder + "/cursor") ? read_file(folder + "/cursor") : ""; };
  for (uint64_t round = 0; round < 50; ++round) {
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      try {
        consume(kSteps);
      } catch (...) {
        ::_exit(3);
      }
      for (;;) ::pause();
    }
    // Every other one is killed wherever it is, at its start perhaps; the rest soon after they have noted something.
    if (round % 2 == 0) {
      const std::string before = noted();
      for (int waits = 0; waits < 10000 && noted() == before; ++waits) ::usleep(1000);
    }
    ::usleep(useconds_t(random_below(1, 3, round, 5000)));
    ::kill(child, SIGKILL);
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFSIGNALED(status)) << WEXITSTATUS(status);
    if (fs::exists(folder + "/cursor"))
      seen.insert(parse_cursor(read_json_file(folder + "/cursor"), "cursor").next_row);
  }
  EXPECT_GT(seen.size(), 10u);  // kills that found it at work
  consume(kSteps);
  for (int64_t s = 0; s < kSteps; ++s) EXPECT_TRUE(read_file(step_file(s)) == straight[size_t(s)]) << s;
}

TEST_F(TokenizeTest, OtherSettingsAreRefusedUnlessTheFolderMayBeReplaced) {
  TokenizeOptions o = options("settings");
  run(o);
  const auto before = contents(o.out);
  o.recipe.seed = 8;
  EXPECT_TRUE(contains(error_of(o), "was begun with other settings: seed was 7 and is 8"));
  o = options("settings");
  o.inputs.pop_back();
  EXPECT_TRUE(contains(error_of(o), "it had 43 input files and has 42"));
  o = options("settings");
  o.reading.max_bytes = 1000;
  EXPECT_TRUE(contains(error_of(o), "reading was"));
  EXPECT_TRUE(contents(o.out) == before);
  o = options("settings");
  o.recipe = {};
  o.overwrite = true;
  EXPECT_EQ(error_of(o), "no error");
  EXPECT_EQ(open_token_data({o.out}).train.size(), open_token_data({root_ + "/settings"}).train.size());
  EXPECT_FALSE(contents(o.out) == before);
}

TEST_F(TokenizeTest, ARefusedTokenizerReplacesNone) {
  BpeTrainer trainer({.vocab_size = 280});
  trainer.add_text(random_text(1, 1, 300));
  const std::string other_path = root_ + "/other-tokenizer";
  save_tokenizer(trainer.train(), other_path);
  const Tokenizer other = Tokenizer::load(other_path);
  const auto error_with = [&](const TokenizeOptions& o) {
    try {
      tokenize(
          other, o, [](const TokenizeProgress&) {}, std::atomic<bool>(false));
    } catch (const Error& e) {
      return std::string(e.what());
    }
    return std::string("no error");
  };
  TokenizeOptions o = options("refused");
  o.recipe = {};
  run(o);
  const auto before = contents(o.out);
  o.tokenizer_path = other_path;
  EXPECT_TRUE(contains(error_with(o), "was begun with other settings: tokenizer was"));
  EXPECT_TRUE(contents(o.out) == before) << "the shards must still have their tokenizer";
  o.overwrite = true;
  EXPECT_EQ(error_with(o), "no error");
  EXPECT_EQ(read_file(o.out + "/tokenizer.json"), read_file(other_path + "/tokenizer.json"));

  o.out = root_ + "/model";  // no shards there: --overwrite does not reach so far
  fs::copy(root_ + "/tokenizer", o.out);
  EXPECT_TRUE(contains(error_with(o), "tokenizer.json is there already and differs"));
  EXPECT_EQ(read_file(o.out + "/tokenizer.json"), read_file(root_ + "/tokenizer/tokenizer.json"));
  EXPECT_FALSE(fs::exists(o.out + "/" + kShardFolderFile));
}

// Nothing would be lost: no --overwrite is asked for.
TEST_F(TokenizeTest, ARunThatMadeNothingMayBeBegunOtherwise) {
  TokenizeOptions o = options("nothing-yet");
  write_file_atomic(root_ + "/no.jsonl", "PK\x03\x04 a zip archive");
  o.inputs = find_inputs({root_ + "/no.jsonl"});
  EXPECT_TRUE(contains(error_of(o), "no.jsonl"));
  ASSERT_TRUE(fs::exists(o.out + "/" + kShardFolderFile));
  o = options("nothing-yet");
  o.recipe.seed = 8;
  EXPECT_EQ(error_of(o), "no error");
}

// A damaged input stops the run; repaired, it continues. Inputs that were not read yet may change.
TEST_F(TokenizeTest, ADamagedInputIsNamedAndTheRunContinuesWhenItIsRepaired) {
  const std::string folder = root_ + "/damaged-in";
  fs::create_directory(folder);
  for (const char* name : {"a.jsonl", "b.jsonl", "c.jsonl"})
    fs::copy(root_ + "/corpus/0.jsonl", folder + "/" + name);
  TokenizeOptions o = options("damaged"), fresh = options("damaged-fresh");
  o.shard_tokens = fresh.shard_tokens = 1000;
  o.inputs = fresh.inputs = find_inputs({folder});
  run(fresh);
  const std::string good = read_file(folder + "/b.jsonl");
  write_file_atomic(folder + "/b.jsonl", "PK\x03\x04 a zip archive");
  EXPECT_TRUE(contains(error_of(o), "b.jsonl"));
  const auto left = read_shard_folder(o.out);
  ASSERT_TRUE(left);
  EXPECT_FALSE(left->complete);
  write_file_atomic(folder + "/b.jsonl", good);
  EXPECT_EQ(error_of(o), "no error");
  EXPECT_TRUE(contents(o.out) == contents(fresh.out));
  write_file_atomic(folder + "/a.jsonl", good + good);  // but what was read stays as it was
  EXPECT_TRUE(contains(error_of(o), "a.jsonl had"));
}

TEST_F(TokenizeTest, TwoProcessesDoNotWriteOneFolder) {
  const TokenizeOptions o = options("locked");
  fs::create_directory(o.out);
  std::string inner;
  tokenize(
      tokenizer(), o, [&](const TokenizeProgress&) { inner = error_of(o); }, std::atomic<bool>(false));
  EXPECT_TRUE(contains(inner, "another process is writing"));
}

TEST_F(TokenizeTest, WhatCannotBeIsRefusedBeforeAnythingIsWritten) {
  TokenizeOptions o = options("never");
  o.recipe.fim_rate = 1.5;
  EXPECT_TRUE(contains(error_of(o), "FIM rate is 1.5"));
  o = options("never");
  o.held_out = 1;
  EXPECT_TRUE(contains(error_of(o), "held-out share is 1"));
  o = options("never");
  o.shard_tokens = 0;
  EXPECT_TRUE(contains(error_of(o), "a shard shall have 0 tokens"));
  EXPECT_FALSE(fs::exists(o.out));
}

TEST_F(TokenizeTest, FoldersThatAreNotShardsAreNamed) {
  const auto error = [&](const std::string& path) {
    try {
      open_token_data({path});
    } catch (const Error& e) {
      return std::string(e.what());
    }
    return std::string("no error");
  };
  EXPECT_TRUE(contains(error(root_ + "/code"), "holds no token shards"));
  EXPECT_TRUE(contains(error(root_ + "/corpus/0.jsonl"), "is not a token shard"));
  EXPECT_TRUE(contains(error(root_ + "/absent"), "absent"));
  fs::create_directory(root_ + "/bad-list");
  write_file_atomic(root_ + "/bad-list/shards.json",
                    R"({"complete": true, "shards": [{"file": "../x.tok"}]})");
  EXPECT_TRUE(contains(error(root_ + "/bad-list"), "is no name of a shard"));
  // Shards that were copied without their list are taken as they are.
  expected();
  fs::create_directory(root_ + "/copied");
  for (const auto& entry : fs::directory_iterator(root_ + "/expected"))
    if (entry.path().extension() == ".tok") fs::copy(entry.path(), root_ + "/copied");
  EXPECT_EQ(open_token_data({root_ + "/copied"}).train[0].tokens(),
            open_token_data({root_ + "/expected"}).train[0].tokens());
}

TEST_F(TokenizeTest, PartsWithAnyNameGetFilesOfTheirOwn) {
  EXPECT_EQ(shard_file_name({"en", false}, 3), "en-00003.tok");
  EXPECT_EQ(shard_file_name({"en", true}, 123456), "en.held-out-123456.tok");
  const std::string a = shard_file_name({"a/b", false}, 0), b = shard_file_name({"a_b", false}, 0),
                    c = shard_file_name({"../a", false}, 0), d = shard_file_name({"a:b", false}, 0);
  EXPECT_EQ(a.find('/'), std::string::npos);
  EXPECT_EQ(c.find('/'), std::string::npos);
  EXPECT_NE(c[0], '.');
  EXPECT_NE(a, b);
  EXPECT_NE(a, d);
}

// A rare part's shards are closed before they are full, so that a resumed run never reads far back.
TEST_F(TokenizeTest, ARarePartIsWrittenBeforeMuchOtherTextHasPassed) {
  TokenizeOptions o = options("rare");
  o.held_out = 0;
  o.shard_tokens = 500;
  const TokenizeResult result = run(o);
  int64_t rare = 0;
  for (const ShardEntry& s : result.folder.shards) {
    EXPECT_LT(s.end.bytes - s.begin.bytes, 128 * 500 + 10000);
    rare += s.part == "rare";
  }
  EXPECT_GT(rare, 1);
}

}  // namespace
}  // namespace cachalot
