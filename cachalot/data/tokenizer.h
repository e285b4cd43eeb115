// Byte-level BPE read from a Hugging Face tokenizer.json, with the ids that the Rust `tokenizers` library
// gives.
//
// Encoding: added tokens are cut out of the text, the rest is cut into pieces (data/pre_tokenizer.h), and in
// each piece, which starts as one token per byte, the adjacent pair of lowest rank (place in the list of
// merges; leftmost first) is replaced until no pair is a merge (data/bpe_encoder.h): O(n log n) for a piece
// of n bytes. Words that were merged once are remembered, 5 MiB a thread, so a tokenizer gets faster with
// use.
//
// Any bytes can be encoded, and decode(encode(x)) == x unless the file asks for add_prefix_space: a byte that
// is not part of valid UTF-8 becomes the token of that byte.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace cachalot {

class ThreadPool;

struct EncodeOptions {
  // Recognise added tokens ("<｜User｜>", flagged special or not) in the text. false for text from outside,
  // which must not be able to forge them: whatever it holds is then encoded as ordinary text.
  bool parse_special = true;
  // Threads for a text of more than 128 KiB, and for a batch; none: the caller's. The ids do not depend on
  // it. A text under a pre-tokenizer other than DeepSeek-V3's is cut for them at added tokens only.
  ThreadPool* pool = nullptr;
};

struct DecodeOptions {
  bool skip_special = false;  // leave out tokens flagged special; DeepSeek flags "<｜User｜>" not so
};

// Cheap to copy (copies share the tables); safe to use from several threads.
class Tokenizer {
 public:
  // `path` is a tokenizer.json, or a directory that holds one. A tokenizer_config.json beside it says which
  // tokens begin and end a text. Error naming file, field and value for all that is malformed or unsupported.
  static Tokenizer load(const std::string& path);
  static Tokenizer parse(std::string_view json, const std::string& what);  // `what` names it in messages

  // Adds no begin-of-text token.
  std::vector<int32_t> encode(std::string_view text, EncodeOptions options = {}) const;
  // The ids of each text.
  std::vector<std::vector<int32_t>> encode_batch(std::span<const std::string_view> texts,
                                                 EncodeOptions options = {}) const;
  std::string decode(std::span<const int32_t> ids, DecodeOptions options = {}) const;  // Error: an unknown id

  int64_t vocab_size() const;  // one past the largest id; a model may have more rows
  // The bytes that the token stands for; "" for an id that no token has, as when a model has more rows.
  std::string_view token_bytes(int32_t id) const;
  // By the token as tokenizer.json writes it: "<｜User｜>", "\u0120the" (byte alphabet: data/byte_level.h).
  std::optional<int32_t> find(std::string_view content) const;
  bool is_special(int32_t id) const;

  std::optional<int32_t> bos_id() const;  // from tokenizer_config.json
  std::optional<int32_t> eos_id() const;
  // Does tokenizer_config.json want bos before every text? encode() leaves it to the caller.
  bool add_bos() const;

 private:
  struct Tables;
  explicit Tokenizer(std::shared_ptr<const Tables> tables) : tables_(std::move(tables)) {}
  static std::shared_ptr<Tables> read_tables(std::string_view json, const std::string& what);
  std::shared_ptr<const Tables> tables_;
};

}  // namespace cachalot
