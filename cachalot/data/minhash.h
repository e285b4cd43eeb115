// Near-duplicates by MinHash with bands, and the exact Jaccard similarity that decides.
//
// A document is the set S of its shingles: the hashes of every n words in a row (data/words.h; all words
// together when there are fewer). J(A, B) = |A and B| / |A or B|. Of k random orders of all shingles, the first
// shingle of A and of B agree with probability J in each (Broder 1997); k = bands x rows orders are grouped
// into bands of rows, and two documents are candidates when they agree on a whole band:
//
//   P(candidates | J) = 1 - (1 - J^rows)^bands       20 x 8:  J = 0.5: 0.08   0.7: 0.69   0.8: 0.975   0.9: 1
//
// FineWeb takes 14 x 8 (0.8: 0.92) and removes every candidate. Here the sets of candidates are compared, so
// more bands cost time and no documents.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "data/words.h"

namespace cachalot {

struct MinHashOptions {
  bool on = true;
  int64_t shingle_words = 5, bands = 20, rows = 8;
  double jaccard = 0.8;  // from here on two documents are duplicates

  template <class V> void visit(V& v) {
    v("on", on, "remove near-duplicates");
    v("shingle_words", shingle_words, "words of a shingle");
    v("bands", bands, "bands: more find more, and cost 8 bytes a document");
    v("rows", rows, "hashes of a band");
    v("jaccard", jaccard, "similarity of shingles from which on documents are duplicates");
  }
};

void check(const MinHashOptions& options);  // Error naming the field

// The set of shingles: sorted, without duplicates. Empty for a text without words.
void find_shingles(const Words& words, int64_t shingle_words, std::vector<uint64_t>& shingles);

double jaccard(std::span<const uint64_t> a,
               std::span<const uint64_t> b);  // of sorted sets; 0 if both are empty

class MinHasher {
 public:
  explicit MinHasher(const MinHashOptions& options);
  // One key a band; documents with equal keys in a band are candidates. A text without words has no candidates:
  // `keys` are all 0, which no other text has.
  void keys(std::span<const uint64_t> shingles, std::span<uint64_t> keys);

 private:
  int64_t bands_, rows_;
  std::vector<uint32_t> factor_, addend_, least_;  // of each order
};

}  // namespace cachalot
