// shards.json: what a folder of token shards holds, from which text, and how far it is. Written anew after
// every shard, so a killed tokenisation continues behind the last one (data/tokenize.h).
#pragma once

#include <compare>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "data/documents.h"

namespace cachalot {

inline constexpr const char* kShardFolderFile = "shards.json";

// Before a record of the text.
struct TextPosition {
  int64_t file = 0;    // among the inputs
  int64_t record = 0;  // of it
  int64_t offset = 0;  // its first unpacked byte
  int64_t bytes = 0;   // of all documents before
  std::strong_ordering operator<=>(const TextPosition& other) const {
    return file != other.file ? file <=> other.file : record <=> other.record;
  }
  bool operator==(const TextPosition& other) const { return (*this <=> other) == 0; }
  template <class V> void visit(V& v) {
    v("file", file, "");
    v("record", record, "");
    v("offset", offset, "");
    v("bytes", bytes, "");
  }
};

// Shards of a part are numbered; those of its held-out documents by themselves.
struct ShardKey {
  std::string part;
  bool held_out = false;
  auto operator<=>(const ShardKey&) const = default;
};
std::string shard_file_name(const ShardKey& key, int64_t index);  // "en-00003.tok", "en.held-out-00000.tok"

struct ShardEntry {
  std::string file, part;
  bool held_out = false;
  int64_t index = 0, tokens = 0, documents = 0, text_bytes = 0;
  std::string fingerprint;  // Shard::fingerprint(), 16 hex digits
  TextPosition begin, end;  // its documents are those of its part and side between
  template <class V> void visit(V& v) {
    v("file", file, "");
    v("part", part, "");
    v("held_out", held_out, "");
    v("index", index, "");
    v("tokens", tokens, "");
    v("documents", documents, "");
    v("text_bytes", text_bytes, "");
    v("fingerprint", fingerprint, "");
    v("begin", begin, "");
    v("end", end, "");
  }
  ShardKey key() const { return {part, held_out}; }
};

// A shard that had documents but was not full when shards.json was written.
struct OpenShard {
  std::string part;
  bool held_out = false;
  int64_t index = 0;
  TextPosition begin;
  template <class V> void visit(V& v) {
    v("part", part, "");
    v("held_out", held_out, "");
    v("index", index, "");
    v("begin", begin, "");
  }
};

struct InputEntry {
  std::string path;
  int64_t bytes = 0;
  template <class V> void visit(V& v) {
    v("path", path, "");
    v("bytes", bytes, "");
  }
};

// Everything that decides the bytes of the shards.
struct TokenizeSettings {
  int64_t version = 1;
  std::string tokenizer;  // tokenizer_id_text()
  std::vector<InputEntry> inputs;
  std::string reading;  // the options of the reader, as text
  double fim_rate = 0, split_rate = 0, held_out = 0;
  int64_t seed = 1, shard_tokens = 0;
  template <class V> void visit(V& v) {
    v("version", version, "");
    v("tokenizer", tokenizer, "");
    v("inputs", inputs, "");
    v("reading", reading, "");
    v("fim_rate", fim_rate, "");
    v("split_rate", split_rate, "");
    v("held_out", held_out, "");
    v("seed", seed, "");
    v("shard_tokens", shard_tokens, "");
  }
};

struct ShardFolder {
  bool complete = false;
  std::string command;  // that makes the folder
  TokenizeSettings settings;
  TextPosition read_to;  // records before were counted in `documents` and `dropped`
  int64_t documents = 0;
  std::vector<int64_t> dropped;  // by Drop
  std::vector<OpenShard> open;
  std::vector<ShardEntry> shards;
  template <class V> void visit(V& v) {
    v("complete", complete, "");
    v("command", command, "");
    v("settings", settings, "");
    v("read_to", read_to, "");
    v("documents", documents, "");
    v("dropped", dropped, "");
    v("open", open, "");
    v("shards", shards, "");
  }
};

// nullopt: there is none. Error: it is damaged.
std::optional<ShardFolder> read_shard_folder(const std::string& folder);
void write_shard_folder(const std::string& folder, const ShardFolder& list);

}  // namespace cachalot
