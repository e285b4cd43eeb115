// What asks for more than the oldest card that this program runs on, each with what runs instead there. A
// family of kernels for one generation adds its line here and asks `runs_on` before it takes an operation; the
// notice to the user (cuda_fallbacks) comes from the same line.
#pragma once

namespace cachalot::cuda {

struct KernelFamily {
  const char* what;
  int major;  // compute capability
  bool only;  // of this generation: its instructions are gone from later ones
  const char *instead, *cost;

  constexpr bool runs_on(int device_major) const {
    return only ? device_major == major : device_major >= major;
  }
};

inline constexpr KernelFamily kOverlappedLaunches{
    .what = "overlapped kernel launches",
    .major = 9,
    .only = false,
    .instead = "a kernel starts after the one before has ended",
    .cost = "decoding a few sequences is slower, by up to a half"};
inline constexpr KernelFamily kHopperProducts{
    .what = "products on Hopper's tensor cores (wgmma)",
    .major = 9,
    .only = true,
    .instead = "cuBLASLt, and for experts the portable kernels (mma.sync)",
    .cost = "experts reach about half of the rate of a product in cuBLASLt; FP8 is computed in f32"};
inline constexpr KernelFamily kHopperAttention{
    .what = "attention on Hopper's tensor cores (wgmma)",
    .major = 9,
    .only = true,
    .instead = "the portable kernels (mma.sync)",
    .cost = "attention in training is about three times slower, decoding of 128 heads up to eight times"};

inline constexpr KernelFamily kHopperDecoding{
    .what = "decoding steps of few rows in clusters of blocks",
    .major = 9,
    .only = true,
    .instead = "a kernel for every operation",
    .cost = "decoding a few sequences is slower, by up to a fifth"};

inline constexpr const KernelFamily* kFamilies[] = {&kOverlappedLaunches, &kHopperProducts, &kHopperAttention,
                                                    &kHopperDecoding};

}  // namespace cachalot::cuda
