#include "model/safetensors.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>
#include <tuple>

#include "base/error.h"
#include "base/json.h"
#include "base/text.h"

namespace cachalot {

namespace fs = std::filesystem;

namespace {

constexpr uint64_t kMaxHeader = 100'000'000;
constexpr size_t kWriteBuffer = size_t{1} << 20;
constexpr const char* kDamaged = "the file is damaged or incomplete: copy or download it again";

struct TypeInfo {
  StoredType type;
  std::string_view name;
  int64_t size;
};
constexpr TypeInfo kTypes[] = {
    {StoredType::boolean, "BOOL", 1},    {StoredType::u8, "U8", 1},           {StoredType::i8, "I8", 1},
    {StoredType::f8_e5m2, "F8_E5M2", 1}, {StoredType::f8_e4m3, "F8_E4M3", 1}, {StoredType::i16, "I16", 2},
    {StoredType::u16, "U16", 2},         {StoredType::f16, "F16", 2},         {StoredType::bf16, "BF16", 2},
    {StoredType::i32, "I32", 4},         {StoredType::u32, "U32", 4},         {StoredType::f32, "F32", 4},
    {StoredType::f64, "F64", 8},         {StoredType::i64, "I64", 8},         {StoredType::u64, "U64", 8},
};

// A name from outside inside a message: quoted, control characters escaped, cut when it is long.
std::string quote(const std::string& name) {
  std::string text = Json(name).dump(-1, ' ', false, Json::error_handler_t::replace);
  if (text.size() > 200)
    text = text.substr(0, utf8_complete_prefix(std::string_view(text).substr(0, 196))) + "...\"";
  return text;
}

// Reads one tensor's entry; every message begins with file and tensor.
class Entry {
 public:
  Entry(const std::string& path, const std::string& name, const Json& json, int64_t data_bytes)
      : where_(path + ": tensor " + quote(name)), json_(json), data_bytes_(data_bytes) {
    if (!json.is_object()) fail(fmt::format("the entry is a {}, not an object", json_kind(json)));
  }

  StoredType type() const {
    const Json& value = field("dtype");
    if (!value.is_string()) fail(fmt::format("dtype is a {}, not a string", json_kind(value)));
    const auto name = value.get<std::string>();
    for (const TypeInfo& t : kTypes)
      if (t.name == name) return t.type;
    std::vector<std::string_view> known;
    for (const TypeInfo& t : kTypes) known.push_back(t.name);
    throw Error(fmt::format("{}: dtype is {}", where_, quote(name)))
        .hint(fmt::format("known: {}", fmt::join(known, ", ")));
  }

  // Its elements, and its bytes at `element_size`, fit int64.
  std::vector<int64_t> shape(int64_t element_size) const {
    std::vector<int64_t> shape = numbers("shape");
    int64_t bytes = element_size;
    bool empty = false;
    for (const int64_t n : shape) empty |= n == 0;
    for (const int64_t n : shape)
      if (!empty && __builtin_mul_overflow(bytes, n, &bytes))
        fail(fmt::format("shape [{}] has more elements than any file", fmt::join(shape, ", ")));
    return shape;
  }

  std::pair<int64_t, int64_t> range() const {
    const std::vector<int64_t> ends = numbers("data_offsets");
    if (ends.size() != 2) fail(fmt::format("data_offsets has {} numbers, not 2", ends.size()));
    if (ends[0] > ends[1] || ends[1] > data_bytes_)
      fail(
          fmt::format("data_offsets [{}, {}] lie outside the data, {} bytes", ends[0], ends[1], data_bytes_));
    return {ends[0], ends[1]};
  }

  [[noreturn]] void fail(const std::string& what) const { throw Error(where_ + ": " + what).hint(kDamaged); }

 private:
  const Json& field(const char* key) const {
    const auto it = json_.find(key);
    if (it == json_.end()) fail(fmt::format("{} is missing", key));
    return *it;
  }
  std::vector<int64_t> numbers(const char* key) const {
    const Json& value = field(key);
    if (!value.is_array()) fail(fmt::format("{} is a {}, not an array", key, json_kind(value)));
    std::vector<int64_t> numbers;
    for (const Json& n : value) {
      if (!n.is_number_unsigned() || n.get<uint64_t>() > uint64_t(INT64_MAX))
        fail(fmt::format("{} holds {}, not a size", key,
                         quote(n.dump(-1, ' ', false, Json::error_handler_t::replace))));
      numbers.push_back(n.get<int64_t>());
    }
    return numbers;
  }

