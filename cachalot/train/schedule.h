// Quantities that change while a model is trained, as data: a curve is a list of pieces over the trained
// tokens. DeepSeek-V3's learning rate (report section 4.2), as a configuration has it:
//   "lr": [{"until": "2000 steps", "shape": "linear", "from": 0, "to": 2.2e-4},
//          {"until": "10T"},
//          {"until": "14.3T", "shape": "cosine", "to": 2.2e-5},
//          {"until": "14.633T"},
//          {"to": 7.3e-6}]
// A piece goes from where the one before ended, or from "from", to "to"; a constant one is "to" all along, or
// what the one before ended with. With p the share of the piece that is done,
//   constant  to
//   linear    from + (to - from) p
//   cosine    to + (from - to) (1 + cos(pi p)) / 2         Loshchilov & Hutter, arXiv:1608.03983
//   sqrt      from + (to - from) sqrt(p)                   Haegele et al., arXiv:2405.18392
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "base/json.h"

namespace cachalot {

// A place in a run, by trained tokens or by steps: 469000000000, "469B", "14.3T", "2000 steps".
struct TrainingPoint {
  int64_t tokens = 0, steps = 0;  // one of the two
};
void assign(TrainingPoint& point, const Json& value, const std::string& where);
void to_json(Json& json, const TrainingPoint& point);

struct SchedulePiece {
  std::optional<TrainingPoint> until;  // absent: the end of the run
  std::string shape = "constant";
  std::optional<double> from, to;
  template <class V> void visit(V& v) {
    v("until", until, "trained tokens (1000, \"469B\") or \"2000 steps\"; absent: the end of the run");
    v("shape", shape, "constant, linear, cosine or sqrt");
    v("from", from, "absent: where the piece before ended");
    v("to", to, "where the piece ends");
  }
};
using Pieces = std::vector<SchedulePiece>;

class Curve {
 public:
  explicit Curve(double constant);
  // `key` names the list in messages ("train.schedule.lr"). `tokens_after`: the tokens of the first so many
  // steps; none: the curve is what decides that, and points in steps are refused. `end`: tokens of the run;
  // 0: not known. Error: a shape that is not known, pieces that do not follow each other, a value that is
  // missing, negative or no number.
  Curve(const Pieces& pieces, const std::string& key,
        const std::function<int64_t(int64_t steps)>& tokens_after, int64_t end);

  // The value at a place in the run that ends a step: a piece reaches up to its end and holds it.
  double at(int64_t tokens) const;
  // The value at a place that begins a step: a piece holds its beginning and reaches below its end.
  double from(int64_t tokens) const;
  // The first place after `tokens` where it may have another value than from(tokens); the largest number:
  // none.
  int64_t constant_until(int64_t tokens) const;

 private:
  enum class Shape : uint8_t { constant, linear, cosine, square_root };
  struct Piece {
    int64_t begin = 0, end = 0;
    Shape shape = Shape::constant;
    double from = 0, to = 0;
    double at(int64_t tokens) const;
  };
  std::vector<Piece> pieces_;
};

}  // namespace cachalot
