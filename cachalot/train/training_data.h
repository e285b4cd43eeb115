// What a run trains on: text files that are tokenised at once, or token shards and their mixture; either way
// token streams behind one loader.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "data/loader.h"
#include "data/mixture.h"
#include "data/token_stream.h"
#include "data/tokenizer.h"
#include "train/config.h"

namespace cachalot {

// The tokenizer beside the shards: `cachalot data tokenize` puts it there. Error when there is none.
std::string tokenizer_of_shards(const std::vector<std::string>& shards);

// `tokenizer_path` is named in messages. Error: shards of another tokenizer.
TokenData load_training_data(const DataSection& data, const Tokenizer& tokenizer,
                             const std::string& tokenizer_path, ThreadPool* pool);

// The sets of data.validation, in order of their names: all tokens of each. Error: paths that hold none,
// shards of another tokenizer, a name that is a part's, too.
std::vector<TokenStream> load_validation(const DataSection& data, const TokenData& parts,
                                         const Tokenizer& tokenizer, const std::string& tokenizer_path,
                                         ThreadPool* pool);

struct PlannedData {
  MixturePlan mixture;             // parts with a share above 0
  std::unique_ptr<Loader> loader;  // its parts are those of the mixture, in that order
};

// Error: a weight or a number of epochs for a part that is not there, parts that have neither while others
// do, a mixture that the budget cannot give. `depths`: of multi-token prediction.
PlannedData plan_data(const TokenData& data, const DataSection& section, const TrainSection& train,
                      int64_t depths);

}  // namespace cachalot
