// Mixtures: how much of the training comes from which part of the data. The plan is data, computed once by a
// pure function; the order of the parts is another pure function, of the place in the run.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace cachalot {

// One part and what the user wants of it. Give either a weight or epochs; 0 of both leaves it out.
struct MixturePart {
  std::string name;
  int64_t rows = 0;   // training rows of one pass
  double weight = 0;  // its share, against the weights of the others, of what parts with epochs leave
  double epochs = 0;  // passes in the whole run
};

struct MixtureLimits {
  int64_t rows = 0;        // of the run: the budget
  int64_t row_tokens = 1;  // T: for messages, which count tokens
  double max_epochs = 0;   // no part may be passed more often; 0: any number
};

struct MixturePlan {
  struct Part {
    std::string name;
    double share = 0;   // of the run's rows
    double rows = 0;    // of the run
    double epochs = 0;  // passes over the part
  };
  std::vector<Part> parts;
  std::vector<double> shares() const;
};

// Nobody gives a weight or epochs: every part as large as it is. Error, with the numbers: a weight that is
// none, parts with epochs that are more than the budget or, without weights, less than 99 % of it, a part
// that would be passed more than max_epochs times.
MixturePlan plan_mixture(std::vector<MixturePart> parts, const MixtureLimits& limits);

// The order: row n of the run is row `row` of part `part`. Parts alternate as evenly as their shares allow:
// among the first n rows a part has n times its share, to within the depth of the tree below.
//
// A binary tree over the parts, each node with the share f of its left half (a multiple of 2^-32): of n rows
// that come through a node, floor(n f) went left. Row n goes left if that number grows with it. So a part's
// own count needs no table and no state: any rank, any resumed run finds its place in O(log parts).
class Mixture {
 public:
  explicit Mixture(const std::vector<double>& shares);  // 0 or more, one above
  struct Place {
    int64_t part = 0, row = 0;
  };
  Place place(int64_t n) const;
  std::vector<int64_t> counts(int64_t n) const;  // rows of each part among the first n

 private:
  uint64_t fraction(size_t low, size_t high) const;  // of [low, high) that its left half gets, times 2^32
  std::vector<double> before_;                       // sums of shares
};

}  // namespace cachalot
