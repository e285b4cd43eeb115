#include "data/shard.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <type_traits>
#include <utility>

#include "base/error.h"
#include "base/text.h"
#include "data/checksum.h"

namespace cachalot {

namespace {

static_assert(std::endian::native == std::endian::little, "numbers stand in the file as in memory");

constexpr char kMagic[8] = {'c', 'a', 'c', 'h', 't', 'o', 'k', '\n'};
constexpr uint32_t kVersion = 1;
constexpr uint64_t kMostTokens = uint64_t(1) << 48;  // sums of sizes below stay far from 2^64
constexpr size_t kFlush = size_t(1) << 20;

// The header as it stands in the file (docs/formats.md).
struct RawHeader {
  char magic[8];
  uint32_t version, token_bytes;
  uint64_t tokens, documents, text_bytes;
  uint64_t vocab_size, end_of_text;
  uint64_t tokenizer;
  uint32_t held_out, block_tokens;
  uint64_t tables;  // checksum of both tables
  char part[64];    // zeros after the text, one at least
  char source[808];
  char zeros[64];
  uint64_t checksum;  // of all before it
};
static_assert(sizeof(RawHeader) == kShardHeaderBytes);
static_assert(std::has_unique_object_representations_v<RawHeader>);

uint64_t checksum_of(const RawHeader& header) {
  return checksum64({reinterpret_cast<const char*>(&header), offsetof(RawHeader, checksum)});
}

template <size_t kSize> std::string text_field(const char (&field)[kSize]) {
  return std::string(field, strnlen(field, kSize));
}

// Is the field a text and zeros, one at least?
template <size_t kSize> bool is_text_field(const char (&field)[kSize]) {
  const std::string_view all(field, kSize);
  const size_t end = all.find('\0');
  return end != std::string_view::npos && all.find_first_not_of('\0', end) == std::string_view::npos;
}

template <size_t kSize> void set_text(char (&field)[kSize], std::string_view text) {
  const bool fits = text.size() < kSize;
  const std::string_view cut = fits ? text : text.substr(0, utf8_complete_prefix(text.substr(0, kSize - 1)));
  std::memcpy(field, cut.data(), cut.size());
}

template <class T> T number_at(const char* table, int64_t i) {
  T value;
  std::memcpy(&value, table + i * int64_t(sizeof value), sizeof value);
  return value;
}

// out = ids of type T at `p`; returns the largest.
template <class T> uint32_t widen(const char* p, std::span<int32_t> out) {
  uint32_t largest = 0;
  for (int32_t& id : out) {
    T value;
    std::memcpy(&value, p, sizeof value);
    p += sizeof value;
    largest = std::max(largest, uint32_t(value));
    id = int32_t(value);
  }
  return largest;
}

int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }
int64_t blocks_of(int64_t tokens) { return (tokens + kShardBlock - 1) / kShardBlock; }

std::string as_bytes(const std::vector<uint64_t>& numbers) {
  return std::string(reinterpret_cast<const char*>(numbers.data()), numbers.size() * sizeof(uint64_t));
}

// What makes a shard: the folder is where it is now, so that its bytes do not depend on where it was made.
std::string command_for(const std::string& name, const std::string& source) {
  const std::string folder = std::filesystem::path(name).parent_path().string();
  return fmt::format("{} --out {}", utf8_lossy(source), folder.empty() ? "." : folder);
}

// What a damaged shard costs: shards are a pure function of text and settings.
std::string remake(const std::string& name, const std::string& source) {
  return fmt::format("remove {} and make it anew: {}", name,
                     source.empty() ? "cachalot data tokenize, with the settings of the first time"
                                    : command_for(name, source));
}

}  // namespace

uint64_t tokenizer_id(const Tokenizer& tokenizer) {
  uint64_t id = uint64_t(tokenizer.eos_id().value_or(-1));
  for (int64_t i = 0; i < tokenizer.vocab_size(); ++i) id = checksum64(tokenizer.token_bytes(int32_t(i)), id);
  return id;
}

std::string tokenizer_id_text(uint64_t id) { return fmt::format("{:016x}", id); }

Shard Shard::open(const std::string& path) {
  return Shard(std::make_shared<const MappedFile>(path), nullptr, path);
}

