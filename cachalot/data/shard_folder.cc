#include "data/shard_folder.h"

#include <fmt/format.h>

#include <cctype>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/files.h"
#include "base/json.h"
#include "config/fields.h"
#include "data/checksum.h"

namespace cachalot {

namespace fs = std::filesystem;

std::string shard_file_name(const ShardKey& key, int64_t index) {
  std::string name = key.part;
  for (char& c : name)
    if (!std::isalnum(uint8_t(c)) && c != '_' && c != '-' && c != '+') c = '_';
  // A part may be any text that a record gives; another one must not get the same file.
  if (name != key.part) name += fmt::format(".{:08x}", uint32_t(checksum64(key.part)));
  return fmt::format("{}{}-{:05}.tok", name, key.held_out ? ".held-out" : "", index);
}

std::optional<ShardFolder> read_shard_folder(const std::string& folder) {
  const std::string path = (fs::path(folder) / kShardFolderFile).string();
  if (!fs::exists(path)) return std::nullopt;
  ShardFolder list;
  try {
    read_fields(list, read_json_file(path), path);
    for (const ShardEntry& s : list.shards)
      if (s.file != fs::path(s.file).filename().string() || s.file.empty())
        throw Error(fmt::format("{}: \"{}\" is no name of a shard", path, s.file));
  } catch (const Error& e) {
    throw Error(e.what()).hint(fmt::format("remove {} and tokenise again; shards are made anew", folder));
  }
  return list;
}

void write_shard_folder(const std::string& folder, const ShardFolder& list) {
  write_file_atomic((fs::path(folder) / kShardFolderFile).string(), write_fields(list).dump(1) + "\n");
}

}  // namespace cachalot
