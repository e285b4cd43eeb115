#include "backend/fake/fake_device.h"

#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <exception>
#include <functional>
#include <map>
#include <mutex>
#include <type_traits>
#include <vector>

#include "backend/cpu/cpu_device.h"
#include "backend/host_memory.h"
#include "backend/ops/check.h"
#include "backend/ref/ref_backend.h"
#include "base/rng.h"

namespace cachalot {

namespace {

// One block: [guard page | pages | guard page], all PROT_NONE at rest. Data ends, rounded up to the alignment
// that we promise, where the last guard page begins.
class Block {
 public:
  explicit Block(int64_t bytes) {
    const int64_t page = sysconf(_SC_PAGESIZE), rounded = std::max<int64_t>(256, (bytes + 255) / 256 * 256);
    inner_bytes_ = (rounded + page - 1) / page * page;
    whole_bytes_ = inner_bytes_ + 2 * page;
    whole_ = mmap(nullptr, size_t(whole_bytes_), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (whole_ == MAP_FAILED) return;
    inner_ = static_cast<uint8_t*>(whole_) + page;
    data_ = inner_ + inner_bytes_ - rounded;
    end_ = inner_ + inner_bytes_;
    if (!open(true)) return;
    std::memset(inner_, 0xFF, size_t(inner_bytes_));  // NaN in every format
    open(false);
  }
  Block(Block&& o) noexcept { *this = std::move(o); }
  Block& operator=(Block&& o) noexcept {
    std::swap(whole_, o.whole_);
    std::swap(inner_, o.inner_), std::swap(data_, o.data_), std::swap(end_, o.end_);
    std::swap(whole_bytes_, o.whole_bytes_), std::swap(inner_bytes_, o.inner_bytes_);
    return *this;
  }
  ~Block() {
    if (whole_ != MAP_FAILED) munmap(whole_, size_t(whole_bytes_));
  }
  void* data() const { return data_; }
  bool contains(const void* p) const { return inner_ <= p && p < end_; }
  bool open(bool yes) const {
    return mprotect(inner_, size_t(inner_bytes_), yes ? PROT_READ | PROT_WRITE : PROT_NONE) == 0;
  }

 private:
  void* whole_ = MAP_FAILED;
  uint8_t *inner_ = nullptr, *data_ = nullptr, *end_ = nullptr;
  int64_t whole_bytes_ = 0, inner_bytes_ = 0;
};

struct FakeEvent : Event {
  FakeDevice::Queues* device = nullptr;
  bool reached = false;
};

// What a queue holds: work, an event to reach, or an event to wait for.
struct Item {
  const char* name = "";
  std::function<void(Backend&)> run{};
  std::vector<const void*> addresses{};  // of the device that the work may touch
  std::shared_ptr<FakeEvent> reaches{}, waits_for{};
  bool counts = false;  // as an operation
  bool writes_host = false;
};

struct FakeGraph : Graph {  // of this device; run again as it was taken down
  const void* device = nullptr;
  std::vector<Item> items;
};

struct Queue {
  std::deque<Item> items;
  std::exception_ptr error;  // of the first item that failed; what follows is dropped until somebody hears
};

// Arguments are plain data, so every pointer in them is one of their aligned words. Numbers that happen to
// look like an address of ours do not occur: read as doubles those are denormal.
template <class Args> std::vector<const void*> words(const Args& args) {
  static_assert(std::is_trivially_copyable_v<Args>);
  std::vector<const void*> w(sizeof(Args) / sizeof(void*));
  std::memcpy(w.data(), &args, w.size() * sizeof(void*));
  return w;
}

}  // namespace

// Memory and queues of one device. One lock for all: a synchronize() runs alone.
class FakeDevice::Queues {
 public:
  explicit Queues(const FakeOptions& options) : seed_(options.seed) {
    if (options.inner == FakeOptions::Inner::cpu) {
      device_ = open_cpu_device(options.threads);
    } else {
      device_ = open_ref_device();
    }
    backend_ = device_->open_backend();
  }

  std::string name() const { return "fake (" + device_->name() + ")"; }

  void* take(int64_t bytes) {
    CHECK(bytes >= 0);
    if (!fits_host_memory(bytes)) return nullptr;
    Block block(bytes);
    void* data = block.data();
    if (!data) return nullptr;
    std::lock_guard lock(mutex_);
    blocks_.emplace(data, std::move(block));
    return data;
  }

