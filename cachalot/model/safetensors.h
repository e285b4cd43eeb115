// safetensors: 8 bytes of header length (little-endian), a JSON header {name: {dtype, shape, data_offsets}},
// data. The format as the reference implementation enforces it: header <= 100 MB, the tensors' byte ranges
// tile the data without overlap, hole or rest. A checkpoint is one file, or shards with an index.
// docs/formats.md.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/files.h"

namespace cachalot {

// The format's element types, in the order in which writers sort them (last first, so that data stays
// aligned).
enum class StoredType : uint8_t {
  boolean,
  u8,
  i8,
  f8_e5m2,
  f8_e4m3,
  i16,
  u16,
  f16,
  bf16,
  i32,
  u32,
  f32,
  f64,
  i64,
  u64
};
std::string_view name_of(StoredType type);  // "F8_E4M3"
int64_t size_of(StoredType type);           // bytes an element

// What a header says about one tensor.
struct TensorSpec {
  std::string name = {};
  StoredType type = StoredType::f32;
  std::vector<int64_t> shape = {};

  int64_t size() const;  // elements; 1 for a scalar (empty shape)
  int64_t bytes() const { return size() * size_of(type); }
  std::string describe() const;  // "BF16 [4096, 7168]"
};

struct StoredTensor : TensorSpec {
  const uint8_t* data = nullptr;  // in the map, of any alignment: read with memcpy
};

// One file, checked when opened. Errors name file, tensor, field and values.
class SafetensorsFile {
 public:
  static SafetensorsFile open(const std::string& path);  // maps it; pages are read when touched
  // The same from memory, which must outlive the object; `name` stands for the path in messages.
  static SafetensorsFile parse(std::string_view bytes, const std::string& name);

  const std::string& path() const { return path_; }
  const std::vector<StoredTensor>& tensors() const { return tensors_; }  // in the order of their data
  const StoredTensor* find(const std::string& name) const;
  const std::map<std::string, std::string>& metadata() const { return metadata_; }

 private:
  SafetensorsFile(std::optional<MappedFile> map, std::string_view bytes, std::string path);

  std::optional<MappedFile> map_;  // none: the bytes are somebody else's
  std::string path_;
  std::vector<StoredTensor> tensors_;
  std::unordered_map<std::string, size_t> index_;
  std::map<std::string, std::string> metadata_;
};

// The tensors of a model directory: model.safetensors, or model.safetensors.index.json and its shards.
// Refused: an index that names a tensor its shard lacks, tensors or model-*-of-*.safetensors files that the
// index does not name, shard names that leave the directory.
class CheckpointReader {
 public:
  explicit CheckpointReader(std::string directory);

  const std::string& directory() const { return directory_; }
  const std::vector<SafetensorsFile>& files() const { return files_; }
  const StoredTensor* find(const std::string& name) const;    // nullptr: there is none
  const std::string& file_of(const std::string& name) const;  // the path, for messages; CHECKs that it exists
  std::vector<std::string> names() const;  // file after file, each in the order of its data

 private:
  void open_single();
  void open_shards();

  std::string directory_;
  std::vector<SafetensorsFile> files_;
  std::unordered_map<std::string, std::pair<size_t, const StoredTensor*>> tensors_;  // file, tensor
};

// A tensor to write: fill(append) delivers its bytes in order, in pieces of any size, exactly bytes() of
// them.
struct TensorSource : TensorSpec {
  std::function<void(const Append&)> fill = {};
};

// One file, written aside and renamed (write_file_atomic). Tensors are sorted as the reference implementation
// sorts them, by type and name, so that the file is byte for byte what it would write; `metadata` gets format
// = "pt".
void write_safetensors(const std::string& path, std::vector<TensorSource> tensors,
                       std::map<std::string, std::string> metadata = {});

// Splits the tensors, in the order given, into shards of at most `max_shard_bytes` of data (one larger tensor
// makes a shard of its own) and writes model.safetensors, or model-00001-of-0000N.safetensors ... and the
// index. `wrote(tensor)` is told of every finished tensor. Each file is atomic; for the whole use an
// AtomicDirectory.
void write_checkpoint(const std::string& directory, std::vector<TensorSource> tensors,
                      int64_t max_shard_bytes, const std::function<void(const TensorSpec&)>& wrote = {});

constexpr int64_t kDefaultShardBytes = 5'000'000'000;

}  // namespace cachalot
