#include "backend/buffer.h"

#include "backend/cuda/cuda.h"
#include "backend/host_memory.h"
#include "backend/testing.h"

namespace cachalot {
namespace {

using namespace testing;

// Gives out and counts memory up to a limit.
class SmallDevice : public Device {
 public:
  explicit SmallDevice(int64_t bytes) : free_(bytes) {}
  std::string name() const override { return "small"; }
  void* take(int64_t bytes) override {
    if (bytes > free_) return nullptr;
    free_ -= bytes;
    return take_host_memory(bytes);
  }
  void give(void* data, int64_t bytes) noexcept override {
    free_ += bytes;
    give_host_memory(data);
  }
  int64_t free_bytes() const override { return free_; }
  std::unique_ptr<Backend> open_backend() override { return nullptr; }

 private:
  int64_t free_;
};

TEST(Buffer, OutOfMemoryNamesPurposeSizeAndWhatIsFree) {
  SmallDevice device(3 << 20);
  const Buffer held(device, 1 << 20, "parameters");
  try {
    Buffer(device, int64_t{5} << 30, "optimizer state");
    FAIL() << "5 GiB out of 2 MiB";
  } catch (const Error& e) {
    EXPECT_STREQ(e.what(), "optimizer state needs 5.00 GiB on small; free: 2.00 MiB");
    EXPECT_FALSE(e.hint().empty());
  }
  EXPECT_EQ(device.free_bytes(), 2 << 20);
}

TEST(Buffer, OwnsItsBytesOnceAcrossMoves) {
  SmallDevice device(1000);
  {
    Buffer a(device, 300, "a"), b(device, 200, "b");
    const void* a_data = a.data();
    Buffer c = std::move(a);
    EXPECT_EQ(c.data(), a_data);
    EXPECT_EQ(a.data(), nullptr);
    b = std::move(c);  // b's old bytes leave with c
    EXPECT_EQ(b.data(), a_data);
    EXPECT_EQ(b.bytes(), 300);
    EXPECT_EQ(device.free_bytes(), 500);
  }
  EXPECT_EQ(device.free_bytes(), 1000);
}

TEST(Buffer, OfNothingHasAnAddress) {  // so that a tensor without rows is not mistaken for an absent one
  for (const char* name : {"cpu", "ref", "fake", "plan"}) {
    const auto device = open_device(name);
    const Buffer b(*device, 0, "nothing");
    EXPECT_NE(b.data(), nullptr) << name;
  }
}

TEST(Buffer, IsAlignedOnEveryDevice) {
  for (const char* name : {"cpu", "ref", "fake", "plan"}) {
    const auto device = open_device(name);
    for (const int64_t bytes : {1, 255, 257, 5000, 70000}) {
      const Buffer b(*device, bytes, "odd");
      EXPECT_EQ(reinterpret_cast<uintptr_t>(b.data()) % 256, 0u) << name << " " << bytes;
    }
  }
}

TEST(Buffer, MoreThanTheMachineHasIsAnErrorNotAKill) {
  for (const char* name : {"cpu", "ref", "fake"}) {
    const auto device = open_device(name);
    EXPECT_GT(device->free_bytes(), 0) << name;
    EXPECT_THROW(Buffer(*device, int64_t{1} << 46, "64 TiB"), Error) << name;
  }
}

TEST(Arena, TensorsAreAlignedContiguousAndApart) {
  const auto device = open_device("ref");
  Arena arena(*device, 4096, "test");
  const Tensor a = arena.take(DType::bf16, 3, 5), b = arena.take_vector(DType::f64, 7),
               c = arena.take_like(a);
  for (const Tensor& t : {a, b, c}) {
    EXPECT_EQ(reinterpret_cast<uintptr_t>(t.data) % 256, 0u);
    EXPECT_EQ(t.ld, t.cols);
  }
  EXPECT_EQ(a.rows, 3);
  EXPECT_EQ(a.cols, 5);
  EXPECT_EQ(b.rows, 1);
  EXPECT_EQ(b.cols, 7);
  EXPECT_EQ(c.dtype, DType::bf16);
  EXPECT_EQ(static_cast<uint8_t*>(b.data) - static_cast<uint8_t*>(a.data), 256);
  EXPECT_EQ(static_cast<uint8_t*>(c.data) - static_cast<uint8_t*>(b.data), 256);
}

TEST(Arena, ReleaseGivesBackDownToTheMarkAndHighWaterStays) {
  const auto device = open_device("ref");
  Arena arena(*device, 4096, "test");
  arena.take_vector(DType::f32, 64);
  const int64_t mark = arena.mark();
  EXPECT_EQ(mark, 256);
  const Tensor first = arena.take_vector(DType::f32, 200);
  EXPECT_EQ(arena.used(), 256 + 1024);
  {
    const Arena::Scope scope(arena);
    arena.take_vector(DType::i32, 1);
    EXPECT_EQ(arena.used(), 256 + 1024 + 256);
  }
  EXPECT_EQ(arena.used(), 256 + 1024);
  arena.release(mark);
  EXPECT_EQ(arena.take_vector(DType::f32, 3).data, first.data);
  EXPECT_EQ(arena.high_water(), 256 + 1024 + 256);
  arena.clear();
  EXPECT_EQ(arena.used(), 0);
  EXPECT_EQ(arena.high_water(), 256 + 1024 + 256);
}

TEST(Arena, HighWaterOnThePlanDeviceIsACapacityThatSuffices) {
  const auto step = [](Arena& arena) {
    arena.take(DType::f32, 7, 33);
    for (int layer = 0; layer < 3; ++layer) {
      const Arena::Scope scope(arena);
      arena.take(DType::bf16, 7, 100 + layer);
      arena.take_vector(DType::f64, 1);
    }
    arena.take_vector(DType::i32, 65);
  };
  const auto plan = open_device("plan"), ref = open_device("ref");
  Arena measured(*plan, int64_t{1} << 40, "plan");
  step(measured);
  Arena exact(*ref, measured.high_water(), "exact");
  EXPECT_NO_THROW(step(exact));
  Arena small(*ref, measured.high_water() - 256, "too small");
  EXPECT_THROW(step(small), InternalError);
}

TEST(Arena, RunningOutIsABugThatNamesTheNumbers) {
  const auto device = open_device("ref");
  Arena arena(*device, 1000, "test");
  arena.take_vector(DType::f32, 100);
  try {
    arena.take(DType::f32, 20, 10);
    FAIL() << "512 + 800 bytes out of 1000";
  } catch (const InternalError& e) {
    EXPECT_NE(std::string(e.what()).find("f32 [20, 10] needs 800 bytes; 512 of 1000 are used"),
              std::string::npos)
        << e.what();
  }
  EXPECT_EQ(arena.take_vector(DType::f32, 122).cols, 122);  // to the last byte
  EXPECT_THROW(Arena().take_vector(DType::f32, 0), InternalError);
  EXPECT_THROW(arena.take(DType::f64, int64_t{1} << 40, int64_t{1} << 40), InternalError);  // no wrap-around
  EXPECT_THROW(arena.take(DType::f64, -1, 3), InternalError);
}

TEST(OpenDevice, RefusesUnknownNamesWithTheNearest) {
  try {
    open_device("gpu");
    FAIL();
  } catch (const Error& e) {
    EXPECT_STREQ(e.what(), "there is no device \"gpu\"");
    EXPECT_EQ(e.hint(), "did you mean cuda? known: cpu, cuda[:N], ref");  // not cpu, which is one letter away
  }
  try {
    open_device("cupa");
    FAIL();
  } catch (const Error& e) {
    EXPECT_NE(e.hint().find("did you mean cuda?"), std::string::npos) << e.hint();
  }
}

TEST(OpenDevice, CudaOpensTheCardOrSaysWhatIsFoundAndWhatToDo) {
  const CudaStatus status = probe_cuda();
  const bool usable = !status.devices.empty() && status.devices[0].usable();
  for (const std::string name : {"cuda", "cuda:0", "cuda:63"}) {
    if (usable && name != "cuda:63") {
      EXPECT_NE(open_device(name)->name().find(status.devices[0].name), std::string::npos);
      continue;
    }
    try {
      open_device(name);
      FAIL() << name;
    } catch (const Error& e) {
      const std::string found = status.devices.empty() ? status.message : "cuda:";
      EXPECT_NE(std::string(e.what()).find(found), std::string::npos) << e.what();
      EXPECT_FALSE(e.hint().empty());
    }
  }
}

TEST(OpenDevice, ACardIsANumber) {
  for (const char* name : {"cuda:", "cuda:one", "cuda:-1", "cuda:1 ", "cuda:123456789012"}) {
    try {
      open_device(name);
      FAIL() << name;
    } catch (const Error& e) {
      EXPECT_NE(std::string(e.what()).find("not the number of a card"), std::string::npos) << e.what();
      EXPECT_NE(e.hint().find("cuda:0"), std::string::npos) << e.hint();
    }
  }
}

TEST(HostMemory, FreeBytesIsPositiveAndAtMostTheMachine) {
  const int64_t free = host_free_bytes();
  EXPECT_GT(free, int64_t{1} << 20);
  EXPECT_LT(free, int64_t{1} << 50);
  EXPECT_TRUE(fits_host_memory(1));
  EXPECT_FALSE(fits_host_memory(int64_t{1} << 60));
}

}  // namespace
}  // namespace cachalot
