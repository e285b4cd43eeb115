#include "train/tensorboard.h"

#include <gtest/gtest.h>

#include <bit>
#include <cstring>
#include <filesystem>
#include <map>

#include "base/error.h"
#include "base/files.h"

namespace cachalot {
namespace {

// RFC 3720, appendix B.4.
TEST(Crc32c, KnownAnswers) {
  EXPECT_EQ(crc32c(std::string(32, '\0')), 0x8a9136aau);
  EXPECT_EQ(crc32c(std::string(32, '\xff')), 0x62a8ab43u);
  EXPECT_EQ(crc32c("123456789"), 0xe3069283u);
}

// A reader of its own, by the format's description: it shares nothing with the writer but crc32c().
struct Reader {
  std::string bytes;
  size_t at = 0;
  uint64_t fixed(int n) {
    uint64_t v = 0;
    for (int i = 0; i < n; ++i) v |= uint64_t(uint8_t(bytes.at(at++))) << (8 * i);
    return v;
  }
  uint64_t varint() {
    uint64_t v = 0;
    for (int shift = 0;; shift += 7) {
      const uint8_t b = uint8_t(bytes.at(at++));
      v |= uint64_t(b & 0x7f) << shift;
      if (b < 0x80) return v;
    }
  }
  std::string take(size_t n) {
    const std::string s = bytes.substr(at, n);
    EXPECT_EQ(s.size(), n);
    at += n;
    return s;
  }
  bool done() const { return at >= bytes.size(); }
};

struct Event {
  double wall_time = 0;
  int64_t step = 0;
  std::string version, session;
  std::map<std::string, float> values;
};

Event read_event(const std::string& bytes) {
  Event e;
  Reader r{bytes};
  while (!r.done()) {
    const uint64_t key = r.varint();
    if (key == (1 << 3 | 1)) e.wall_time = std::bit_cast<double>(r.fixed(8));
    else if (key == (2 << 3 | 0)) e.step = int64_t(r.varint());
    else if (key == (3 << 3 | 2)) e.version = r.take(r.varint());
    else if (key == (5 << 3 | 2)) {
      Reader summary{r.take(r.varint())};
      while (!summary.done()) {
        EXPECT_EQ(summary.varint(), uint64_t(1 << 3 | 2));
        Reader value{summary.take(summary.varint())};
        EXPECT_EQ(value.varint(), uint64_t(1 << 3 | 2));
        const std::string tag = value.take(value.varint());
        EXPECT_EQ(value.varint(), uint64_t(2 << 3 | 5));
        e.values[tag] = std::bit_cast<float>(uint32_t(value.fixed(4)));
      }
    } else if (key == (7 << 3 | 2)) {
      e.session = r.take(r.varint());
    } else {
      ADD_FAILURE() << "unknown key " << key;
      return e;
    }
  }
  return e;
}

std::vector<Event> read_events(const std::string& path) {
  const auto unmask = [](uint32_t m) { return std::rotl(m - 0xa282ead8u, 15); };
  std::vector<Event> events;
  Reader r{read_file(path)};
  while (!r.done()) {
    const std::string length = r.bytes.substr(r.at, 8);
    const uint64_t n = r.fixed(8);
    EXPECT_EQ(unmask(uint32_t(r.fixed(4))), crc32c(length));
    const std::string event = r.take(n);
    EXPECT_EQ(unmask(uint32_t(r.fixed(4))), crc32c(event));
    events.push_back(read_event(event));
  }
  return events;
}

std::string temporary_folder() {
  std::string name = (std::filesystem::temp_directory_path() / "cachalot-tb-XXXXXX").string();
  if (!mkdtemp(name.data())) throw Error("no temporary folder");
  return name;
}

TEST(TensorBoard, AnIndependentReaderFindsEveryScalar) {
  const std::string folder = temporary_folder();
  TensorBoardWriter w(folder + "/tb", 1.75e9);
  w.scalars(1, 1.75e9 + 1, {{"loss_metrics/global_avg_loss", 6.5}, {"lr", 1e-4}});
  w.scalars(300, 1.75e9 + 2.5,
            {{"grad_norm", 1.0 / 3},
             {"a tag of more than a hundred and twenty-eight bytes, so that "
              "its length takes two bytes of the varint that precedes it "
              "in the record",
              -2}});
  const std::vector<Event> events = read_events(w.path());
  ASSERT_EQ(events.size(), 3u);
  EXPECT_EQ(events[0].version, "brain.Event:2");
  EXPECT_EQ(events[0].wall_time, 1.75e9);
  EXPECT_EQ(events[1].step, 1);
  EXPECT_EQ(events[1].values.at("loss_metrics/global_avg_loss"), 6.5f);
  EXPECT_EQ(events[1].values.at("lr"), 1e-4f);
  EXPECT_EQ(events[2].step, 300);
  EXPECT_EQ(events[2].wall_time, 1.75e9 + 2.5);
  EXPECT_EQ(events[2].values.size(), 2u);
  EXPECT_EQ(events[2].values.at("grad_norm"), 1.0f / 3);
  std::filesystem::remove_all(folder);
}

// A run that goes on writes a second file beside the first: TensorBoard reads both.
TEST(TensorBoard, ASecondWriterLeavesTheFirstFileAlone) {
  const std::string folder = temporary_folder();
  TensorBoardWriter first(folder, 100), second(folder, 100);
  EXPECT_NE(first.path(), second.path());
  EXPECT_EQ(read_events(first.path()).size(), 1u);
  second.restart(17, 101);
  const std::vector<Event> events = read_events(second.path());
  ASSERT_EQ(events.size(), 2u);
  EXPECT_EQ(events[1].step, 17);
  EXPECT_EQ(events[1].session, std::string("\x08\x01"));
  std::filesystem::remove_all(folder);
}

// TensorBoard reads files in the order of their names, whatever the clock did between two processes.
TEST(TensorBoard, ALaterFileHasALaterNameAlsoWhenTheClockWasSetBack) {
  const std::string folder = temporary_folder();
  std::string before;
  for (const double now : {5000.0, 5000.0, 100.0, 9000.0, 8000.0}) {
    const TensorBoardWriter next(folder, now);
    EXPECT_GT(next.path(), before) << now;
    before = next.path();
  }
  EXPECT_TRUE(before.starts_with(folder + "/events.out.tfevents.0000009001.")) << before;
  std::filesystem::remove_all(folder);
}

TEST(TensorBoard, AFolderThatCannotBeMadeIsAnError) {
  const std::string folder = temporary_folder();
  write_file_atomic(folder + "/file", "in the way");
  EXPECT_THROW(TensorBoardWriter(folder + "/file/tb", 100), Error);
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace cachalot
