#include "backend/cpu/vector.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "backend/ops/op_testing.h"

namespace cachalot {
namespace {

using cpu::RowVectors;
using cpu::Vectors;

// Every table that this machine runs.
std::vector<const Vectors*> all_vectors() {
  std::vector<const Vectors*> all{&cpu::vectors_sse2};
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) all.push_back(&cpu::vectors_avx2);
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw"))
    all.push_back(&cpu::vectors_avx512);
#endif
  return all;
}

// Numbers of one format that begin at any address their format allows, with a fence behind them.
template <class T> class Row {
 public:
  explicit Row(int64_t n, int64_t shift = 0) : n_(n), shift_(shift), bits_(size_t(n + shift + 1), fence()) {}
  T* data() { return bits_.data() + shift_; }
  float operator[](int64_t i) {
    if constexpr (sizeof(T) == 2) return std::bit_cast<float>(uint32_t(data()[i]) << 16);
    else return data()[i];
  }
  void set(int64_t i, float x) {
    if constexpr (sizeof(T) == 2) data()[i] = bf16(x).bits;
    else data()[i] = x;
  }
  bool fence_intact() { return std::memcmp(&bits_.back(), &kFence, sizeof(T)) == 0; }

 private:
  static constexpr uint32_t kFence = 0xFFFFFFFF;
  static T fence() {
    T t;
    std::memcpy(&t, &kFence, sizeof(T));
    return t;
  }
  int64_t n_, shift_;
  std::vector<T> bits_;
};

template <class T> Row<T> normal(int64_t n, uint64_t stream, int64_t shift = 0) {
  Row<T> row(n, shift);
  for (int64_t i = 0; i < n; ++i) row.set(i, float(random_normal(3, stream, uint64_t(i))));
  return row;
}

template <class T> const RowVectors& rows_of(const Vectors& v) {
  if constexpr (sizeof(T) == 2) return v.bf16;
  else return v.f32;
}

template <class T> constexpr double kBound = sizeof(T) == 2 ? 1e-5 : 1e-12;

// |x - y|^2 / (|x|^2 + |y|^2) of what a kernel made and what double arithmetic makes.
template <class T, class Exact> double distance(Row<T>& got, int64_t n, Exact exact) {
  double difference = 0, size = 0;
  for (int64_t i = 0; i < n; ++i) {
    const double x = got[i], y = exact(i);
    difference += (x - y) * (x - y);
    size += x * x + y * y;
  }
  return size == 0 ? 0 : difference / size;
}

// Lengths with every kind of tail, and addresses that are not those of a vector.
template <class F> void for_lengths(const Vectors& v, F f) {
  for (int64_t n = 0; n <= 2 * v.lanes + 1; ++n) f(n, n % 3);
  for (const int64_t n : {4 * v.lanes, 4 * v.lanes + 3, 9 * v.lanes - 1}) f(n, int64_t(1));
}

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

template <class T> void test_rows(const Vectors& v) {
  SCOPED_TRACE(std::string(v.isa) + (sizeof(T) == 2 ? " bf16" : " f32"));
  const RowVectors& rows = rows_of<T>(v);
  const double bound = kBound<T>;
  for_lengths(v, [&](int64_t n, int64_t shift) {
    SCOPED_TRACE(n);
    Row<T> a = normal<T>(n, 1, shift), b = normal<T>(n, 2, shift), c = normal<T>(n, 3), y(n, shift), z(n);
    Row<float> gain = normal<float>(n, 4), sums = normal<float>(n, 5), before = sums;

    rows.swiglu_forward(a.data(), b.data(), n, y.data());
    EXPECT_LE(distance(y, n, [&](int64_t i) { return a[i] * sigmoid(a[i]) * b[i]; }), bound);
    rows.swiglu_backward(c.data(), a.data(), b.data(), n, y.data(), z.data());
    EXPECT_LE(distance(y, n,
                       [&](int64_t i) {
                         const double s = sigmoid(a[i]);
                         return c[i] * b[i] * s * (1 + a[i] * (1 - s));
                       }),
              bound);
    EXPECT_LE(distance(z, n, [&](int64_t i) { return c[i] * a[i] * sigmoid(a[i]); }), bound);

    double squares = 0, product = 0, mean = 0;
    for (int64_t i = 0; i < n; ++i) {
      squares += double(a[i]) * a[i];
      product += double(a[i]) * b[i];
      mean += double(gain[i]) * b[i] * a[i] * 0.75;
    }
    EXPECT_NEAR(rows.sum_squares(a.data(), n), squares, 1e-6 * (squares + 1));
    EXPECT_NEAR(rows.dot(a.data(), b.data(), n), product, 1e-6 * (squares + 1));
    rows.normalise(a.data(), gain.data(), 0.75f, n, y.data());
    EXPECT_LE(distance(y, n, [&](int64_t i) { return double(gain[i]) * a[i] * 0.75; }), bound);
    EXPECT_NEAR(rows.norm_sums(b.data(), a.data(), gain.data(), 0.75f, n, sums.data()), mean,
                1e-5 * (squares + 1));
    EXPECT_LE(distance(sums, n, [&](int64_t i) { return before[i] + double(b[i]) * a[i] * 0.75; }), 1e-12);
    for (Row<T>* residual : {static_cast<Row<T>*>(nullptr), &c}) {
      rows.norm_gradient(b.data(), a.data(), gain.data(), residual ? residual->data() : nullptr, 0.75f, 0.3f,
                         n, y.data());
      EXPECT_LE(distance(y, n,
                         [&](int64_t i) {
                           return 0.75 * (double(gain[i]) * b[i] - a[i] * 0.75 * double(0.3f)) +
                                  (residual ? c[i] : 0.0f);
                         }),
                bound);
    }

    rows.add(a.data(), b.data(), n, y.data());
    EXPECT_LE(distance(y, n, [&](int64_t i) { return double(a[i]) + b[i]; }), bound);
    const void* three[] = {a.data(), b.data(), c.data()};
    const float weights[] = {1, 0.25f, -3};
    rows.combine(three, weights, 3, n, y.data());
    EXPECT_LE(distance(y, n, [&](int64_t i) { return a[i] + 0.25 * b[i] - 3.0 * c[i]; }), bound);
    EXPECT_NEAR(rows.scale_and_dot(a.data(), b.data(), 0.3f, n, y.data()), product, 1e-6 * (squares + 1));
    EXPECT_LE(distance(y, n, [&](int64_t i) { return double(0.3f) * a[i]; }), bound);
    before = sums;
    rows.accumulate(a.data(), n, sums.data());
    EXPECT_LE(distance(sums, n, [&](int64_t i) { return double(before[i]) + a[i]; }), 1e-12);

    Row<float> floats(n, shift);
    rows.to_floats(a.data(), 1, n, floats.data());
    for (int64_t i = 0; i < n; ++i) EXPECT_EQ(floats[i], a[i]);
    rows.from_floats(floats.data(), 1, n, y.data());
    for (int64_t i = 0; i < n; ++i) EXPECT_EQ(y[i], a[i]);
    for (Row<T>* row : {&y, &z}) EXPECT_TRUE(row->fence_intact());
    for (Row<float>* row : {&sums, &floats}) EXPECT_TRUE(row->fence_intact());

    const int64_t even = n / 2 * 2;
    Row<T> turned = a;
    rows.rotate(turned.data(), 1, even, gain.data(), before.data(), even);
    EXPECT_LE(distance(turned, even,
                       [&](int64_t i) { return double(a[i]) * gain[i] + double(a[i ^ 1]) * before[i]; }),
              bound);
    for (int64_t i = even; i < n; ++i) EXPECT_EQ(turned[i], a[i]);
  });
}

TEST(CpuVectors, RowsOfEveryLengthAndAddress) {
  for (const Vectors* v : all_vectors()) {
    test_rows<float>(*v);
    test_rows<uint16_t>(*v);
  }
}

// Halves are rounded to nearest even, infinities and NaN stay, numbers below the normal ones are not lost:
// the upper halves of all floats, each with lower halves on both sides of a tie.
TEST(CpuVectors, RoundingIsThatOfBf16ForAllNumbers) {
  std::vector<float> x;
  for (uint32_t upper = 0; upper < 0x10000; ++upper)
    for (const uint32_t lower : {0x0000u, 0x0001u, 0x7FFFu, 0x8000u, 0x8001u, 0xFFFFu})
      x.push_back(std::bit_cast<float>(upper << 16 | lower));
  for (const Vectors* v : all_vectors()) {
    std::vector<uint16_t> y(x.size());
    std::vector<float> back(x.size());
    v->bf16.from_floats(x.data(), 1, int64_t(x.size()), y.data());
    v->bf16.to_floats(y.data(), 1, int64_t(x.size()), back.data());
    int64_t wrong = 0;
    for (size_t i = 0; i < x.size(); ++i) {
      wrong += std::isnan(x[i]) ? !std::isnan(back[i]) : y[i] != bf16(x[i]).bits;
      wrong += !std::isnan(x[i]) && std::bit_cast<uint32_t>(back[i]) != uint32_t(y[i]) << 16;
    }
    EXPECT_EQ(wrong, 0) << v->isa;
  }
}

TEST(CpuVectors, ExpIsWithinTwoUnitsInTheLastPlaceAndKnowsTheSpecialNumbers) {
  std::vector<float> x, y;
  for (double v = -86.8; v < 88.72; v += 0.00037) x.push_back(float(v));
  for (double v = 1e-8; v < 1; v *= 1.01) x.push_back(float(v)), x.push_back(float(-v));
  y.resize(x.size());
  for (const Vectors* v : all_vectors()) {
    double worst = 0;
    v->exp_shifted(x.data(), 0, int64_t(x.size()), y.data());
    for (size_t i = 0; i < x.size(); ++i) {
      const double exact = std::exp(double(x[i])), ulp = std::ldexp(1.0, std::ilogb(exact) - 23);
      worst = std::max(worst, std::abs(y[i] - exact) / ulp);
    }
    EXPECT_LT(worst, 2) << v->isa;

    const float special[] = {-INFINITY, INFINITY, NAN, 0, -1000, 100, -0.0f};
    float out[7];
    v->exp_shifted(special, 0, 7, out);
    EXPECT_EQ(out[0], 0);
    EXPECT_EQ(out[1], INFINITY);
    EXPECT_TRUE(std::isnan(out[2]));
    EXPECT_EQ(out[3], 1);
    EXPECT_EQ(out[4], 0);
    EXPECT_EQ(out[5], INFINITY);
    EXPECT_EQ(out[6], 1);
    EXPECT_FLOAT_EQ(v->exp_shifted(x.data(), 0, 5, nullptr), v->exp_shifted(x.data(), 0, 5, y.data()));
  }
}

TEST(CpuVectors, TheLargestIsFoundAnywhereAndNanIsSkipped) {
  for (const Vectors* v : all_vectors())
    for (int64_t n = 1; n < 6 * v->lanes; ++n)
      for (int64_t at = 0; at < n; ++at) {
        std::vector<float> x(size_t(n), -3);
        x[size_t((at + 1) % n)] = NAN;
        x[size_t(at)] = 2;
        EXPECT_EQ(v->largest(x.data(), n, -INFINITY), 2) << v->isa << " " << n << " " << at;
        EXPECT_EQ(v->largest(x.data(), n, 5), 5);
      }
}

TEST(Vectors, SizesTakeNoNoticeOfNan) {
  for (const Vectors* v : all_vectors())
    for (const int64_t n : {0, 1, 3, 16, 17, 50, 128}) {
      Row<float> x = normal<float>(n, 5), most = normal<float>(n, 6);
      float expected = 0.5f;
      std::vector<float> each;
      for (int64_t i = 0; i < n; ++i) {
        if (i % 7 == 3) x.set(i, i % 2 ? NAN : -NAN);
        else expected = std::max(expected, std::abs(x[i]));
        each.push_back(i % 7 == 3 ? most[i] : std::max(most[i], std::abs(x[i])));
      }
      EXPECT_EQ(v->largest_size(x.data(), n, 0.5f), expected) << v->isa << " " << n;
      v->larger_sizes(x.data(), n, most.data());
      for (int64_t i = 0; i < n; ++i) EXPECT_EQ(most[i], each[size_t(i)]) << v->isa << " " << n << " " << i;
      EXPECT_TRUE(most.fence_intact());
    }
}

// Every code, both its neighbours halfway and what is just beside that, against the format's own conversion.
TEST(Vectors, CodesAreThoseOfTheFormat) {
  std::vector<float> numbers{0.0f, -0.0f, 1e-30f, -1e-30f, 448.00003f, NAN, -NAN};
  for (int i = 0; i < 126; ++i) {
    const float a = float(std::bit_cast<e4m3>(uint8_t(i))), b = float(std::bit_cast<e4m3>(uint8_t(i + 1)));
    for (const float x : {a, b, (a + b) / 2, std::nextafter((a + b) / 2, a), std::nextafter((a + b) / 2, b)})
      numbers.push_back(x), numbers.push_back(-x);
  }
  const int64_t n = int64_t(numbers.size());
  for (const Vectors* v : all_vectors())
    for (const float scale : {1.0f, 0.37f, 1e-4f / 448, 3e5f})
      for (const int64_t shift : {0, 1}) {
        Row<float> x(n, shift), scales(n);
        for (int64_t i = 0; i < n; ++i) x.set(i, numbers[size_t(i)] * scale), scales.set(i, scale);
        std::vector<uint8_t> codes(size_t(n + 1), 0xAB), each = codes;
        v->encode(x.data(), scale, n, codes.data());
        v->encode_each(x.data(), scales.data(), n, each.data());
        for (int64_t i = 0; i < n; ++i) {
          const float quotient = x[i] / scale;
          const int expected = std::isnan(quotient) ? 0x7F : e4m3(quotient).bits;
          EXPECT_EQ(int(codes[size_t(i)]), expected) << v->isa << " " << quotient;
          EXPECT_EQ(int(each[size_t(i)]), expected) << v->isa << " " << quotient;
        }
        EXPECT_EQ(codes.back(), 0xAB);
        EXPECT_EQ(each.back(), 0xAB);
      }
}

TEST(CpuVectors, SumsOfSquaresAreInDouble) {
  for (const Vectors* v : all_vectors())
    for_lengths(*v, [&](int64_t n, int64_t shift) {
      Row<float> x = normal<float>(n, 1, shift);
      double sum = 0;
      for (int64_t i = 0; i < n; ++i) sum += double(x[i]) * x[i];
      EXPECT_NEAR(v->sum_squares(x.data(), n), sum, 1e-14 * (sum + 1)) << v->isa << " " << n;
    });
}

TEST(CpuVectors, AdamStepsOfEveryLength) {
  const cpu::AdamFactors f{.clip = 0.5f,
                           .beta1 = 0.9f,
                           .beta2 = 0.95f,
                           .fresh1 = 0.1f,
                           .fresh2 = 0.05f,
                           .unbias1 = 2,
                           .unbias2 = 3,
                           .lr = 0.01f,
                           .eps = 1e-8f,
                           .decay = 0.1f};
  for (const Vectors* v : all_vectors())
    for_lengths(*v, [&](int64_t n, int64_t shift) {
      SCOPED_TRACE(std::string(v->isa) + " " + std::to_string(n));
      Row<float> grad = normal<float>(n, 1, shift), master = normal<float>(n, 2, shift), before = master;
      Row<uint16_t> m = normal<uint16_t>(n, 3), s(n, shift), weight(n), m_before = m;
      for (int64_t i = 0; i < n; ++i) s.set(i, 0.1f + float(i));
      Row<uint16_t> s_before = s;
      v->adamw(f, n, grad.data(), m.data(), s.data(), master.data(), weight.data());
      const auto first = [&](int64_t i) { return 0.9 * m_before[i] + 0.1 * 0.5 * grad[i]; };
      const auto second = [&](int64_t i) { return 0.95 * s_before[i] + 0.05 * 0.25 * grad[i] * grad[i]; };
      const auto updated = [&](int64_t i) {
        return before[i] - 0.01 * (first(i) * 2 / (std::sqrt(second(i) * 3) + 1e-8) + 0.1 * before[i]);
      };
      EXPECT_LE(distance(m, n, first), 1e-5);
      EXPECT_LE(distance(s, n, second), 1e-5);
      EXPECT_LE(distance(master, n, updated), 1e-12);
      for (int64_t i = 0; i < n; ++i) EXPECT_EQ(weight.data()[i], bf16(master[i]).bits);
      EXPECT_TRUE(m.fence_intact() && s.fence_intact() && master.fence_intact() && weight.fence_intact());
      Row<float> again = before;
      m = m_before, s = s_before;
      v->adamw(f, n, grad.data(), m.data(), s.data(), again.data(), nullptr);
      for (int64_t i = 0; i < n; ++i) EXPECT_EQ(again[i], master[i]);
    });
}

// A number has the same bits wherever it stands in its row, be it a whole vector or the tail of one.
TEST(CpuVectors, ANumberHasTheSameBitsAtEveryPlace) {
  for (const Vectors* v : all_vectors()) {
    const int64_t n = 3 * v->lanes;
    const float x = 0.3731f, up = -1.711f;
    std::vector<float> gates(size_t(n), x), ups(size_t(n), up), y(static_cast<size_t>(n)), e = y;
    v->exp_shifted(gates.data(), 1, n, e.data());
    for (int64_t length = 1; length <= n; ++length) {
      v->f32.swiglu_forward(gates.data(), ups.data(), length, y.data());
      for (int64_t i = 0; i < length; ++i) EXPECT_EQ(y[size_t(i)], y[0]);
      float one;
      v->f32.swiglu_forward(&x, &up, 1, &one);
      EXPECT_EQ(y[0], one);
      v->exp_shifted(gates.data(), 1, length, y.data());
      for (int64_t i = 0; i < length; ++i) EXPECT_EQ(y[size_t(i)], e[0]);
    }
  }
}

// Operands that lie along k and across it, at every edge of the tile; what is added to is added to.
TEST(CpuVectors, ProductsOfEveryShape) {
  for (const Vectors* v : all_vectors())
    for (const bool along : {true, false})
      for (const int64_t m : {1, 2, 3, 4, 5, 7, 11, 12, 13, 25})
        for (const int64_t n :
             {int64_t(1), v->lanes, v->lanes + 1, 2 * v->lanes, 3 * v->lanes - 1, 5 * v->lanes})
          for (const int64_t k : {1, 2, 9}) {
            const int64_t row = along ? k + 3 : 1, step = along ? 1 : m + 5, ld = n + v->lanes + 1;
            Row<float> left = normal<float>(m * (k + 3) + k * (m + 5), 1),
                       right = normal<float>(k * ld + v->lanes, 2);
            Row<float> c = normal<float>(m * ld + v->lanes, 3), before = c;
            for (const bool add : {false, true}) {
              v->product({.left = left.data(),
                          .row = row,
                          .step = step,
                          .right = right.data(),
                          .ldr = ld,
                          .m = m,
                          .n = n,
                          .k = k,
                          .c = c.data(),
                          .ldc = ld,
                          .add = add});
              double worst = 0;
              for (int64_t i = 0; i < m; ++i)
                for (int64_t j = 0; j < n; ++j) {
                  double sum = add ? before[i * ld + j] : 0;
                  for (int64_t p = 0; p < k; ++p) sum += double(left[i * row + p * step]) * right[p * ld + j];
                  worst = std::max(worst, std::abs(sum - c[i * ld + j]));
                }
              EXPECT_LT(worst, 1e-5) << v->isa << " " << m << " " << n << " " << k << " " << along << add;
              before = c;
            }
          }
}

// Two calls with half of the keys each are one softmax over all keys; columns see different numbers of keys.
TEST(CpuVectors, SoftenedScoresAreASoftmaxOverTheVisibleKeys) {
  for (const Vectors* v : all_vectors())
    for (const int64_t n : {v->lanes, 2 * v->lanes, 3 * v->lanes})
      for (const int64_t keys : {1, 2, 7}) {
        const int64_t ld = n + 5;
        Row<float> first = normal<float>(keys * ld, 1), second = normal<float>(keys * ld, 2), a = first,
                   b = second;
        std::vector<int32_t> visible;
        for (int64_t j = 0; j < n; ++j) visible.push_back(int32_t(j % (keys + 1)));
        std::vector<float> top(size_t(n), -INFINITY), sum(size_t(n), 0), shrink(static_cast<size_t>(n));
        v->soften(a.data(), ld, keys, n, 0.5f, nullptr, top.data(), sum.data(), shrink.data());
        for (const float s : shrink) EXPECT_EQ(s, 0);
        const std::vector<float> top_before = top;
        v->soften(b.data(), ld, keys, n, 0.5f, visible.data(), top.data(), sum.data(), shrink.data());
        for (int64_t j = 0; j < n; ++j) {
          double largest = -INFINITY, total = 0;
          for (int64_t i = 0; i < keys; ++i) largest = std::max<double>(largest, 0.5f * first[i * ld + j]);
          EXPECT_EQ(top_before[size_t(j)], float(largest));
          for (int64_t i = 0; i < visible[size_t(j)]; ++i)
            largest = std::max<double>(largest, 0.5f * second[i * ld + j]);
          EXPECT_EQ(top[size_t(j)], float(largest));
          EXPECT_NEAR(shrink[size_t(j)], std::exp(top_before[size_t(j)] - largest), 1e-6);
          for (int64_t i = 0; i < keys; ++i) total += std::exp(0.5 * first[i * ld + j] - largest);
          for (int64_t i = 0; i < keys; ++i) {
            const double p = i < visible[size_t(j)] ? std::exp(0.5 * second[i * ld + j] - largest) : 0;
            EXPECT_NEAR(b[i * ld + j], p, 1e-6);
            total += p;
          }
          EXPECT_NEAR(sum[size_t(j)], total, 1e-6 * total);
        }
      }
}

TEST(CpuVectors, ColumnsThatSeeNothingStayEmpty) {
  for (const Vectors* v : all_vectors()) {
    const int64_t n = v->lanes;
    Row<float> s = normal<float>(3 * n, 1);
    s.set(0, NAN);  // of a key that nobody sees
    const std::vector<int32_t> visible(size_t(n), 0);
    std::vector<float> top(size_t(n), -INFINITY), sum(size_t(n), 0), shrink(size_t(n), -1);
    v->soften(s.data(), n, 3, n, 0.5f, visible.data(), top.data(), sum.data(), shrink.data());
    for (int64_t i = 0; i < 3 * n; ++i) EXPECT_EQ(s[i], 0);
    for (int64_t j = 0; j < n; ++j) {
      EXPECT_EQ(top[size_t(j)], -INFINITY);
      EXPECT_EQ(sum[size_t(j)], 0);
    }
  }
}

TEST(CpuVectors, TheBackwardOfSoftmaxStopsAtWhatARowSees) {
  for (const Vectors* v : all_vectors())
    for (const int64_t seen : {-2, 0, 1, 5}) {
      const int64_t rows = 4, n = v->lanes + 3, ld = n + 2;
      Row<float> s = normal<float>(rows * ld, 1), ds = normal<float>(rows * ld, 2), scores = s, dp = ds;
      Row<float> lse = normal<float>(rows, 3), d = normal<float>(rows, 4);
      v->soften_backward(s.data(), ds.data(), ld, rows, seen, n, 0.5f, lse.data(), d.data());
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t i = 0; i < ld; ++i) {
          const int64_t at = r * ld + i;
          const double p = i < seen + r ? std::exp(0.5 * scores[at] - lse[r]) : 0;
          if (i >= n) {
            EXPECT_EQ(s[at], scores[at]);  // behind the row
            EXPECT_EQ(ds[at], dp[at]);
          } else {
            EXPECT_NEAR(s[at], p, 1e-5);
            EXPECT_NEAR(ds[at], p * (dp[at] - d[r]), 1e-5);
          }
        }
    }
}

}  // namespace
}  // namespace cachalot
