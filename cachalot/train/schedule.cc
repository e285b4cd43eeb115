#include "train/schedule.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>
#include <numbers>

#include "base/error.h"
#include "base/text.h"
#include "config/fields.h"

namespace cachalot {

namespace {

constexpr int64_t kNever = std::numeric_limits<int64_t>::max();
constexpr double kMostTokens = double(int64_t{1} << 50);

double unit(std::string_view name) {
  for (const auto& [unit, value] : {std::pair("", 1.0), std::pair("K", 1e3), std::pair("M", 1e6),
                                    std::pair("B", 1e9), std::pair("T", 1e12)})
    if (name == unit) return value;
  return 0;
}

}  // namespace

void assign(TrainingPoint& point, const Json& value, const std::string& where) {
  const auto fail = [&]() {
    throw Error(fmt::format("{} is {}", where, value.dump()))
        .hint("give trained tokens, 1000000 or \"469B\", or steps: \"2000 steps\"");
  };
  double number = 0;
  bool steps = false;
  if (value.is_number()) {
    number = value.get<double>();
  } else if (value.is_string()) {
    const std::string& text = value.get_ref<const std::string&>();
    const auto [rest, code] = std::from_chars(text.data(), text.data() + text.size(), number);
    std::string_view name(rest, size_t(text.data() + text.size() - rest));
    while (name.starts_with(' ')) name.remove_prefix(1);
    steps = name == "steps" || name == "step";
    if (name.ends_with("tokens")) name.remove_suffix(6);
    while (name.ends_with(' ')) name.remove_suffix(1);
    if (code != std::errc() || (!steps && unit(name) == 0)) fail();
    if (!steps) number *= unit(name);
  } else {
    fail();
  }
  if (!(number >= 1 && number <= kMostTokens)) fail();
  if (steps && number != std::floor(number)) fail();
  point = {};
  (steps ? point.steps : point.tokens) = std::llround(number);
}

void to_json(Json& json, const TrainingPoint& point) {
  if (point.steps) json = fmt::format("{} steps", point.steps);
  else json = point.tokens;
}

Curve::Curve(double constant) : pieces_{{.end = kNever, .from = constant, .to = constant}} {}

Curve::Curve(const Pieces& pieces, const std::string& key,
             const std::function<int64_t(int64_t steps)>& tokens_after, int64_t end) {
  CHECK(!pieces.empty());
  for (size_t i = 0; i < pieces.size(); ++i) {
    const SchedulePiece& p = pieces[i];
    const std::string where = fmt::format("{}[{}]", key, i);
    const auto fail = [&](const std::string& what, const std::string& hint) {
      throw Error(where + what).hint(hint);
    };
    Piece piece;
    if (p.shape == "constant") piece.shape = Shape::constant;
    else if (p.shape == "linear") piece.shape = Shape::linear;
    else if (p.shape == "cosine") piece.shape = Shape::cosine;
    else if (p.shape == "sqrt") piece.shape = Shape::square_root;
    else fail(fmt::format(".shape is \"{}\"", p.shape), "constant, linear, cosine or sqrt");

    for (const auto& [name, value] : {std::pair("from", p.from), std::pair("to", p.to)})
      if (value && !(std::isfinite(*value) && *value >= 0))
        fail(fmt::format(".{} is {}", name, *value), "it must be 0 or more");
    if (piece.shape == Shape::constant) {
      if (p.from && p.to && *p.from != *p.to)
        fail(fmt::format(" is constant from {} to {}", *p.from, *p.to),
             "give its shape: linear, cosine or sqrt");
      if (!p.to && !p.from && i == 0) fail(" has no value", "the first piece needs \"to\"");
      piece.from = piece.to = p.to ? *p.to : p.from ? *p.from : pieces_.back().to;
    } else {
      if (!p.from && i == 0)
        fail(fmt::format(" is {} from nowhere", p.shape), "the first piece needs \"from\", 0 for one");
      if (!p.to) fail(fmt::format(" is {} to nowhere", p.shape), "give \"to\"");
      piece.from = p.from ? *p.from : pieces_.back().to;
      piece.to = *p.to;
    }

    piece.begin = i == 0 ? 0 : pieces_.back().end;
    if (!p.until) {
      if (i + 1 < pieces.size()) fail(" has no \"until\"", "only the last piece lasts to the end of the run");
      if (piece.shape != Shape::constant && end == 0)
        fail(fmt::format(" is {} to the end of a run whose tokens are not known", p.shape),
             "give its \"until\", or the budget as train.tokens");
      piece.end = piece.shape == Shape::constant ? kNever : end;
    } else if (p.until->steps) {
      if (!tokens_after)
        fail(fmt::format(".until is \"{} steps\"", p.until->steps),
             "the size of a batch goes by tokens: \"10M\"");
      piece.end = tokens_after(p.until->steps);
    } else {
      piece.end = p.until->tokens;
    }
    if (piece.end <= piece.begin)
      fail(
          fmt::format(" ends at {} tokens, and begins at {}", piece.end, piece.begin),
          "pieces follow each other: give each a later \"until\", and let the run be longer than all but the "
          "last");
    pieces_.push_back(piece);
  }
}

double Curve::Piece::at(int64_t tokens) const {
  if (shape == Shape::constant || tokens >= end) return to;
  const double p = double(tokens - begin) / double(end - begin);
  switch (shape) {
    case Shape::linear: return from + (to - from) * p;
    case Shape::cosine: return to + (from - to) * 0.5 * (1 + std::cos(std::numbers::pi * p));
    case Shape::square_root: return from + (to - from) * std::sqrt(p);
    case Shape::constant: break;
  }
  CHECK(false);
}

double Curve::at(int64_t tokens) const {
  const auto after =
      std::find_if(pieces_.begin(), pieces_.end(), [&](const Piece& p) { return tokens <= p.end; });
  return after == pieces_.end() ? pieces_.back().to : after->at(tokens);
}

double Curve::from(int64_t tokens) const {
  const auto after =
      std::find_if(pieces_.begin(), pieces_.end(), [&](const Piece& p) { return tokens < p.end; });
  return after == pieces_.end() ? pieces_.back().to : after->at(tokens);
}

int64_t Curve::constant_until(int64_t tokens) const {
  const auto after =
      std::find_if(pieces_.begin(), pieces_.end(), [&](const Piece& p) { return tokens < p.end; });
  if (after == pieces_.end()) return kNever;
  return after->shape == Shape::constant ? after->end : tokens + 1;
}

}  // namespace cachalot
