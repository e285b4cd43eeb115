// data/regex.h by PCRE2. A build without it has data/no_pcre2.cc in this file's place (CACHALOT_PCRE2).
#define PCRE2_CODE_UNIT_WIDTH 8
#include <fmt/format.h>
#include <pcre2.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <new>

#include "base/error.h"
#include "data/regex.h"

namespace cachalot {

namespace {

constexpr uint64_t kStepsPerByte = 64;   // on top of kSteps, for one match
constexpr uint64_t kSteps = 10'000'000;  // PCRE2's default for one match
constexpr uint32_t kHeapKiB = 1 << 20;   // 1 GiB for a match that the JIT stack cannot hold

// Two optimisations of PCRE2 10.42 lose matches: with start optimisations the compiled (?>[0-9]+?)K misses
// "11K", with auto-possessification a{1,3}(ba?)?+a misses "aaa". Our patterns are not slower without them.
constexpr uint32_t kExact = PCRE2_NO_START_OPTIMIZE | PCRE2_NO_AUTO_POSSESS;

std::string pcre2_message(int code) {
  std::array<PCRE2_UCHAR, 256> text{};
  pcre2_get_error_message(code, text.data(), text.size());
  return reinterpret_cast<const char*>(text.data());
}

}  // namespace

struct Regex::Code {
  pcre2_code* code = nullptr;
  std::string what;
  ~Code() { pcre2_code_free(code); }
};

Regex::CodePointer Regex::compile(const std::string& translated, std::string_view, std::string_view what) {
  auto* result = new Code;
  CodePointer owner(result);
  result->what = what;
  int error = 0;
  PCRE2_SIZE offset = 0;
  result->code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
                               kExact | PCRE2_UTF | PCRE2_NO_UTF_CHECK, &error, &offset, nullptr);
  if (!result->code)
    throw Error(fmt::format("{}: the pattern does not compile: {}", what, pcre2_message(error)));
  // Where the system forbids memory that is written and executed this fails, and PCRE2 interprets.
  (void)pcre2_jit_compile(result->code, PCRE2_JIT_COMPLETE);
  return owner;
}

void Regex::Free::operator()(const Code* code) const { delete code; }
bool Regex::available() { return true; }

struct Regex::Scratch::State {
  pcre2_match_data* match = pcre2_match_data_create(1, nullptr);
  pcre2_match_context* limits = pcre2_match_context_create(nullptr);
  ~State() {
    pcre2_match_data_free(match);
    pcre2_match_context_free(limits);
  }
};

Regex::Scratch::Scratch() : state_(std::make_unique<State>()) {
  if (!state_->match || !state_->limits) throw std::bad_alloc();
}
Regex::Scratch::~Scratch() = default;

bool Regex::find(std::string_view text, size_t from, Scratch& scratch, size_t* begin, size_t* end) const {
  const Scratch::State& s = *scratch.state_;
  const uint64_t steps = std::min<uint64_t>(kSteps + kStepsPerByte * text.size(), UINT32_MAX);
  pcre2_set_match_limit(s.limits, uint32_t(steps));
  pcre2_set_depth_limit(s.limits, uint32_t(steps));
  pcre2_set_heap_limit(s.limits, kHeapKiB);
  const auto match = [&](uint32_t options) {
    return pcre2_match(code_->code, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), from,
                       options | PCRE2_NO_UTF_CHECK, s.match, s.limits);
  };
  int result = match(0);
  // The compiled matcher keeps what it may have to take back on the machine stack, 32 KiB of it; the
  // interpreter keeps it on the heap.
  if (result == PCRE2_ERROR_JIT_STACKLIMIT) result = match(PCRE2_NO_JIT);
  if (result == PCRE2_ERROR_NOMATCH) return false;
  if (result < 0)
    throw Error(fmt::format("{}: the pattern gives up at byte {} of a text of {} bytes: {}", code_->what,
                            from, text.size(), pcre2_message(result)))
        .hint("rewrite the pattern so that it does not backtrack, or cut the text");
  const PCRE2_SIZE* offsets = pcre2_get_ovector_pointer(s.match);
  *begin = offsets[0];
  *end = offsets[1];
  return true;
}

}  // namespace cachalot
