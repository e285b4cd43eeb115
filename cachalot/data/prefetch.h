// What comes next, made by a thread ahead of need.
#pragma once

#include <condition_variable>
#include <deque>
#include <exception>
#include <functional>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

#include "base/error.h"

namespace cachalot {

// Calls make() again and again in a thread of its own, at most `ahead` results before they are taken; an empty
// optional is the end. An exception of make() is thrown by the next() that would have given its result.
template <class T> class Prefetcher {
 public:
  Prefetcher(std::function<std::optional<T>()> make, size_t ahead) : make_(std::move(make)), ahead_(ahead) {
    CHECK(ahead > 0);
    thread_ = std::thread([this] { run(); });  // what throws before it leaves no thread to join
  }
  ~Prefetcher() {
    {
      const std::lock_guard lock(mutex_);
      stop_ = true;
    }
    room_.notify_one();
    thread_.join();
  }
  Prefetcher(const Prefetcher&) = delete;

  std::optional<T> next() {
    std::unique_lock lock(mutex_);
    ready_.wait(lock, [&] { return !made_.empty() || ended_; });
    if (!made_.empty()) {
      T result = std::move(made_.front());
      made_.pop_front();
      lock.unlock();
      room_.notify_one();
      return result;
    }
    if (error_) std::rethrow_exception(error_);
    return std::nullopt;
  }

 private:
  void run() {
    try {
      for (;;) {
        {
          std::unique_lock lock(mutex_);
          room_.wait(lock, [&] { return stop_ || made_.size() < ahead_; });
          if (stop_) return;
        }
        std::optional<T> result = make_();
        if (!result) break;
        {
          const std::lock_guard lock(mutex_);
          made_.push_back(std::move(*result));
        }
        ready_.notify_one();
      }
    } catch (...) {
      const std::lock_guard lock(mutex_);
      error_ = std::current_exception();
    }
    {
      const std::lock_guard lock(mutex_);
      ended_ = true;
    }
    ready_.notify_one();
  }

  std::function<std::optional<T>()> make_;
  size_t ahead_;
  std::mutex mutex_;
  std::condition_variable ready_, room_;
  std::deque<T> made_;
  std::exception_ptr error_;
  bool stop_ = false, ended_ = false;
  std::thread thread_;
};

}  // namespace cachalot
