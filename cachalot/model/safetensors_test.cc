#include "model/safetensors.h"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <csignal>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/json.h"
#include "model/checkpoint_testing.h"

namespace cachalot {
namespace {

namespace fs = std::filesystem;

std::string file_bytes(const std::string& header, const std::string& data, int64_t length = -1) {
  const uint64_t n = length < 0 ? header.size() : uint64_t(length);
  std::string bytes(8, '\0');
  for (int i = 0; i < 8; ++i) bytes[i] = char(n >> 8 * i & 0xFF);
  return bytes + header + data;
}
std::string message_of(const std::string& bytes) {
  try {
    SafetensorsFile::parse(bytes, "f");
  } catch (const Error& e) {
    return e.what();
  }
  return "no error";
}
std::string message_of(const std::string& header, const std::string& data) {
  return message_of(file_bytes(header, data));
}

TensorSource source(const std::string& name, StoredType type, std::vector<int64_t> shape,
                    const std::string& bytes) {
  TensorSource t;
  t.name = name;
  t.type = type;
  t.shape = std::move(shape);
  t.fill = [bytes](const Append& append) { append(bytes); };
  return t;
}

TEST(Safetensors, ReadsTensorsInDataOrderScalarsEmptyOnesAndMetadata) {
  const std::string bytes =
      file_bytes(R"({"__metadata__":{"format":"pt"},"b":{"dtype":"F32","shape":[],"data_offsets":[3,7]},)"
                 R"("empty":{"dtype":"BF16","shape":[0,5],"data_offsets":[3,3]},)"
                 R"("a":{"dtype":"F8_E4M3","shape":[3,1],"data_offsets":[0,3]}}   )",
                 "abcdefg");
  const SafetensorsFile file = SafetensorsFile::parse(bytes, "f");
  ASSERT_EQ(file.tensors().size(), 3u);
  EXPECT_EQ(file.tensors()[0].name, "a");
  EXPECT_EQ(file.tensors()[0].describe(), "F8_E4M3 [3, 1]");
  EXPECT_EQ(file.tensors()[1].name, "empty");
  EXPECT_EQ(file.tensors()[1].bytes(), 0);
  ASSERT_TRUE(file.find("b"));
  EXPECT_EQ(file.find("b")->size(), 1);
  EXPECT_EQ(std::string(reinterpret_cast<const char*>(file.find("b")->data), 4), "defg");
  EXPECT_EQ(file.find("c"), nullptr);
  EXPECT_EQ(file.metadata().at("format"), "pt");
}

TEST(Safetensors, TruncatedFilesAndLyingLengthsAreRefused) {
  const std::string good = file_bytes(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})", "1234");
  EXPECT_EQ(message_of(good), "no error");
  for (size_t n = 0; n < good.size(); ++n) EXPECT_NE(message_of(good.substr(0, n)), "no error") << n;
  EXPECT_EQ(message_of(std::string("abc")), "f is 3 bytes long, too short for a safetensors file");
  EXPECT_EQ(message_of(file_bytes("{}", "", 3)), "f: the header's length says 3, but 2 bytes follow");
  EXPECT_EQ(message_of(file_bytes("{}", "", 100'000'001)),
            "f: the header's length says 100000001; the format allows 100000000");
  EXPECT_EQ(message_of(std::string(16, '\xff')),
            "f: the header's length says 18446744073709551615; the format allows 100000000");
  EXPECT_EQ(message_of(file_bytes("", "")), "f: the header does not begin with \"{\"");
  EXPECT_EQ(message_of(file_bytes(" {}", "")), "f: the header does not begin with \"{\"");
  EXPECT_EQ(message_of(file_bytes("{\"a\"", "")).find("f: header: not valid JSON"), 0u);
  EXPECT_EQ(message_of(file_bytes("{}{}", "")).find("f: header: not valid JSON"), 0u);
}

TEST(Safetensors, EveryByteBelongsToOneTensor) {
  const auto two = [](int a0, int a1, int b0, int b1, const std::string& data) {
    const auto shape = [](int n) { return std::to_string(n); };
    return message_of("{\"a\":{\"dtype\":\"U8\",\"shape\":[" + shape(a1 - a0) + "],\"data_offsets\":[" +
                          std::to_string(a0) + "," + std::to_string(a1) +
                          "]},\"b\":{\"dtype\":\"U8\",\"shape\":[" + shape(b1 - b0) + "],\"data_offsets\":[" +
                          std::to_string(b0) + "," + std::to_string(b1) + "]}}",
                      data);
  };
  EXPECT_EQ(two(0, 2, 2, 4, "1234"), "no error");
  EXPECT_EQ(two(2, 4, 0, 2, "1234"), "no error");
  EXPECT_EQ(two(0, 3, 2, 4, "1234"),
            "f: tensor \"b\" begins at byte 2 of the data, inside the one before it, which ends at 3");
  EXPECT_EQ(two(0, 4, 1, 2, "1234"),
            "f: tensor \"b\" begins at byte 1 of the data, inside the one before it, which ends at 4");
  EXPECT_EQ(two(0, 1, 2, 4, "1234"), "f: tensor \"b\" begins at byte 2 of the data, leaving a hole from 1");
  EXPECT_EQ(two(1, 2, 2, 4, "1234"), "f: tensor \"a\" begins at byte 1 of the data, leaving a hole from 0");
  EXPECT_EQ(two(0, 1, 1, 2, "1234"), "f: the tensors end at byte 2 of the data, but there are 4");
  EXPECT_EQ(two(0, 2, 2, 5, "1234"), "f: tensor \"b\": data_offsets [2, 5] lie outside the data, 4 bytes");
  EXPECT_EQ(message_of("{}", "x"), "f: the tensors end at byte 0 of the data, but there are 1");
}

TEST(Safetensors, EntriesThatContradictThemselvesAreRefusedByName) {
  const auto entry = [](const std::string& json) { return message_of("{\"a\":" + json + "}", "1234"); };
  EXPECT_EQ(entry(R"({"dtype":"F32","shape":[2],"data_offsets":[0,4]})"),
            "f: tensor \"a\": F32 [2] needs 8 bytes, but data_offsets [0, 4] hold 4");
  EXPECT_EQ(entry(R"({"dtype":"Q4","shape":[2],"data_offsets":[0,4]})"), "f: tensor \"a\": dtype is \"Q4\"");
  EXPECT_EQ(entry(R"({"dtype":4,"shape":[2],"data_offsets":[0,4]})"),
            "f: tensor \"a\": dtype is a whole number, not a string");
  EXPECT_EQ(entry(R"({"shape":[1],"data_offsets":[0,4]})"), "f: tensor \"a\": dtype is missing");
  EXPECT_EQ(entry(R"({"dtype":"F32","data_offsets":[0,4]})"), "f: tensor \"a\": shape is missing");
  EXPECT_EQ(entry(R"({"dtype":"F32","shape":[1]})"), "f: tensor \"a\": data_offsets is missing");
  EXPECT_EQ(entry(R"({"dtype":"F32","shape":[1],"data_offsets":[0]})"),
            "f: tensor \"a\": data_offsets has 1 numbers, not 2");
  EXPECT_EQ(entry(R"({"dtype":"F32","shape":[1],"data_offsets":[4,0]})"),
            "f: tensor \"a\": data_offsets [4, 0] lie outside the data, 4 bytes");
  EXPECT_EQ(entry(R"({"dtype":"F32","shape":[-1],"data_offsets":[0,4]})"),
            "f: tensor \"a\": shape holds \"-1\", not a size");
  EXPECT_EQ(entry(R"({"dtype":"F32","shape":[1.0],"data_offsets":[0,4]})"),
            "f: tensor \"a\": shape holds \"1.0\", not a size");
  EXPECT_EQ(entry(R"({"dtype":"F32","shape":[1],"data_offsets":[0,18446744073709551615]})"),
            "f: tensor \"a\": data_offsets holds \"18446744073709551615\", not a size");
  EXPECT_EQ(entry(R"({"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,4]})"),
            "f: tensor \"a\": shape [4294967296, 4294967296] has more elements than any file");
  EXPECT_EQ(entry(R"({"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,4]})"),
            "f: tensor \"a\": shape [4611686018427387904] has more elements than any file");
  EXPECT_EQ(entry("[1]"), "f: tensor \"a\": the entry is a array, not an object");
  EXPECT_EQ(message_of(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                       R"("a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})",
                       "1"),
            "f: header: the key \"a\" occurs twice");
  EXPECT_EQ(message_of(R"({"__metadata__":{"x":1}})", ""), "f: __metadata__.x is not a string");
  EXPECT_EQ(message_of(R"({"__metadata__":[]})", ""), "f: __metadata__ is not an object");
}

