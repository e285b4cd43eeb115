// From documents as they were found to documents that are worth training on, with a report of everything that
// went and why. docs/data.md describes the stages; cachalot/cli/data_clean.cc is the command.
//
//   1 filter    files -> records -> documents: encoding, tidying, language, rules (data/filters.h),
//               evaluation items (data/decontaminate.h); what stays is staged with its fingerprints, in units
//               of `unit_bytes`
//   2 compare   duplicates among all staged documents (data/dedup.h)
//   3 write     the staged documents without the duplicates: part-000000.jsonl.zst, one a unit
//
// The result depends on the files, their order and the options alone: not on threads, memory or interruptions.
// Whatever kills the process, the next run with the same arguments goes on: finished units stay (at most one
// unit's work is lost), comparing is done again, written parts stay. Nothing is visible under its final name
// before it is whole; report.json, written last, says that all of it is.
//
// Memory: one unit of packed text, 2 MB of text a thread, three times, and the `memory` of data/dedup.h.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/json.h"
#include "data/decontaminate.h"
#include "data/dedup.h"
#include "data/documents.h"
#include "data/filters.h"

namespace cachalot {

struct CleanOptions {
  std::string format = "auto";  // auto, text, lines, jsonl
  std::string text_field = "text", id_field = "id", encoding = "auto";
  int64_t max_document = 64 << 20;  // bytes
  bool tidy = true;
  std::vector<std::string> languages;  // empty: all
  double min_language_share = 0.5;     // with `languages`
  FilterOptions filters;
  DecontaminateOptions decontaminate;
  DedupOptions dedup;
  int64_t unit_bytes = 128 << 20;
  int64_t zstd_level = 3;  // 0: plain .jsonl

  template <class V> void visit(V& v) {
    v("format", format, "auto (by the file's name), text, lines (each a document), jsonl");
    v("text_field", text_field, "JSONL: the field with the text");
    v("id_field", id_field, "JSONL: the field with the name of the document");
    v("encoding", encoding, "of text that is not UTF-8: auto, utf-8 (drop it), or a name as iconv's");
    v("max_document", max_document, "bytes; longer text files are cut at a line end, longer lines dropped");
    v("tidy", tidy, "line ends, control characters, twice encoded text (\"Ã©\") put right");
    v("languages", languages, "keep only these, such as [\"en\",\"de\"]; [] keeps all");
    v("min_language_share", min_language_share, "with languages: the share of a text that looks like it");
    v("filters", filters, "");
    v("decontaminate", decontaminate, "");
    v("dedup", dedup, "");
    v("unit_bytes", unit_bytes, "text of a unit: what is lost at most when the process is killed");
    v("zstd_level", zstd_level, "packing of the output; 0: none");
  }
};

void check(const CleanOptions& options);  // Error naming the field

struct CleanRequest {
  std::vector<InputFile> input;
  std::vector<std::string> evaluation;  // files and folders of items to keep out
  std::string out;                      // a folder of its own
  int threads = 1;
  bool overwrite = false;     // throw away what stands in `out`
  bool skip_corrupt = false;  // go on after a damaged file, and count it
};

struct CleanProgress {
  // `stage`: "filter", "compare", "write"; `total` in units of `done`.
  std::function<void(const char* stage, int64_t done, int64_t total, const std::string& extra)> update;
  const std::atomic<bool>* stop = nullptr;
};

struct CleanResult {
  bool finished = false;  // false: stopped; the next run goes on
  bool was_finished = false;
  Json report;                            // of a finished run: what report.json holds
  std::map<std::string, double> seconds;  // where the threads spent their time, this run: for docs/data.md
};

CleanResult clean_documents(const CleanRequest& request, const CleanOptions& options,
                            const CleanProgress& progress);

}  // namespace cachalot
