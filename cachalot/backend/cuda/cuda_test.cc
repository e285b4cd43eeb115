#include "backend/cuda/cuda.h"

#include <gtest/gtest.h>

#include <cstdlib>

#include "backend/cuda/limits.h"
#include "base/error.h"

namespace cachalot {
namespace {

// The same test on every machine and in both builds: what the status says must hold together.
TEST(Cuda, StatusSaysWhatIsThereAndWhatToDoAboutWhatIsNot) {
  const CudaStatus status = probe_cuda();
  EXPECT_FALSE(status.message.empty());
  EXPECT_TRUE(status.built || !status.driver);
  EXPECT_TRUE(status.driver || status.devices.empty());
  EXPECT_EQ(status.hint.empty(), !status.devices.empty()) << status.message;
  if (!status.built) {
    EXPECT_NE(status.message.find("without CUDA"), std::string::npos) << status.message;
    EXPECT_NE(status.hint.find("--preset cuda"), std::string::npos) << status.hint;
  }
  for (const CudaDeviceInfo& d : status.devices) {
    EXPECT_FALSE(d.name.empty());
    EXPECT_GT(d.major, 0);
    EXPECT_GT(d.memory_bytes, 0);
    EXPECT_GT(d.multiprocessors, 0);
  }
}

TEST(Cuda, CopyTestMovesEveryByteOrSaysWhyItCannot) {
  const CudaStatus status = probe_cuda();
  if (!status.devices.empty()) {
    for (const int64_t bytes : {int64_t(1), int64_t(1000003), int64_t(64) << 20}) {
      const CudaCopyTest result = test_cuda_copy(0, bytes, 3);
      EXPECT_TRUE(result.equal) << bytes;
      EXPECT_GT(result.bytes_per_second, 0);
    }
    return;
  }
  try {
    test_cuda_copy(0);
    FAIL();
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find(status.message), std::string::npos) << e.what();
    EXPECT_FALSE(e.hint().empty());
  }
}

// What falls back is said for every card that is not Hopper, and each with its cost.
TEST(Cuda, FallbacksAreSaidForEveryGenerationButHopper) {
  const CudaStatus status = probe_cuda();
  const auto of = [](int major) { return cuda_fallbacks({.major = major}); };
  EXPECT_TRUE(of(9).empty());
  if (!status.built) return;
  EXPECT_GT(of(8).size(), of(10).size());  // later cards have all but what is Hopper's alone
  EXPECT_FALSE(of(10).empty());
  for (const CudaFallback& f : of(8)) {
    EXPECT_FALSE(f.what.empty());
    EXPECT_FALSE(f.instead.empty());
    EXPECT_FALSE(f.cost.empty());
  }
}

TEST(Cuda, ADriverThatIsMissingOrTooOldIsSaidWithBothVersions) {
  if (!probe_cuda().built) GTEST_SKIP() << "in the preset cuda";
  const CudaStatus missing = cuda_without_driver(0, 13000), old = cuda_without_driver(12040, 13000);
  EXPECT_NE(missing.message.find("no NVIDIA driver"), std::string::npos) << missing.message;
  EXPECT_NE(missing.hint.find("install"), std::string::npos) << missing.hint;
  EXPECT_NE(old.message.find("12.4"), std::string::npos) << old.message;
  EXPECT_NE(old.message.find("13.0"), std::string::npos) << old.message;
  EXPECT_NE(old.hint.find("update"), std::string::npos) << old.hint;
  for (const CudaStatus& s : {missing, old}) EXPECT_TRUE(s.built && !s.driver && s.devices.empty());
}

// What older cards run can be had on newer ones, to be tested there; an older card never gets more than it
// has.
TEST(Cuda, PortableKernelsCanBeAskedForAndNothingElse) {
  if (!probe_cuda().built) GTEST_SKIP() << "in the preset cuda";
  const char* before = std::getenv("CACHALOT_CUDA_KERNELS");
  const std::string kept = before ? before : "";
  unsetenv("CACHALOT_CUDA_KERNELS");
  for (const int major : {7, 8, 9, 10}) EXPECT_EQ(cuda_generation({.major = major}), major);
  setenv("CACHALOT_CUDA_KERNELS", "portable", 1);
  for (const int major : {8, 9, 10}) EXPECT_EQ(cuda_generation({.major = major}), 8);
  EXPECT_EQ(cuda_generation({.major = 7}), 7);
  setenv("CACHALOT_CUDA_KERNELS", "hopper", 1);
  try {
    cuda_generation({.major = 9});
    ADD_FAILURE() << "took \"hopper\"";
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("hopper"), std::string::npos) << e.what();
    EXPECT_NE(e.hint().find("portable"), std::string::npos) << e.hint();
  }
  if (before) setenv("CACHALOT_CUDA_KERNELS", kept.c_str(), 1);
  else unsetenv("CACHALOT_CUDA_KERNELS");
}

TEST(Cuda, AShapeThatAKernelWasNotMadeForIsTheUsersToHearOf) {
  EXPECT_NO_THROW(cuda::require_at_most("permute_plan", 4095, 4095, "experts"));
  try {
    cuda::require_at_most("permute_plan", 5000, 4095, "experts");
    ADD_FAILURE() << "took 5000 experts";
  } catch (const Error& e) {
    EXPECT_STREQ(e.what(), "permute_plan on CUDA: 5000 experts; the kernel takes up to 4095");
    EXPECT_NE(e.hint().find("device cpu"), std::string::npos) << e.hint();
  }
}

TEST(Cuda, TheBlasLibraryIsThereOrWhatToDoIsSaid) {
  const CudaLibrary library = probe_cuda_blas();
  EXPECT_EQ(library.problem.empty(), !library.version.empty());
  EXPECT_EQ(library.problem.empty(), library.hint.empty());
}

}  // namespace
}  // namespace cachalot
