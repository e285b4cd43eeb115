// The list of all operations, once: Backend declares them, ref/, cpu/, cuda/ define them, fake/ queues them.
// A backend that lacks one does not compile. X(function, arguments); the contracts are in ops/<file>.h.
#pragma once

#include "backend/ops/adamw.h"
#include "backend/ops/attention.h"
#include "backend/ops/cross_entropy.h"
#include "backend/ops/elementwise.h"
#include "backend/ops/expert_mlp.h"
#include "backend/ops/gate.h"
#include "backend/ops/gemm.h"
#include "backend/ops/grouped_gemm.h"
#include "backend/ops/head_gemm.h"
#include "backend/ops/latent_attention.h"
#include "backend/ops/latent_query.h"
#include "backend/ops/norm_gemm.h"
#include "backend/ops/permute.h"
#include "backend/ops/quantize.h"
#include "backend/ops/rmsnorm.h"
#include "backend/ops/rope.h"
#include "backend/ops/route.h"
#include "backend/ops/rows.h"
#include "backend/ops/sample.h"
#include "backend/ops/swiglu.h"

#define CACHALOT_OPS(X)                     \
  X(gemm, Gemm)                             \
  X(grouped_gemm, GroupedGemm)              \
  X(grouped_weight_grad, GroupedWeightGrad) \
  X(head_gemm, HeadGemm)                    \
  X(attention_forward, AttentionForward)    \
  X(attention_backward, AttentionBackward)  \
  X(latent_plan, LatentPlan)                \
  X(latent_attention, LatentAttention)      \
  X(latent_append, LatentAppend)            \
  X(latent_gather, LatentGather)            \
  X(norm_gemm, NormGemm)                    \
  X(latent_query, LatentQuery)              \
  X(route, Route)                           \
  X(expert_mlp, ExpertMlp)                  \
  X(rmsnorm_forward, RmsNormForward)        \
  X(rmsnorm_backward, RmsNormBackward)      \
  X(rope, Rope)                             \
  X(swiglu_forward, SwigluForward)          \
  X(swiglu_backward, SwigluBackward)        \
  X(gate_forward, GateForward)              \
  X(gate_backward, GateBackward)            \
  X(balance_loss, BalanceLoss)              \
  X(count_groups, CountGroups)              \
  X(update_gate_bias, UpdateGateBias)       \
  X(permute_plan, PermutePlan)              \
  X(permute, Permute)                       \
  X(unpermute, Unpermute)                   \
  X(unpermute_backward, UnpermuteBackward)  \
  X(gather_rows, GatherRows)                \
  X(scatter_rows, ScatterRows)              \
  X(scatter_add_rows, ScatterAddRows)       \
  X(cross_entropy, CrossEntropy)            \
  X(sample, Sample)                         \
  X(fill, Fill)                             \
  X(cast, Cast)                             \
  X(add, Add)                               \
  X(sum_squares, SumSquares)                \
  X(adamw, AdamW)                           \
  X(quantize, Quantize)                     \
  X(quantize_weight, QuantizeWeight)        \
  X(pad_offsets, PadOffsets)                \
  X(pack_e5m6, PackE5m6)                    \
  X(unpack_e5m6, UnpackE5m6)
