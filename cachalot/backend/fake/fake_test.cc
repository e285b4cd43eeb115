#include "backend/fake/fake_device.h"

#include <gtest/gtest.h>

#include "backend/fake/plan_device.h"
#include "backend/testing.h"

namespace cachalot {
namespace {

using namespace testing;

FakeOptions ref_inside(uint64_t seed = 0) { return {.inner = FakeOptions::Inner::ref, .seed = seed}; }

volatile float g_sink;

class FakeDeathTest : public Test {
 protected:
  void SetUp() override { GTEST_FLAG_SET(death_test_style, "threadsafe"); }  // the cpu inside has threads
};

TEST_F(FakeDeathTest, MemoryIsUnreadableOutsideOfOperations) {
  const auto device = open_fake_device(ref_inside());
  Stream s(*device);
  TestTensors t(*device, s);
  const Tensor x = t.normal(DType::f32, 3, 5);
  EXPECT_DEATH(g_sink = *static_cast<float*>(x.data), "");
  EXPECT_DEATH(*static_cast<float*>(x.data) = 1, "");
  on(s).synchronize();
  EXPECT_DEATH(g_sink = *static_cast<float*>(x.data), "");
}

TEST_F(FakeDeathTest, AccessBehindABlockDiesAlsoInsideOperations) {
  const auto device = open_fake_device(ref_inside());
  Stream s(*device);
  const Buffer b(*device, 1024, "test");
  on(s).fill({.y = make_tensor(b.data(), DType::f32, 1, 256), .value = 2});
  on(s).synchronize();
  on(s).fill({.y = make_tensor(b.data(), DType::f32, 1, 257), .value = 2});
  EXPECT_DEATH(on(s).synchronize(), "");
}

TEST(Fake, RunsTheOperationsOfTheDeviceInside) {
  for (const auto inner : {FakeOptions::Inner::cpu, FakeOptions::Inner::ref}) {
    const auto device = open_fake_device({.inner = inner, .threads = 1});
    const auto plain = open_device(inner == FakeOptions::Inner::cpu ? "cpu" : "ref", {.threads = 1});
    Stream s(*device), p(*plain);
    TestTensors t(*device, s, 3), u(*plain, p, 3);
    const Gemm g{
        .a = t.normal(DType::f32, 5, 9), .b = t.normal(DType::f32, 9, 7), .c = t.garbage(DType::f32, 5, 7)};
    const Gemm h{
        .a = u.normal(DType::f32, 5, 9), .b = u.normal(DType::f32, 9, 7), .c = u.garbage(DType::f32, 5, 7)};
    on(s).gemm(g);
    on(p).gemm(h);
    EXPECT_EQ(read_bits(s, g.c), read_bits(p, h.c));
    EXPECT_EQ(device->name(), "fake (" + plain->name() + ")");
  }
}

TEST(Fake, NothingRunsBeforeSynchronize) {
  const auto device = open_fake_device(ref_inside());
  Stream s(*device);
  TestTensors t(*device, s);
  const Tensor x = t.zeros(DType::f32, 1, 4);
  float host[4] = {7, 7, 7, 7};
  on(s).fill({.y = x, .value = 3});
  on(s).download(x, host);
  EXPECT_EQ(device->counters().operations, 0);
  for (const float f : host) EXPECT_TRUE(std::isnan(f));  // who reads too early notices
  on(s).synchronize();
  EXPECT_EQ(device->counters().operations, 1);
  for (const float f : host) EXPECT_EQ(f, 3);
}

TEST(Fake, UploadCopiesAtTheCall) {
  const auto device = open_fake_device(ref_inside());
  Stream s(*device);
  TestTensors t(*device, s);
  const Tensor x = t.garbage(DType::i32, 1, 3);
  std::vector<int32_t> host{1, 2, 3};
  on(s).upload(host.data(), x);
  host.assign({4, 5, 6});
  EXPECT_EQ(read_indices(s, x), (std::vector<int32_t>{1, 2, 3}));
}

TEST(Fake, FreshMemoryIsNaN) {
  const auto device = open_fake_device(ref_inside());
  Stream s(*device);
  const Buffer b(*device, 40, "fresh");
  for (const double x : read(s, make_tensor(b.data(), DType::f32, 2, 5))) EXPECT_TRUE(std::isnan(x));
}

TEST(Fake, CountsCalls) {
  const auto device = open_fake_device(ref_inside());
  Stream s(*device);
  const Buffer b(*device, 64, "test");
  const Tensor x = make_tensor(b.data(), DType::f32, 1, 16);
  float host[16] = {};
  on(s).upload(host, x);
  on(s).fill({.y = x, .value = 1});
  on(s).add({.a = x, .b = x, .y = x});
  on(s).download(x, host);
  on(s).record();
  FakeCounters c = device->counters();
  EXPECT_EQ(c.uploads, 1);
  EXPECT_EQ(c.downloads, 1);
  EXPECT_EQ(c.operations, 0);
  EXPECT_EQ(c.synchronizes, 0);
  EXPECT_EQ(c.queued, 5);
  on(s).synchronize();
  on(s).synchronize();
  c = device->counters();
  EXPECT_EQ(c.operations, 2);
  EXPECT_EQ(c.synchronizes, 2);
  EXPECT_EQ(c.queued, 0);
  EXPECT_EQ(host[3], 2);
}

// x = 1 on one stream, then y = x + x on another; what the second reads.
std::vector<double> across_streams(uint64_t seed, bool with_wait) {
  const auto device = open_fake_device(ref_inside(seed));
  Stream a(*device), b(*device);
  TestTensors t(*device, a);
  const Tensor x = t.zeros(DType::f32, 1, 1), y = t.zeros(DType::f32, 1, 1);
  on(a).synchronize();
  on(a).fill({.y = x, .value = 1});
  const EventPtr written = on(a).record();
  if (with_wait) on(b).wait(written);
  on(b).add({.a = x, .b = x, .y = y});
  return read(b, y);
}

TEST(Fake, AMissingWaitGivesAWrongResultForSomeSeed) {
  int wrong = 0, right = 0;
  for (uint64_t seed = 0; seed < 20; ++seed) ++(across_streams(seed, false)[0] == 2 ? right : wrong);
  EXPECT_GT(wrong, 0);
  EXPECT_GT(right, 0);  // and any order that the events allow can happen
}

TEST(Fake, AWaitOrdersStreamsForEverySeed) {
  for (uint64_t seed = 0; seed < 20; ++seed) EXPECT_EQ(across_streams(seed, true)[0], 2) << seed;
}

TEST(Fake, AnEventCoversWhatWasQueuedBeforeItOnly) {
  for (uint64_t seed = 0; seed < 20; ++seed) {
    const auto device = open_fake_device(ref_inside(seed));
    Stream a(*device), b(*device);
    TestTensors t(*device, a);
    const Tensor x = t.zeros(DType::f32, 1, 1), y = t.zeros(DType::f32, 1, 1), z = t.zeros(DType::f32, 1, 1);
    on(a).synchronize();
    on(a).fill({.y = x, .value = 1});
    const EventPtr one = on(a).record();
    on(b).wait(one);
    on(b).add({.a = x, .b = x, .y = y});
    const EventPtr read_by_b = on(b).record();
    on(a).wait(read_by_b);  // without it b could see the 5
    on(a).fill({.y = x, .value = 5});
    on(a).add({.a = x, .b = y, .y = z});
    EXPECT_EQ(read(a, z)[0], 7) << seed;
  }
}

TEST(Fake, SynchronizeOfOneStreamMayLeaveOthersUnfinished) {
  int unfinished = 0;
  for (uint64_t seed = 0; seed < 20; ++seed) {
    const auto device = open_fake_device(ref_inside(seed));
    Stream a(*device), b(*device);
    const Buffer x(*device, 4, "x"), y(*device, 4, "y");
    on(a).fill({.y = make_tensor(x.data(), DType::f32, 1, 1), .value = 1});
    on(b).fill({.y = make_tensor(y.data(), DType::f32, 1, 1), .value = 1});
    on(a).synchronize();
    const FakeCounters c = device->counters();
    EXPECT_EQ(c.operations + c.queued, 2);
    EXPECT_GE(c.operations, 1);
    unfinished += int(c.queued);
  }
  EXPECT_GT(unfinished, 0);
  EXPECT_LT(unfinished, 20);
}

TEST(Fake, AWaitForNoEventIsABug) {
  const auto device = open_fake_device(ref_inside()), other = open_fake_device(ref_inside());
  Stream s(*device), o(*other);
  EXPECT_THROW(on(s).wait(nullptr), InternalError);
  EXPECT_THROW(on(s).wait(std::make_shared<Event>()), InternalError);
  EXPECT_THROW(on(s).wait(on(o).record()), InternalError);
  EXPECT_NO_THROW(on(s).wait(on(s).record()));
  EXPECT_NO_THROW(on(s).synchronize());
}

TEST(Fake, AnEventOutlivesItsStream) {
  const auto device = open_fake_device(ref_inside());
  Stream s(*device);
  const Buffer x(*device, 4, "x");
  const Tensor view = make_tensor(x.data(), DType::f32, 1, 1);
  EventPtr e;
  {
    Stream gone(*device);
    on(gone).fill({.y = view, .value = 4});
    e = on(gone).record();
  }
  on(s).wait(e);
  EXPECT_EQ(read_number(s, view), 4);
}

TEST(Fake, SynchronizeRethrowsWhatAnOperationThrewOnThisStream) {
  const auto device = open_fake_device(ref_inside());
  Stream a(*device), b(*device);
  TestTensors t(*device, a);
  const Tensor x = t.normal(DType::f32, 2, 3), y = t.zeros(DType::f32, 1, 3), z = t.zeros(DType::f32, 1, 3);
  const Tensor rows = t.indices({9});  // x has 2 rows: seen on the device only
  on(a).synchronize();
  on(a).gather_rows({.x = x, .rows = rows, .y = y});
  on(a).fill({.y = z, .value = 1});
  const EventPtr e = on(a).record();
  on(b).wait(e);  // the failure of a does not hang b, nor does b report it
  EXPECT_NO_THROW(on(b).synchronize());
  EXPECT_THROW(on(a).synchronize(), InternalError);
  EXPECT_EQ(read(a, z)[0], 0);  // what was queued behind the failure did not run; the stream works again
  on(a).fill({.y = z, .value = 2});
  EXPECT_EQ(read(a, z)[0], 2);
}

TEST(Fake, ArgumentsAreCheckedAtTheCall) {
  const auto device = open_fake_device(ref_inside());
  Stream s(*device);
  TestTensors t(*device, s);
  const Tensor x = t.normal(DType::f32, 2, 3), y = t.garbage(DType::f32, 3, 2);
  EXPECT_THROW(on(s).add({.a = x, .b = x, .y = y}), InternalError);
}

TEST(Fake, MemoryGivenBackWhileQueuedWorkUsesItIsReported) {
  const auto device = open_fake_device(ref_inside());
  Stream s(*device);
  {
    const Buffer b(*device, 4, "gone too early");
    on(s).fill({.y = make_tensor(b.data(), DType::f32, 1, 1), .value = 1});
  }
  EXPECT_EQ(device->blocks(), 1);
  try {
    on(s).synchronize();
    FAIL();
  } catch (const InternalError& e) {
    EXPECT_NE(std::string(e.what()).find("fill uses memory that was given back"), std::string::npos)
        << e.what();
  }
  EXPECT_EQ(device->blocks(), 0);
}

TEST(Fake, NewWorkOnMemoryGivenBackIsRefusedAtTheCall) {
  const auto device = open_fake_device(ref_inside());
  Stream s(*device);
  Buffer kept(*device, 4, "kept"), gone(*device, 4, "gone");
  const Tensor x = make_tensor(kept.data(), DType::f32, 1, 1), y = make_tensor(gone.data(), DType::f32, 1, 1);
  on(s).fill({.y = x, .value = 1});
  gone = Buffer();
  EXPECT_THROW(on(s).add({.a = x, .b = x, .y = y}), InternalError);
  EXPECT_EQ(read_number(s, x), 1);
}

TEST(Fake, MemoryGivenBackAfterItsWorkIsFine) {
  const auto device = open_fake_device(ref_inside());
  Stream s(*device);
  {
    TestTensors t(*device, s);
    EXPECT_EQ(read(s, t.values(DType::f32, 1, 2, {1, 2})), (std::vector<double>{1, 2}));
  }
  on(s).synchronize();
  EXPECT_EQ(device->blocks(), 0);
}

TEST(Fake, AGraphRunsWhatWasTakenDownOnWhatMemoryHoldsThen) {
  const auto device = open_fake_device(ref_inside());
  Stream s(*device);
  TestTensors t(*device, s);
  const Tensor x = t.values(DType::f32, 1, 1, {1}), y = t.zeros(DType::f32, 1, 1);
  const GraphPtr graph = on(s).capture([&] { on(s).add({.a = x, .b = x, .y = y}); });
  EXPECT_EQ(read_number(s, y), 0);  // not run yet
  on(s).replay(graph);
  EXPECT_EQ(read_number(s, y), 2);
  on(s).fill({.y = x, .value = 5});
  on(s).replay(graph);
  EXPECT_EQ(read_number(s, y), 10);
  const auto fails = [&](const std::function<void()>& work) {
    EXPECT_THROW(on(s).capture(work), InternalError);
    EXPECT_EQ(read_number(s, y), 10);  // and the stream works again
  };
  fails([&] { on(s).synchronize(); });
  float number = 0;
  fails([&] { on(s).upload(&number, x); });
  fails([&] { on(s).download(x, &number); });
  fails([&] { on(s).record(); });
  const auto other = open_fake_device(ref_inside());
  Stream o(*other);
  EXPECT_THROW(on(o).replay(graph), InternalError);
}

TEST(Fake, OpensByName) {
  const auto device = open_device("fake", {.threads = 1, .fake_seed = 3});
  Stream s(*device);
  TestTensors t(*device, s);
  EXPECT_EQ(read(s, t.values(DType::bf16, 2, 2, {1, 2, 3, 4}, 3)), (std::vector<double>{1, 2, 3, 4}));
}

TEST_F(FakeDeathTest, MemoryOfThePlanDeviceIsNowhere) {
  const auto device = open_plan_device();
  const Buffer b(*device, 1000, "plan");
  EXPECT_DEATH(g_sink = *static_cast<float*>(b.data()), "");
}

TEST(Plan, GivesBackWhatItTook) {
  const auto device = open_plan_device();
  const int64_t free = device->free_bytes();
  {
    const Buffer b(*device, 1000, "b"), c(*device, 1000, "c");
    EXPECT_GE(static_cast<uint8_t*>(c.data()) - static_cast<uint8_t*>(b.data()), 1000);
    EXPECT_LE(device->free_bytes(), free - 2000);
  }
  EXPECT_EQ(device->free_bytes(), free);
}

TEST(Plan, TakesFourTerabytesWithoutMemory) {
  const auto device = open_plan_device();
  Arena arena(*device, int64_t{4} << 40, "plan");
  EXPECT_EQ(device->take(device->free_bytes() + 1), nullptr);
  const Tensor x = arena.take(DType::f32, int64_t{1} << 20, int64_t{1} << 19);  // 2 TiB
  EXPECT_EQ(arena.used(), int64_t{2} << 40);
  Stream s(*device);
  on(s).fill({.y = x, .value = 1});  // dropped: nothing is touched
  float host[4] = {1, 2, 3, 4};
  on(s).upload(host, x.slice_rows(0, 1).slice_cols(0, 4));
  on(s).download(x.slice_rows(0, 1).slice_cols(0, 4), host);
  on(s).wait(on(s).record());
  on(s).synchronize();
  EXPECT_EQ(host[3], 0);
  const Tensor one = arena.take(DType::f32, 1, 1);
  EXPECT_THROW(on(s).add({.a = x, .b = x, .y = one}), InternalError);  // checked all the same
}

}  // namespace
}  // namespace cachalot
