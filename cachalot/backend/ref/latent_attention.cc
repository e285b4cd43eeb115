#include <algorithm>
#include <vector>

#include "backend/ops/check.h"
#include "backend/ref/number.h"
#include "backend/ref/ref_backend.h"

namespace cachalot {

void RefBackend::latent_attention(const LatentAttention& a) {
  check(a);
  const Reader q_latent(a.q_latent), q_rope(a.q_rope), cache(a.cache);
  const Writer o(a.o_latent);
  const Starts starts(a.q_starts, a.q_latent.rows);
  const Indices lens(a.kv_lens, a.page_table.cols * a.page_size + 1), pages(a.page_table, a.cache.rows);
  for (int64_t s = 0; s < a.sequences; ++s) {
    const int64_t queries = starts[s + 1] - starts[s], keys = lens[s];
    CHECK(keys >= queries, "a query whose own token is not in the cache");
    const auto row_of = [&](int64_t token) {
      return pages(s, token / a.page_size) * a.page_size + token % a.page_size;
    };
    for (int64_t n = 0; n < queries; ++n)
      for (int64_t h = 0; h < a.heads; ++h) {
        const int64_t i = starts[s] + n;
        std::vector<double> p(size_t(keys - queries + n + 1));
        for (size_t j = 0; j < p.size(); ++j) {
          double sum = 0;
          for (int64_t d = 0; d < a.latent; ++d)
            sum += q_latent(i, h * a.latent + d) * cache(row_of(int64_t(j)), d);
          for (int64_t d = 0; d < a.rope; ++d)
            sum += q_rope(i, h * a.q_rope_stride + d) * cache(row_of(int64_t(j)), a.latent + d);
          p[j] = a.scale * sum;
        }
        const double top = *std::max_element(p.begin(), p.end());
        double total = 0;
        for (double& x : p) total += x = std::exp(x - top);
        for (int64_t d = 0; d < a.latent; ++d) {
          double sum = 0;
          for (size_t j = 0; j < p.size(); ++j) sum += p[j] / total * cache(row_of(int64_t(j)), d);
          o.set(i, h * a.latent + d, sum);
        }
      }
  }
}

}  // namespace cachalot
