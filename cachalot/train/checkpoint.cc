#include "train/checkpoint.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>

#include "base/error.h"
#include "config/fields.h"
#include "data/checksum.h"
#include "model/checkpoint_name.h"
#include "model/hf_checkpoint.h"

namespace cachalot {

namespace fs = std::filesystem;

namespace {

constexpr int64_t kShardBytes = 4'000'000'000;
constexpr int64_t kPiece = int64_t{8} << 20;  // bytes read from the device at once

StoredType stored_as(DType t) {
  switch (t) {
    case DType::f64: return StoredType::f64;
    case DType::f32: return StoredType::f32;
    case DType::bf16: return StoredType::bf16;
    default: break;
  }
  CHECK(false, std::string(name_of(t)));
}

bool is_router_bias(const StateTensor& t) { return t.name.starts_with(kRouterBiasPrefix); }

void read_tensor(Stream& s, const StateTensor& t, void* host) {
  if (t.on_host) {
    std::memcpy(host, t.tensor.data, size_t(bytes_of(t.tensor)));
    return;
  }
  on(s).download(t.tensor, host);
  on(s).synchronize();
}

// The bytes of a tensor in pieces, so that a large one needs no copy of its own.
TensorSource source_of(Stream& s, const StateTensor& t, const PieceDone& progress) {
  return {{.name = t.name, .type = stored_as(t.tensor.dtype), .shape = {t.tensor.rows, t.tensor.cols}},
          [&s, t, progress](const Append& append_to_file) {
            const Append append = [&](std::string_view bytes) {
              append_to_file(bytes);
              progress();
            };
            const char* bytes = static_cast<const char*>(t.tensor.data);
            if (t.on_host) {
              for (int64_t at = 0, all = bytes_of(t.tensor); at < all; at += kPiece)
                append({bytes + at, size_t(std::min(kPiece, all - at))});
              return;
            }
            const int64_t width = size_of(t.tensor.dtype), most = kPiece / width;
            const Tensor line = make_tensor(t.tensor.data, t.tensor.dtype, 1, t.tensor.size());
            std::vector<char> piece(size_t(std::min(most, line.cols) * width));
            for (int64_t at = 0; at < line.cols; at += most) {
              const int64_t n = std::min(most, line.cols - at);
              on(s).download(line.slice_cols(at, n), piece.data());
              on(s).synchronize();
              append({piece.data(), size_t(n * width)});
            }
          }};
}

void write_optimizer(Stream& s, const std::string& directory, const CheckpointContents& contents) {
  std::vector<std::vector<TensorSource>> shards(1);
  int64_t bytes = 0;
  for (const StateTensor& t : *contents.tensors) {
    if (is_router_bias(t)) continue;
    if (bytes > 0 && bytes + bytes_of(t.tensor) > kShardBytes) {
      shards.emplace_back();
      bytes = 0;
    }
    bytes += bytes_of(t.tensor);
    shards.back().push_back(source_of(s, t, contents.progress));
  }
  for (size_t i = 0; i < shards.size(); ++i)
    write_safetensors(fmt::format("{}/state-{:05}-of-{:05}.safetensors", directory, i + 1, shards.size()),
                      std::move(shards[i]));
}

// Hugging Face's names and formats from masters and router biases.
void write_model_directory(Stream& s, const std::string& directory, const CheckpointContents& contents) {
  std::map<std::string, const StateTensor*> by_name;
  for (const StateTensor& t : *contents.tensors) by_name[t.name] = &t;
  const RowSource rows = [&](const Param& param, int64_t first_row, int64_t count, float* out) {
    contents.progress();
    const char* prefix = param.trained() ? kMasterPrefix : kRouterBiasPrefix;
    StateTensor part = *by_name.at(prefix + param.name);
    part.tensor = part.tensor.slice_rows(first_row, count);
    if (part.tensor.dtype == DType::f32) return read_tensor(s, part, out);
    CHECK(part.tensor.dtype == DType::f64, part.tensor.describe());
    std::vector<double> wide(size_t(part.tensor.size()));
    read_tensor(s, part, wide.data());
    std::copy(wide.begin(), wide.end(), out);
  };
  write_model(directory, *contents.model,
              {.storage = contents.storage, .tokenizer_directory = contents.tokenizer_directory}, rows);
}

FileRecord record_of(const fs::path& root, const fs::path& file) {
  const FileChecksum written = checksum_file(file.string());
  return {.path = fs::relative(file, root).generic_string(),
          .bytes = written.bytes,
          .checksum = fmt::format("{:016x}", written.checksum)};
}

void make_directory(const std::string& path) {
  std::error_code code;
  fs::create_directory(path, code);
  if (code) throw Error(fmt::format("cannot make {}: {}", path, code.message()));
}

std::string state_line(const std::string& state_json) {
  return fmt::format("state.json {:016x}\n", checksum64(state_json));
}

std::string complete_text(int64_t step, const std::string& state_json) {
  return fmt::format("step {}\n{}", step, state_line(state_json));
}

}  // namespace

void assign(RouterBiases& field, const Json& value, const std::string& where) {
  if (!value.is_object()) fields::wrong_kind(value, where, "an object");
  field.of.clear();
  for (const auto& [name, biases] : value.items()) fields::read(field.of[name], biases, where + "." + name);
}

void to_json(Json& json, const RouterBiases& biases) {
  json = Json::object();
  for (const auto& [name, values] : biases.of) json[name] = values;
}

std::string write_checkpoint_files(Stream& s, const std::string& directory, CheckpointContents contents) {
  make_directory(directory + "/model");
  write_model_directory(s, directory + "/model", contents);
  make_directory(directory + "/optimizer");
  write_optimizer(s, directory + "/optimizer", contents);
  write_file_atomic(directory + "/config.json", contents.config);

  RunState& state = contents.state;
  for (const StateTensor& t : *contents.tensors) {
    if (!is_router_bias(t)) continue;
    std::vector<double>& values = state.router_bias.of[t.name.substr(std::strlen(kRouterBiasPrefix))];
    values.resize(size_t(t.tensor.size()));
    if (t.tensor.dtype == DType::f64) {
      read_tensor(s, t, values.data());
    } else {
      std::vector<float> narrow(values.size());
      CHECK(t.tensor.dtype == DType::f32);
      read_tensor(s, t, narrow.data());
      std::copy(narrow.begin(), narrow.end(), values.begin());
    }
  }
  for (const auto& entry : fs::recursive_directory_iterator(directory))
    if (entry.is_regular_file()) {
      state.files.push_back(record_of(directory, entry.path()));
      contents.progress();
    }
  std::sort(state.files.begin(), state.files.end(),
            [](const FileRecord& a, const FileRecord& b) { return a.path < b.path; });
  const std::string text = write_fields(state).dump(1) + "\n";
  write_file_atomic(directory + "/state.json", text);
  return complete_text(state.step, text);
}

Checkpoint::Checkpoint(const std::string& directory, const PieceDone& progress) : directory_(directory) {
  const fs::path root(directory);
  const auto damaged = [&](const std::string& what) {
    return Error(fmt::format("{}/{}", directory, what)).hint(kDamagedCheckpoint);
  };
  if (!fs::is_regular_file(root / kCompleteFile))
    throw damaged("COMPLETE is missing, which is for state.json");
  const std::string complete = read_file(directory + "/" + kCompleteFile);
  if (!fs::is_regular_file(root / "state.json") && fs::exists(root / "optimizer"))
    throw damaged("state.json is missing");
  if (!fs::exists(root / "state.json"))
    throw Error(
        fmt::format("{} holds a model but no state of the optimizer: nothing to resume from", directory))
        .hint(fmt::format(
            "an earlier version wrote it; train on from its weights in another folder: --init-from "
            "{}/model --run-dir NEW",
            directory));
  const std::string text = read_file(directory + "/state.json");
  // Before anybody parses it: what is cut or overwritten is damaged, not of another version.
  if (!complete.ends_with(state_line(text))) throw damaged("state.json is not what was written");
  const Json json = parse_json(text, directory + "/state.json");
  if (json.is_object() && json.contains("format") && json["format"] != RunState::kFormat)
    throw Error(fmt::format("{}/state.json has format {}; this program reads {}", directory,
                            json["format"].dump(), RunState::kFormat))
        .hint("resume with the program that wrote it");
  read_fields(state_, json, directory + "/state.json");
  if (complete != complete_text(state_.step, text))
    throw damaged("COMPLETE is not what was written for state.json");
  for (const FileRecord& file : state_.files) {
    progress();
    const std::string path = directory + "/" + file.path;
    if (!fs::is_regular_file(path)) throw Error(fmt::format("{} is missing", path)).hint(kDamagedCheckpoint);
    if (const auto bytes = int64_t(fs::file_size(path)); bytes != file.bytes)
      throw Error(fmt::format("{} has {} bytes; {} were written", path, bytes, file.bytes))
          .hint(kDamagedCheckpoint);
    if (const uint64_t sum = checksum_file(path).checksum; fmt::format("{:016x}", sum) != file.checksum)
      throw Error(fmt::format("{} has checksum {:016x}; {} was written", path, sum, file.checksum))
          .hint(kDamagedCheckpoint);
    if (file.path.starts_with("optimizer/")) files_.push_back(SafetensorsFile::open(path));
  }
}

const Json Checkpoint::config() const { return read_json_file(directory_ + "/config.json"); }

void Checkpoint::load(Stream& s, const std::vector<StateTensor>& state) const {
  std::set<std::string> wanted;
  for (const StateTensor& t : state) {
    if (is_router_bias(t)) {
      const std::string router = t.name.substr(std::strlen(kRouterBiasPrefix));
      const auto it = state_.router_bias.of.find(router);
      if (it == state_.router_bias.of.end() || int64_t(it->second.size()) != t.tensor.size())
        throw Error(
            fmt::format("{}/state.json has no {} router biases of {}", directory_, t.tensor.size(), router))
            .hint(kDamagedCheckpoint);
      const std::vector<float> narrow(it->second.begin(), it->second.end());
      on(s).upload(t.tensor.dtype == DType::f64 ? static_cast<const void*>(it->second.data()) : narrow.data(),
                   t.tensor);
      continue;
    }
    wanted.insert(t.name);
    const StoredTensor* stored = nullptr;
    for (const SafetensorsFile& file : files_)
      if (const StoredTensor* found = file.find(t.name)) stored = found;
    if (!stored)
      throw Error(fmt::format("{}/optimizer has no tensor {}", directory_, t.name))
          .hint("the checkpoint is of another version or another configuration");
    if (stored->type != stored_as(t.tensor.dtype) || stored->size() != t.tensor.size())
      throw Error(fmt::format("{}/optimizer: {} is {}; this run has {}", directory_, t.name,
                              stored->describe(), t.tensor.describe()))
          .hint("the checkpoint is of another configuration");
    if (t.on_host) std::memcpy(t.tensor.data, stored->data, size_t(stored->bytes()));
    else on(s).upload(stored->data, t.tensor);
  }
  for (const SafetensorsFile& file : files_)
    for (const StoredTensor& t : file.tensors())
      if (!wanted.contains(t.name))
        throw Error(fmt::format("{} holds {}, which this run does not have", file.path(), t.name))
            .hint("the checkpoint is of another configuration");
  on(s).synchronize();
}

int64_t checkpoint_bytes(const std::vector<StateTensor>& state, const std::vector<Param>& table,
                         DType storage) {
  int64_t bytes = 0;
  for (const StateTensor& t : state)
    if (!is_router_bias(t)) bytes += bytes_of(t.tensor);
  for (const Param& p : table)
    for (const ParamView& v : p.views) {
      const int64_t width = size_of(storage);
      bytes += v.rows * p.cols * width;
    }
  return bytes;
}

}  // namespace cachalot
