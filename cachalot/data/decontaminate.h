// Evaluation items inside training text.
//
// Every string of the evaluation files is an item: the fields of JSON lines and arrays, the lines of other
// text. Compared are words (data/words.h), so case, spacing, line breaks and punctuation do not matter. A
// document is contaminated when it holds any n words in a row of an item (n = 13, as GPT-3: Brown et al. 2020,
// arXiv:2005.14165, appendix C), or the whole of an item of fewer words, down to `min_words`. Shorter items
// ("Paris", "yes") occur in innocent text everywhere; they are counted and not looked for. Scripts without
// spaces: an ideograph is a word, so 13 words are 13 characters there, and `cjk_words` (16) takes n's place
// where most of the n are ideographs, half as many again its place as the shortest item. N-grams that are
// mostly numbers, or mostly the same word, are not looked for either.
//
// Hashes of 64 bits decide: in 1 TB of text against 10 million n-grams, expect 10^-1 wrong hits.
// Memory: 40 to 80 bytes an n-gram.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "data/words.h"

namespace cachalot {

struct DecontaminateOptions {
  int64_t words = 13, cjk_words = 16, min_words = 8;
  std::vector<std::string> skip_fields = {"id",  "task_id",  "question_id", "subject",     "category",
                                          "src", "language", "name",        "entry_point", "test_id",
                                          "key", "urls",     "url",         "split",       "idx"};

  template <class V> void visit(V& v) {
    v("words", words, "words in a row that betray an evaluation item");
    v("cjk_words", cjk_words, "the same where words are ideographs");
    v("min_words", min_words, "shorter items are not looked for");
    v("skip_fields", skip_fields, "fields of evaluation files that hold no text of items");
  }
};

void check(const DecontaminateOptions& options);

struct Contamination {
  bool found = false;
  int file = 0;               // of evaluation
  size_t begin = 0, end = 0;  // the n words, in bytes of the text
};

class Decontaminator {
 public:
  // `paths`: files, or folders of them; plain, .gz, .zst. Error: unreadable ones.
  Decontaminator(const std::vector<std::string>& paths, const DecontaminateOptions& options);

  struct File {
    std::string path;
    int64_t items = 0, short_items = 0;  // too short, or only numbers: not looked for
  };
  const std::vector<File>& files() const { return files_; }
  int64_t grams() const { return grams_; }
  uint64_t fingerprint() const { return fingerprint_; }  // of all items and options

  // The first place of `words` that is in an evaluation item. Thread-safe.
  Contamination find(const Words& words) const;

 private:
  struct Gram {
    uint64_t hash = 0;  // of all its words; 0: no gram
    uint32_t file = 0;
    uint32_t words = 0;
  };
  void add_item(std::string_view text, uint32_t file);
  void add_gram(const uint64_t* words, size_t n, uint32_t file);
  void insert(uint64_t anchor, const Gram& gram);

  DecontaminateOptions options_;
  std::vector<File> files_;
  // By the hash of the first min_words words: one look a word of text decides nearly always.
  std::vector<uint64_t> anchors_;
  std::vector<Gram> slots_;
  uint64_t mask_ = 0;
  std::vector<uint64_t> present_;  // 16 bits an anchor, one of them set: stays in the cache, says "no" mostly
  int64_t grams_ = 0;
  uint64_t fingerprint_ = 0;
  Words words_;
};

}  // namespace cachalot
