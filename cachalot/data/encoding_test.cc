#include "data/encoding.h"

#include <gtest/gtest.h>
#include <iconv.h>

#include "base/error.h"

namespace cachalot {
namespace {

std::string from_utf8(std::string text, const char* to) {
  const iconv_t handle = iconv_open(to, "UTF-8");
  std::string out(text.size() * 4 + 16, '\0');
  char *in = text.data(), *at = out.data();
  size_t left = text.size(), room = out.size();
  EXPECT_EQ(iconv(handle, &in, &left, &at, &room), 0u);
  iconv_close(handle);
  out.resize(out.size() - room);
  return out;
}

std::string guess(std::string& text) { return to_utf8(text, "auto"); }

const std::string kJapanese =
    "このマニュアルは、システムの管理をする人のために書かれている。ここでは設定ファイルの書き方と、それがどの"
    "ように読まれるかを説明する。\n";
const std::string kChinese =
    "这是一个系统管理的手册，我们在这里说明如何安装和使用这个程序。他们可以在中国的大学里学到这些知识，不要忘"
    "了备份。\n";
const std::string kTraditional =
    "這是一個系統管理的手冊，我們在這裡說明如何安裝和使用這個程式。他們可以在大學裡學到這些知識，不要忘了備份"
    "。\n";
const std::string kKorean =
    "이 문서는 시스템을 관리하는 사람을 위한 것이다. 여기에서는 설정 파일을 쓰는 방법과 그것이 어떻게 "
    "읽히는지를 설명한다.\n";
const std::string kFrench =
    "Le système a été créé à l’été; la façon de procéder est décrite dans la première partie du présent "
    "guide.\n";

TEST(Encoding, LegacyTextIsGuessedWhereTheGuessCanBeChecked) {
  const struct {
    std::string text;
    const char *iconv, *name;
  } cases[] = {{kJapanese, "EUC-JP", "euc-jp"},  {kJapanese, "CP932", "shift_jis"},
               {kChinese, "GB18030", "gb18030"}, {kTraditional, "BIG5", "big5"},
               {kKorean, "CP949", "euc-kr"},     {kFrench, "CP1252", "cp1252"}};
  for (const auto& c : cases) {
    std::string bytes = from_utf8(c.text, c.iconv);
    EXPECT_EQ(guess(bytes), c.name);
    EXPECT_EQ(bytes, c.text) << c.name;
    bytes = from_utf8(c.text, c.iconv);
    const std::string before = bytes;
    EXPECT_EQ(to_utf8(bytes, "utf-8"), "");
    EXPECT_EQ(bytes, before);  // nothing half done
  }
}

TEST(Encoding, Utf8IsNeverTakenForSomethingElse) {
  for (const std::string& text :
       {kJapanese, kChinese, kTraditional, kKorean, kFrench, std::string("plain"), std::string()}) {
    std::string copy = text;
    EXPECT_EQ(guess(copy), "utf-8");
    EXPECT_EQ(copy, text);
  }
  std::string broken = kJapanese + "\xE3\x81" + kJapanese;
  EXPECT_EQ(guess(broken), "utf-8 with errors");
  EXPECT_TRUE(is_utf8(broken));
  EXPECT_NE(broken.find("\uFFFD"), std::string::npos);
}

TEST(Encoding, NoiseStaysUnknown) {
  std::string noise;
  for (uint32_t i = 0, x = 1; i < 5000; ++i) noise += char(1 + (x = x * 1664525 + 1013904223) / 16843010);
  EXPECT_EQ(guess(noise), "");
  std::string cyrillic =
      from_utf8("Это руководство описывает устройство системы и порядок её установки.", "KOI8-R");
  EXPECT_EQ(guess(cyrillic), "");  // single bytes of another alphabet: no guess, no wrong text
  std::string nul("a\0b\xFF", 4);
  EXPECT_EQ(guess(nul), "");
}

TEST(Encoding, ByteOrderMarksDecide) {
  std::string text = "\xFE\xFF" + from_utf8("中a", "UTF-16BE");
  EXPECT_EQ(guess(text), "utf-16be");
  EXPECT_EQ(text, "中a");
  text = "\xEF\xBB\xBFx";
  EXPECT_EQ(guess(text), "utf-8");
  EXPECT_EQ(text, "x");
}

TEST(Encoding, ValidUtf8IsTheOneOfTheStandard) {
  for (const char* good : {"", "a", "é", "中", "😀", "abcdefghé", "\uFFFD"}) EXPECT_TRUE(is_utf8(good));
  for (const char* bad :
       {"\x80", "\xC0\x80", "\xC3", "\xED\xA0\x80", "\xF4\x90\x80\x80", "abcdefgh\xFF", "\xE4\xB8"})
    EXPECT_FALSE(is_utf8(bad));
  EXPECT_THROW(check_encoding_name("no-such-encoding"), Error);
}

}  // namespace
}  // namespace cachalot
