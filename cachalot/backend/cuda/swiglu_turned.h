// swiglu_backward with transposes (swiglu_turned.cu).
#pragma once

#include "backend/cuda/faults.cuh"
#include "backend/cuda/launch.cuh"
#include "backend/ops/swiglu.h"

namespace cachalot::cuda {

// All of `g` but dweights, of which dots [I / 128, T] get the parts that are to be added. False, and nothing
// is done: not bf16 beside cached codes, widths that are no multiple of 128, rows not to be read in eights, a
// dense layer whose rows are no multiple of eight.
bool turned_swiglu(const Queue& queue, const SwigluBackward& g, float* dots, const Faults& faults);

}  // namespace cachalot::cuda
