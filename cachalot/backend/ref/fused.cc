// The oracle of operations that are sequences of others: those others.
#include "backend/ops/check.h"
#include "backend/ops/compose.h"
#include "backend/ref/ref_backend.h"

namespace cachalot {

void RefBackend::norm_gemm(const NormGemm& g) {
  check(g);
  compose(*this, g);
}

void RefBackend::latent_query(const LatentQuery& q) {
  check(q);
  compose(*this, q);
}

void RefBackend::route(const Route& r) {
  check(r);
  compose(*this, r);
}

void RefBackend::expert_mlp(const ExpertMlp& e) {
  check(e);
  compose(*this, e);
}

}  // namespace cachalot
