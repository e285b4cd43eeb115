// What the contracts say about shapes, formats and overlap, checked once for all backends: each calls
// check(args) first. Only what the host can see; indices and offsets lie on the device (ref checks those as
// it reads them).
#pragma once

#include "backend/ops.h"

namespace cachalot {

#define CACHALOT_CHECK(name, Args) void check(const Args&);
CACHALOT_OPS(CACHALOT_CHECK)
#undef CACHALOT_CHECK

}  // namespace cachalot
