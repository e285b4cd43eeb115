#include "base/files.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <fstream>

#include "base/error.h"

namespace cachalot {
namespace {

namespace fs = std::filesystem;

class Files : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = (fs::temp_directory_path() / "cachalot-files-XXXXXX").string();
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    folder_ = name;
  }
  void TearDown() override { fs::remove_all(folder_); }
  std::string at(const std::string& name) const { return folder_ + "/" + name; }
  size_t entries() const {
    return size_t(std::distance(fs::directory_iterator(folder_), fs::directory_iterator()));
  }
  std::string folder_;
};

TEST_F(Files, ReadReturnsEveryByte) {
  const std::string bytes("a\0\xFF\r\n", 5);
  std::ofstream(at("f"), std::ios::binary) << bytes;
  EXPECT_EQ(read_file(at("f")), bytes);
  std::ofstream(at("empty"));
  EXPECT_EQ(read_file(at("empty")), "");
  EXPECT_EQ(read_file("/proc/self/comm").empty(), false);  // a file that reports size 0
}

TEST_F(Files, ReadNamesTheFileItCannotRead) {
  for (const std::string& path : {at("gone"), folder_}) try {
      read_file(path);
      ADD_FAILURE() << path;
    } catch (const Error& e) {
      EXPECT_NE(std::string(e.what()).find(path), std::string::npos) << e.what();
    }
}

TEST_F(Files, AtomicWriteReplacesAndLeavesNothingElse) {
  write_file_atomic(at("f"), "old");
  write_file_atomic(at("f"), "new");
  EXPECT_EQ(read_file(at("f")), "new");
  EXPECT_EQ(entries(), 1u);
}

TEST_F(Files, AtomicWriteThatFailsHalfWayKeepsTheOldFile) {
  write_file_atomic(at("f"), "old");
  EXPECT_THROW(write_file_atomic(at("f"),
                                 [](const Append& append) {
                                   append("half of the ne");
                                   throw Error("changed its mind");
                                 }),
               Error);
  EXPECT_EQ(read_file(at("f")), "old");
  EXPECT_EQ(entries(), 1u);
}

// A file size limit stands for the full disk: write() fails in the same place.
TEST_F(Files, AtomicWriteKeepsTheOldFileWhenTheDiskIsFull) {
  write_file_atomic(at("f"), "old");
  rlimit before;
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  auto* handler = std::signal(SIGXFSZ, SIG_IGN);
  const rlimit tight{1000, before.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &tight), 0);
  EXPECT_THROW(write_file_atomic(at("f"), std::string(5000, 'x')), Error);
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
  std::signal(SIGXFSZ, handler);
  EXPECT_EQ(read_file(at("f")), "old");
  EXPECT_EQ(entries(), 1u);
}

// By links of our own: where this fails, no device of the machine is replaced.
TEST_F(Files, APipeAndADeviceAreWrittenToAndStay) {
  ASSERT_EQ(::mkfifo(at("pipe").c_str(), 0600), 0);
  const int pipe = ::open(at("pipe").c_str(), O_RDWR | O_NONBLOCK | O_CLOEXEC);
  write_file_atomic(at("pipe"), "text");
  char text[8] = "";
  EXPECT_EQ(::read(pipe, text, sizeof text), 4);
  EXPECT_STREQ(text, "text");
  ::close(pipe);
  fs::create_symlink("/dev/full", at("full"));
  EXPECT_THROW(write_file_atomic(at("full"), "text"), Error);
  EXPECT_TRUE(fs::is_character_file(at("full")));
  EXPECT_EQ(entries(), 2u);
}

TEST_F(Files, AtomicWriteIntoAFolderThatIsNotThereSaysSo) {
  try {
    write_file_atomic(at("no/such/f"), "x");
    ADD_FAILURE();
  } catch (const Error& e) {
    EXPECT_EQ(std::string(e.what()),
              "cannot write " + at("no/such/f") + ": there is no folder " + at("no/such"));
    EXPECT_EQ(e.hint(), "mkdir -p " + at("no/such"));
  }
}

