// What a disk still holds: asked before gigabytes are written, not after.
#pragma once

#include <cstdint>
#include <string>

namespace cachalot {

// Bytes that this user may still write to the file system that `path` is on, or will be on when it is made;
// -1: unknown.
int64_t free_disk(const std::string& path);

// Error when `bytes` of `what` ("the model", in the message) do not fit there.
void require_disk(const std::string& path, int64_t bytes, const std::string& what);

}  // namespace cachalot