Shard Shard::from_bytes(std::string bytes, const std::string& name) {
  return Shard(nullptr, std::make_shared<const std::string>(std::move(bytes)), name);
}

Shard::Shard(std::shared_ptr<const MappedFile> file, std::shared_ptr<const std::string> memory,
             std::string name)
    : file_(std::move(file)), memory_(std::move(memory)), name_(std::move(name)) {
  const std::string_view bytes = file_ ? file_->view() : std::string_view(*memory_);
  const auto fail = [&](const std::string& what, const std::string& source) {
    throw Error(fmt::format("{}: {}", name_, what)).hint(remake(name_, source));
  };
  RawHeader raw;
  if (bytes.size() < sizeof kMagic || std::memcmp(bytes.data(), kMagic, sizeof kMagic) != 0)
    throw Error(fmt::format("{} is not a token shard", name_))
        .hint("cachalot data tokenize makes shards; text files go under data.files");
  if (bytes.size() < sizeof raw)
    fail(fmt::format("the file has {} bytes, less than a shard's header of {}", bytes.size(), sizeof raw),
         "");
  std::memcpy(&raw, bytes.data(), sizeof raw);
  if (raw.version != kVersion)
    throw Error(fmt::format("{} is a shard of version {}; this program reads version {}", name_, raw.version,
                            kVersion))
        .hint("make it anew with this program's cachalot data tokenize");
  if (checksum_of(raw) != raw.checksum)
    fail("the header is damaged: it does not have the checksum that was written with it", "");

  header_ = {.tokens = int64_t(raw.tokens),
             .documents = int64_t(raw.documents),
             .text_bytes = int64_t(raw.text_bytes),
             .vocab_size = int64_t(raw.vocab_size),
             .end_of_text = int64_t(raw.end_of_text),
             .tokenizer = raw.tokenizer,
             .held_out = raw.held_out != 0,
             .part = text_field(raw.part),
             .source = text_field(raw.source)};
  const std::string& source = header_.source;
  // The header is what some program wrote; it may still not be ours.
  if (raw.tokens > kMostTokens || raw.documents > raw.tokens || raw.vocab_size > uint64_t(INT32_MAX) ||
      raw.end_of_text >= raw.vocab_size || raw.text_bytes > uint64_t(INT64_MAX) ||
      (raw.documents == 0) != (raw.tokens == 0) || (raw.documents == 0 && raw.text_bytes != 0) ||
      raw.block_tokens != kShardBlock || raw.held_out > 1)
    fail(fmt::format(
             "the header contradicts itself ({} tokens, {} documents, {} bytes of text, a vocabulary of "
             "{}, end of text {}, blocks of {})",
             raw.tokens, raw.documents, raw.text_bytes, raw.vocab_size, raw.end_of_text, raw.block_tokens),
         source);
  if (!is_text_field(raw.part) || !is_text_field(raw.source) ||
      std::string_view(raw.zeros, sizeof raw.zeros).find_first_not_of('\0') != std::string_view::npos)
    fail("a text of the header has no end, or there is no zero where one should be", "");
  if (int(raw.token_bytes) != header_.token_bytes())
    fail(fmt::format("tokens of {} bytes for a vocabulary of {}", raw.token_bytes, raw.vocab_size), source);

  const int64_t token_bytes = round_up(header_.tokens * header_.token_bytes(), 8);
  const int64_t table_bytes = (header_.documents + blocks_of(header_.tokens)) * 8;
  const int64_t expected = int64_t(sizeof raw) + token_bytes + table_bytes;
  if (int64_t(bytes.size()) != expected)
    fail(fmt::format("the file has {} bytes; {} tokens in {} documents take {}", bytes.size(), header_.tokens,
                     header_.documents, expected),
         source);
  tokens_ = bytes.data() + sizeof raw;
  for (int64_t i = header_.tokens * header_.token_bytes(); i < token_bytes; ++i)
    if (tokens_[i] != 0) fail("there is no zero in the gap after the last token", source);
  ends_ = tokens_ + token_bytes;
  checksums_ = ends_ + header_.documents * 8;
  if (checksum64({ends_, size_t(table_bytes)}) != raw.tables)
    fail("the tables after the tokens are damaged: they do not have the checksum that was written with them",
         source);
  int64_t before = 0;
  for (int64_t i = 0; i < header_.documents; ++i) {
    const int64_t end = number_at<int64_t>(ends_, i);
    if (end <= before || end > header_.tokens)
      fail(fmt::format("document {} ends at token {}, the one before at {} of {}", i, end, before,
                       header_.tokens),
           source);
    before = end;
  }
  if (before != header_.tokens)
    fail(fmt::format("the last document ends at token {} of {}", before, header_.tokens), source);
  fingerprint_ = raw.checksum;
}

