// Which documents of a corpus are duplicates, in memory that does not grow with the corpus.
//
// Documents are numbered in the order of the corpus. What is known of each lies on the disk in blocks, one a
// unit of the corpus (a few hundred MB of text), by columns: a hash of the whole text (16 bytes), the number of
// shingles (4), one key a band (8 each): 180 bytes a document with 20 bands.
//
//   exact     of documents with the same hash the first stays.
//   near      a document goes if one before it, that stays, has Jaccard similarity >= the threshold with it;
//             so nothing goes that has no kept twin, however long the chain of look-alikes.
//
// How: a column is read once for every range of keys that fits into memory; equal keys are neighbours after
// sorting. That gives the exact duplicates, and for each band pairs of candidates, sorted runs of which are
// merged on the disk. The sets of the candidates (and of no other document) are then computed from the text and
// written to files by the earlier one of each pair, as many files as keep those of one within memory; reading
// such a file once from front to back compares all its pairs. What passes is merged and judged in order.
//
// A band of n documents with the same key gives all pairs when n <= 16, else each document with the first 12
// and the 4 before it: one boilerplate page in a million copies does not make 10^12 pairs.
//
// Memory: `memory` bytes and 3 bits a document. Disk: the columns; 16 bytes a pair; 8 bytes a shingle of a
// candidate, once for each file it is in. For 1 TB of text in 200 M documents with 1 GiB: 75 MB of bits, 36 GB
// of columns read 4 times over; with a third of the documents candidates, some 500 GB of sets.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "base/thread_pool.h"
#include "data/minhash.h"

namespace cachalot {

struct TextHash {
  uint64_t high = 0, low = 0;
  auto operator<=>(const TextHash&) const = default;
};

// Hash of the text as it is, and of its words alone (spacing, case and punctuation ignored).
TextHash hash_text(std::string_view text);
TextHash hash_text(const Words& words);

// What is known of the documents of a unit, by columns. Written and read as a file of its own.
struct Fingerprints {
  std::vector<TextHash> text;
  std::vector<uint32_t> shingles;           // how many
  std::vector<std::vector<uint64_t>> keys;  // by band
  int64_t documents() const { return int64_t(text.size()); }
};
void write_fingerprints(const std::string& path, const Fingerprints& unit);

// One file of fingerprints; columns are read when asked for.
class FingerprintFile {
 public:
  explicit FingerprintFile(std::string path);  // Error if it is none, or damaged
  int64_t documents() const { return documents_; }
  int bands() const { return bands_; }
  std::vector<TextHash> text() const;
  std::vector<uint32_t> shingles() const;
  std::vector<uint64_t> keys(int band) const;

 private:
  template <class T> std::vector<T> column(int number, int64_t at) const;
  std::string path_;
  int64_t documents_ = 0;
  int bands_ = 0;
  std::vector<uint64_t> checksums_;  // of each column
};

// Calls document(number, shingles) for the documents asked for, in order; what the sets are, the caller knows.
using ShinglesOf =
    std::function<void(const std::function<bool(int64_t)>& wanted,
                       const std::function<void(int64_t, std::span<const uint64_t>)>& document)>;

struct Duplicate {
  int64_t document = 0, kept = 0;  // the earlier one that it is a duplicate of
  float jaccard = 0;               // 1 for an exact one
  bool exact = false;
};

struct DedupOptions {
  bool exact = true;
  MinHashOptions near;
  int64_t memory = 1 << 30;  // bytes

  template <class V> void visit(V& v) {
    v("exact", exact, "remove documents whose words are those of an earlier one");
    v("near", near, "");
    v("memory", memory, "bytes of working memory");
  }
};

struct DedupResult {
  std::vector<bool> removed;  // by document
  int64_t exact = 0, near = 0;
  int64_t candidates = 0;                // pairs that shared a band
  std::array<int64_t, 20> similarity{};  // candidates by Jaccard, twentieths
  std::vector<Duplicate> samples;        // some, in order of the document
};

// `files`: one a unit, in order. `folder`: for what does not fit into memory; emptied at the end. `stopped` is
// asked now and then; `progress` gets shares from 0 to 1. The result does not depend on the memory or threads.
DedupResult find_duplicates(const std::vector<std::string>& files, const DedupOptions& options,
                            const std::string& folder, const ShinglesOf& shingles_of, ThreadPool& pool,
                            const std::function<void(double)>& progress);

}  // namespace cachalot
