#include "data/document_encoder.h"

#include <fmt/format.h>

#include "base/error.h"
#include "data/checksum.h"

namespace cachalot {

namespace {

void check_rate(const char* what, double rate) {
  if (!(rate >= 0 && rate <= 1))
    throw Error(fmt::format("the {} rate is {}", what, rate)).hint("it is a share: from 0 to 1");
}

}  // namespace

DocumentEncoder::DocumentEncoder(const Tokenizer& tokenizer, EncodeRecipe recipe)
    : tokenizer_(tokenizer), recipe_(recipe) {
  check_rate("FIM", recipe.fim_rate);
  check_rate("split", recipe.split_rate);
  const auto eos = tokenizer.eos_id();
  if (!eos)
    throw Error("the tokenizer has no end-of-text token, which must stand between documents")
        .hint("name it as \"eos_token\" in tokenizer_config.json beside tokenizer.json");
  end_of_text_ = *eos;
  if (recipe.fim_rate > 0) {
    const auto fim = FimTokens::find(tokenizer);
    if (!fim)
      throw Error(
          fmt::format("a FIM rate of {} needs the tokens <｜fim▁begin｜>, <｜fim▁hole｜> and <｜fim▁end｜>, "
                      "which the tokenizer does not have",
                      recipe.fim_rate))
          .hint("--fim-rate 0, or train the tokenizer with them: cachalot tokenizer train --special");
    fim_ = *fim;
  }
  if (recipe.split_rate > 0) splitter_.emplace(tokenizer);
}

uint64_t DocumentEncoder::identity(std::string_view text) { return checksum64(text); }

std::vector<int32_t> DocumentEncoder::encode(std::string_view text, DocumentOptions o) const {
  const uint64_t document = o.plain ? 0 : identity(text);
  const EncodeOptions options{.parse_special = false, .pool = o.pool};
  std::vector<int32_t> ids;
  const auto cuts = o.plain ? std::nullopt : fim_cuts(text, recipe_.fim_rate, recipe_.seed, document);
  if (cuts) {
    const auto append = [&](int32_t marker, std::string_view part) {
      const auto more = tokenizer_.encode(part, options);
      ids.push_back(marker);
      ids.insert(ids.end(), more.begin(), more.end());
    };
    append(fim_.begin, text.substr(0, cuts->first));
    append(fim_.hole, text.substr(cuts->second));
    append(fim_.end, text.substr(cuts->first, cuts->second - cuts->first));
  } else {
    ids = tokenizer_.encode(text, options);
  }
  if (splitter_ && !o.plain) splitter_->split(ids, recipe_.split_rate, recipe_.seed, document);
  ids.push_back(end_of_text_);
  return ids;
}

}  // namespace cachalot
