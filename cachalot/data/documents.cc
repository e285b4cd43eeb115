#include "data/documents.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <system_error>

#include "base/error.h"
#include "base/text.h"
#include "data/encoding.h"
#include "data/json_fields.h"
#include "data/jsonl.h"

namespace cachalot {

namespace fs = std::filesystem;

namespace {

constexpr size_t kBlock = 256 << 10;
constexpr size_t kMaxPart = 60;  // bytes of a part's name (a token shard holds 63)

std::string_view without_packing(std::string_view name) {
  for (const std::string_view ending : {".gz", ".zst", ".zstd"})
    if (name.ends_with(ending)) return name.substr(0, name.size() - ending.size());
  return name;
}

bool is_jsonl_name(std::string_view name) {
  name = without_packing(name);
  return name.ends_with(".jsonl") || name.ends_with(".ndjson") || name.ends_with(".json");
}

DocumentFormat format_of(const InputFile& file, const ReadOptions& options) {
  if (options.format != DocumentFormat::automatic) return options.format;
  return is_jsonl_name(file.path) ? DocumentFormat::jsonl : DocumentFormat::text;
}

// "corpus/german" and "corpus/german.jsonl.zst": "german".
std::string part_of(std::string path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  const std::string name(without_packing(fs::path(path).filename().string()));
  const size_t dot = name.find_last_of('.');
  return dot == std::string::npos || dot == 0 ? name : name.substr(0, dot);
}

void find_below(const fs::path& folder, std::vector<std::string>& found) {
  std::vector<std::string> files;
  std::vector<fs::path> folders;
  std::error_code code;
  for (fs::directory_iterator entry(folder, code), end; !code && entry != end; entry.increment(code)) {
    const std::string name = entry->path().filename().string();
    if (name.starts_with('.')) continue;
    std::error_code ignored;
    // Links to folders are not followed: they may form a ring.
    if (entry->is_directory(ignored) && !entry->is_symlink(ignored)) folders.push_back(entry->path());
    else if (entry->is_regular_file(ignored)) files.push_back(entry->path().string());
  }
  if (code) throw Error(fmt::format("cannot list {}: {}", folder.string(), code.message()));
  found.insert(found.end(), files.begin(), files.end());
  for (const fs::path& below : folders) find_below(below, found);
}

}  // namespace

const char* drop_name(Drop drop) {
  switch (drop) {
    case Drop::none: return "none";
    case Drop::too_long: return "too_long";
    case Drop::bad_json: return "bad_json";
    case Drop::no_text: return "no_text";
    case Drop::not_text: return "not_text";
    case Drop::empty: return "empty";
  }
  return "?";
}

std::vector<InputFile> find_inputs(const std::vector<std::string>& specs) {
  std::vector<InputFile> inputs;
  for (const std::string& spec : specs) {
    InputFile input{.path = spec};
    std::error_code code;
    // A name that exists as it stands is a path, also with '=' in it.
    if (const size_t equals = spec.find('='); equals != std::string::npos && equals > 0 &&
                                              !fs::exists(spec, code) &&
                                              spec.substr(0, equals).find('/') == std::string::npos)
      input = {.path = spec.substr(equals + 1), .part = spec.substr(0, equals), .part_given = true};
    if (!input.part_given) input.part = part_of(input.path);
    const fs::file_status status = fs::status(input.path, code);
    if (!fs::exists(status))
      throw Error(fmt::format("{} does not exist", input.path))
          .hint("pass files or folders, as path or part=path");
    if (!fs::is_directory(status)) {
      inputs.push_back(input);
      continue;
    }
    std::vector<std::string> files;
    find_below(input.path, files);
    std::sort(files.begin(), files.end());
    const auto is_lines = [](const std::string& name) {
      return without_packing(name).ends_with(".jsonl") || without_packing(name).ends_with(".ndjson");
    };
    if (std::any_of(files.begin(), files.end(), is_lines))
      std::erase_if(files, [&](const auto& f) { return !is_lines(f); });
    if (files.empty()) throw Error(fmt::format("{} holds no files", input.path));
    for (std::string& file : files)
      inputs.push_back({.path = std::move(file), .part = input.part, .part_given = input.part_given});
  }
  if (inputs.empty()) throw Error("no input").hint("pass files or folders");
  return inputs;
}

int64_t file_bytes(const std::vector<InputFile>& files) {
  int64_t bytes = 0;
  for (const InputFile& file : files) {
    std::error_code code;
    const auto size = fs::file_size(file.path, code);
    if (!code) bytes += int64_t(size);
  }
  return bytes;
}

RecordReader::RecordReader(InputFile file, ReadOptions options, ReadPosition from)
    : file_(std::move(file)), options_(std::move(options)), source_(open_bytes(file_.path)), position_(from) {
  check_encoding_name(options_.encoding);
  if (options_.max_bytes < 1)
    throw Error(fmt::format("the longest document is {} bytes; it must be 1 or more", options_.max_bytes));
  options_.format = format_of(file_, options_);
  if (from.offset > 0) source_->skip(from.offset);
}

bool RecordReader::fill() {
  if (end_) return false;
  if (at_ > 0) {
    buffer_.erase(0, at_);
    at_ = 0;
  }
  const size_t had = buffer_.size();
  // Doubling: a record of many blocks is moved a few times, not once a block.
  const size_t more = std::max(kBlock, had);
  buffer_.resize(had + more);
  size_t done = had;
  while (done < buffer_.size() && !end_) {
    const size_t n = source_->read({buffer_.data() + done, std::min(kBlock, buffer_.size() - done)});
    if (n == 0) end_ = true;
    done += n;
  }
  buffer_.resize(done);
  return done > had;
}

// Gives out the next `bytes` of the buffer and passes over `after` more (the line end).
void RecordReader::take(Record& record, size_t bytes, size_t after) {
  record.bytes.assign(buffer_, at_, bytes);
  record.number = position_.number++;
  record.drop = Drop::none;
  at_ += bytes + after;
  position_.offset += int64_t(bytes + after);
}

bool RecordReader::next_line(Record& record, size_t limit) {
  for (size_t seen = 0;;) {  // of the line, without a line end in it
    const size_t have = buffer_.size() - at_;
    const void* found = std::memchr(buffer_.data() + at_ + seen, '\n', have - seen);
    const size_t length = found ? size_t(static_cast<const char*>(found) - (buffer_.data() + at_)) : have;
    if (length > limit) {
      take(record, std::min<size_t>(limit, 1024), 0);
      record.drop = Drop::too_long;
      size_t passed = length - record.bytes.size() + (found ? 1 : 0);
      at_ += passed;
      position_.offset += int64_t(passed);
      while (!found) {  // the rest of the line, block by block
        if (!fill()) return true;
        found = std::memchr(buffer_.data(), '\n', buffer_.size());
        passed = found ? size_t(static_cast<const char*>(found) - buffer_.data()) + 1 : buffer_.size();
        at_ += passed;
        position_.offset += int64_t(passed);
      }
      return true;
    }
    if (found) {
      take(record, length, 1);
      return true;
    }
    seen = have;
    if (!fill()) {
      if (have == 0) return false;
      take(record, have, 0);
      return true;
    }
  }
}

bool RecordReader::next_text(Record& record) {
  const size_t limit = size_t(options_.max_bytes);
  while (buffer_.size() - at_ <= limit && fill()) {
  }
  const size_t have = buffer_.size() - at_;
  if (have == 0) {
    if (position_.number > 0) return false;
    take(record, 0, 0);  // an empty file is an empty document
    return true;
  }
  if (have <= limit) {
    take(record, have, 0);
    return true;
  }
  const size_t cut = std::string_view(buffer_).substr(at_, limit).rfind('\n');
  if (cut == std::string_view::npos) return next_line(record, limit);  // too long
  take(record, cut + 1, 0);
  return true;
}

bool RecordReader::next(Record& record) {
  if (options_.format == DocumentFormat::text) return next_text(record);
  const bool json = options_.format == DocumentFormat::jsonl;
  return next_line(record, size_t(options_.max_bytes) * (json ? 2 : 1));
}

Drop parse_record(const InputFile& file, const ReadOptions& options, Record& record, Document& document,
                  std::string* why) {
  why->clear();
  document.number = record.number;
  document.source = file.path;
  document.part = file.part;
  document.id = fmt::format("{}#{}", file.path, record.number);
  document.text.clear();
  document.encoding.clear();
  if (record.drop != Drop::none) {
    *why = fmt::format("longer than {} bytes", options.max_bytes);
    return record.drop;
  }
  if (format_of(file, options) == DocumentFormat::jsonl) {
    if (record.number == 0 && record.bytes.starts_with("\xEF\xBB\xBF")) record.bytes.erase(0, 3);
    if (record.bytes.find_first_not_of(" \t\r") == std::string::npos) return Drop::empty;
    JsonField fields[] = {{.name = options.text_field}, {.name = options.id_field}, {.name = "part"}};
    *why = read_json_fields(record.bytes, fields);
    const Drop drop = !why->empty() ? Drop::bad_json : !fields[0].found ? Drop::no_text : Drop::none;
    if (drop == Drop::no_text) *why = fmt::format("no field {}", in_quotes(options.text_field));
    if (drop != Drop::none) {
      if (record.number == 0)
        throw Error(fmt::format("{}: the first line is no document: {}", file.path, *why))
            .hint(record.bytes.starts_with('[')
                      ? fmt::format("one JSON array: jq -c '.[]' {} > lines.jsonl", file.path)
                      : fmt::format(
                            "a line is an object such as {{\"{}\": \"Call me Ishmael.\"}}; --text-field "
                            "names another field, --format another format",
                            options.text_field));
      return drop;
    }
    document.text = std::move(fields[0].value);
    if (fields[1].found) document.id = std::move(fields[1].value);
    if (fields[2].found && !file.part_given) document.part = std::move(fields[2].value);
  } else {
    document.text.swap(record.bytes);
  }
  if (document.text.size() > size_t(options.max_bytes)) {
    *why = fmt::format("longer than {} bytes", options.max_bytes);
    return Drop::too_long;
  }
  document.encoding = to_utf8(document.text, options.encoding);
  if (document.encoding.empty()) {
    *why = document.text.find('\0') != std::string::npos ? "holds NUL bytes: not text"
                                                         : "in no encoding that is known";
    return Drop::not_text;
  }
  // A name from outside goes into files and reports: it is text, too.
  if (to_utf8(document.id, "utf-8").empty()) document.id = fmt::format("#{}", record.number);
  if (to_utf8(document.part, "utf-8").empty()) document.part = "unnamed";
  if (document.part.size() > kMaxPart)
    document.part.resize(utf8_complete_prefix(std::string_view(document.part).substr(0, kMaxPart)));
  return document.text.find_first_not_of(" \t\r\n\f\v") == std::string::npos ? Drop::empty : Drop::none;
}

DocumentReader::DocumentReader(std::vector<InputFile> files, ReadOptions options)
    : files_(std::move(files)), options_(std::move(options)) {}

bool DocumentReader::next(Document& document) {
  Record record;
  std::string why;
  for (;;) {
    if (!reader_) {
      if (file_ == files_.size()) return false;
      reader_ = std::make_unique<RecordReader>(files_[file_], options_);
    }
    if (!reader_->next(record)) {
      consumed_ += reader_->consumed();
      reader_.reset();
      ++file_;
      continue;
    }
    const Drop drop = parse_record(files_[file_], options_, record, document, &why);
    if (drop != Drop::none) {
      ++counts_.dropped[int(drop)];
      continue;
    }
    ++counts_.documents;
    counts_.bytes += int64_t(document.text.size());
    return true;
  }
}

}  // namespace cachalot
