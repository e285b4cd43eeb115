// Documents out of files: plain text and JSONL, packed with gzip or Zstandard or not (data/byte_source.h).
//
// A file is read in two steps, so that the second can run on many threads: RecordReader cuts it into records
// (a line of JSONL, a text file), one after another; parse_record makes a Document of one record, or says why
// it is dropped. DocumentReader does both for one thread.
//
// Memory: one record, at most `max_bytes` of text (JSONL: a line of twice as much), and the windows of the
// unpacker; a longer line is passed over and counted, whatever its length.
//
// What goes wrong: a damaged archive, a disk that fails, a file that is something else is an Error naming the
// file and the place. A single record that is bad (broken JSON, no text, unknown encoding, too long) is
// dropped, with its reason; but when it is the first of a JSONL file, the file is taken to be the wrong one:
// Error.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "data/byte_source.h"

namespace cachalot {

struct InputFile {
  std::string path;
  std::string part;         // of the mixture: "code", "web-de", ...
  bool part_given = false;  // by the user; otherwise a record's own field "part" goes before
};

// The files that `specs` name, each `[part=]path`. A folder stands for the files below it, sorted by path;
// hidden ones (".git") are left out, and when there are .jsonl files among them, all others are (they are
// reports and licences then). Without "part=", the part is the last component of the path without its endings.
// Error: nothing there.
std::vector<InputFile> find_inputs(const std::vector<std::string>& specs);

enum class DocumentFormat {
  automatic,  // by the name before .gz or .zst: .jsonl, .ndjson, .json are JSONL, all others text
  text,       // the file is a document; one above max_bytes is cut after the last line end before
  lines,      // every line of the file is a document
  jsonl,      // every line is an object with the text in one field
};

struct ReadOptions {
  DocumentFormat format = DocumentFormat::automatic;
  std::string text_field = "text", id_field = "id";
  std::string encoding = "auto";  // data/encoding.h
  int64_t max_bytes = 64 << 20;   // of a document
};

enum class Drop : uint8_t { none, too_long, bad_json, no_text, not_text, empty };
inline constexpr int kDrops = 6;
const char* drop_name(Drop drop);  // "too_long", ...: for reports

struct Document {
  std::string text;    // valid UTF-8 without NUL and byte order mark
  std::string id;      // the record's, or "<path>#<number>"
  std::string source;  // the path of the file
  std::string part;
  std::string encoding;  // what the text was in: "utf-8", "cp1252", ...
  int64_t number = 0;    // of the record in its file, from 0; dropped ones count
};

// Between two records: where to go on. Only for the same file and options.
struct ReadPosition {
  int64_t offset = 0;  // unpacked bytes before
  int64_t number = 0;  // records before
  bool operator==(const ReadPosition&) const = default;
};

struct Record {
  std::string bytes;
  int64_t number = 0;
  Drop drop = Drop::none;  // too_long: `bytes` holds only the beginning
};

class RecordReader {
 public:
  RecordReader(InputFile file, ReadOptions options, ReadPosition from = {});
  bool next(Record& record);  // false at the end of the file
  ReadPosition position() const { return position_; }
  const InputFile& file() const { return file_; }
  int64_t consumed() const { return source_->consumed(); }  // bytes of the file as it lies on the disk

 private:
  bool fill();  // more bytes into buffer_; false at the end
  bool next_line(Record& record, size_t limit);
  bool next_text(Record& record);
  void take(Record& record, size_t bytes, size_t after);

  InputFile file_;
  ReadOptions options_;
  std::unique_ptr<ByteSource> source_;
  ReadPosition position_;
  std::string buffer_;  // unpacked, from at_ on not yet given out
  size_t at_ = 0;
  bool end_ = false;
};

// `document` when it returns Drop::none; else `why` says more. Thread-safe. `record.bytes` is used up.
// `number` 0 of a JSONL file that is no such object at all: Error.
Drop parse_record(const InputFile& file, const ReadOptions& options, Record& record, Document& document,
                  std::string* why);

struct ReadCounts {
  int64_t documents = 0, bytes = 0;  // of what was given out
  int64_t dropped[kDrops] = {};      // by Drop
};

// All documents of `files`, in order.
class DocumentReader {
 public:
  DocumentReader(std::vector<InputFile> files, ReadOptions options);
  bool next(Document& document);
  const ReadCounts& counts() const { return counts_; }
  // Bytes on the disk: for progress.
  int64_t consumed() const { return consumed_ + (reader_ ? reader_->consumed() : 0); }

 private:
  std::vector<InputFile> files_;
  ReadOptions options_;
  size_t file_ = 0;
  std::unique_ptr<RecordReader> reader_;
  int64_t consumed_ = 0;
  ReadCounts counts_;
};

int64_t file_bytes(const std::vector<InputFile>& files);  // on the disk; 0 for what cannot be asked

}  // namespace cachalot
