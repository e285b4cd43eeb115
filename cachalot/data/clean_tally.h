// What happened to the documents of a unit, and to all: counts and samples, as JSON between runs.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"

namespace cachalot {

struct Tally {
  int64_t documents = 0, bytes = 0;
  void add(int64_t size) { ++documents, bytes += size; }
  void add(const Tally& o) { documents += o.documents, bytes += o.bytes; }
};

struct DropSample {
  uint64_t order = 0;  // a hash of the document's name: of each reason those with the smallest are kept
  std::string id, source, part;
  std::string why;             // "0.31, at most 0.3"
  std::string excerpt;         // of the text
  std::string of, of_excerpt;  // the document that it is a duplicate of
};

struct CleanTally {
  Tally read, kept;                      // records that came in; documents that passed
  std::map<std::string, Tally> dropped;  // by reason
  std::map<std::string, Tally> parts_read, parts_kept, languages_kept;
  std::map<std::string, Tally> encodings;   // of documents that were no UTF-8
  std::map<std::string, Tally> evaluation;  // contaminated documents by the evaluation file
  int64_t lines_removed = 0, tidied = 0, repaired = 0;
  std::map<std::string, std::vector<DropSample>> samples;  // by reason
  std::vector<std::string> problems;                       // damaged files that were passed over

  static constexpr size_t kSamples = 8;  // a reason
  void sample(const std::string& reason, DropSample sample);
  void add(const CleanTally& other);
};

Json tally_json(const CleanTally& tally);
CleanTally read_tally(const Json& json);

// Up to `bytes` bytes of `text` from `begin` on, whole characters, for people to read.
std::string excerpt(std::string_view text, size_t begin, size_t bytes);

}  // namespace cachalot
