// A device that times every operation it passes on to another one: what a step is made of. Each operation
// runs alone (the stream is empty before and after), so the sum of the parts is an upper bound of the step.
//
//   Profile profile;
//   auto device = open_profile_device(*inner, profile);   // both must outlive it
//   ... a step on `device` ...
//   for (const ProfileLine& line : profile.lines()) ...
#pragma once

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "backend/backend.h"
#include "backend/ops/cost.h"

namespace cachalot {

struct ProfileLine {
  std::string op;
  Cost cost;  // of all calls together; cost.shape: that of one
  int64_t calls = 0;
  double seconds = 0;
};

class Profile {
 public:
  void add(const char* op, const Cost& cost, double seconds);
  void clear() { lines_.clear(); }
  std::vector<ProfileLine> lines() const;   // by operation and shape, the slowest first
  std::vector<ProfileLine> by_op() const;   // shapes of one operation together, the slowest first
  ProfileLine total(CostKind kind) const;   // op "", all operations of this kind
  double seconds() const;

 private:
  std::map<std::pair<std::string, std::string>, ProfileLine> lines_;
};

std::unique_ptr<Device> open_profile_device(Device& inner, Profile& profile);

}  // namespace cachalot
