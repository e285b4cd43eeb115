// The arithmetic that is worth an instruction set, built from one source (kernels.inc) once for each
// (kernels_sse2.cc, _avx2.cc, ...) and chosen when the device opens. Everything else of this folder is built
// for the oldest machine.
//
// Files built with -mavx512f see this header: it may instantiate no function that other files share.
#pragma once

#include <cstdint>

namespace cachalot::cpu {

enum class Format : uint8_t { f32, bf16, e4m3 };
__attribute__((always_inline)) constexpr int64_t bytes_of(Format f) {
  return f == Format::f32 ? 4 : f == Format::bf16 ? 2 : 1;
}

// One operand in memory, [count, k]: `along`, `count` rows of k numbers; `across`, k rows of `count` numbers.
enum class Lie : uint8_t { along, across };
struct Source {
  const void* data = nullptr;
  int64_t ld = 0;  // numbers between rows
  Lie lie = Lie::along;
};

// Where the sums of one cut of K go: c[i][j] = or += sum(i, j) scale[j].
struct Sums {
  float* c = nullptr;
  int64_t ldc = 0;
  const float* scale = nullptr;  // of every column; nullptr: 1
  bool add = false;
};

constexpr int64_t kFewRun = 1024;

// One cut of a product of few rows with weights that stay where they are.
struct FewRows {
  const void* x = nullptr;  // words of the rows: [words][rows rounded up to Arithmetic::few_multiple]
  int64_t rows = 0, cols = 0, k = 0;
  Format format = Format::f32;  // of the weights [cols, k]
  Source weights{};
  // What will be read next and after that: rows of kFewRun bytes, ahead_ld apart, as many bytes in all as
  // this cut has. They are called into the cache line by line while this cut is multiplied: first `soon`,
  // which was `later` one block before. (Zen 4 drops a prefetch that finds no free place: a line asked for
  // twice, at different times, is seldom dropped twice.) nullptr: nothing that is known.
  const void *soon = nullptr, *later = nullptr;
  int64_t ahead_ld = 0;  // bytes between those rows: kFewRun makes one long run of them
  Sums sums{};           // c [rows, ldc >= cols rounded up to few_cols]
};

// One way to multiply: floats by multiply-add, or pairs of bf16 by a dot instruction. Operands are packed
// into panels of 32-bit words, a word holding one float or two bf16 that follow each other along k. A panel
// of width w holds, word by word along k, w words: [words][w] (the left panels of AMX are cut into tiles of
// their own). What is missing is zero. K is cut every `depth` numbers; inside a cut one chain in the order of
// k, or of the tiles of k; a number of c is the same whatever m, n and the other numbers are.
struct Arithmetic {
  Format number = Format::f32;        // what is packed; other formats are converted on the way
  int64_t mr = 0, nr = 0;             // widths of left and right panels
  int64_t word_multiple = 1;          // words of a cut are padded to a multiple
  int64_t depth = 0;                  // numbers of k between cuts
  int64_t tile_rows = 0;              // of C that one thread works on: a multiple of mr that its L2 holds
  int64_t few = 0, few_multiple = 1;  // rows that multiply_few takes, and what they are padded to
  int64_t few_along = 0;              // columns at a time that make long sequential reads, by how
  int64_t few_across = 0;             // weights lie; 0: multiply_few does not take them

  __attribute__((always_inline)) int64_t words(int64_t k) const {
    const int64_t n = number == Format::f32 ? k : (k + 1) / 2;
    return (n + word_multiple - 1) / word_multiple * word_multiple;
  }

  // n numbers of another format as `number`, exactly; e4m3 without a scale.
  void (*convert)(Format from, const void* in, int64_t n, void* out) = nullptr;
  // Panels [ceil(count / width)][words(k)][width] of numbers of format `number`.
  void (*pack_left)(const Source&, int64_t count, int64_t k, void* out) = nullptr;
  void (*pack_right)(const Source&, int64_t count, int64_t k, void* out) = nullptr;
  void (*pack_few)(const Source&, int64_t count, int64_t k, void* out) = nullptr;
  // c [m rounded up to mr, n rounded up to nr] from panels of `words` words: one cut.
  void (*multiply)(const void* left, const void* right, int64_t m, int64_t n, int64_t words,
                   const Sums&) = nullptr;
  void (*multiply_few)(const FewRows&) = nullptr;
  // A loop that does nothing but multiply and add in registers; returns its FLOPs.
  double (*spin)(int64_t rounds) = nullptr;
};

struct Kernels {
  const char* isa = "";
  const Arithmetic* floats = nullptr;  // takes every format
  const Arithmetic* halves = nullptr;  // bf16 with bf16 or e4m3; nullptr: floats does it as fast

  int64_t mr = 0, nr = 0;  // of floats

  // Panels of width w from rows that lie along p: out[panel][p][i] = rows[(panel w + i) ld + p], p < k, i <
  // count in all.
  void (*pack_along)(const float* rows, int64_t ld, int64_t count, int64_t k, int64_t w,
                     float* out) = nullptr;
  // Panels from rows that lie across: out[panel][p][i] = rows[p ld + panel w + i].
  void (*pack_across)(const float* rows, int64_t ld, int64_t count, int64_t k, int64_t w,
                      float* out) = nullptr;

  // Reads memory and does next to nothing with it: the exclusive or of all words. bytes: a multiple of 512.
  uint32_t (*read)(const void* data, int64_t bytes) = nullptr;
};

extern const Kernels kernels_sse2;  // whatever every machine has; on other processors than x86 the only one
extern const Kernels kernels_avx2, kernels_avx512, kernels_avx512_bf16, kernels_amx;
// AMX with tiles in plain memory: proves the packing and the loops of AMX where there is none. Never chosen
// unless asked for.
extern const Kernels kernels_amx_emulated;

// The best of this machine, or what CACHALOT_ISA asks for; an unknown one, or one that this machine lacks,
// throws Error.
const Kernels& choose_kernels();

// One line a set of kernels, best first: its name, whether it may run here, and why it is chosen or not.
struct KernelChoice {
  const Kernels* kernels = nullptr;  // nullptr: not built for this processor
  const char* isa = "";
  bool runs = false;    // with CACHALOT_ISA, if not by itself
  bool chosen = false;  // by itself, without CACHALOT_ISA
  const char* why = "";
};
constexpr int kKernelChoices = 6;
const KernelChoice* kernel_choices();  // [kKernelChoices]

}  // namespace cachalot::cpu
