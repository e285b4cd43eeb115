#include "data/documents.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "base/error.h"
#include "base/files.h"

namespace cachalot {
namespace {

namespace fs = std::filesystem;

class Documents : public testing::Test {
 protected:
  Documents() : folder_(fs::temp_directory_path() / ("documents_" + std::to_string(::getpid()))) {
    fs::remove_all(folder_);
    fs::create_directories(folder_);
  }
  ~Documents() override { fs::remove_all(folder_); }
  std::string file(const std::string& name, std::string_view bytes) {
    fs::create_directories((folder_ / name).parent_path());
    write_file_atomic((folder_ / name).string(), bytes);
    return (folder_ / name).string();
  }
  std::string folder() const { return folder_.string(); }
  static std::vector<Document> read(const std::vector<std::string>& specs, ReadOptions options = {},
                                    ReadCounts* counts = nullptr) {
    DocumentReader reader(find_inputs(specs), options);
    std::vector<Document> documents;
    for (Document d; reader.next(d);) documents.push_back(d);
    if (counts) *counts = reader.counts();
    return documents;
  }
  fs::path folder_;
};

std::string error_of(const auto& body) {
  try {
    body();
  } catch (const Error& e) {
    return std::string(e.what()) + " | " + e.hint();
  }
  return "";
}

TEST_F(Documents, JsonlGivesTextNameAndPart) {
  const std::string path = file("web.jsonl",
                                "{\"text\":\"one\",\"id\":7}\r\n\n{\"id\":\"x\",\"part\":\"de\",\"text\":"
                                "\"two\"}\n{\"text\":\"three\"}");
  ReadCounts counts;
  const auto d = read({path}, {}, &counts);
  ASSERT_EQ(d.size(), 3u);
  EXPECT_EQ(d[0].text, "one");
  EXPECT_EQ(d[0].id, "7");
  EXPECT_EQ(d[0].part, "web");
  EXPECT_EQ(d[0].source, path);
  EXPECT_EQ(d[1].part, "de");
  EXPECT_EQ(d[2].id, path + "#3");
  EXPECT_EQ(counts.dropped[int(Drop::empty)], 1);
  EXPECT_EQ(read({"mine=" + path})[1].part, "mine");  // the user's word goes before the file's
}

TEST_F(Documents, BadLinesAreDroppedAndCountedButAWrongFileIsAnError) {
  ReadCounts counts;
  const auto d = read({file("a.jsonl",
                            "{\"text\":\"a\"}\n{bad\n{\"x\":1}\n{\"text\":\"  "
                            "\"}\n{\"text\":\"a\\u0000b\"}\n{\"text\":\"z\"}\n")},
                      {}, &counts);
  ASSERT_EQ(d.size(), 2u);
  EXPECT_EQ(d[1].text, "z");
  EXPECT_EQ(counts.dropped[int(Drop::bad_json)], 1);
  EXPECT_EQ(counts.dropped[int(Drop::no_text)], 1);
  EXPECT_EQ(counts.dropped[int(Drop::empty)], 1);
  EXPECT_EQ(counts.dropped[int(Drop::not_text)], 1);
  EXPECT_NE(error_of([&] { read({file("b.jsonl", "{\"content\":\"a\"}\n")}); }).find("--text-field"),
            std::string::npos);
  EXPECT_NE(error_of([&] { read({file("c.jsonl", "[{\"text\":\"a\"}]\n")}); }).find("jq -c"),
            std::string::npos);
}

TEST_F(Documents, ATextFileIsOneDocumentAndALongOneIsCutAtALineEnd) {
  ReadOptions options;
  EXPECT_EQ(read({file("a.txt", "x\ny\n")}).at(0).text, "x\ny\n");
  options.max_bytes = 8;
  const auto d = read({file("b.txt", "aaa\nbbb\nccc\nddd")}, options);
  ASSERT_EQ(d.size(), 2u);
  EXPECT_EQ(d[0].text, "aaa\nbbb\n");
  EXPECT_EQ(d[1].text, "ccc\nddd");
  options.format = DocumentFormat::lines;
  EXPECT_EQ(read({file("c.txt", "aaa\nbbb\n")}, options).size(), 2u);
}

TEST_F(Documents, ALineOfAnyLengthIsPassedOverInBoundedMemory) {
  const std::string path = folder() + "/long.jsonl";
  {
    std::ofstream out(path);
    out << "{\"text\":\"before\"}\n{\"text\":\"";
    const std::string block(1 << 20, 'x');
    for (int i = 0; i < 200; ++i) out << block;
    out << "\"}\n{\"text\":\"after\"}\n";
  }
  ReadOptions options;
  options.max_bytes = 1 << 20;
  ReadCounts counts;
  const auto d = read({path}, options, &counts);
  ASSERT_EQ(d.size(), 2u);
  EXPECT_EQ(d[1].text, "after");
  EXPECT_EQ(d[1].number, 2);
  EXPECT_EQ(counts.dropped[int(Drop::too_long)], 1);
  RecordReader reader(find_inputs({path})[0], options);
  for (Record r; reader.next(r);) EXPECT_LE(r.bytes.capacity(), size_t(4) << 20);
}

TEST_F(Documents, ReadingGoesOnAtEveryPosition) {
  std::string text;
  for (int i = 0; i < 50; ++i) text += "{\"text\":\"" + std::string(size_t(i * 37 % 200), 'a') + "\"}\n";
  for (const char* name : {"a.jsonl", "a.txt"}) {
    ReadOptions options;
    options.max_bytes = 100;
    const InputFile input = find_inputs({file(name, text)})[0];
    std::vector<Record> records;
    std::vector<ReadPosition> positions{{}};
    RecordReader all(input, options);
    for (Record r; all.next(r);) records.push_back(r), positions.push_back(all.position());
    ASSERT_GT(records.size(), 10u);
    for (size_t from = 0; from < positions.size(); ++from) {
      RecordReader rest(input, options, positions[from]);
      size_t i = from;
      for (Record r; rest.next(r); ++i) {
        ASSERT_LT(i, records.size());
        EXPECT_EQ(r.bytes, records[i].bytes);
        EXPECT_EQ(r.number, records[i].number);
      }
      EXPECT_EQ(i, records.size()) << name << " from " << from;
    }
  }
}

TEST_F(Documents, FoldersAreReadInOrderWithoutHiddenFilesAndReports) {
  file("in/b.txt", "b");
  file("in/a/z.txt", "z");
  file("in/.git/x.txt", "hidden");
  const auto d = read({folder() + "/in/"});
  ASSERT_EQ(d.size(), 2u);
  EXPECT_EQ(d[0].text, "z");
  EXPECT_EQ(d[0].part, "in");
  file("in/part.jsonl", "{\"text\":\"only this\"}");
  EXPECT_EQ(read({folder() + "/in"}).size(), 1u);
  EXPECT_NE(error_of([&] { find_inputs({folder() + "/nothing"}); }), "");
  fs::create_directories(folder() + "/empty");
  EXPECT_NE(error_of([&] { find_inputs({folder() + "/empty"}); }), "");
}

TEST_F(Documents, WhatIsNotReadIsRefusedWithTheCommandThatConvertsIt) {
  EXPECT_NE(error_of([&] { read({file("a.parquet", "PAR1....")}); }).find("pyarrow"), std::string::npos);
  EXPECT_NE(error_of([&] {
              read({file("a.txt.xz", std::string("\xFD"
                                                 "7zXZ\0",
                                                 6))});
            }).find("xz -dc"),
            std::string::npos);
  EXPECT_NE(error_of([&] { read({file("a.zip", "PK\3\4")}); }), "");
}

TEST_F(Documents, TextIsValidUtf8WhateverItWas) {
  EXPECT_EQ(read({file("bom.txt", "\xEF\xBB\xBFhi")}).at(0).text, "hi");
  const auto utf16 = read({file("utf16.txt", std::string("\xFF\xFEh\0\xE9\0", 6))});
  ASSERT_EQ(utf16.size(), 1u);
  EXPECT_EQ(utf16[0].text, "hé");
  EXPECT_EQ(utf16[0].encoding, "utf-16le");
  ReadOptions options;
  options.encoding = "cp1252";
  EXPECT_EQ(read({file("w.txt", "na\xEFve \x93q\x94")}, options).at(0).text, "naïve “q”");
  options.encoding = "utf-8";
  ReadCounts counts;
  EXPECT_TRUE(read({file("w.txt", "na\xEFve")}, options, &counts).empty());
  EXPECT_EQ(counts.dropped[int(Drop::not_text)], 1);
  EXPECT_TRUE(read({file("binary.txt", std::string("\x7F"
                                                   "ELF\0\1\2",
                                                   7))})
                  .empty());
  options.encoding = "no-such";
  EXPECT_NE(error_of([&] { read({file("w.txt", "x")}, options); }).find("iconv"), std::string::npos);
}

}  // namespace
}  // namespace cachalot