  std::string where_;
  const Json& json_;
  int64_t data_bytes_;
};

uint64_t little_endian_64(const uint8_t* p) {
  uint64_t n = 0;
  for (int i = 7; i >= 0; --i) n = n << 8 | p[i];
  return n;
}

// The JSON header, checked against the number of bytes there are.
std::string_view header_text(std::string_view bytes, const std::string& path) {
  if (bytes.size() < 8)
    throw Error(fmt::format("{} is {} bytes long, too short for a safetensors file", path, bytes.size()))
        .hint(kDamaged);
  if (bytes.starts_with("version https://git-lfs"))
    throw Error(fmt::format("{} is a pointer of Git LFS, not the file itself", path))
        .hint("git lfs pull, in the folder that was cloned");
  const uint64_t length = little_endian_64(reinterpret_cast<const uint8_t*>(bytes.data()));
  if (length > kMaxHeader)
    throw Error(
        fmt::format("{}: the header's length says {}; the format allows {}", path, length, kMaxHeader))
        .hint("the file is damaged, or no safetensors file");
  if (length > bytes.size() - 8)
    throw Error(
        fmt::format("{}: the header's length says {}, but {} bytes follow", path, length, bytes.size() - 8))
        .hint(kDamaged);
  const std::string_view text = bytes.substr(8, length);
  if (text.empty() || text[0] != '{')
    throw Error(fmt::format("{}: the header does not begin with \"{{\"", path))
        .hint("the file is damaged, or no safetensors file");
  return text;
}

}  // namespace

std::string_view name_of(StoredType type) { return kTypes[size_t(type)].name; }
int64_t size_of(StoredType type) { return kTypes[size_t(type)].size; }

int64_t TensorSpec::size() const {
  if (std::find(shape.begin(), shape.end(), 0) != shape.end()) return 0;  // beside a 0 stands any number
  int64_t n = 1;
  for (const int64_t d : shape) n *= d;
  return n;
}

std::string TensorSpec::describe() const {
  return fmt::format("{} [{}]", name_of(type), fmt::join(shape, ", "));
}

// ---------------------------------------------------------------------------------------------------------
// Reading.

SafetensorsFile SafetensorsFile::open(const std::string& path) {
  MappedFile map(path);
  const std::string_view bytes = map.view();
  return SafetensorsFile(std::move(map), bytes, path);
}

SafetensorsFile SafetensorsFile::parse(std::string_view bytes, const std::string& name) {
  return SafetensorsFile(std::nullopt, bytes, name);
}

SafetensorsFile::SafetensorsFile(std::optional<MappedFile> map, std::string_view bytes, std::string path)
    : map_(std::move(map)), path_(std::move(path)) {
  const std::string_view text = header_text(bytes, path_);
  const Json header = parse_json(text, path_ + ": header");
  const std::string_view data = bytes.substr(8 + text.size());

  struct Placed {
    int64_t begin, end;
    StoredTensor tensor;
  };
  std::vector<Placed> placed;
  for (const auto& item : header.items()) {
    if (item.key() == "__metadata__") {
      if (!item.value().is_object())
        throw Error(fmt::format("{}: __metadata__ is not an object", path_)).hint(kDamaged);
      for (const auto& entry : item.value().items()) {
        if (!entry.value().is_string())
          throw Error(fmt::format("{}: __metadata__.{} is not a string", path_, entry.key())).hint(kDamaged);
        metadata_[entry.key()] = entry.value().get<std::string>();
      }
      continue;
    }
    const Entry entry(path_, item.key(), item.value(), int64_t(data.size()));
    StoredTensor tensor;
    tensor.name = item.key();
    tensor.type = entry.type();
    tensor.shape = entry.shape(size_of(tensor.type));
    const auto [begin, end] = entry.range();
    if (end - begin != tensor.bytes())
      entry.fail(fmt::format("{} needs {} bytes, but data_offsets [{}, {}] hold {}", tensor.describe(),
                             tensor.bytes(), begin, end, end - begin));
    tensor.data = reinterpret_cast<const uint8_t*>(data.data()) + begin;
    placed.push_back({begin, end, std::move(tensor)});
  }

  std::sort(placed.begin(), placed.end(), [](const Placed& a, const Placed& b) {
    return std::tie(a.begin, a.end, a.tensor.name) < std::tie(b.begin, b.end, b.tensor.name);
  });
  int64_t at = 0;
  for (Placed& p : placed) {
    if (p.begin != at)
      throw Error(fmt::format("{}: tensor {} begins at byte {} of the data, {}", path_, quote(p.tensor.name),
                              p.begin,
                              p.begin < at ? fmt::format("inside the one before it, which ends at {}", at)
                                           : fmt::format("leaving a hole from {}", at)))
          .hint(kDamaged);
    at = p.end;
    index_.emplace(p.tensor.name, tensors_.size());
    tensors_.push_back(std::move(p.tensor));
  }
  if (at != int64_t(data.size()))
    throw Error(
        fmt::format("{}: the tensors end at byte {} of the data, but there are {}", path_, at, data.size()))
        .hint(kDamaged);
}

const StoredTensor* SafetensorsFile::find(const std::string& name) const {
  const auto it = index_.find(name);
  return it == index_.end() ? nullptr : &tensors_[it->second];
}

namespace {

bool is_shard(const std::string& name) {
  return name.starts_with("model-") && name.ends_with(".safetensors");
}

bool holds_shards(const std::string& directory) {
  for (const auto& entry : fs::directory_iterator(directory))
    if (is_shard(entry.path().filename().string())) return true;
  return false;
}

}  // namespace

CheckpointReader::CheckpointReader(std::string directory) : directory_(std::move(directory)) {
  const bool single = fs::exists(directory_ + "/model.safetensors");
  const bool index = fs::exists(directory_ + "/model.safetensors.index.json");
  if (!single && !index)
    throw Error(
        fmt::format("{} holds neither model.safetensors nor model.safetensors.index.json", directory_))
        .hint(!fs::is_directory(directory_) ? "there is no such directory: check the path"
              : holds_shards(directory_)    ? "its shards are there; download the index, too"
                                            : "name a Hugging Face model directory; .bin files are not read");
  if (index) open_shards();
  else open_single();
  for (size_t f = 0; f < files_.size(); ++f)
    for (const StoredTensor& t : files_[f].tensors()) tensors_.emplace(t.name, std::pair(f, &t));
}

void CheckpointReader::open_single() {
  files_.push_back(SafetensorsFile::open(directory_ + "/model.safetensors"));
}

void CheckpointReader::open_shards() {
  const std::string path = directory_ + "/model.safetensors.index.json";
  const Json index = read_json_file(path);
  const auto map = index.is_object() ? index.find("weight_map") : index.end();
  if (!index.is_object() || map == index.end() || !map->is_object())
    throw Error(fmt::format("{}: weight_map is missing or no object", path)).hint(kDamaged);

  std::map<std::string, std::set<std::string>> shards;  // file -> the tensors the index puts there
  for (const auto& item : map->items()) {
    if (!item.value().is_string())
      throw Error(fmt::format("{}: weight_map.{} is not a file name", path, quote(item.key())))
          .hint(kDamaged);
    const auto file = item.value().get<std::string>();
    if (file.empty() || file.find('/') != std::string::npos || file.find('\0') != std::string::npos ||
        file[0] == '.')
      throw Error(fmt::format("{}: weight_map puts {} into {}", path, quote(item.key()), quote(file)))
          .hint("shards lie beside the index: only plain file names are accepted");
    shards[file].insert(item.key());
  }

  for (const auto& entry : fs::directory_iterator(directory_)) {
    const std::string name = entry.path().filename().string();
    if ((name == "model.safetensors" || is_shard(name)) && !shards.contains(name))
      throw Error(fmt::format("{}/{} is not named by model.safetensors.index.json", directory_, name))
          .hint("two checkpoints seem to be mixed in this folder: remove the files of the other one");
  }

  std::vector<std::string> missing;
  for (const auto& [name, expected] : shards)
    if (!fs::exists(directory_ + "/" + name)) missing.push_back(name);
  if (!missing.empty())
    throw Error(fmt::format("{}: {} of {} files that model.safetensors.index.json names {} missing, {}{}",
                            directory_, missing.size(), shards.size(), missing.size() == 1 ? "is" : "are",
                            missing.size() == 1 ? "" : "the first ", quote(missing.front())))
        .hint("the copy or download is not complete");

  for (const auto& [name, expected] : shards) {
    SafetensorsFile file = SafetensorsFile::open(directory_ + "/" + name);
    for (const std::string& tensor : expected)
      if (!file.find(tensor))
        throw Error(fmt::format("{}: tensor {} is not there, though model.safetensors.index.json says so",
                                file.path(), quote(tensor)))
            .hint("index and shards do not belong together: copy or download them again");
    for (const StoredTensor& t : file.tensors())
      if (!expected.contains(t.name))
        throw Error(fmt::format("{}: tensor {} is not named by model.safetensors.index.json for this file",
                                file.path(), quote(t.name)))
            .hint("index and shards do not belong together: copy or download them again");
    files_.push_back(std::move(file));
  }
}

const StoredTensor* CheckpointReader::find(const std::string& name) const {
  const auto it = tensors_.find(name);
  return it == tensors_.end() ? nullptr : it->second.second;
}

const std::string& CheckpointReader::file_of(const std::string& name) const {
  const auto it = tensors_.find(name);
  CHECK(it != tensors_.end(), name);
  return files_[it->second.first].path();
}

std::vector<std::string> CheckpointReader::names() const {
  std::vector<std::string> names;
  for (const SafetensorsFile& file : files_)
    for (const StoredTensor& t : file.tensors()) names.push_back(t.name);
  return names;
}

// ---------------------------------------------------------------------------------------------------------
// Writing.

namespace {

std::string build_header(const std::vector<TensorSource>& tensors,
                         const std::map<std::string, std::string>& metadata) {
  Json header = Json::object();
  header["__metadata__"] = Json::object();
  for (const auto& [key, value] : metadata) header["__metadata__"][key] = value;
  auto& entries = static_cast<std::vector<Json::object_t::value_type>&>(header.get_ref<Json::object_t&>());
  std::set<std::string> seen;
  int64_t at = 0;
  for (const TensorSource& t : tensors) {
    CHECK(seen.insert(t.name).second, t.name + " is there twice");
    entries.emplace_back(
        t.name, Json{{"dtype", name_of(t.type)}, {"shape", t.shape}, {"data_offsets", {at, at + t.bytes()}}});
    at += t.bytes();
  }
  std::string text = header.dump();
  text.append((8 - text.size() % 8) % 8, ' ');
  if (text.size() > kMaxHeader)
    throw Error(
        fmt::format("a safetensors header of {} bytes; the format allows {}", text.size(), kMaxHeader))
        .hint("use smaller shards");
  std::string length(8, '\0');
  for (int i = 0; i < 8; ++i) length[i] = char(uint64_t(text.size()) >> 8 * i & 0xFF);
  return length + text;
}

}  // namespace

void write_safetensors(const std::string& path, std::vector<TensorSource> tensors,
                       std::map<std::string, std::string> metadata) {
  std::sort(tensors.begin(), tensors.end(), [](const TensorSource& a, const TensorSource& b) {
    return a.type != b.type ? a.type > b.type : a.name < b.name;
  });
  metadata["format"] = "pt";
  const std::string header = build_header(tensors, metadata);
  write_file_atomic(path, [&](const Append& append) {
    std::string buffer = header;  // many tensors are small: one system call for many
    for (const TensorSource& t : tensors) {
      int64_t bytes = 0;
      t.fill([&](std::string_view piece) {
        bytes += int64_t(piece.size());
        if (buffer.size() + piece.size() > kWriteBuffer) {
          append(buffer);
          buffer.clear();
        }
        if (piece.size() > kWriteBuffer) append(piece);
        else buffer.append(piece);
      });
      CHECK(bytes == t.bytes(), fmt::format("{} {}: {} bytes written", t.name, t.describe(), bytes));
    }
    append(buffer);
  });
}

void write_checkpoint(const std::string& directory, std::vector<TensorSource> tensors,
                      int64_t max_shard_bytes, const std::function<void(const TensorSpec&)>& wrote) {
  CHECK(max_shard_bytes > 0);
  std::vector<std::vector<TensorSource>> shards(1);
  int64_t shard_bytes = 0, total = 0;
  for (TensorSource& t : tensors) {
    if (!shards.back().empty() && shard_bytes + t.bytes() > max_shard_bytes) {
      shards.emplace_back();
      shard_bytes = 0;
    }
    shard_bytes += t.bytes();
    total += t.bytes();
    if (wrote)
      t.fill = [fill = std::move(t.fill), spec = static_cast<TensorSpec>(t), &wrote](const Append& append) {
        fill(append);
        wrote(spec);
      };
    shards.back().push_back(std::move(t));
  }
  if (shards.size() == 1) return write_safetensors(directory + "/model.safetensors", std::move(shards[0]));

  std::map<std::string, std::string> weight_map;
  for (size_t i = 0; i < shards.size(); ++i) {
    const std::string name = fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, shards.size());
    for (const TensorSource& t : shards[i]) weight_map[t.name] = name;
    write_safetensors(directory + "/" + name, std::move(shards[i]));
  }
  Json index = Json::object();
  index["metadata"]["total_size"] = total;
  index["weight_map"] = weight_map;
  write_file_atomic(directory + "/model.safetensors.index.json", index.dump(2) + "\n");
}

}  // namespace cachalot
