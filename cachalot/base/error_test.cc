#include "base/error.h"

#include <gtest/gtest.h>

namespace cachalot {
namespace {

TEST(Error, CarriesMessageAndHintThroughThrow) {
  try {
    throw Error("config.json: n_group is 3").hint("8 experts need 1, 2, 4 or 8 groups");
  } catch (const Error& e) {
    EXPECT_STREQ(e.what(), "config.json: n_group is 3");
    EXPECT_EQ(e.hint(), "8 experts need 1, 2, 4 or 8 groups");
  }
}

TEST(Check, ThrowsInternalErrorThatNamesConditionFileAndNote) {
  EXPECT_NO_THROW(CHECK(1 + 1 == 2));
  try {
    CHECK(1 + 1 == 3, "arithmetic");
    FAIL();
  } catch (const InternalError& e) {
    const std::string what = e.what();
    EXPECT_NE(what.find("error_test.cc"), what.npos) << what;
    EXPECT_NE(what.find("1 + 1 == 3"), what.npos) << what;
    EXPECT_NE(what.find("arithmetic"), what.npos) << what;
  }
}

}  // namespace
}  // namespace cachalot
