// data/regex.h in a build without PCRE2: every pattern is read, and then refused.
#include <fmt/format.h>

#include "base/error.h"
#include "data/json_fields.h"
#include "data/regex.h"

namespace cachalot {

struct Regex::Code {};
struct Regex::Scratch::State {};

bool Regex::available() { return false; }

Regex::CodePointer Regex::compile(const std::string&, std::string_view pattern, std::string_view what) {
  throw Error(fmt::format("{}: {} needs the regex library PCRE2, which this program was built without", what,
                          in_quotes(pattern)))
      .hint(
          "install libpcre2-dev and build with -DCACHALOT_PCRE2=ON; only tokenizers that cut text as "
          "DeepSeek-V3's "
          "does, as those of `cachalot tokenizer train` do, work without");
}

void Regex::Free::operator()(const Code* code) const { delete code; }
Regex::Scratch::Scratch() : state_(std::make_unique<State>()) {}
Regex::Scratch::~Scratch() = default;

bool Regex::find(std::string_view, size_t, Scratch&, size_t*, size_t*) const {
  throw Error("this program was built without PCRE2");  // nothing is compiled, so nothing is searched for
}

}  // namespace cachalot
