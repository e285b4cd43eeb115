// Working memory of one operation, from a stack that every thread owns. It grows when a shape is larger than
// any before and is kept, so that steps after the first allocate nothing.
//   Scratch scratch;                       // gives back all that it took when it goes out of scope
//   float* row = scratch.take<float>(d);   // 64-byte aligned, contents unspecified
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

namespace cachalot::cpu {

class ScratchStack {
 public:
  static ScratchStack& of_this_thread();
  void* take(int64_t bytes);

  struct Mark {
    size_t block = 0;
    int64_t used = 0;
  };
  Mark mark() const { return top_; }
  void release(Mark m);

 private:
  struct Free {
    void operator()(void* p) const;
  };
  struct Block {
    std::unique_ptr<void, Free> data;
    int64_t bytes = 0;
  };
  std::vector<Block> blocks_;  // more than one only until the outermost Scratch ends
  Mark top_;
};

class Scratch {
 public:
  Scratch() : stack_(ScratchStack::of_this_thread()), mark_(stack_.mark()) {}
  ~Scratch() { stack_.release(mark_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  template <class T> T* take(int64_t n) { return static_cast<T*>(stack_.take(n * int64_t(sizeof(T)))); }

 private:
  ScratchStack& stack_;
  ScratchStack::Mark mark_;
};

}  // namespace cachalot::cpu