TEST(Safetensors, AnEmptyShapeWithZeroDoesNotOverflow) {  // UBSan would tell
  for (const char* shape : {"9223372036854775807,0,9223372036854775807", "4294967297,42949672967297,0"})
    EXPECT_EQ(
        message_of(fmt::format(R"({{"a":{{"dtype":"F64","shape":[{}],"data_offsets":[0,0]}}}})", shape), ""),
        "no error");
}

// The golden files were written by the reference implementation.
TEST(Safetensors, WritesTheSameBytesAsTheReferenceImplementation) {
  TemporaryDirectory dir;
  for (const char* name : {"nano/model", "nano/model_fp8", "nano-yarn/model_fp8"}) {
    const std::string path = golden(name) + "/model.safetensors";
    const SafetensorsFile file = SafetensorsFile::open(path);
    std::vector<TensorSource> tensors;
    for (const StoredTensor& t : file.tensors()) {
      tensors.push_back(source(t.name, t.type, t.shape,
                               std::string(reinterpret_cast<const char*>(t.data), size_t(t.bytes()))));
    }
    std::reverse(tensors.begin(), tensors.end());
    write_safetensors(dir / "out.safetensors", std::move(tensors));
    EXPECT_EQ(read_file(dir / "out.safetensors"), read_file(path)) << name;
  }
}

