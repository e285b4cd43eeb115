#include <algorithm>
#include <vector>

#include "backend/ops/check.h"
#include "backend/ref/number.h"
#include "backend/ref/ref_backend.h"

namespace cachalot {

namespace {

// Rows of one sequence, as starts: query i sees `visible(i)` keys from k_first on.
struct Sequence {
  int64_t q_first, queries, k_first, keys;
  int64_t visible(int64_t i) const { return keys - queries + i + 1; }
};

Sequence sequence(const AttentionShape& shape, int64_t q_rows, int64_t k_rows, int64_t s) {
  const Starts q(shape.q_starts, q_rows), k(shape.k_starts, k_rows);
  const Sequence it{q[s], q[s + 1] - q[s], k[s], k[s + 1] - k[s]};
  CHECK(it.keys >= it.queries, "a query without its own key");
  return it;
}

// scale (q_i[:N] . k_j + q_i[N:] . k_rope_j) of head h
double score(const AttentionShape& shape, const Reader& q, const Reader& kv, const Reader& k_rope, int64_t h,
             int64_t i, int64_t j) {
  const int64_t q_col = h * (shape.nope + shape.rope), k_col = h * (shape.nope + shape.value);
  double sum = 0;
  for (int64_t d = 0; d < shape.nope; ++d) sum += q(i, q_col + d) * kv(j, k_col + d);
  for (int64_t d = 0; d < shape.rope; ++d) sum += q(i, q_col + shape.nope + d) * k_rope(j, d);
  return shape.scale * sum;
}

// Sums of a backward stay in double until the end: dk_rope collects over heads and queries.
class Sums {
 public:
  explicit Sums(const Tensor& t) : t_(t), sums_(size_t(t.size())) {}
  void add(int64_t r, int64_t c, double x) { sums_[size_t(r * t_.cols + c)] += x; }
  void store() const {
    const Writer out(t_);
    for (int64_t i = 0; i < t_.size(); ++i) out.set(i, sums_[size_t(i)]);
  }

 private:
  Tensor t_;
  std::vector<double> sums_;
};

}  // namespace

void RefBackend::attention_forward(const AttentionForward& a) {
  check(a);
  const AttentionShape& shape = a.shape;
  const Reader q(a.q), kv(a.kv), k_rope(a.k_rope);
  const Writer o(a.o), lse(a.lse);
  for (int64_t s = 0; s < shape.sequences; ++s) {
    const Sequence seq = sequence(shape, a.q.rows, a.kv.rows, s);
    for (int64_t n = 0; n < seq.queries; ++n)
      for (int64_t h = 0; h < shape.heads; ++h) {
        const int64_t i = seq.q_first + n;
        std::vector<double> p(size_t(seq.visible(n)));
        for (size_t m = 0; m < p.size(); ++m)
          p[m] = score(shape, q, kv, k_rope, h, i, seq.k_first + int64_t(m));
        const double top = *std::max_element(p.begin(), p.end());
        double total = 0;
        for (double& x : p) total += x = std::exp(x - top);
        lse.set(i, h, top + std::log(total));
        for (int64_t d = 0; d < shape.value; ++d) {
          double sum = 0;
          for (size_t m = 0; m < p.size(); ++m)
            sum +=
                p[m] / total * kv(seq.k_first + int64_t(m), h * (shape.nope + shape.value) + shape.nope + d);
          o.set(i, h * shape.value + d, sum);
        }
      }
  }
}

void RefBackend::attention_backward(const AttentionBackward& a) {
  check(a);
  const AttentionShape& shape = a.shape;
  const Reader q(a.q), kv(a.kv), k_rope(a.k_rope), o(a.o), lse(a.lse), d_o(a.d_o);
  Sums dq(a.dq), dkv(a.dkv), dk_rope(a.dk_rope);
  for (int64_t s = 0; s < shape.sequences; ++s) {
    const Sequence seq = sequence(shape, a.q.rows, a.kv.rows, s);
    for (int64_t n = 0; n < seq.queries; ++n)
      for (int64_t h = 0; h < shape.heads; ++h) {
        const int64_t i = seq.q_first + n;
        const int64_t q_col = h * (shape.nope + shape.rope), k_col = h * (shape.nope + shape.value);
        const int64_t v_col = k_col + shape.nope, o_col = h * shape.value;
        double big_d = 0;
        for (int64_t d = 0; d < shape.value; ++d) big_d += d_o(i, o_col + d) * o(i, o_col + d);
        for (int64_t m = 0; m < seq.visible(n); ++m) {
          const int64_t j = seq.k_first + m;
          const double p = std::exp(score(shape, q, kv, k_rope, h, i, j) - lse(i, h));
          double dp = 0;
          for (int64_t d = 0; d < shape.value; ++d) dp += d_o(i, o_col + d) * kv(j, v_col + d);
          const double ds = shape.scale * p * (dp - big_d);
          for (int64_t d = 0; d < shape.value; ++d) dkv.add(j, v_col + d, p * d_o(i, o_col + d));
          for (int64_t d = 0; d < shape.nope; ++d) {
            dq.add(i, q_col + d, ds * kv(j, k_col + d));
            dkv.add(j, k_col + d, ds * q(i, q_col + d));
          }
          for (int64_t d = 0; d < shape.rope; ++d) {
            dq.add(i, q_col + shape.nope + d, ds * k_rope(j, d));
            dk_rope.add(j, d, ds * q(i, q_col + shape.nope + d));
          }
        }
      }
  }
  dq.store();
  dkv.store();
  dk_rope.store();
}

}  // namespace cachalot
