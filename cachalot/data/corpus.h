// Text files as training data without files of shards: tokenised at once, into shards in memory
// (data/shard.h), so that a trainer reads them like any others. For corpora of some hundred megabytes; larger
// ones go through `cachalot data tokenize`.
//
// Each file is a document; the end of it is held out. A stream is the tokens of its part of the first
// document, the end-of-text token, the part of the second document, and so on, without padding, as
// DeepSeek-V3 packs documents. Text is only text: a file that spells "<｜end▁of▁sentence｜>" does not get
// that token.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "data/token_stream.h"
#include "data/tokenizer.h"

namespace cachalot {

// How many bytes of a document are trained on when the share `held_out` (0 to below 1) is not: (1 - held_out)
// of them, and on to the end of that line if it ends in the first half of what would be held out, else to the
// end of that character. A tokenizer trained on these bytes has not seen the others.
size_t training_bytes(std::string_view document, double held_out);

// One part, "text". Files in the order given; empty ones are passed over. Error: a file that cannot be read, no
// text at all, a tokenizer without an end-of-text token, a held_out that is no share. `pool`: threads.
TokenData tokenize_files(const std::vector<std::string>& files, const Tokenizer& tokenizer, double held_out,
                         ThreadPool* pool = nullptr);

}  // namespace cachalot