TEST(Safetensors, PiecesOfAnySizeMakeTheSameFile) {
  TemporaryDirectory dir;
  std::string data(5'000'000, 'x');
  for (size_t i = 0; i < data.size(); ++i) data[i] = char(i * 31 >> 3);
  for (const size_t piece : {size_t{7}, size_t{1} << 20, (size_t{1} << 20) + 1, data.size()}) {
    TensorSource t = source("t", StoredType::u8, {5'000'000}, "");
    t.fill = [&](const Append& append) {
      for (size_t at = 0; at < data.size(); at += piece) append(std::string_view(data).substr(at, piece));
    };
    std::vector<TensorSource> tensors = {source("s", StoredType::f32, {1}, "abcd"), t};
    write_safetensors(dir / "f", tensors);
    const SafetensorsFile file = SafetensorsFile::open(dir / "f");
    EXPECT_EQ(std::string(reinterpret_cast<const char*>(file.find("t")->data), data.size()), data) << piece;
    EXPECT_EQ(reinterpret_cast<uintptr_t>(file.find("s")->data) % 4, 0u);
  }
}

TEST(Safetensors, AWriterThatDeliversTheWrongNumberOfBytesIsABugAndLeavesNothing) {
  TemporaryDirectory dir;
  EXPECT_THROW(write_safetensors(dir / "f", {source("t", StoredType::f32, {2}, "1234")}), InternalError);
  EXPECT_THROW(write_safetensors(
                   dir / "f", {source("t", StoredType::u8, {1}, "1"), source("t", StoredType::u8, {1}, "1")}),
               InternalError);
  EXPECT_TRUE(fs::is_empty(dir.path()));
}

TEST(Safetensors, AFullDiskLeavesTheOldFile) {
  TemporaryDirectory dir;
  write_safetensors(dir / "f", {source("t", StoredType::u8, {3}, "old")});
  const std::string before = read_file(dir / "f");
  {
    const FileSizeLimit limit(1 << 16);
    EXPECT_THROW(
        write_safetensors(dir / "f", {source("t", StoredType::u8, {1 << 18}, std::string(1 << 18, 'n'))}),
        Error);
  }
  EXPECT_EQ(read_file(dir / "f"), before);
  EXPECT_EQ(std::distance(fs::directory_iterator(dir.path()), {}), 1);
}

// ---- Sharded checkpoints ----

std::vector<TensorSource> five_tensors() {
  std::vector<TensorSource> tensors;
  for (int i = 0; i < 5; ++i)
    tensors.push_back(source("t" + std::to_string(i), StoredType::u8, {10}, std::string(10, char('a' + i))));
  return tensors;
}
std::string open_message(const std::string& directory) {
  try {
    CheckpointReader reader(directory);
  } catch (const Error& e) {
    EXPECT_NE(e.hint(), "") << e.what();
    std::string text = e.what();
    for (size_t at; (at = text.find(directory)) != std::string::npos;)
      text.replace(at, directory.size(), "D");
    return text;
  }
  return "no error";
}

TEST(Checkpoint, ShardsHoldAtMostTheGivenBytesAndReadBack) {
  TemporaryDirectory dir;
  std::vector<TensorSource> tensors = five_tensors();
  tensors.push_back(source("large", StoredType::f32, {10}, std::string(40, 'L')));  // a shard of its own
  int told = 0;
  write_checkpoint(dir.path(), std::move(tensors), 25, [&](const TensorSpec&) { ++told; });
  EXPECT_EQ(told, 6);
  for (int i = 1; i <= 4; ++i)
    EXPECT_TRUE(fs::exists(dir / ("model-0000" + std::to_string(i) + "-of-00004.safetensors")));
  EXPECT_FALSE(fs::exists(dir / "model.safetensors"));
  const Json index = read_json_file(dir / "model.safetensors.index.json");
  EXPECT_EQ(index["metadata"]["total_size"], 90);
  EXPECT_EQ(index["weight_map"]["t2"], "model-00002-of-00004.safetensors");
  const CheckpointReader reader(dir.path());
  EXPECT_EQ(reader.names().size(), 6u);
  ASSERT_TRUE(reader.find("t3"));
  EXPECT_EQ(std::string(reinterpret_cast<const char*>(reader.find("t3")->data), 10), "dddddddddd");
  EXPECT_EQ(reader.file_of("large"), dir / "model-00004-of-00004.safetensors");
  EXPECT_EQ(reader.find("t9"), nullptr);
}

