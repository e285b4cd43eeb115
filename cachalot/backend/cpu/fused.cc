// Contracts: backend/ops/norm_gemm.h, latent_query.h, route.h, expert_mlp.h. Rows stay in the caches between the parts,
// and a call costs nothing: there is no more to win here than the parts win.
#include "backend/cpu/cpu_backend.h"
#include "backend/ops/check.h"
#include "backend/ops/compose.h"

namespace cachalot::cpu {

void CpuBackend::norm_gemm(const NormGemm& g) {
  check(g);
  compose(*this, g);
}

void CpuBackend::latent_query(const LatentQuery& q) {
  check(q);
  compose(*this, q);
}

void CpuBackend::route(const Route& r) {
  check(r);
  compose(*this, r);
}

void CpuBackend::expert_mlp(const ExpertMlp& e) {
  check(e);
  compose(*this, e);
}

}  // namespace cachalot::cpu
