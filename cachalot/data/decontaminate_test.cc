#include "data/decontaminate.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>

#include "base/error.h"
#include "base/files.h"
#include "base/rng.h"

namespace cachalot {
namespace {

namespace fs = std::filesystem;

class Decontaminate : public testing::Test {
 protected:
  Decontaminate()
      : folder_((fs::temp_directory_path() / ("decontaminate_" + std::to_string(::getpid()))).string()) {
    fs::remove_all(folder_);
    fs::create_directories(folder_);
  }
  ~Decontaminate() override { fs::remove_all(folder_); }
  std::string file(const std::string& name, std::string_view bytes) {
    write_file_atomic(folder_ + "/" + name, bytes);
    return folder_ + "/" + name;
  }
  static Contamination find(const Decontaminator& d, std::string_view text) {
    Words words;
    find_words(text, words);
    return d.find(words);
  }
  std::string folder_;
};

std::string sentence(uint64_t seed, int words) {
  std::string text;
  for (int i = 0; i < words; ++i) {
    text += i ? " w" : "W";
    for (uint64_t r = random_below(seed, 0, uint64_t(i), 5000) + 1; r; r /= 26) text += char('a' + r % 26);
  }
  return text + ".";
}

TEST_F(Decontaminate, PlantedItemsAreFoundHoweverTheyAreSetAndInnocentTextIsNot) {
  std::string lines;
  std::vector<std::string> items;
  for (uint64_t i = 0; i < 300; ++i) {
    items.push_back(sentence(i, 8 + int(i % 40)));
    lines += "{\"question\":\"" + items.back() + "\",\"choices\":[\"yes\",\"no\"]}\n";
  }
  const Decontaminator d({file("eval.jsonl", lines)}, {});
  int found[3] = {}, innocent = 0;
  for (uint64_t i = 0; i < items.size(); ++i) {
    std::string spaced;
    for (const char c : items[i])
      spaced += c == ' ' ? std::string(i % 2 ? "\n" : "  ") : std::string(1, char(std::toupper(c)));
    found[0] += find(d, items[i]).found;
    found[1] += find(d, spaced).found;
    found[2] += find(d, sentence(i + 1000, 200) + items[i] + sentence(i + 2000, 100)).found;
    innocent += find(d, sentence(i + 3000, 300)).found;
  }
  for (const int n : found) EXPECT_EQ(n, 300);
  EXPECT_EQ(innocent, 0);
  EXPECT_EQ(d.files()[0].items, 900);
  EXPECT_EQ(d.files()[0].short_items, 600);
}

TEST_F(Decontaminate, ThePlaceIsThatOfTheItem) {
  const std::string item = sentence(1, 20);
  const Decontaminator d({file("eval.txt", item + "\n")}, {});
  const std::string text = "Before it. " + item + " After it.";
  const Contamination hit = find(d, text);
  ASSERT_TRUE(hit.found);
  EXPECT_EQ(hit.begin, 11u);
  EXPECT_LE(hit.end, 11 + item.size());
  EXPECT_EQ(hit.file, 0);
  // Part of it is enough when it is 13 words, and too little when it is 12.
  const auto words = [&](int n) {
    size_t at = 0;
    for (int i = 0; i < n; ++i) at = item.find(' ', at) + 1;
    return item.substr(0, at);
  };
  EXPECT_TRUE(find(d, words(13)).found);
  EXPECT_FALSE(find(d, words(12)).found);
}

TEST_F(Decontaminate, NumbersAndRepetitionsBetrayNothing) {
  const Decontaminator d(
      {file("eval.txt",
            "0 0 0 0 0 0 0 0 0 0 0 0 0 0 0\n1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\nshort one\n")},
      {});
  EXPECT_FALSE(find(d, "0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0").found);
  EXPECT_FALSE(find(d, "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17").found);
  EXPECT_FALSE(find(d, "a short one").found);
  EXPECT_EQ(d.grams(), 0);
}

TEST_F(Decontaminate, IdeographsNeedMore) {
  const std::string item = "在下列选项中找出与题干意思最接近的一个并说明你的理由。";
  const Decontaminator d(
      {file("eval.json",
            "[{\"question\":\"" + item + "\",\"id\":\"在下列选项中找出与题干意思最接近的一二三四五六\"}]")},
      {});
  EXPECT_TRUE(find(d, "题目：" + item).found);
  EXPECT_FALSE(find(d, "在下列选项中找出与题").found);
  EXPECT_EQ(d.files()[0].items, 1);  // "id" is skipped
}

TEST_F(Decontaminate, BadFilesAndOptionsAreRefused) {
  EXPECT_THROW(Decontaminator({file("bad.jsonl", "{\"a\":}\n")}, {}), Error);
  EXPECT_THROW(Decontaminator({folder_ + "/nothing"}, {}), Error);
  DecontaminateOptions options;
  options.min_words = 20;
  EXPECT_THROW(Decontaminator({}, options), Error);
  EXPECT_FALSE(find(Decontaminator({}, {}), "any text").found);
}

}  // namespace
}  // namespace cachalot