TEST(Checkpoint, OneShardNeedsNoIndex) {
  TemporaryDirectory dir;
  write_checkpoint(dir.path(), five_tensors(), 50);
  EXPECT_TRUE(fs::exists(dir / "model.safetensors"));
  EXPECT_FALSE(fs::exists(dir / "model.safetensors.index.json"));
  EXPECT_EQ(CheckpointReader(dir.path()).names().size(), 5u);
}

TEST(Checkpoint, IndexAndShardsMustAgree) {
  TemporaryDirectory dir;
  EXPECT_EQ(open_message(dir.path()), "D holds neither model.safetensors nor model.safetensors.index.json");
  EXPECT_EQ(open_message(dir / "none"), "D holds neither model.safetensors nor model.safetensors.index.json");
  write_checkpoint(dir.path(), five_tensors(), 25);
  EXPECT_EQ(open_message(dir.path()), "no error");
  const std::string index = dir / "model.safetensors.index.json";
  const Json good = read_json_file(index);
  const auto with = [&](const std::function<void(Json&)>& change) {
    Json json = good;
    change(json);
    write_file_atomic(index, json.dump());
    return open_message(dir.path());
  };
  EXPECT_EQ(with([](Json& j) { j["weight_map"]["x"] = "model-00001-of-00003.safetensors"; }),
            "D/model-00001-of-00003.safetensors: tensor \"x\" is not there, though "
            "model.safetensors.index.json says so");
  EXPECT_EQ(with([](Json& j) { j["weight_map"].erase("t1"); }),
            "D/model-00001-of-00003.safetensors: tensor \"t1\" is not named by model.safetensors.index.json "
            "for this file");
  EXPECT_EQ(with([](Json& j) { j["weight_map"]["t1"] = "model-00002-of-00003.safetensors"; }),
            "D/model-00001-of-00003.safetensors: tensor \"t1\" is not named by model.safetensors.index.json "
            "for this file");
  EXPECT_EQ(with([](Json& j) { j["weight_map"].erase("t4"); }),
            "D/model-00003-of-00003.safetensors is not named by model.safetensors.index.json");
  for (const char* bad : {"../model-00001-of-00003.safetensors", "/etc/passwd", "", "..", "a/b"})
    EXPECT_EQ(with([&](Json& j) { j["weight_map"]["t1"] = bad; }),
              std::string("D/model.safetensors.index.json: weight_map puts \"t1\" into \"") + bad + "\"");
  EXPECT_EQ(with([](Json& j) { j["weight_map"]["t1"] = 5; }),
            "D/model.safetensors.index.json: weight_map.\"t1\" is not a file name");
  EXPECT_EQ(with([](Json& j) { j.erase("weight_map"); }),
            "D/model.safetensors.index.json: weight_map is missing or no object");
  EXPECT_EQ(with([](Json& j) { j = 3; }),
            "D/model.safetensors.index.json: weight_map is missing or no object");
  EXPECT_EQ(with([](Json&) {}), "no error");
  write_file_atomic(dir / "model.safetensors", "x");
  EXPECT_EQ(open_message(dir.path()), "D/model.safetensors is not named by model.safetensors.index.json");
  fs::remove(dir / "model.safetensors");
  fs::remove(dir / "model-00002-of-00003.safetensors");
  EXPECT_EQ(open_message(dir.path()),
            "D: 1 of 3 files that model.safetensors.index.json names is missing, "
            "\"model-00002-of-00003.safetensors\"");
  fs::remove(dir / "model-00003-of-00003.safetensors");
  EXPECT_EQ(open_message(dir.path()),
            "D: 2 of 3 files that model.safetensors.index.json names are missing, the first "
            "\"model-00002-of-00003.safetensors\"");
}

// What people have instead of a checkpoint, and what they can do about it.
TEST(Checkpoint, AnIncompleteDownloadIsToldFromNone) {
  const auto hint = [](const std::string& directory) {
    try {
      CheckpointReader reader(directory);
    } catch (const Error& e) {
      return e.hint();
    }
    return std::string("no error");
  };
  TemporaryDirectory dir;
  EXPECT_NE(hint(dir.path()).find("name a Hugging Face model directory"), std::string::npos);
  write_checkpoint(dir.path(), five_tensors(), 25);
  fs::remove(dir / "model.safetensors.index.json");
  EXPECT_NE(hint(dir.path()).find("download the index"), std::string::npos);
  TemporaryDirectory cloned;
  write_file_atomic(cloned / "model.safetensors",
                    "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1234\n");
  EXPECT_NE(hint(cloned.path()).find("git lfs pull"), std::string::npos);
}

}  // namespace
}  // namespace cachalot
