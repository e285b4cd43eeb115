// What went wrong and what to do: the only two exceptions of the program.
#pragma once

#include <stdexcept>
#include <string>
#include <utility>

namespace cachalot {

// What a user, a file, a peer or a machine can get wrong. The message says what happened with the values,
// the hint what to do about it:
//   throw Error(fmt::format("{}: qk_rope_head_dim is {}", path, n)).hint("rotary pairs need an even number");
// cli/ prints both and exits with 1.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
  Error& hint(std::string text) & { hint_ = std::move(text); return *this; }
  Error&& hint(std::string text) && { hint_ = std::move(text); return std::move(*this); }
  const std::string& hint() const { return hint_; }

 private:
  std::string hint_;
};

// A bug of ours. cli/ prints it as such and exits with 2.
class InternalError : public std::logic_error {
  using std::logic_error::logic_error;
};

[[noreturn]] void check_failed(const char* condition, const char* file, int line, const std::string& note);

}  // namespace cachalot

// For our own bugs only; CHECK(rows == y.rows) or CHECK(rows == y.rows, fmt::format(...)). Always on.
#define CHECK(condition, ...)                                                                       \
  do {                                                                                              \
    if (!(condition)) [[unlikely]]                                                                  \
      ::cachalot::check_failed(#condition, __FILE__, __LINE__, ::std::string{__VA_ARGS__});         \
  } while (false)
