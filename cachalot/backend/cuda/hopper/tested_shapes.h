// The shapes that products_test.cc compares with the CPU. Between them every kernel of fp8_tiles.h is taken on a
// card of 132 multiprocessors (fp8_tiles_test.cc proves that), most with edges that end inside a tile.
#pragma once

#include <cstdint>
#include <vector>

namespace cachalot::cuda::hopper {

struct TestedShape {
  int64_t m, n, k;
};

inline constexpr TestedShape kTestedDense[] = {
    {1, 2112, 7168},
    {61, 144, 2064},
    {64, 4096, 512},
    {65, 272, 1040},
    {128, 512, 7168},
    {129, 2112, 400},
    {333, 592, 1040},
    {1000, 256, 128},
    {2100, 272, 144},
    // The tiles for many rows.
    {2001, 3088, 144},
    {3001, 2064, 144},
    {3801, 1040, 656},
    {333, 5648, 400},
    // What is left: wide or long products of few rows, K cut in two or four.
    {200, 1072, 656},
    {388, 1168, 11408},
    {388, 592, 5520},
    {388, 1040, 1168},
    {388, 4240, 144},
    {1, 16944, 144},
    {310, 1424, 3472},
};

inline constexpr TestedShape kTestedAdd[] = {
    {1, 144, 400}, {61, 512, 7168}, {129, 2112, 1040}, {333, 592, 128}, {2001, 3088, 144}};

// One matrix's gradient [m, n], from k rows: few tiles with a long sum are cut among the blocks of a cluster.
inline constexpr TestedShape kTestedGradient[] = {{272, 336, 8192},    {1024, 384, 4112}, {512, 1040, 6000},
                                                  {1040, 1024, 16384}, {1040, 1808, 144}, {144, 336, 3472}};

// Experts: offsets of their rows, or of their columns of the operands of a gradient [experts m, n].
struct TestedExperts {
  std::vector<int32_t> offsets;
  int64_t n, k;
  int64_t experts() const { return int64_t(offsets.size()) - 1; }
  int64_t rows() const { return offsets.back(); }
};
inline const std::vector<TestedExperts> kTestedExperts = {{{0, 77, 77, 78, 400, 411}, 272, 400},
                                                          {{0, 3000, 6100, 6100, 12003, 15005}, 272, 144},
                                                          {{0, 400, 401, 999, 1300, 1665}, 5648, 144},
                                                          {{0, 2001, 5000}, 272, 4112}};
// Experts with room for max_rows rows each, of which the first counts[e] are there. `expected` rows of an
// expert choose the tile, so that large ones meet small counts.
struct TestedRoom {
  std::vector<int32_t> counts;
  int64_t max_rows, n, k, expected;
  int64_t experts() const { return int64_t(counts.size()); }
};
inline const std::vector<TestedRoom> kTestedRooms = {{{77, 0, 1, 128, 129}, 132, 240, 144, 16000},
                                                     {{131, 64}, 131, 496, 272, 16000},
                                                     {{0, 65, 260}, 261, 528, 272, 16000},
                                                     {{1, 0, 257, 130, 63}, 259, 528, 144, 16000},
                                                     {{5, 133}, 200, 272, 400, 2000},
                                                     {{0, 0, 129}, 129, 144, 272, 3000},
                                                     {{3, 64, 0, 65, 1, 17, 0, 0, 63}, 65, 144, 1040, 20},
                                                     {{0, 0}, 7, 144, 144, 0}};
struct TestedGradients {
  std::vector<int32_t> offsets;
  int64_t m, n;
  int64_t experts() const { return int64_t(offsets.size()) - 1; }
};
inline const std::vector<TestedGradients> kTestedGradients = {{{0, 128, 384}, 2512, 528},
                                                              {{0, 128, 384}, 3008, 272},
                                                              {{0, 128, 128, 640}, 272, 336},
                                                              {{0, 896, 2048}, 272, 336}};

}  // namespace cachalot::cuda::hopper