  // Queued work may still name the block: it keeps its address until the queues are empty.
  void give(void* data) {
    std::lock_guard lock(mutex_);
    auto node = blocks_.extract(data);
    if (node.empty()) return;
    given_back_.push_back(std::move(node.mapped()));
    forget_unused();
  }

  Queue* open_queue() {
    std::lock_guard lock(mutex_);
    queues_.push_back(std::make_unique<Queue>());
    return queues_.back().get();
  }

  // As when a stream of a GPU is destroyed: what is queued still runs, but nobody hears of errors, and host
  // memory may be gone, so downloads are dropped.
  void close_queue(Queue* queue) {
    std::lock_guard lock(mutex_);
    std::erase_if(queue->items, [](const Item& item) { return item.writes_host; });
    drain(*queue);
    std::erase_if(queues_, [&](const auto& q) { return q.get() == queue; });
    forget_unused();
  }

  void push(Queue& queue, Item item) {
    std::lock_guard lock(mutex_);
    for (const void* address : item.addresses)
      CHECK(!in_given_back(address), fmt::format("{} names memory that was given back", item.name));
    queue.items.push_back(std::move(item));
  }

  void synchronize(Queue& queue) {
    std::lock_guard lock(mutex_);
    ++counters_.synchronizes;
    drain(queue);
    forget_unused();
    if (queue.error) std::rethrow_exception(std::exchange(queue.error, nullptr));
  }

  void count_copy(bool upload) {
    std::lock_guard lock(mutex_);
    ++(upload ? counters_.uploads : counters_.downloads);
  }

  FakeCounters counters() const {
    std::lock_guard lock(mutex_);
    FakeCounters c = counters_;
    for (const auto& q : queues_) c.queued += int64_t(q->items.size());
    return c;
  }
  int64_t blocks() const {
    std::lock_guard lock(mutex_);
    return int64_t(blocks_.size() + given_back_.size());
  }

 private:
  static bool can_run(const Queue& q) {
    return !q.items.empty() && (!q.items.front().waits_for || q.items.front().waits_for->reached);
  }

  // Runs until `target` is empty. Which other streams get on meanwhile, and how far, is drawn.
  void drain(Queue& target) {
    if (target.items.empty()) return;
    for (const auto& [data, block] : blocks_) CHECK(block.open(true));
    while (!target.items.empty()) {
      std::vector<Queue*> ready;
      for (const auto& q : queues_)
        if (can_run(*q)) ready.push_back(q.get());
      if (ready.empty()) break;
      Queue& chosen = *ready[random_below(seed_, 0, draws_++, ready.size())];
      const bool as_far_as_it_goes = random_below(seed_, 0, draws_++, 2) == 1;
      do run_front(chosen);
      while (as_far_as_it_goes && can_run(chosen));
    }
    for (const auto& [data, block] : blocks_) CHECK(block.open(false));
    CHECK(target.items.empty(), "a stream waits for an event that nobody will reach");
  }

  void run_front(Queue& q) {
    const Item item = std::move(q.items.front());
    q.items.pop_front();
    if (item.reaches) item.reaches->reached = true;  // also after an error: others must not wait for ever
    if (!item.run || q.error) return;
    try {
      for (const void* address : item.addresses)
        CHECK(!in_given_back(address),
              fmt::format("{} uses memory that was given back while it was queued", item.name));
      item.run(*backend_);
      backend_->synchronize();
      if (item.counts) ++counters_.operations;
    } catch (...) {
      q.error = std::current_exception();
    }
  }

  bool in_given_back(const void* address) const {
    return std::any_of(given_back_.begin(), given_back_.end(),
                       [&](const Block& b) { return b.contains(address); });
  }
  void forget_unused() {
    if (std::all_of(queues_.begin(), queues_.end(), [](const auto& q) { return q->items.empty(); }))
      given_back_.clear();
  }

  mutable std::mutex mutex_;
  std::unique_ptr<Device> device_;
  std::unique_ptr<Backend> backend_;
  const uint64_t seed_;
  uint64_t draws_ = 0;
  std::map<void*, Block> blocks_;
  std::vector<Block> given_back_;
  std::vector<std::unique_ptr<Queue>> queues_;
  FakeCounters counters_;
};

namespace {

class FakeBackend final : public Backend {
 public:
  explicit FakeBackend(std::shared_ptr<FakeDevice::Queues> device)
      : device_(std::move(device)), queue_(*device_->open_queue()) {}
  ~FakeBackend() override { device_->close_queue(&queue_); }