int64_t Shard::document_end(int64_t i) const {
  CHECK(0 <= i && i < header_.documents);
  return number_at<int64_t>(ends_, i);
}

void Shard::check_block(int64_t block) const {
  const int64_t first = block * kShardBlock, last = std::min(first + kShardBlock, header_.tokens);
  const int64_t width = header_.token_bytes();
  const uint64_t expected = number_at<uint64_t>(checksums_, block);
  const uint64_t found = checksum64({tokens_ + first * width, size_t((last - first) * width)});
  if (found != expected)
    throw Error(
        fmt::format("{}: tokens {} to {} are damaged: their checksum is {:016x}, not the {:016x} that was "
                    "written with them",
                    name_, first, last - 1, found, expected))
        .hint(remake(name_, header_.source));
}

void Shard::read(int64_t first, std::span<int32_t> out) const {
  const int64_t last = first + int64_t(out.size());
  CHECK(0 <= first && last <= header_.tokens);
  if (out.empty()) return;
  for (int64_t block = first / kShardBlock; block * kShardBlock < last; ++block) check_block(block);
  const uint32_t largest = header_.token_bytes() == 2 ? widen<uint16_t>(tokens_ + 2 * first, out)
                                                      : widen<uint32_t>(tokens_ + 4 * first, out);
  if (int64_t(largest) >= header_.vocab_size)
    throw Error(
        fmt::format("{}: token {} is beyond the vocabulary of {}", name_, largest, header_.vocab_size))
        .hint(remake(name_, header_.source));
}

void Shard::verify() const {
  std::vector<int32_t> ids(static_cast<size_t>(kShardBlock));
  for (int64_t first = 0; first < header_.tokens; first += kShardBlock)
    read(first, std::span(ids).first(size_t(std::min(kShardBlock, header_.tokens - first))));
}

void Shard::require_tokenizer(const Tokenizer& used, const std::string& path) const {
  const uint64_t id = tokenizer_id(used);
  if (id == header_.tokenizer) return;
  throw Error(fmt::format("{} holds tokens of tokenizer {} ({} tokens); {} is {} ({} tokens)", name_,
                          tokenizer_id_text(header_.tokenizer), header_.vocab_size, path,
                          tokenizer_id_text(id), used.vocab_size()))
      .hint(header_.source.empty()
                ? "use the tokenizer of the shards, or cachalot data tokenize the text with this one"
                : fmt::format("use the tokenizer of the shards, or make them anew with --tokenizer {}: {}",
                              path, command_for(name_, header_.source)));
}

ShardBuilder::ShardBuilder(ShardHeader header) : header_(std::move(header)) {
  CHECK(header_.part.size() < sizeof(RawHeader::part));
  CHECK(header_.end_of_text >= 0 && header_.end_of_text < header_.vocab_size);
  header_.tokens = header_.documents = header_.text_bytes = 0;
}

void ShardBuilder::close_block(size_t bytes) {
  checksums_.push_back(checksum64(std::string_view(pending_).substr(block_begin_, bytes)));
  block_begin_ += bytes;
}

void ShardBuilder::add(std::span<const int32_t> ids, int64_t text_bytes) {
  CHECK(!ids.empty() && text_bytes >= 0);
  const size_t width = size_t(header_.token_bytes());
  const size_t begin = pending_.size();
  pending_.resize(begin + ids.size() * width);
  char* p = pending_.data() + begin;
  for (const int32_t id : ids) {
    CHECK(0 <= id && id < header_.vocab_size);
    std::memcpy(p, &id, width);  // little-endian: the low bytes
    p += width;
  }
  const size_t block = size_t(kShardBlock) * width;
  while (pending_.size() - block_begin_ >= block) close_block(block);
  header_.tokens += int64_t(ids.size());
  header_.text_bytes += text_bytes;
  ++header_.documents;
  ends_.push_back(uint64_t(header_.tokens));
}

