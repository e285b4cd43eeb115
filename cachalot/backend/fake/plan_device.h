// A device whose memory is address space only and whose operations never run: a step on it measures what its
// arenas would need (Arena::high_water), at any size of model. Arguments are checked as everywhere. Downloads
// give zeros.
#pragma once

#include <memory>

#include "backend/backend.h"

namespace cachalot {

std::unique_ptr<Device> open_plan_device();

}  // namespace cachalot