  void upload(const void* host, Tensor dst) override {
    CHECK(!recording_, "an upload in a graph");
    device_->count_copy(true);
    const auto* bytes = static_cast<const uint8_t*>(host);
    std::vector<uint8_t> copy(bytes, bytes + dst.size() * size_of(dst.dtype));
    device_->push(queue_, {.name = "upload",
                           .run = [copy = std::move(copy), dst](Backend& b) { b.upload(copy.data(), dst); },
                           .addresses = words(dst)});
  }
  void download(Tensor src, void* host) override {
    CHECK(!recording_, "a download in a graph");
    device_->count_copy(false);
    if (src.size() > 0)
      std::memset(host, 0xFF, size_t(src.size() * size_of(src.dtype)));  // who reads too early sees NaN
    device_->push(queue_, {.name = "download",
                           .run = [src, host](Backend& b) { b.download(src, host); },
                           .addresses = words(src),
                           .writes_host = true});
  }
  void synchronize() override {
    CHECK(!recording_, "waiting in a graph");
    device_->synchronize(queue_);
  }

  GraphPtr capture(const std::function<void()>& work) override {
    CHECK(!recording_, "a graph in a graph");
    const auto graph = std::make_shared<FakeGraph>();
    graph->device = device_.get();
    recording_ = graph;
    try {
      work();
    } catch (...) {
      recording_ = nullptr;
      throw;
    }
    recording_ = nullptr;
    return graph;
  }
  void replay(const GraphPtr& graph) override {
    CHECK(!recording_, "a graph in a graph");
    const auto* recorded = dynamic_cast<const FakeGraph*>(graph.get());
    CHECK(recorded && recorded->device == device_.get(), "a graph of another device");
    for (const Item& item : recorded->items) device_->push(queue_, item);
  }

  EventPtr record() override {
    CHECK(!recording_, "an event in a graph");
    auto event = std::make_shared<FakeEvent>();
    event->device = device_.get();
    device_->push(queue_, {.name = "record", .reaches = event});
    return event;
  }
  void wait(const EventPtr& e) override {
    CHECK(!recording_, "an event in a graph");
    auto event = std::dynamic_pointer_cast<FakeEvent>(e);
    CHECK(event, "waits for an event that was never recorded");
    CHECK(event->device == device_.get(), "waits for an event of another device");
    device_->push(queue_, {.name = "wait", .waits_for = std::move(event)});
  }

#define CACHALOT_QUEUE(op, Args)                                                                             \
  void op(const Args& args) override {                                                                       \
    check(args);                                                                                             \
    operation(                                                                                               \
        {.name = #op, .run = [args](Backend& b) { b.op(args); }, .addresses = words(args), .counts = true}); \
  }
  CACHALOT_OPS(CACHALOT_QUEUE)
#undef CACHALOT_QUEUE

 private:
  void operation(Item item) {
    if (recording_) recording_->items.push_back(std::move(item));
    else device_->push(queue_, std::move(item));
  }

  std::shared_ptr<FakeDevice::Queues> device_;
  Queue& queue_;
  std::shared_ptr<FakeGraph> recording_;  // while capture() runs
};

}  // namespace

FakeDevice::FakeDevice(const FakeOptions& options) : queues_(std::make_shared<Queues>(options)) {}
FakeDevice::~FakeDevice() = default;
std::string FakeDevice::name() const { return queues_->name(); }
void* FakeDevice::take(int64_t bytes) { return queues_->take(bytes); }
void FakeDevice::give(void* data, int64_t) noexcept { queues_->give(data); }
int64_t FakeDevice::free_bytes() const { return host_free_bytes(); }
std::unique_ptr<Backend> FakeDevice::open_backend() { return std::make_unique<FakeBackend>(queues_); }
FakeCounters FakeDevice::counters() const { return queues_->counters(); }
int64_t FakeDevice::blocks() const { return queues_->blocks(); }

std::unique_ptr<FakeDevice> open_fake_device(const FakeOptions& options) {
  return std::make_unique<FakeDevice>(options);
}

}  // namespace cachalot
