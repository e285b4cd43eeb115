// Many matrix products at once: what gemm, grouped_gemm and head_gemm come down to.
#pragma once

#include <vector>

#include "backend/cpu/cpu_backend.h"

namespace cachalot::cpu {

void run_products(Context& context, const std::vector<Gemm>& products);

}  // namespace cachalot::cpu