std::string ShardBuilder::take() {
  std::string rest = pending_.substr(block_begin_);
  pending_.resize(std::exchange(block_begin_, 0));
  return std::exchange(pending_, std::move(rest));
}

std::string ShardBuilder::finish() {
  if (pending_.size() > block_begin_) close_block(pending_.size() - block_begin_);
  const int64_t token_bytes = header_.tokens * header_.token_bytes();
  std::string tail = std::exchange(pending_, {});
  tail.append(size_t(round_up(token_bytes, 8) - token_bytes), '\0');
  const std::string tables = as_bytes(ends_) + as_bytes(checksums_);
  tables_ = checksum64(tables);
  return tail + tables;
}

std::string ShardBuilder::header_bytes() const {
  RawHeader raw{};
  std::memcpy(raw.magic, kMagic, sizeof kMagic);
  raw.version = kVersion;
  raw.token_bytes = uint32_t(header_.token_bytes());
  raw.tokens = uint64_t(header_.tokens);
  raw.documents = uint64_t(header_.documents);
  raw.text_bytes = uint64_t(header_.text_bytes);
  raw.vocab_size = uint64_t(header_.vocab_size);
  raw.end_of_text = uint64_t(header_.end_of_text);
  raw.tokenizer = header_.tokenizer;
  raw.held_out = header_.held_out;
  raw.block_tokens = uint32_t(kShardBlock);
  raw.tables = tables_;
  set_text(raw.part, header_.part);
  set_text(raw.source, header_.source);
  raw.checksum = checksum_of(raw);
  return std::string(reinterpret_cast<const char*>(&raw), sizeof raw);
}

std::string shard_bytes(ShardBuilder&& builder) {
  const std::string tail = builder.finish();
  return builder.header_bytes() + tail;
}

namespace {

[[noreturn]] void cannot_write(const std::string& path, int code) {
  Error error(fmt::format("cannot write {}: {}", path, std::strerror(code)));
  if (code == ENOSPC || code == EDQUOT || code == EFBIG)
    error.hint("the disk is full: free some space and run the same command again; it continues where it was");
  throw error;
}

}  // namespace

ShardWriter::ShardWriter(std::string path, ShardHeader header)
    : path_(std::move(path)), temporary_(path_ + ".tmp"), builder_(std::move(header)) {
  file_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (file_ < 0) cannot_write(path_, errno);
  written_ = int64_t(kShardHeaderBytes);  // a hole until finish(): a file without it is no shard
}

ShardWriter::~ShardWriter() {
  if (file_ < 0) return;
  ::close(file_);
  ::unlink(temporary_.c_str());
}

void ShardWriter::write(std::string_view bytes, int64_t at) {
  while (!bytes.empty()) {
    const ssize_t n = ::pwrite(file_, bytes.data(), bytes.size(), at);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) cannot_write(path_, errno);
    bytes.remove_prefix(size_t(n));
    at += n;
  }
}

void ShardWriter::add(std::span<const int32_t> ids, int64_t text_bytes) {
  builder_.add(ids, text_bytes);
  if (builder_.pending_bytes() < kFlush) return;
  const std::string bytes = builder_.take();
  write(bytes, written_);
  written_ += int64_t(bytes.size());
}

void ShardWriter::finish() {
  write(builder_.finish(), written_);
  write(builder_.header_bytes(), 0);
  if (::fsync(file_) != 0 && errno != EINVAL && errno != EROFS) cannot_write(path_, errno);
  if (::close(std::exchange(file_, -1)) != 0) {  // NFS and quotas report a failed write here
    const int code = errno;
    ::unlink(temporary_.c_str());
    cannot_write(path_, code);
  }
  if (::rename(temporary_.c_str(), path_.c_str()) != 0) {
    const int code = errno;
    ::unlink(temporary_.c_str());
    cannot_write(path_, code);
  }
  const std::string folder = std::filesystem::path(path_).parent_path().string();
  if (const int fd = ::open(folder.empty() ? "." : folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
      fd >= 0) {
    ::fsync(fd);  // some file systems cannot; the rename is atomic all the same
    ::close(fd);
  }
}

}  // namespace cachalot
