#include "model/load.h"

#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>

#include "base/error.h"
#include "base/files.h"
#include "model/checkpoint_testing.h"
#include "model/safetensors.h"

namespace cachalot {
namespace {

// A copy of a golden model with other bytes at the second element of a tensor's third row.
void damage(const std::string& from, const std::string& to, const std::string& tensor,
            const std::string& bytes, int64_t columns) {
  std::filesystem::copy(from, to);
  const std::string path = to + "/model.safetensors";
  std::string file = read_file(path);
  const SafetensorsFile parsed = SafetensorsFile::parse(file, path);
  const StoredTensor* t = parsed.find(tensor);
  ASSERT_NE(t, nullptr) << tensor;
  const size_t at = size_t(reinterpret_cast<const char*>(t->data) - file.data());
  file.replace(at + size_t(2 * columns + 1) * bytes.size(), bytes.size(), bytes);
  write_file_atomic(path, file);
}

std::string load_error(const std::string& directory, Precision precision) {
  const auto device = open_device("cpu");
  Stream s(*device);
  try {
    load_model(s, directory, precision, {});
  } catch (const Error& e) {
    return e.what();
  }
  return "no error";
}

TEST(LoadModel, AWeightThatIsNotFiniteIsNamedAndNotComputedWith) {
  TemporaryDirectory dir;
  const std::string up = "model.layers.0.mlp.up_proj.weight";  // the second half of ours; 64 columns
  damage(golden("nano/model"), dir / "nan", up, std::string("\xc0\x7f", 2), 64);
  damage(golden("nano/model"), dir / "inf", up, std::string("\x80\xff", 2), 64);
  damage(golden("nano/model_fp8"), dir / "fp8", up, "\xff", 64);
  for (const Precision precision : {Precision::f32, Precision::bf16, Precision::fp8})
    for (const char* name : {"nan", "inf", "fp8"})
      EXPECT_EQ(load_error(dir / name, precision), up + ": element [2, 1] is not finite") << name;
  EXPECT_EQ(load_error(golden("nano/model"), Precision::f32), "no error");
}

}  // namespace
}  // namespace cachalot