TEST_F(Files, AtomicDirectoryAppearsOnlyWithCommit) {
  {
    AtomicDirectory directory(at("d"));
    std::ofstream(directory.path() + "/a") << "1";
    EXPECT_FALSE(fs::exists(at("d")));
  }
  EXPECT_EQ(entries(), 0u);  // not committed: nothing stays
  {
    AtomicDirectory directory(at("d"));
    std::ofstream(directory.path() + "/a") << "1";
    directory.commit();
  }
  EXPECT_EQ(read_file(at("d/a")), "1");
  EXPECT_EQ(entries(), 1u);
}

TEST_F(Files, AtomicDirectoryReplacesTheWholeOldOne) {
  fs::create_directory(at("d"));
  std::ofstream(at("d/old")) << "1";
  {
    AtomicDirectory abandoned(at("d"));
    std::ofstream(abandoned.path() + "/new") << "2";
  }
  EXPECT_EQ(read_file(at("d/old")), "1");
  AtomicDirectory directory(at("d/"));  // a slash at the end is the same folder
  std::ofstream(directory.path() + "/new") << "2";
  directory.commit();
  EXPECT_EQ(read_file(at("d/new")), "2");
  EXPECT_FALSE(fs::exists(at("d/old")));
  EXPECT_EQ(entries(), 1u);
}

TEST_F(Files, AtomicDirectoryClearsWhatAKilledProcessLeft) {
  fs::create_directory(at("d.tmp"));
  std::ofstream(at("d.tmp/rubbish")) << "1";
  AtomicDirectory directory(at("d"));
  directory.commit();
  EXPECT_TRUE(fs::is_empty(at("d")));
}

TEST_F(Files, AFolderThatIsCalledOldIsNotOurs) {
  for (const char* name : {"d", "d.old"}) {
    fs::create_directory(at(name));
    std::ofstream(at(name) + "/weights") << name;
  }
  AtomicDirectory directory(at("d"));
  std::ofstream(directory.path() + "/weights") << "new";
  directory.commit();
  EXPECT_EQ(read_file(at("d/weights")), "new");
  EXPECT_EQ(read_file(at("d.old/weights")), "d.old");
  EXPECT_EQ(entries(), 2u);
}

TEST_F(Files, ADirectoryIsBuiltByOneAtATime) {
  AtomicDirectory first(at("d"));
  std::ofstream(first.path() + "/a") << "1";
  EXPECT_THROW(AtomicDirectory{at("d")}, Error);
  EXPECT_EQ(read_file(at("d.tmp/a")), "1") << "the second one must not touch what the first has written";
  first.commit();
  AtomicDirectory next(at("d"));  // what is finished is in nobody's way, even while `first` lives
  next.commit();
  EXPECT_TRUE(fs::is_empty(at("d")));
}

TEST_F(Files, AtomicDirectoryFollowsALink) {
  fs::create_directories(at("disk/model"));
  std::ofstream(at("disk/model/old")) << "1";
  fs::create_directory_symlink(at("disk/model"), at("link"));
  AtomicDirectory directory(at("link"));
  EXPECT_EQ(directory.path(), fs::canonical(at("disk")).string() + "/model.tmp");
  std::ofstream(directory.path() + "/new") << "2";
  directory.commit();
  EXPECT_TRUE(fs::is_symlink(at("link")));
  EXPECT_EQ(read_file(at("disk/model/new")), "2");
  EXPECT_FALSE(fs::exists(at("disk/model/old")));
}

TEST_F(Files, MapShowsTheFile) {
  write_file_atomic(at("f"), "hello");
  MappedFile map(at("f"));
  EXPECT_EQ(map.view(), "hello");
  MappedFile moved(std::move(map));
  EXPECT_EQ(moved.view(), "hello");
  EXPECT_EQ(map.size(), 0);  // NOLINT: what a moved-from map promises
  write_file_atomic(at("empty"), "");
  EXPECT_EQ(MappedFile(at("empty")).size(), 0);
}

TEST_F(Files, MapSurvivesAnAtomicReplacement) {
  write_file_atomic(at("f"), "first");
  const MappedFile map(at("f"));
  write_file_atomic(at("f"), "second");
  EXPECT_EQ(map.view(), "first");
}

TEST_F(Files, MapRefusesWhatIsNotARegularFile) {
  EXPECT_THROW(MappedFile{folder_}, Error);
  EXPECT_THROW(MappedFile{at("gone")}, Error);
  EXPECT_THROW(MappedFile{"/dev/null"}, Error);
}

}  // namespace
}  // namespace cachalot
