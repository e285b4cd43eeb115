// The newest model of a run that may go on: it removes older checkpoints while somebody reads them.
#pragma once

#include <functional>
#include <string>

namespace cachalot {

// Calls `read` with the directory of the newest checkpoint's model. If that throws and the checkpoint is gone
// by then, calls it again with the one that is the newest now. Error: what `read` threw for another reason; the
// run has no complete checkpoint; or it replaces them faster than they can be read.
void read_newest_model(const std::string& run, const std::function<void(const std::string& directory)>& read);

}  // namespace cachalot
