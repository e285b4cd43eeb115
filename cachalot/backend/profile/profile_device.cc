#include "backend/profile/profile_device.h"

#include <algorithm>
#include <chrono>

#include "backend/ops/check.h"

namespace cachalot {

namespace {

std::vector<ProfileLine> slowest_first(std::vector<ProfileLine> lines) {
  std::stable_sort(lines.begin(), lines.end(),
                   [](const ProfileLine& a, const ProfileLine& b) { return a.seconds > b.seconds; });
  return lines;
}

void add_up(ProfileLine& line, const Cost& cost, int64_t calls, double seconds) {
  line.cost.flops += cost.flops;
  line.cost.bytes += cost.bytes;
  line.calls += calls;
  line.seconds += seconds;
}

class ProfileBackend final : public Backend {
 public:
  ProfileBackend(std::unique_ptr<Backend> inner, Profile& profile)
      : inner_(std::move(inner)), profile_(profile) {}

  void upload(const void* host, Tensor dst) override { inner_->upload(host, dst); }
  void download(Tensor src, void* host) override { inner_->download(src, host); }
  void synchronize() override { inner_->synchronize(); }
  EventPtr record() override { return inner_->record(); }
  void wait(const EventPtr& e) override { inner_->wait(e); }
  void fix_rows(bool fixed) override { inner_->fix_rows(fixed); }

#define CACHALOT_TIME(op, Args) \
  void op(const Args& args) override { time(#op, args, [&] { inner_->op(args); }); }
  CACHALOT_OPS(CACHALOT_TIME)
#undef CACHALOT_TIME

 private:
  template <class Args, class Run> void time(const char* op, const Args& args, const Run& run) {
    check(args);
    inner_->synchronize();
    const auto host_begin = std::chrono::steady_clock::now();
    const EventPtr begin = inner_->record();
    run();
    const EventPtr end = inner_->record();
    inner_->synchronize();
    double seconds = end->seconds_after(*begin);
    if (seconds < 0)
      seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - host_begin).count();
    profile_.add(op, cost_of(args, [this](const Tensor& t) { return read(t); }), seconds);
  }

  std::vector<int32_t> read(const Tensor& t) {
    std::vector<int32_t> values(size_t(t.size()));
    inner_->download(t, values.data());
    inner_->synchronize();
    return values;
  }

  std::unique_ptr<Backend> inner_;
  Profile& profile_;
};

class ProfileDevice final : public Device {
 public:
  ProfileDevice(Device& inner, Profile& profile) : inner_(inner), profile_(profile) {}
  std::string name() const override { return inner_.name(); }
  void* take(int64_t bytes) override { return inner_.take(bytes); }
  void give(void* data, int64_t bytes) noexcept override { inner_.give(data, bytes); }
  int64_t free_bytes() const override { return inner_.free_bytes(); }
  std::unique_ptr<Backend> open_backend() override {
    return std::make_unique<ProfileBackend>(inner_.open_backend(), profile_);
  }

 private:
  Device& inner_;
  Profile& profile_;
};

}  // namespace

void Profile::add(const char* op, const Cost& cost, double seconds) {
  ProfileLine& line = lines_[{op, cost.shape}];
  if (line.calls == 0) line = {.op = op, .cost = {.kind = cost.kind, .shape = cost.shape}};
  add_up(line, cost, 1, seconds);
}

std::vector<ProfileLine> Profile::lines() const {
  std::vector<ProfileLine> lines;
  for (const auto& [key, line] : lines_) lines.push_back(line);
  return slowest_first(std::move(lines));
}

std::vector<ProfileLine> Profile::by_op() const {
  std::map<std::string, ProfileLine> ops;
  for (const auto& [key, line] : lines_) {
    ProfileLine& op = ops[line.op];
    if (op.calls == 0) op = {.op = line.op, .cost = {.kind = line.cost.kind}};
    add_up(op, line.cost, line.calls, line.seconds);
  }
  std::vector<ProfileLine> result;
  for (const auto& [name, line] : ops) result.push_back(line);
  return slowest_first(std::move(result));
}

ProfileLine Profile::total(CostKind kind) const {
  ProfileLine sum{.cost = {.kind = kind}};
  for (const auto& [key, line] : lines_)
    if (line.cost.kind == kind) add_up(sum, line.cost, line.calls, line.seconds);
  return sum;
}

double Profile::seconds() const {
  double sum = 0;
  for (const auto& [key, line] : lines_) sum += line.seconds;
  return sum;
}

std::unique_ptr<Device> open_profile_device(Device& inner, Profile& profile) {
  return std::make_unique<ProfileDevice>(inner, profile);
}

}  // namespace cachalot
