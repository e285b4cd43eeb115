// A 64-bit checksum of bytes: XXH64 (Collet, github.com/Cyan4973/xxHash, doc/xxhash_spec.md), so that
// `xxhsum -H1` says the same. Against accidents (flipped bits, cut files, mixed-up files), not against an
// attacker. About 10 GB/s a core.
#pragma once

#include <cstdint>
#include <string_view>

namespace cachalot {

uint64_t checksum64(std::string_view bytes, uint64_t seed = 0);

}  // namespace cachalot
