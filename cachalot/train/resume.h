// Whether a run may go on, and from where.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "base/json.h"
#include "data/loader.h"
#include "train/checkpoint.h"
#include "train/run_directory.h"

namespace cachalot {

// What a resumed run may have other values of: dotted keys of a run's configuration, or beginnings that end
// with a dot. Everything else decides what is computed.
const std::vector<std::string>& changeable_fields();

// `was` and `now`: resolved configurations. Returns the fields that have other values, as "train.steps 100 ->
// 200"; Error naming those that must not, and saying which may.
std::vector<std::string> compare_configs(const Json& was, const Json& now, const std::string& run_dir);

// The newest checkpoint that is intact. `tell` hears of every newer one that is not, which is put aside.
// nullopt: the run has none yet. Error: it has some, or had, but none that is intact; they stay as they are.
std::optional<Checkpoint> newest_checkpoint(const RunDirectory& run,
                                            const std::function<void(const std::string&)>& tell);

// Where in the data it stands.
DataCursor cursor_of(const Checkpoint& checkpoint);

// Error when `now` would not compute the bits that `was` did.
void require_same_bits(const BitsIdentity& was, const BitsIdentity& now);

}  // namespace cachalot
