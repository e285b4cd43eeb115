// Operations that are sequences of others, for backends that have nothing better: each contract's formula in the
// operations it names.
#pragma once

#include "backend/backend.h"

namespace cachalot {

void compose(Backend& b, const NormGemm& g);
void compose(Backend& b, const LatentQuery& q);
void compose(Backend& b, const Route& r);
void compose(Backend& b, const ExpertMlp& e);

}  // namespace cachalot
