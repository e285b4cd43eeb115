// A token shard: many tokenised documents in one file that says what it is and can be checked.
// docs/formats.md, "Token shard", gives the bytes:
//
//   header (1024 bytes) | tokens, 2 or 4 bytes each, zeros to a multiple of 8 | where each document ends |
//   one checksum for every 4096 tokens
//
// The header's checksum covers the header, in it the checksum of the two tables, in them those of the
// tokens: so its 64 bits stand for the whole file. open() checks all but the tokens; read() checks the blocks
// of tokens that it touches, every time, so that a flipped bit on a disk never becomes a gradient.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/files.h"
#include "data/tokenizer.h"

namespace cachalot {

inline constexpr int64_t kShardBlock = 4096;  // tokens that share a checksum

// Which tokenizer made a shard: a checksum of what every id stands for and of the end-of-text token. A
// tokenizer.json that was only written anew keeps it. As people see it: 16 hex digits.
uint64_t tokenizer_id(const Tokenizer& tokenizer);
std::string tokenizer_id_text(uint64_t id);

struct ShardHeader {
  int64_t tokens = 0, documents = 0;
  int64_t text_bytes = 0;   // of the documents as they were read
  int64_t vocab_size = 0;   // ids are below it; up to 65,536 they take 2 bytes, else 4
  int64_t end_of_text = 0;  // the token that ends every document
  uint64_t tokenizer = 0;   // tokenizer_id()
  bool held_out = false;    // kept from training
  std::string part;         // the part of a mixture that the documents belong to; up to 63 bytes
  std::string source;       // the command that makes this file, without --out; cut after 800 bytes
  int token_bytes() const { return vocab_size <= 65536 ? 2 : 4; }
};

// Copies share the file. Safe to use from several threads.
class Shard {
 public:
  // Error naming file, field and values, with the command that makes the file anew.
  static Shard open(const std::string& path);
  static Shard from_bytes(std::string bytes, const std::string& name);

  const std::string& name() const { return name_; }
  const ShardHeader& header() const { return header_; }
  int64_t tokens() const { return header_.tokens; }
  int64_t documents() const { return header_.documents; }
  int64_t document_begin(int64_t i) const { return i == 0 ? 0 : document_end(i - 1); }
  int64_t document_end(int64_t i) const;
  uint64_t fingerprint() const { return fingerprint_; }  // stands for every byte of the file

  // out = tokens [first, first + out.size()). Error: a block with a wrong checksum, an id beyond vocab_size.
  void read(int64_t first, std::span<int32_t> out) const;
  void verify() const;  // reads all
  // Error if another tokenizer made it; `used`: the tokenizer of this run, `path` where it is, for messages.
  void require_tokenizer(const Tokenizer& used, const std::string& path) const;

 private:
  Shard(std::shared_ptr<const MappedFile> file, std::shared_ptr<const std::string> memory, std::string name);
  void check_block(int64_t block) const;

  std::shared_ptr<const MappedFile> file_;  // one of the two
  std::shared_ptr<const std::string> memory_;
  std::string name_;
  ShardHeader header_;
  uint64_t fingerprint_ = 0;
  const char *tokens_ = nullptr, *ends_ = nullptr, *checksums_ = nullptr;
};

// Puts the bytes of a shard together, document by document; the same documents give the same bytes.
class ShardBuilder {
 public:
  explicit ShardBuilder(ShardHeader header);  // counts are filled in here

  // One document: its tokens with the end-of-text token last, and the bytes of text that they stand for.
  void add(std::span<const int32_t> ids, int64_t text_bytes);
  const ShardHeader& header() const { return header_; }

  // Takes the token bytes whose checksums are known, for a file that grows.
  std::string take();
  size_t pending_bytes() const { return pending_.size(); }
  std::string finish();              // after the last document: all that follows what was taken
  std::string header_bytes() const;  // after finish(): kShardHeaderBytes for the start of the file

 private:
  void close_block(size_t bytes);
  ShardHeader header_;
  std::string pending_;     // token bytes that were not taken
  size_t block_begin_ = 0;  // where in pending_ the block begins that has no checksum yet
  std::vector<uint64_t> ends_, checksums_;
  uint64_t tables_ = 0;  // checksum of both
};

std::string shard_bytes(ShardBuilder&& builder);  // a whole shard of which nothing was taken

inline constexpr size_t kShardHeaderBytes = 1024;

// A shard that grows in a file: under another name until finish(), which makes it appear at once; destroyed
// before that, it leaves nothing. Memory: 8 bytes a document and 1 MiB.
class ShardWriter {
 public:
  ShardWriter(std::string path, ShardHeader header);
  ~ShardWriter();
  ShardWriter(const ShardWriter&) = delete;

  void add(std::span<const int32_t> ids, int64_t text_bytes);  // Error: a full disk
  const ShardHeader& header() const { return builder_.header(); }
  void finish();

 private:
  void write(std::string_view bytes, int64_t at);
  std::string path_, temporary_;
  ShardBuilder builder_;
  int file_ = -1;
  int64_t written_ = 0;
};

}  // namespace cachalot
